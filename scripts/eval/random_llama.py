"""Writes a small Llama with random weights, whose continuations differ from prompt to prompt.

usage: python3 random_llama.py OUT TOKENIZER CONTEXT [SEED] [STD]

TOKENIZER is a folder with tokenizer.json and tokenizer_config.json, which OUT gets copies of. The
default standard deviation of the weights is many times that of a model at the start of its training.
"""

import json
import os
import shutil
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

out, tokenizer, context = sys.argv[1:4]
seed = int(sys.argv[4]) if len(sys.argv) > 4 else 0
std = float(sys.argv[5]) if len(sys.argv) > 5 else 0.15
with open(os.path.join(tokenizer, "tokenizer.json"), encoding="utf-8") as file:
    contents = json.load(file)
with open(os.path.join(tokenizer, "tokenizer_config.json"), encoding="utf-8") as file:
    settings = json.load(file)
ids = {**contents["model"]["vocab"], **{t["content"]: t["id"] for t in contents["added_tokens"]}}


def id_of(name):
    value = settings.get(name)
    return ids.get(value["content"] if isinstance(value, dict) else value) if value else None


torch.manual_seed(seed)
config = LlamaConfig(
    vocab_size=max(ids.values()) + 1,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=int(context),
    initializer_range=std,
    tie_word_embeddings=False,
    bos_token_id=id_of("bos_token"),
    eos_token_id=id_of("eos_token"),
    pad_token_id=None,
)
model = LlamaForCausalLM(config).float()
model.save_pretrained(out)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(os.path.join(tokenizer, name), os.path.join(out, name))
