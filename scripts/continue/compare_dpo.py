"""Compares learning from preferences with TRL's DPOTrainer, in fp32: losses, figures and every gradient, and runs.

    python3 scripts/continue/compare_dpo.py            (pip install torch transformers trl peft datasets; npm run build:ts)
    python3 scripts/continue/compare_dpo.py --write test/train/fixtures/dpo

First a policy beside another reference, and a PEFT adapter on a frozen model: the loss, TRL's figures and the gradient of
every weight on equal pairs. Then whole runs through the command line, on plain texts and on messages. Exits with 1 if a
loss or a figure of a batch differs by more than 1e-5, a gradient by more than 1e-5 of its norm, or a loss of a run by
more than 1e-5. With --write, the cases are kept, for test/train/trl-preferences.test.ts.
"""
import json, pathlib, shutil, subprocess, sys, tempfile

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

root = pathlib.Path(__file__).resolve().parent.parent.parent
names = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"]
losses = [dict(loss="sigmoid", beta=0.1), dict(loss="ipo", beta=0.2), dict(loss="hinge", beta=0.5),
          dict(loss="robust", beta=0.3, labelSmoothing=0.1)]
template = ("{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
wrong = []

def node(*words):
    done = subprocess.run(["node", *map(str, words)], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return done.stdout

def expect(what, value, limit):
    print(f"  {what}: {value:.1e} (at most {limit:.0e})")
    if not value <= limit:
        wrong.append(what)

def small(vocab, **more):
    return LlamaConfig(vocab_size=vocab, num_hidden_layers=2, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
                       initializer_range=0.2, **more)

def tokenizer_into(folder):
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        (folder / name).write_bytes((root / "assets/quickstart" / name).read_bytes())

def config_of(scratch, loss, **more):
    return DPOConfig(output_dir=str(scratch / "trl"), loss_type=[loss["loss"]], beta=loss["beta"],
                     label_smoothing=loss.get("labelSmoothing", 0.0), use_cpu=True, bf16=False, report_to="none",
                     save_strategy="no", gradient_checkpointing=False, max_length=None, disable_tqdm=True,
                     logging_steps=1000, **more)

def trainer_of(scratch, model, reference, loss):
    """A trainer whose compute_loss is what is compared; its own data set does not matter."""
    tokenizer_into(scratch)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch)
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_list([dict(prompt="a", chosen="b", rejected="c")])
    return DPOTrainer(model=model, ref_model=reference, args=config_of(scratch, loss), train_dataset=rows, processing_class=tokenizer)

def pairs_of(vocab, count=6):
    some = torch.Generator().manual_seed(8)
    ids = lambda low, high: torch.randint(3, vocab, (int(torch.randint(low, high, (1,), generator=some)),), generator=some).tolist()
    return [dict(prompt=ids(2, 7), chosen=ids(1, 8), rejected=ids(1, 8)) for _ in range(count)]

def batch_case(scratch, adapter):
    torch.manual_seed(4)
    shape = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32)
    pairs = pairs_of(32)
    (scratch / "pairs.json").write_text(json.dumps(pairs) + "\n")
    (scratch / "case.json").write_text(json.dumps(dict(adapter=adapter, losses=losses)) + "\n")
    base = LlamaForCausalLM(small(32, **shape))
    base.save_pretrained(scratch / ("base" if adapter else "reference"))
    if adapter:
        wide = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
                                               task_type="CAUSAL_LM", init_lora_weights=False))
        wide.save_pretrained(scratch / "adapter")
    else:
        with torch.no_grad():
            for weight in base.parameters():
                weight.add_(0.1 * weight.std().nan_to_num(0) * torch.randn_like(weight))
        base.save_pretrained(scratch / "policy")
    collate = DataCollatorForPreference(pad_token_id=2)
    examples = [dict(prompt_ids=p["prompt"], chosen_ids=p["chosen"], rejected_ids=p["rejected"]) for p in pairs]
    for number, loss in enumerate(losses):
        with tempfile.TemporaryDirectory() as place:
            if adapter:
                model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(scratch / "base", dtype=torch.float32),
                                                  scratch / "adapter", is_trainable=True)
                # TRL takes the adapter that a trainer is given as reference; here the frozen model is it.
                trainer = trainer_of(pathlib.Path(place), model, None, loss)
                if "ref" in trainer.model.peft_config:
                    trainer.model.delete_adapter("ref")
            else:
                trainer = trainer_of(pathlib.Path(place), LlamaForCausalLM.from_pretrained(scratch / "policy", dtype=torch.float32),
                                     LlamaForCausalLM.from_pretrained(scratch / "reference", dtype=torch.float32), loss)
            trainer.model.train()
            result = trainer.compute_loss(trainer.model, collate(examples))
            result.backward()
            figures = [trainer._metrics["train"][name][-1] for name in names]
            found = {name.replace(".default", ""): p.grad.contiguous() for name, p in trainer.model.named_parameters() if p.grad is not None}
            found |= {"loss": result.detach().reshape(1), "figures": torch.tensor(figures)}
            save_file(found, scratch / f"trl-{number}.safetensors")

