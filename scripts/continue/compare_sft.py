"""Compares fine-tuning on chats with TRL's SFTTrainer: the loss of each of several steps on equal batches, in fp32.

    python3 scripts/continue/compare_sft.py            (pip install torch transformers trl datasets; npm run build:ts)

Each step trains on all chats. TRL pads each chat to a row of its own; LlamaForge packs several into a window and keeps
them apart. Both count the assistant's tokens alone, once by marks in the template and once by the difference between
a prompt and its completion. Prints the losses and exits with 1 if one differs by more than 1e-5.
"""
import json, pathlib, subprocess, sys, tempfile

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

root = pathlib.Path(__file__).resolve().parent.parent.parent
steps, chats, rate = 4, 24, 1e-3

marked = ("{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\\n' }}{% generation %}"
          "{{ m.content + eos_token }}{% endgeneration %}{{ '\\n' }}{% else %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}"
          "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
plain = ("{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")

recipe = """
name: sft
out: {out}
device: cpu
precision: fp32
steps: {steps}
init: {{ from: {model} }}
data: {{ train: {{ {data}: 1 }}, sequenceLength: 256 }}
batch: {{ microBatch: 1, accumulation: {windows} }}
optimizer: {{ peakLr: {rate}, minLr: {rate}, warmupSteps: 0, weightDecay: 0, clip: 1, beta1: 0.9, beta2: 0.95 }}
checkpoint: {{ every: 0 }}
"""

def node(*words):
    return subprocess.run(["node", *map(str, words)], check=True, cwd=root, capture_output=True, text=True).stdout

def model_folder(folder, template):
    torch.manual_seed(5)
    config = LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                         tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        (folder / name).write_bytes((root / "assets/quickstart" / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template)

def ours(scratch, model, records):
    lines = scratch / "chats.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    data, out = scratch / "data", scratch / "run"
    node("dist/cli/main.js", "prepare", lines, "--kind", "chat", "--out", data, "--tokenizer", model,
         "--validation-fraction", "0")
    windows = int(node("--input-type=module", "-e",
        "const { TokenDataset } = await import(process.argv[1]);"
        "console.log((await TokenDataset.open(process.argv[2], { sequenceLength: 256 })).windows)",
        root / "dist/index.js", data))
    config = scratch / "sft.yaml"
    config.write_text(recipe.format(out=out, steps=steps, model=model, data=data, windows=windows, rate=rate))
    node("dist/cli/main.js", "train", config)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return windows, losses

def theirs(scratch, model, rows, by_marks):
    micro = 6
    class Recorded(SFTTrainer):
        losses = []
        def compute_loss(self, *args, **named):
            result = super().compute_loss(*args, **named)
            self.losses.append((result[0] if isinstance(result, tuple) else result).detach().item())
            return result
    loaded = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    config = SFTConfig(output_dir=str(scratch / "trl"), per_device_train_batch_size=micro,
                       gradient_accumulation_steps=len(rows) // micro, max_steps=steps, learning_rate=rate,
                       lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9,
                       adam_beta2=0.95, adam_epsilon=1e-8, use_cpu=True, report_to="none", save_strategy="no",
                       gradient_checkpointing=False, bf16=False, max_length=None, disable_tqdm=True,
                       assistant_only_loss=by_marks, completion_only_loss=None if by_marks else True, logging_steps=1000)
    trainer = Recorded(model=loaded, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    Recorded.losses = []
    trainer.train()
    per_step = len(rows) // micro
    return [sum(Recorded.losses[step * per_step:(step + 1) * per_step]) for step in range(steps)]

worst = 0.0
for by_marks, template in [(True, marked), (False, plain)]:
    with tempfile.TemporaryDirectory() as place:
        scratch = pathlib.Path(place)
        node("scripts/continue/make-chats.mjs", scratch / "made.jsonl", chats)
        records = [json.loads(line) for line in (scratch / "made.jsonl").read_text().splitlines()]
        if not by_marks:
            # TRL's prompt and completion have one completion.
            records = [{"messages": record["messages"][:3 if record["messages"][0]["role"] == "system" else 2]} for record in records]
        rows = records if by_marks else [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in records]
        model = scratch / "model"
        model_folder(model, template)
        windows, mine = ours(scratch, model, records)
        other = theirs(scratch, model, rows, by_marks)
    how = "the template's marks" if by_marks else "prompt and completion"
    print(f"{how}: {chats} chats in {windows} windows")
    for step, (a, b) in enumerate(zip(mine, other)):
        print(f"  step {step + 1}: LlamaForge {a:.7f}  TRL {b:.7f}  difference {abs(a - b):.1e}")
        worst = max(worst, abs(a - b))
print(f"largest difference {worst:.1e}")
sys.exit(0 if worst <= 1e-5 else 1)
