"""Measures lm-evaluation-harness 0.4.13 (`--model hf`) on the model and the rows of run.mjs.

usage: python3 peer.py MODEL ROWS OUT.json DTYPE BATCH LIMIT TASK...

DTYPE is bfloat16 or float32. BATCH is the harness's batch size, a number or auto. LIMIT 0 takes all
rows. The time of each task is that of its requests; reading rows and writing prompts is not in it.
"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts", "eval"))

import harness_requests as harness  # noqa: E402
import torch  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

model, data, out, dtype, batch, limit, *names = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
lm = HFLM(
    pretrained=model,
    dtype=dtype,
    device=device,
    batch_size=batch if batch == "auto" else int(batch),
)
rows = []
for name in names:
    task, _, _ = harness.task_of(data, name, None, int(limit))
    lm.loglikelihood(task.instances[:8], disable_tqdm=True)
    start = time.perf_counter()
    lm.loglikelihood(task.instances, disable_tqdm=True)
    seconds = time.perf_counter() - start
    requests = len(task.instances)
    rows.append({"task": name, "requests": requests, "seconds": seconds, "requestsPerSecond": requests / seconds})
    print(f"{name:16} {requests:9} {seconds:9.2f} {requests / seconds:9.0f}", flush=True)
requests, seconds = sum(row["requests"] for row in rows), sum(row["seconds"] for row in rows)
print(f"{'all':16} {requests:9} {seconds:9.2f} {requests / seconds:9.0f}")
name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
with open(out, "w", encoding="utf-8") as file:
    json.dump({"program": "lm-evaluation-harness 0.4.13", "device": name, "dtype": dtype, "batch": batch,
               "torch": torch.__version__, "rows": rows}, file, indent=2)  # fmt: skip