def compare_case(scratch):
    node("scripts/continue/dpo-gradients.mjs", scratch)
    for number, loss in enumerate(losses):
        ours, theirs = load_file(scratch / f"ours-{number}.safetensors"), load_file(scratch / f"trl-{number}.safetensors")
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        print(f" {loss}: loss {theirs['loss'].item():.6f}")
        for name in ["loss", "figures"]:
            a, b = ours.pop(name), theirs.pop(name)
            expect(name, (a - b).abs().max().item(), 1e-5)
        largest = max(((a - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-6)).item() for name, a in ours.items())
        expect(f"largest of {len(ours)} gradients' errors", largest, 1e-5)

def records_of(messages, count=12):
    words = "peace roads union people court harvest press nation law river".split()
    rows = []
    for n in range(count):
        prompt = f"Which word is longer: {words[n % 10]} or {words[(n * 3 + 1) % 10]}?"
        answers = [f"The word {words[(n * k + k) % 10]} is." + " Surely." * (n % k) for k in (1, 2)]
        if messages:
            rows.append(dict(prompt=[dict(role="user", content=prompt)],
                             **{side: [dict(role="assistant", content=text)] for side, text in zip(["chosen", "rejected"], answers)}))
        else:
            rows.append(dict(prompt=prompt, chosen=" " + answers[0], rejected=" " + answers[1]))
    return rows

def run_case(scratch, messages, loss):
    steps, rate = 4, 1e-3
    torch.manual_seed(5)
    model, data, out = scratch / "model", scratch / "data", scratch / "run"
    LlamaForCausalLM(small(4096, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
                           max_position_embeddings=256)).save_pretrained(model)
    tokenizer_into(model)
    if messages:
        (model / "chat_template.jinja").write_text(template)
    rows = records_of(messages)
    (scratch / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    node("dist/cli/main.js", "prepare", scratch / "pairs.jsonl", "--kind", "preference", "--out", data, "--tokenizer", model, "--validation-fraction", "0")
    windows = int(node("--input-type=module", "-e", "const { TokenDataset } = await import(process.argv[1]);"
                       "console.log((await TokenDataset.open(process.argv[2], { sequenceLength: 256 })).windows)", root / "dist/index.js", data))
    (scratch / "dpo.yaml").write_text(json.dumps(dict(
        out=str(out), device="cpu", precision="fp32", steps=steps, init={"from": str(model)}, dpo=loss,
        data=dict(train={str(data): 1}, sequenceLength=256), batch=dict(microBatch=1, accumulation=windows),
        optimizer=dict(peakLr=rate, minLr=rate, warmupSteps=0, weightDecay=0, clip=1, beta1=0.9, beta2=0.95), checkpoint=dict(every=0))))
    node("dist/cli/main.js", "train", scratch / "dpo.yaml")
    mine = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    class Recorded(DPOTrainer):
        seen = []
        def compute_loss(self, *args, **named):
            result = super().compute_loss(*args, **named)
            self.seen.append((result.item(), [self._metrics["train"][name][-1] for name in names]))
            return result
    Recorded.seen = []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    args = config_of(scratch, loss, per_device_train_batch_size=len(rows), max_steps=steps, learning_rate=rate, lr_scheduler_type="constant",
                     warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8)
    Recorded(model=LlamaForCausalLM.from_pretrained(model, dtype=torch.float32), args=args, train_dataset=Dataset.from_list(rows),
             ref_model=LlamaForCausalLM.from_pretrained(model, dtype=torch.float32), processing_class=tokenizer).train()
    for step, (ours, (theirs, figures)) in enumerate(zip(mine, Recorded.seen)):
        print(f"  step {step + 1}: LlamaForge {ours['loss']:.7f}  TRL {theirs:.7f}, margins {ours['figures']['rewards/margins']:.5f} {figures[3]:.5f}")
        expect(f"loss of step {step + 1}", abs(ours["loss"] - theirs), 1e-5)

kept = pathlib.Path(sys.argv[2]) if sys.argv[1:2] == ["--write"] else None
for adapter in [False, True]:
    with tempfile.TemporaryDirectory() as place:
        scratch = pathlib.Path(place)
        print("a PEFT adapter on a frozen model" if adapter else "a policy beside another reference")
        batch_case(scratch, adapter)
        compare_case(scratch)
        if kept:
            target = kept / ("adapter" if adapter else "policy")
            shutil.rmtree(target, ignore_errors=True)
            wanted = {"config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors", "pairs.json", "case.json",
                      *(f"trl-{number}.safetensors" for number in range(len(losses)))}
            for file in scratch.rglob("*"):
                if file.name in wanted:
                    (target / file.relative_to(scratch)).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, target / file.relative_to(scratch))
for messages in [False, True]:
    for loss in losses[:2]:
        with tempfile.TemporaryDirectory() as place:
            print(f"a run on {'messages' if messages else 'texts'}, {loss}")
            run_case(pathlib.Path(place), messages, loss)
print("wrong: " + ", ".join(wrong) if wrong else "all within the limits")
sys.exit(1 if wrong else 0)
