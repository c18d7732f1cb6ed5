"""Writes the requests that lm-evaluation-harness 0.4.13 makes of local rows, for harness-requests.mjs.

usage: python3 harness_requests.py DATA OUT.jsonl SHOTS LIMIT TASK...

DATA has NAME/SPLIT.jsonl or NAME/SPLIT.jsonl.gz for each task NAME; the tasks of MMLU share the
folder mmlu, and the rows of BBH's tasks lie in bbh/TASK. LIMIT 0 takes all rows. Nothing is read from the network.
OUT has one line for each task: {"task", "yaml", "folder", "shots", "requests": [[row, argument, ...], ...]}.
"""

import gzip
import importlib
import json
import os
import sys
import types


class Anything:
    """Stands for the metrics of modules that are not installed. Requests do not need them."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def anything(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything


optional = ["evaluate", "jsonlines", "pytablewriter", "rouge_score", "rouge_score.rouge_scorer",
            "rouge_score.scoring", "sqlitedict", "tqdm_multiprocess", "word2number"]  # fmt: skip
for name in optional:
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__getattr__ = anything
        module.__path__ = []
        sys.modules[name] = module
        if "." in name:
            parent, child = name.split(".")
            setattr(sys.modules[parent], child, module)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets  # noqa: E402
import lm_eval  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402

base = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
yaml_of = {
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge",
    "winogrande": "winogrande/default",
    "boolq": "super_glue/boolq/default",
    "lambada_openai": "lambada/lambada_openai",
    "drop": "drop/default",
}


def rows_of(data, folder, split, task):
    for ending, opened in ((".jsonl", open), (".jsonl.gz", gzip.open)):
        path = os.path.join(data, folder, split + ending)
        if os.path.exists(path):
            with opened(path, "rt", encoding="utf-8", newline="\n") as lines:
                rows = [json.loads(line) for line in lines if line.strip()]
            if folder == "mmlu":
                rows = [row for row in rows if "mmlu_" + row["subject"] == task]
            return datasets.Dataset.from_list(rows)
    return None


def places_of(name):
    """YAML file and folder of a task."""
    if name.startswith("mmlu_"):
        return f"mmlu/default/{name}", "mmlu"
    for kind in ("cot_fewshot", "fewshot"):
        if name.startswith(f"bbh_{kind}_"):
            task = name[len(f"bbh_{kind}_") :]
            return f"bbh/{kind}/{task}", f"bbh/{task}"
    return yaml_of.get(name, f"{name}/{name}"), name


def task_of(data, name, shots, limit):
    """The task with its requests, its YAML file and its folder. Without shots: the task's own number."""
    place, folder = places_of(name)
    path = os.path.join(base, place)
    config = load_yaml(path + ".yaml")
    config.pop("group", None)
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    splits = {config[key] for key in names if config.get(key)}
    found = {split: rows_of(data, folder, split, name) for split in splits}
    found = {split: rows for split, rows in found.items() if rows is not None}
    if config.get("training_split") not in found:
        # Without examples, only the rows that are asked are needed.
        assert not shots or not config.get("training_split"), f"{name} has no rows to choose from"
        config["training_split"] = None
    if config.get("validation_split") not in found:
        config["validation_split"] = None
    config["custom_dataset"] = lambda **kwargs: datasets.DatasetDict(found)
    task = ConfigurableTask(config=config)
    if shots is not None:
        task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=limit or None)
    return task, path + ".yaml", folder


def requests_of(data, name, shots, limit):
    task, path, folder = task_of(data, name, shots, limit)
    requests = [[instance.doc_id, *instance.args] for instance in task.instances]
    return {"task": name, "yaml": path, "folder": folder, "shots": shots, "requests": requests}


if __name__ == "__main__":
    data, out, shots, limit, *names = sys.argv[1:]
    with open(out, "w", encoding="utf-8") as file:
        for name in names:
            file.write(json.dumps(requests_of(data, name, int(shots), int(limit))) + "\n")
