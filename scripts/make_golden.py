"""Makes a reference case for `npm run golden` with Hugging Face transformers and PyTorch, in float32 on the CPU.

    python3 scripts/make_golden.py OUT_DIR        (pip install torch transformers)

The script made the case in test/golden/tied, which has a tied head, rope_theta 500000 and ignored
labels. Larger cases differ only in the configuration. Labels are not shifted further: loss = mean
cross-entropy of logits[b, t] against labels[b, t].
"""
import json, math, pathlib, sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(7)
torch.set_num_threads(1)
shape = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
             rope_theta=500000.0, bos_token_id=1, eos_token_id=2)
config = LlamaConfig(**shape, attn_implementation="eager")


def fresh():
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(start)
    return model


model = LlamaForCausalLM(config).float()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
start = {name: value.clone() for name, value in model.state_dict().items()}
weights = lambda model: {name: value.detach().clone().contiguous() for name, value in model.named_parameters()}
save_file(weights(model), out / "model.safetensors", metadata={"format": "pt"})
(out / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "torch_dtype": "float32", **shape}, indent=2) + "\n")

B, T = 2, 13
ids = torch.randint(0, 96, (B, T))
labels = torch.randint(0, 96, (B, T))
labels[0, 3] = labels[1, 0] = -100
logits = model(ids).logits
loss = F.cross_entropy(logits.view(-1, 96), labels.view(-1))
loss.backward()
save_file({"input_ids": ids, "labels": labels, "logits": logits.detach().contiguous(), "loss": loss.detach()[None]},
          out / "io.safetensors")
save_file({name: p.grad.contiguous() for name, p in model.named_parameters()}, out / "grads.safetensors")

prompt = torch.randint(0, 96, (5,)).tolist()
text = list(prompt)
with torch.no_grad():
    for _ in range(16):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
(out / "generate.json").write_text(json.dumps({"prompt": prompt, "greedy": text[len(prompt):]}) + "\n")

steps, peak, low, warmup = 8, 3e-3, 3e-4, 2
tokens = torch.randint(0, 96, (steps, B, T + 1))
model = fresh()
matrices = [p for p in model.parameters() if p.dim() > 1]
vectors = [p for p in model.parameters() if p.dim() == 1]
optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                              lr=0.0, betas=(0.9, 0.95), eps=1e-8)
records = []
for step in range(steps):
    lr = peak * step / warmup if step < warmup else low + 0.5 * (
        1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * (peak - low)
    for group in optimizer.param_groups:
        group["lr"] = lr
    x, y = tokens[step, :, :-1], tokens[step, :, 1:]
    loss = F.cross_entropy(model(x).logits.reshape(-1, 96), y.reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    records.append({"step": step, "lr": lr, "loss": loss.item(), "grad_norm": norm.item()})
save_file({"tokens": tokens}, out / "train.safetensors")
save_file(weights(model), out / "after.safetensors")
(out / "train.json").write_text(json.dumps({
    "schedule": {"peak": peak, "min": low, "warmup": warmup, "total": steps},
    "adamw": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "decay": "matrices"},
    "clip": 1.0, "steps": records}, indent=1) + "\n")
