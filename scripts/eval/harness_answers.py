"""Lets lm-evaluation-harness 0.4.13 answer the questions of generative tasks, for harness-answers.mjs.

usage: python3 harness_answers.py MODEL DATA OUT.jsonl SHOTS LIMIT BATCH TASK...

MODEL is a Hugging Face folder; it computes in f32 on the CPU. DATA is laid out as for
harness_requests.py. SHOTS may be "own" for each task's own number of examples. OUT has one line for
each task: {"task", "shots", "rows": [{"prompt", "text", "filtered", "values"}, ...]}. HumanEval's
programs are not run; its values are empty.
"""

import json
import sys

import harness_requests as harness  # also replaces modules that are not installed
import torch
from lm_eval.models.huggingface import HFLM


def answers_of(lm, data, name, shots, limit):
    task, _, _ = harness.task_of(data, name, shots, limit)
    texts = lm.generate_until(task.instances, disable_tqdm=True)
    for instance, text in zip(task.instances, texts, strict=True):
        instance.resps.append(text)
    prompts = {instance.doc_id: instance.args[0] for instance in task.instances}
    plain = {instance.doc_id: text for instance, text in zip(task.instances, texts, strict=True)}
    task.apply_filters()
    rows = [{"prompt": prompts[i], "text": plain[i], "filtered": {}, "values": {}} for i in sorted(plain)]
    for instance in sorted(task.instances, key=lambda instance: instance.doc_id):
        row = rows[instance.doc_id]
        for key, reply in instance.filtered_resps.items():
            row["filtered"][key] = reply[0] if isinstance(reply, list) else reply
            if name.startswith("humaneval"):
                continue
            values = task.process_results(instance.doc, [reply])
            row["values"][key] = {metric: float(value) for metric, value in values.items()}
    return {"task": name, "shots": task.config.num_fewshot or 0, "rows": rows}


if __name__ == "__main__":
    model, data, out, shots, limit, batch, *names = sys.argv[1:]
    torch.manual_seed(0)
    lm = HFLM(pretrained=model, dtype="float32", batch_size=int(batch), device="cpu")
    with open(out, "w", encoding="utf-8") as file:
        for name in names:
            count = None if shots == "own" else int(shots)
            file.write(json.dumps(answers_of(lm, data, name, count, int(limit))) + "\n")
            file.flush()
