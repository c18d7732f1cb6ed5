"""Greedy decoding of `llamaforge bench decode` by transformers' own `generate`, on the same machine.

    llamaforge bench decode --device cpu --preset quickstart --precision fp32 --batch 1,8 \\
      --peer python3 --peer-script bench/peer/transformers_decode.py

This is how most people write text with a Hugging Face folder: LlamaForCausalLM, scaled dot-product
attention, a key/value cache, no compilation. Weights are random, and prompts are random ids of the
length that llamaforge uses. The time of the prompt is taken away by a run that writes one token. The
last line of its output is one JSON object with a row for each batch.
"""

import argparse
import json
import statistics
import sys
import time

try:
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    sys.exit(f"this Python has no transformers ({error}): pip install transformers torch, or name another with --peer")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=json.loads, required=True, help="the shape, as llamaforge writes it")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of a prompt and its continuation")
    parser.add_argument("--tokens", type=int, default=128, help="written tokens of each sequence")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    return parser.parse_args()


def load(options):
    shape = options.model
    config = LlamaConfig(
        vocab_size=shape["vocabSize"],
        hidden_size=shape["hiddenSize"],
        intermediate_size=shape["intermediateSize"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kvHeads"],
        head_dim=shape["headSize"],
        max_position_embeddings=max(shape["contextLength"], options.context),
        rms_norm_eps=shape["rmsNormEps"],
        tie_word_embeddings=shape["tieEmbeddings"],
        eos_token_id=None,
        pad_token_id=0,
    )
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    return LlamaForCausalLM(config).to(options.device, dtype).eval()


def measure(model, options, batch):
    prompt = torch.randint(1, model.config.vocab_size, (batch, options.context - options.tokens), device=options.device)

    def run(count):
        began = time.perf_counter()
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
        )
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        # The model has no end token, so it writes as many as it is told.
        if ids.shape[1] != prompt.shape[1] + count:
            sys.exit(f"generate wrote {ids.shape[1] - prompt.shape[1]} tokens instead of {count}")
        return time.perf_counter() - began

    run(8)
    seconds = [run(options.tokens) - run(1) for _ in range(options.runs)]
    return {"batch": batch, "tokensPerSecond": batch * (options.tokens - 1) / statistics.median(seconds)}


def main():
    options = arguments()
    torch.set_grad_enabled(False)
    model = load(options)
    rows = []
    for batch in options.batches:
        rows.append(measure(model, options, batch))
        print(f"transformers, {batch} sequences: {rows[-1]['tokensPerSecond']:.0f} tokens/s", flush=True)
    result = {"program": "transformers", "version": transformers.__version__, "rows": rows}
    print(json.dumps({**result, "tokensPerSecond": rows[0]["tokensPerSecond"]}), flush=True)


main()
