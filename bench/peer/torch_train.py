"""The training step of `llamaforge bench parity` in PyTorch, for a comparison on the same machine in the same session.

    llamaforge bench parity --peer python3            starts this file with that Python
    python3 bench/peer/torch_train.py --model '{"vocabSize": ...}' --micro-batch 16 --accumulation 4

A plain Llama, compiled, with fused AdamW, PyTorch's attention kernels, packed qkv and gate-up
products, and bf16 autocast over fp32 weights: the usual fast setup. With --precision fp8, the
blocks' linear layers multiply in float8 with one current scale a tensor: e4m3 for activations and
weights, e5m2 for gradients. The last line of its output is one JSON object, whose
`tokensPerSecond` is the result.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"this Python has no PyTorch ({error}): pip install torch, or name another Python with --peer")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=json.loads, required=True, help="the shape, as llamaforge writes it")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, required=True)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default="cuda:0", help="cpu, or cuda with a number")
    parser.add_argument("--precision", choices=["bf16", "fp32", "fp8"], default="bf16")
    parser.add_argument("--attention", choices=["flash", "cudnn", "any"], default="flash")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser.parse_args()


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def quantised(x, dtype):
    """x in 8 bits, and the number that they are multiplied with."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=1e-12) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def multiplied(a, b, fast):
    """a (M, K) · b (N, K) transposed, both in 8 bits with their scales."""
    (a, a_scale), (b, b_scale) = a, b
    return torch._scaled_mm(a, b.t(), a_scale, b_scale, out_dtype=torch.bfloat16, use_fast_accum=fast)


class Float8Product(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return multiplied(quantised(x, torch.float8_e4m3fn), quantised(weight, torch.float8_e4m3fn), True)

    @staticmethod
    def backward(context, dy):
        x, weight = context.saved_tensors
        dy8, dy_scale = quantised(dy, torch.float8_e5m2)
        x8, x_scale = quantised(x, torch.float8_e4m3fn)
        weight8, weight_scale = quantised(weight, torch.float8_e4m3fn)
        dx = multiplied((dy8, dy_scale), (weight8.t().contiguous(), weight_scale), False)
        dweight = multiplied((dy8.t().contiguous(), dy_scale), (x8.t().contiguous(), x_scale), False)
        return dx, dweight


class Float8Linear(nn.Linear):
    def forward(self, x):
        rows = x.to(torch.bfloat16).flatten(0, -2)
        return Float8Product.apply(rows, self.weight.to(torch.bfloat16)).unflatten(0, x.shape[:-1])


class Block(nn.Module):
    def __init__(self, shape, linear):
        super().__init__()
        width, ffn = shape["hiddenSize"], shape["intermediateSize"]
        self.heads, self.kv_heads, self.head_size = shape["heads"], shape["kvHeads"], shape["headSize"]
        packed = (self.heads + 2 * self.kv_heads) * self.head_size
        self.attention_norm = RMSNorm(width, shape["rmsNormEps"])
        self.qkv = linear(width, packed, bias=False)
        self.output = linear(self.heads * self.head_size, width, bias=False)
        self.ffn_norm = RMSNorm(width, shape["rmsNormEps"])
        self.gate_up = linear(width, 2 * ffn, bias=False)
        self.down = linear(ffn, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        packed = self.qkv(self.attention_norm(x))
        packed = packed.view(batch, length, self.heads + 2 * self.kv_heads, self.head_size).transpose(1, 2)
        q, k, v = packed.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def token_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Llama(nn.Module):
    def __init__(self, shape, length, dtype, linear):
        super().__init__()
        width, vocabulary, half = shape["hiddenSize"], shape["vocabSize"], shape["headSize"] // 2
        self.dtype = dtype
        self.loss = token_loss
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(shape, linear) for _ in range(shape["layers"]))
        self.norm = RMSNorm(width, shape["rmsNormEps"])
        self.head = nn.Linear(width, vocabulary, bias=False)
        if shape["tieEmbeddings"]:
            self.head.weight = self.embedding.weight
        frequencies = shape["ropeTheta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=(2 / (5 * width)) ** 0.5)

    def forward(self, inputs, targets):
        x = self.embedding(inputs).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.loss(self.head(self.norm(x)), targets)


def attention_kernels(name, device):
    if device.type != "cuda" or name == "any":
        return contextlib.nullcontext()
    return sdpa_kernel({"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name])


def main():
    options = arguments()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")
    if on_gpu:
        # set_device() refuses a device without a number.
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    torch.manual_seed(3407)
    mixed = options.precision != "fp32"
    linear = Float8Linear if options.precision == "fp8" else nn.Linear
    with device:
        dtype = torch.bfloat16 if mixed else torch.float32
        model = Llama(options.model, options.sequence_length, dtype, linear)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = model if options.eager else torch.compile(model)
    size = (options.accumulation, options.micro_batch, options.sequence_length)
    inputs, targets = (torch.randint(options.model["vocabSize"], size, device=device) for _ in range(2))

    def step():
        for micro in range(options.accumulation):
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                loss = compiled(inputs[micro], targets[micro])
            (loss / options.accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    # A step lasts from the end of the previous step to its own end. Nothing waits in between, as in
    # a training loop.
    def mark():
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    with attention_kernels(options.attention, device):
        for warmup in range(options.warmup):
            started = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            # Compilation, which is part of the first step, can take minutes without a word.
            print(f"warm-up step {warmup + 1}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        marks = [mark()]
        for _ in range(options.steps):
            loss = step()
            marks.append(mark())
    if on_gpu:
        torch.cuda.synchronize()
    pairs = list(zip(marks, marks[1:]))
    seconds = [start.elapsed_time(end) / 1000 if on_gpu else end - start for start, end in pairs]
    tokens = options.micro_batch * options.accumulation * options.sequence_length
    median = statistics.median(seconds)
    result = {
        "program": "PyTorch",
        "version": torch.__version__,
        "compiled": not options.eager,
        "attention": options.attention if on_gpu else "any",
        "tokensPerSecond": tokens / median,
        "stepMs": 1000 * median,
        "fastestMs": 1000 * min(seconds),
        "slowestMs": 1000 * max(seconds),
        "peakBytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "reservedBytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "loss": loss.item(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
