"""Opens a checkpoint with Hugging Face transformers and compares its logits with ours, in fp32.

    python3 scripts/compare_transformers.py runs/quickstart/step-0000000950      (pip install torch transformers)

Prints ||ours - theirs|| / ||theirs|| and exits with 1 if it is above 1e-4 or not a number.
"""
import pathlib, subprocess, sys, tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

root = pathlib.Path(__file__).resolve().parent.parent
folder = pathlib.Path(sys.argv[1]).resolve()
text = sys.argv[2] if len(sys.argv) > 2 else "My fellow citizens, the state of the union is strong. export function add(a, b)"

model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
with torch.no_grad():
    theirs = model(ids).logits.float()

program = """
const { loadModel, noGrad, tensor, writeSafetensors } = await import(process.argv[1]);
const [, , folder, list, out] = process.argv;
const ids = JSON.parse(list);
const model = await loadModel(folder, { dtype: "f32" });
const logits = noGrad(() => model.forward(tensor([ids], { dtype: "i32" })));
const bytes = new Uint8Array(await logits.toBytes());
await writeSafetensors(out, [{ name: "logits", dtype: "F32", shape: logits.shape, bytes: () => bytes }]);
"""
with tempfile.TemporaryDirectory() as scratch:
    out = pathlib.Path(scratch) / "logits.safetensors"
    subprocess.run(["node", "--input-type=module", "-e", program, "--", str(root / "dist/index.js"), str(folder),
                    str(ids[0].tolist()), str(out)], check=True)
    ours = load_file(out)["logits"]
error = ((ours - theirs).norm() / theirs.norm()).item()
print(f"{ids.shape[1]} tokens, {model.num_parameters():,} parameters: ||ours - theirs|| / ||theirs|| = {error:.2e}")
sys.exit(0 if error <= 1e-4 else 1)
