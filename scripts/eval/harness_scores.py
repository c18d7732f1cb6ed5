"""Scores a model with lm-evaluation-harness 0.4.13 on local rows, for harness-scores.mjs.

usage: python3 harness_scores.py MODEL DATA OUT.json SHOTS LIMIT BATCH TASK...

MODEL is a Hugging Face folder; it computes in f32. DATA is laid out as for harness_requests.py. SHOTS
may be "own" for each task's own number of examples, LIMIT 0 takes all rows. TASK may be mmlu, for all
of its subjects and groups. OUT has the layout of the harness's results, with all samples.
"""

import json
import os
import sys

import harness_requests as harness  # also replaces modules that are not installed
import torch
from lm_eval.api.group import AggMetricConfig, Group
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

areas = ["stem", "other", "social_sciences", "humanities"]


def subjects_of_mmlu():
    """Names of the tasks of each area, in the order of their files."""
    folder = os.path.join(harness.base, "mmlu", "default")
    found = {area: [] for area in areas}
    for file in sorted(os.listdir(folder)):
        if not file.startswith("mmlu_") or not file.endswith(".yaml"):
            continue
        area = load_yaml(os.path.join(folder, file)).get("tag", "")
        for name in areas:
            if area in (f"mmlu_{name}_tasks", f"mmlu_{name}"):
                found[name].append(file[: -len(".yaml")])
    return found


def weighted(name):
    return Group(name, aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)])


def scores_of(model, data, shots, limit, batch, names):
    tasks, groups = {}, {}

    def add(name):
        # The harness leaves the five examples of MMLU's paper to its caller.
        own = 5 if name.startswith("mmlu_") else None
        tasks[name], _, _ = harness.task_of(data, name, own if shots is None else shots, limit)
        # The requests are made again, and the examples must be drawn from the first one on.
        tasks[name].set_fewshot_seed(seed=1234)
        if tasks[name].config.num_fewshot is None:
            tasks[name].set_config("num_fewshot", 0)
        return tasks[name]

    for name in names:
        if name != "mmlu":
            add(name)
            continue
        groups["mmlu"] = weighted("mmlu")
        for area, subjects in subjects_of_mmlu().items():
            groups[f"mmlu_{area}"] = weighted(f"mmlu_{area}")
            groups["mmlu"].add(groups[f"mmlu_{area}"])
            for subject in subjects:
                groups[f"mmlu_{area}"].add(add(subject))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = HFLM(pretrained=model, dtype="float32", batch_size=batch, device=device)
    return evaluate(lm, {"tasks": tasks, "groups": groups}, limit=limit or None, log_samples=True)


if __name__ == "__main__":
    model, data, out, shots, limit, batch, *names = sys.argv[1:]
    torch.manual_seed(0)
    # Every resample of a perplexity's standard error counts, so one process draws them all.
    os.environ["DISABLE_MULTIPROC"] = "1"
    count = None if shots == "own" else int(shots)
    result = scores_of(model, data, count, int(limit), int(batch), names)
    result["asked"] = {"tasks": names, "shots": count, "limit": int(limit)}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(result, file, default=str)
