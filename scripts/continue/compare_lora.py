"""Compares low-rank adapters with PEFT, in fp32: loss and gradients of a PEFT adapter, a training run, and the files.

    python3 scripts/continue/compare_lora.py           (pip install torch transformers peft; npm run build:ts)

Exits with 1 if the loss differs by more than 1e-5, a gradient by more than 1e-4 of its norm, or the logits of an adapter
that LlamaForge trained (opened by PEFT, and merged by `llamaforge merge`) by more than 1e-4 of their norm.
"""
import json, pathlib, subprocess, sys, tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

root = pathlib.Path(__file__).resolve().parent.parent.parent
size = dict(vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
            initializer_range=0.1)
everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
wrong = []

def node(*words):
    return subprocess.run(["node", *map(str, words)], check=True, cwd=root, capture_output=True, text=True).stdout

def expect(what, value, limit):
    print(f"  {what}: {value:.1e} (at most {limit:.0e})")
    if not value <= limit:
        wrong.append(what)

def away(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()

for kind, config, targets in [(LlamaForCausalLM, LlamaConfig(**size), everything), (LlamaForCausalLM, LlamaConfig(**size), ["q_proj", "v_proj", "up_proj"]),
                              (Qwen3ForCausalLM, Qwen3Config(head_dim=32, **size), ["k_proj", "o_proj", "down_proj"])]:
    print(kind.__name__, ", ".join(targets))
    with tempfile.TemporaryDirectory() as place:
        scratch = pathlib.Path(place)
        base, adapter = scratch / "base", scratch / "adapter"
        torch.manual_seed(3)
        kind(config).save_pretrained(base)
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            (base / name).write_bytes((root / "assets/quickstart" / name).read_bytes())
        model = get_peft_model(kind.from_pretrained(base, dtype=torch.float32),
                               LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False))
        model.save_pretrained(adapter)
        ids = torch.randint(0, 4096, (2, 49), generator=torch.Generator().manual_seed(1))
        save_file({"inputs": ids[:, :-1].int().contiguous(), "targets": ids[:, 1:].int().contiguous()}, scratch / "io.safetensors")
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        node("scripts/continue/lora-gradients.mjs", base, adapter, scratch / "io.safetensors", scratch / "ours.safetensors")
        ours = load_file(scratch / "ours.safetensors")
        expect("loss", abs(ours.pop("loss").item() - loss.item()), 1e-5)
        theirs = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        expect(f"largest of {len(ours)} gradients' errors", max(away(ours[name], theirs[name]) for name in ours), 1e-4)

        (scratch / "text").mkdir()
        for number in range(40):
            (scratch / "text" / f"{number}.txt").write_text(f"The people of town {number} keep the peace. " * 12)
        node("dist/cli/main.js", "prepare", scratch / "text", "--out", scratch / "data", "--tokenizer", base)
        (scratch / "lora.yaml").write_text(json.dumps({
            "out": str(scratch / "run"), "precision": "fp32", "steps": 12, "init": {"from": str(base)},
            "lora": {"rank": 4, "alpha": 8, "targets": targets, "dropout": 0.1}, "data": {"train": {str(scratch / "data"): 1}, "sequenceLength": 64},
            "batch": {"microBatch": 4}, "optimizer": {"peakLr": 1e-2, "warmupSteps": 2, "weightDecay": 0}, "checkpoint": {"every": 6}}))
        node("dist/cli/main.js", "train", scratch / "lora.yaml")
        losses = [json.loads(line)["loss"] for line in (scratch / "run/metrics.jsonl").read_text().splitlines()]
        trained = sorted((scratch / "run").glob("step-*"))[-1]
        node("dist/cli/main.js", "merge", scratch / "run", "--out", scratch / "merged", "--dtype", "float32")
        with torch.no_grad():
            plain = kind.from_pretrained(base, dtype=torch.float32)
            untouched = plain(ids).logits
            peft = PeftModel.from_pretrained(plain, trained)(ids).logits
            merged = AutoModelForCausalLM.from_pretrained(scratch / "merged", dtype=torch.float32)(ids).logits
        print(f"  training: loss {losses[0]:.3f} to {losses[-1]:.3f}; {sum(f.stat().st_size for f in trained.glob('adapter_*')):,} bytes of adapter")
        assert losses[-1] < losses[0] and away(peft, untouched) > 0.01
        expect("merged folder against the adapter in PEFT", away(merged, peft), 1e-4)
        again = json.loads((scratch / "lora.yaml").read_text())
        (scratch / "run" / trained.name).rename(scratch / "last")
        node("dist/cli/main.js", "train", scratch / "lora.yaml")
        a, b = load_file(scratch / "last/adapter_model.safetensors"), load_file(scratch / "run" / trained.name / "adapter_model.safetensors")
        assert all(torch.equal(a[name], b[name]) for name in a), "a resumed run ends in other weights"
        print("  resumed from half way: equal weights")
print("wrong: " + ", ".join(wrong) if wrong else "all within the limits")
sys.exit(1 if wrong else 0)
