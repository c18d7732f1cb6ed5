"""Greedy decoding of `llamaforge bench decode` in PyTorch, for a comparison on the same machine in the same session.

    llamaforge bench decode --peer python3           starts this file with that Python
    python3 bench/peer/torch_decode.py --model '{"vocabSize": ...}' --batches 1,64 --context 256

The usual fast setup: a static key/value cache, packed qkv and gate-up products, the whole step
compiled, and CUDA graphs (torch.compile's mode reduce-overhead), so that a token is one launch.
Prompts are not computed, because the time of a step does not depend on what the cache holds. The
last line of its output is one JSON object with a row for each batch.
"""

import argparse
import json
import statistics
import sys
import time

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    sys.exit(f"this Python has no PyTorch ({error}): pip install torch, or name another Python with --peer")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=json.loads, required=True, help="the shape, as llamaforge writes it")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of the cache")
    parser.add_argument("--tokens", type=int, default=128, help="timed tokens of each sequence")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser.parse_args()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, shape, batch, context):
        super().__init__()
        width, ffn = shape["hiddenSize"], shape["intermediateSize"]
        self.heads, self.kv_heads, self.head_size = shape["heads"], shape["kvHeads"], shape["headSize"]
        self.eps = shape["rmsNormEps"]
        self.attention_norm, self.ffn_norm = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head_size, bias=False)
        self.output = nn.Linear(self.heads * self.head_size, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)
        for name in ["keys", "values"]:
            self.register_buffer(name, torch.zeros(batch, self.kv_heads, context, self.head_size))

    def forward(self, x, position, cos, sin, mask):
        batch = x.shape[0]
        normed = F.rms_norm(x, x.shape[-1:], self.attention_norm, self.eps)
        heads = self.qkv(normed).view(batch, 1, -1, self.head_size).transpose(1, 2)
        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        self.keys[:, :, position] = rotate(key, cos, sin)
        self.values[:, :, position] = value
        mixed = F.scaled_dot_product_attention(
            rotate(query, cos, sin), self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, 1, -1))
        gate, up = self.gate_up(F.rms_norm(x, x.shape[-1:], self.ffn_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, shape, batch, context):
        super().__init__()
        width, vocabulary = shape["hiddenSize"], shape["vocabSize"]
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(shape, batch, context) for _ in range(shape["layers"]))
        self.norm, self.eps = nn.Parameter(torch.ones(width)), shape["rmsNormEps"]
        self.head = nn.Linear(width, vocabulary, bias=False)
        half = shape["headSize"] // 2
        frequencies = shape["ropeTheta"] ** (-torch.arange(half).float() / half)
        angles = torch.outer(torch.arange(context).float(), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.context = context

    def forward(self, ids, position):
        x = self.embedding(ids)
        cos, sin = self.cos[position], self.sin[position]
        mask = (torch.arange(self.context, device=ids.device) <= position)[None, None, None, :]
        for block in self.blocks:
            x = block(x, position, cos, sin, mask)
        return self.head(F.rms_norm(x, x.shape[-1:], self.norm, self.eps)).argmax(-1)


def measure(options, batch):
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    with torch.device(options.device):
        model = Decoder(options.model, batch, options.context).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.02)
    on_gpu = torch.device(options.device).type == "cuda"
    step = model if options.eager else torch.compile(model, mode="reduce-overhead", fullgraph=True)
    ids = torch.zeros(batch, 1, dtype=torch.long, device=options.device)
    start = max(0, options.context - options.tokens)

    def run(count):
        nonlocal ids
        began = time.perf_counter()
        for n in range(count):
            if on_gpu and not options.eager:
                torch.compiler.cudagraph_mark_step_begin()
            place = min(start + n, options.context - 1)
            ids = step(ids, torch.tensor([place], device=options.device)).clone()
        if on_gpu:
            torch.cuda.synchronize()
        return batch * count / (time.perf_counter() - began)

    run(min(20, options.tokens))
    rates = [run(options.tokens) for _ in range(options.runs)]
    return {"batch": batch, "tokensPerSecond": statistics.median(rates)}


def main():
    options = arguments()
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")
    rows = []
    for batch in options.batches:
        rows.append(measure(options, batch))
        print(f"PyTorch, {batch} sequences: {rows[-1]['tokensPerSecond']:.0f} tokens/s", flush=True)
        torch._dynamo.reset()
        if torch.device(options.device).type == "cuda":
            torch.cuda.empty_cache()
    result = {"program": "PyTorch", "version": torch.__version__, "rows": rows}
    print(json.dumps({**result, "tokensPerSecond": rows[0]["tokensPerSecond"]}), flush=True)


main()
