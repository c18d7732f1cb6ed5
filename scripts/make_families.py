"""Makes reference cases of Llama's relatives for `npm run golden`, with Hugging Face transformers and
PyTorch in float32 on the CPU. Weights and biases are random, norms near 1. Weights after training are left
out: where the gradient of a bias is near 0, Adam turns its rounding into steps of full size.

    python3 scripts/make_families.py OUT_DIR [CASE...]        (pip install torch transformers)
"""
import copy, json, math, pathlib, sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2,
             pad_token_id=None, attn_implementation="eager")
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=24, rope_theta=10000.0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=500000.0)
CASES = {
    "llama-linear": dict(model_type="llama", rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
    "llama-yarn": dict(model_type="llama", head_dim=16, rope_parameters=YARN),
    "llama-yarn-mscale": dict(model_type="llama", rope_parameters=dict(
        YARN, mscale=0.707, mscale_all_dim=1.2, beta_fast=16.0, beta_slow=2.0, truncate=False)),
    "llama-yarn-factor": dict(model_type="llama", tie_word_embeddings=True,
                              rope_parameters=dict(YARN, attention_factor=1.25)),
    "llama-bias-llama3": dict(model_type="llama", attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
    "mistral-full": dict(model_type="mistral", sliding_window=None, head_dim=16),
    "qwen2-windows": dict(model_type="qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen2-types": dict(model_type="qwen2", use_sliding_window=True, sliding_window=7, tie_word_embeddings=True,
                        layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "qwen3-bias-yarn": dict(model_type="qwen3", head_dim=16, attention_bias=True, rope_parameters=YARN,
                            use_sliding_window=True, sliding_window=11, max_window_layers=2),
    "smollm3": dict(model_type="smollm3", no_rope_layers=[1, 0, 1], tie_word_embeddings=True),
    # Without positions, a bias of k moves all scores of a query alike: its gradient is rounding alone.
    "smollm3-bias": dict(model_type="smollm3", no_rope_layers=[1, 1, 1], attention_bias=True, mlp_bias=True),
    "smollm3-windows": dict(model_type="smollm3", no_rope_layers=[1, 0, 0], mlp_bias=True,
                            use_sliding_window=True, sliding_window=10, tie_word_embeddings=False),
}


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.2)


def make(out, settings, T=41, B=2, steps=4):
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    settings = {**SIZES, **copy.deepcopy(settings)}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    randomise(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(out)
    vocabulary = config.vocab_size
    ids = torch.randint(0, vocabulary, (B, T))
    labels = torch.randint(0, vocabulary, (B, T))
    labels[0, 3] = labels[1, 0] = -100
    logits = model(ids).logits
    loss = F.cross_entropy(logits.view(-1, vocabulary), labels.view(-1))
    loss.backward()
    save_file({"input_ids": ids, "labels": labels, "logits": logits.detach().contiguous(),
               "loss": loss.detach()[None]}, out / "io.safetensors")
    save_file({name: p.grad.contiguous() for name, p in model.named_parameters()}, out / "grads.safetensors")
    prompt = torch.randint(0, vocabulary, (15,)).tolist()
    text = list(prompt)
    with torch.no_grad():
        for _ in range(24):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    (out / "generate.json").write_text(json.dumps({"prompt": prompt, "greedy": text[len(prompt):]}) + "\n")

    peak, low, warmup = 3e-3, 3e-4, 2
    tokens = torch.randint(0, vocabulary, (steps, B, T + 1))
    model.load_state_dict(start)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                   {"params": vectors, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    records = []
    for step in range(steps):
        lr = peak * step / warmup if step < warmup else low + 0.5 * (
            1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * (peak - low)
        for group in optimizer.param_groups:
            group["lr"] = lr
        x, y = tokens[step, :, :-1], tokens[step, :, 1:]
        loss = F.cross_entropy(model(x).logits.reshape(-1, vocabulary), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        records.append({"step": step, "lr": lr, "loss": loss.item(), "grad_norm": norm.item()})
    save_file({"tokens": tokens}, out / "train.safetensors")
    (out / "train.json").write_text(json.dumps({
        "schedule": {"peak": peak, "min": low, "warmup": warmup, "total": steps},
        "adamw": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "decay": "matrices"},
        "clip": 1.0, "steps": records}, indent=1) + "\n")


folder = pathlib.Path(sys.argv[1])
for name in sys.argv[2:] or CASES:
    make(folder / name, CASES[name])
