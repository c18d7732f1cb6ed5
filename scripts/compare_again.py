"""Opens folders that LlamaForge has saved, and compares them with the folders they were read from.

    node scripts/families-again.mjs OUT_DIR DIR...
    python3 scripts/compare_again.py OUT_DIR DIR...       (pip install torch transformers)

Prints a line per folder: missing and unexpected keys, and whether the logits are equal to the bit.
"""
import pathlib, sys

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
failed = False
out = pathlib.Path(sys.argv[1])
for folder in map(pathlib.Path, sys.argv[2:]):
    ours, loading = AutoModelForCausalLM.from_pretrained(
        out / folder.name, output_loading_info=True, dtype=torch.float32, attn_implementation="eager")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.arange(48)[None] * 7 % ours.config.vocab_size
    with torch.no_grad():
        equal = torch.equal(ours(ids).logits, theirs(ids).logits)
    faults = {key: sorted(loading[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    same_class = type(ours) is type(theirs)
    good = equal and same_class and not any(faults.values())
    print(folder.name, type(ours).__name__, faults, "logits equal" if equal else "LOGITS DIFFER")
    failed = failed or not good
sys.exit(1 if failed else 0)
