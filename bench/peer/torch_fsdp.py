"""The training step of torch_train.py on several GPUs: PyTorch's FSDP2 or DDP, compiled.

    python3 -m torch.distributed.run --standalone --nproc-per-node 8 bench/peer/torch_fsdp.py \\
        --model '{"vocabSize": ...}' --micro-batch 16 --parallel full_shard

full_shard: fully_shard (FSDP2) over each block and the whole model; parameters are gathered in
bf16, gradients reduced in fp32. zero1: like full_shard, but weights stay after the forward pass,
and gradients are reduced on the last micro-batch only (FSDP2's ZeRO-2, the nearest that it has).
replicated: DDP, gradients in fp32. Rank 0 prints one JSON object; its `tokensPerSecond` is for one
GPU.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time

try:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:
    sys.exit(f"this Python has no PyTorch with FSDP2 ({error}): pip install 'torch>=2.6'")

from torch_train import Llama, attention_kernels, token_loss


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=json.loads, required=True, help="the shape, as llamaforge writes it")
    parser.add_argument("--parallel", choices=["replicated", "zero1", "full_shard"], default="full_shard")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, required=True, help="of each rank")
    parser.add_argument("--accumulation", type=int, default=1, help="of each rank")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--attention", choices=["flash", "cudnn", "any"], default="flash")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    return parser.parse_args()


def divide(model, options, device):
    """Returns the model divided over the ranks, and a context manager for each micro-batch that knows the last one."""
    if options.parallel == "replicated":
        whole = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        return whole, lambda last: contextlib.nullcontext() if last else whole.no_sync()
    mixed = options.precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32, output_dtype=torch.float32
    )
    keep = options.parallel == "zero1"
    for block in model.blocks:
        # Activations between blocks stay in bf16.
        inner = MixedPrecisionPolicy(param_dtype=policy.param_dtype, reduce_dtype=policy.reduce_dtype)
        fully_shard(block, mp_policy=inner, reshard_after_forward=not keep)
    fully_shard(model, mp_policy=policy, reshard_after_forward=False)

    def micro_batch(last):
        if keep:
            model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    return model, micro_batch


def main():
    options = arguments()
    on_gpu = options.device == "cuda"
    local_rank = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo", **({"device_id": device} if on_gpu else {}))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3407)
    mixed = options.precision == "bf16"
    with device:
        model = Llama(options.model, options.sequence_length, torch.bfloat16 if mixed else torch.float32)
    if not options.eager and options.parallel != "replicated":
        # FSDP's hooks run between the blocks, so each block is compiled on its own, with one graph
        # for all, and so is the loss, as in torchtitan.
        for block in model.blocks:
            block.compile()
        model.loss = torch.compile(token_loss)
    model, micro_batch = divide(model, options, device)
    if not options.eager and options.parallel == "replicated":
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    torch.manual_seed(rank)
    size = (options.accumulation, options.micro_batch, options.sequence_length)
    inputs, targets = (torch.randint(options.model["vocabSize"], size, device=device) for _ in range(2))

    def step():
        for micro in range(options.accumulation):
            with micro_batch(micro == options.accumulation - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed and options.parallel == "replicated"):
                    loss = model(inputs[micro], targets[micro])
                (loss / options.accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def mark():
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    with attention_kernels(options.attention, device):
        for _ in range(options.warmup):
            step()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        marks = [mark()]
        for _ in range(options.steps):
            loss = step()
            marks.append(mark())
    if on_gpu:
        torch.cuda.synchronize()
    pairs = list(zip(marks, marks[1:]))
    seconds = [start.elapsed_time(end) / 1000 if on_gpu else end - start for start, end in pairs]
    median = statistics.median(seconds)
    result = {
        "program": "PyTorch",
        "version": torch.__version__,
        "compiled": not options.eager,
        "ranks": ranks,
        "tokensPerSecond": options.micro_batch * options.accumulation * options.sequence_length / median,
        "stepMs": 1000 * median,
        "fastestMs": 1000 * min(seconds),
        "slowestMs": 1000 * max(seconds),
        "peakBytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "loss": loss.item(),
    }
    if rank == 0:
        print(json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
