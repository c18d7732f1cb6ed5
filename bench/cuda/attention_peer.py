"""PyTorch's attention on the shapes of attention_bench: forward and backward, flash and cuDNN, causal, GQA."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def measure(work, samples=30, sustained_s=0.3):
    def elapsed(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times

    for _ in range(3):
        elapsed(1)
    median = sorted(elapsed(1) for _ in range(samples))[samples // 2]
    return median, elapsed(max(3, int(sustained_s * 1e3 / median)))


def bench(name, backend, batch, time, heads, kv_heads, head_size):
    def draw(n):
        return torch.randn(batch, n, time, head_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    q, k, v = draw(heads), draw(kv_heads), draw(kv_heads)
    d_o = torch.randn_like(q)
    flops = 2.0 * batch * heads * time * time * head_size
    with sdpa_kernel(backend):
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        forward = measure(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        backward = measure(lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True))
    text = f"torch {name:5s} B{batch} T{time} H{heads}/{kv_heads} hd{head_size}"
    for part, (median, sustained), factor in (("forward", forward, 1), ("backward", backward, 2.5)):
        rate = factor * flops / 1e9
        text += f"  {part} {median:.3f} ms {rate / median:.0f} TF (sustained {rate / sustained:.0f})"
    print(text)


if __name__ == "__main__":
    for shape in ((16, 2048, 32, 4, 64), (4, 8192, 32, 4, 64), (8, 2048, 24, 8, 96), (16, 2048, 16, 16, 128)):
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
            try:
                bench(name, backend, *shape)
            except RuntimeError as error:
                print(f"torch {name} {shape}: {str(error)[:100]}")
