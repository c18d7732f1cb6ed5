"""PyTorch's half of the comparison (README.md).

    python3 bench/parity/peer.py FOLDER        (filled by ours.mjs)

The model is transformers' Llama in bf16 with SDPA attention; its loss is over f32 logits. The
gradients of each micro-batch are added in f32 to the gradients of f32 master weights.
clip_grad_norm_ and fused AdamW work on the master weights, which are then rounded into the model.
"""

import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

folder = sys.argv[1]
with open(os.path.join(folder, "run.json")) as file:
    run = json.load(file)
torch.manual_seed(0)
initial = os.path.join(folder, "initial")
model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.bfloat16, attn_implementation="sdpa").cuda()
model.train()
stored = load_file(os.path.join(initial, "model.safetensors"))
names, weights = zip(*model.named_parameters())
assert set(names) == set(stored), set(names) ^ set(stored)
masters = [torch.nn.Parameter(stored[name].float().cuda()) for name in names]
for master in masters:
    master.grad = torch.zeros_like(master)
optimizer = torch.optim.AdamW(masters, lr=0, betas=(run["beta1"], run["beta2"]), eps=run["eps"], weight_decay=run["weightDecay"],
                              fused=True)


def rate(step):
    peak, low, warmup, steps = run["peakLr"], run["minLr"], run["warmupSteps"], run["decaySteps"]
    if step < warmup:
        return peak * step / warmup
    return low + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * (peak - low)


length = run["sequenceLength"] + 1
shape = (run["steps"], run["accumulation"], run["microBatch"], length)
tokens = np.fromfile(os.path.join(folder, "tokens.bin"), dtype="<u2").reshape(shape)
losses, norms = [], []
start = time.time()
for step in range(run["steps"]):
    total = torch.zeros((), device="cuda")
    for micro in tokens[step]:
        ids = torch.from_numpy(micro.astype(np.int64)).cuda()
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().view(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        (loss / run["accumulation"]).backward()
        with torch.no_grad():
            for master, weight in zip(masters, weights):
                master.grad.add_(weight.grad)
                weight.grad = None
        total += loss.detach() / run["accumulation"]
    norm = torch.nn.utils.clip_grad_norm_(masters, run["clip"])
    for group in optimizer.param_groups:
        group["lr"] = rate(step)
    optimizer.step()
    with torch.no_grad():
        for master, weight in zip(masters, weights):
            master.grad.zero_()
            weight.copy_(master)
    losses.append(total)
    norms.append(norm)
losses, norms = [x.item() for x in losses], [x.item() for x in norms]
result = {"losses": losses, "gradNorms": norms, "seconds": time.time() - start,
          "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": torch.cuda.get_device_name()}}
with open(os.path.join(folder, "peer.json"), "w") as file:
    json.dump(result, file)
print(f"PyTorch: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {result['seconds']:.1f} s")
