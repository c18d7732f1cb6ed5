"""Makes a random Llama with transformers and its greedy answers, for compare-generation.mjs.

    python scripts/compare-generation.py OUT [--prompts 20] [--tokens 256] [--seed 1]
    node scripts/compare-generation.mjs OUT

OUT becomes a Hugging Face folder with answers.json in it. All is fp32 on the CPU. The weights are
larger than those of a fresh model, so that the text changes from token to token and the two likeliest
tokens are not almost equal.
"""

import argparse
import json
import os
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("out")
parser.add_argument("--prompts", type=int, default=20)
parser.add_argument("--tokens", type=int, default=256)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

torch.manual_seed(args.seed)
random.seed(args.seed)
config = LlamaConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    initializer_range=0.15,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
model = LlamaForCausalLM(config).eval().float()
model.save_pretrained(args.out)

# Lengths from 1 to about half of the context; some prompts begin alike, for the prefix cache.
common = [random.randrange(config.vocab_size) for _ in range(200)]
answers = []
for index in range(args.prompts):
    length = 1 + round(500 * (index / max(1, args.prompts - 1)) ** 1.5)
    own = [random.randrange(config.vocab_size) for _ in range(length)]
    prompt = (common + own)[:length] if index % 3 == 2 and length > 1 else own
    if index % 3 == 2 and length > 1:
        prompt[-1] = own[0]
    ids, cache, gaps = torch.tensor([prompt]), None, []
    answer = []
    with torch.no_grad():
        for _ in range(args.tokens):
            result = model(ids, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            best = torch.topk(result.logits[0, -1], 2)
            gaps.append((best.values[0] - best.values[1]).item())
            answer.append(best.indices[0].item())
            ids = best.indices[:1].view(1, 1)
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=args.tokens, do_sample=False
        )[0, length:].tolist()
    assert whole == answer, "generate() and the loop of forwards differ"
    answers.append({"prompt": prompt, "answer": answer, "smallestGap": min(gaps)})

with open(os.path.join(args.out, "answers.json"), "w") as file:
    json.dump(answers, file)
lengths = [len(one["prompt"]) for one in answers]
kinds = [len(set(one["answer"])) for one in answers]
print(f"{len(answers)} prompts of {min(lengths)} to {max(lengths)} tokens, {args.tokens} tokens each")
print(f"different tokens in an answer: {min(kinds)} to {max(kinds)}")
print(f"smallest gap between the two likeliest logits: {min(one['smallestGap'] for one in answers):.2e}")
