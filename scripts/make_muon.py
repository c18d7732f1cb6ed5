"""Writes test/optim/muon-steps.json: 200 steps of torch.optim.Muon, and of AdamW for a vector.

    python3 scripts/make_muon.py test/optim/muon-steps.json

torch.optim.Muon rounds its momentum to bf16 before the iteration. Here the iteration runs in f32 (the
method that rounds is replaced), so that two programs can be compared to more digits than bf16 has.
The packed matrix of the test is three matrices here: PyTorch's optimizer knows no packed ones.
Gradients are 0.5 (w - target) + noise, from whole numbers that both programs compute alike.
"""

import json
import math
import sys

import torch

STEPS, SAVED = 200, (1, 10, 50, 200)
LR, DECAY, MOMENTUM = 0.01, 0.1, 0.95
SHAPES = {"tall": (24, 16), "wide": (12, 40), "packed": (16, 16), "norm": (40,)}
PARTS = (8, 4, 4)  # rows of the matrices in `packed`


def numbers(name, step):
    """A tensor's numbers from -1 to 1, by a multiplicative hash of the position."""
    shape = SHAPES[name]
    salt = 97 * step + 31 * list(SHAPES).index(name) + 1
    count = math.prod(shape)
    values = []
    for i in range(count):
        bits = (i * 2654435761 + salt * 40503) % 2**32
        bits = (bits ^ (bits >> 15)) * 2246822519 % 2**32
        values.append((bits ^ (bits >> 13)) / 2**31 - 1)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def main():
    torch.set_num_threads(1)
    torch.Tensor.bfloat16 = lambda self: self.float().clone()
    weights = {name: numbers(name, -1) for name in SHAPES}
    targets = {name: numbers(name, -2) for name in SHAPES}
    pieces = {"tall": [weights["tall"]], "wide": [weights["wide"]], "packed": list(weights["packed"].split(PARTS))}
    pieces = {name: [piece.clone().requires_grad_() for piece in parts] for name, parts in pieces.items()}
    norm = weights["norm"].clone().requires_grad_()
    muon = torch.optim.Muon([piece for parts in pieces.values() for piece in parts], lr=LR, weight_decay=DECAY,
                            momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([norm], lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY)
    now = lambda: {**{name: torch.cat([p.detach() for p in parts]) for name, parts in pieces.items()}, "norm": norm.detach()}
    saved = {}
    for step in range(1, STEPS + 1):
        current = now()
        gradients = {name: (current[name] - targets[name]) * 0.5 + numbers(name, step) for name in SHAPES}
        for name, parts in pieces.items():
            for piece, gradient in zip(parts, gradients[name].split([len(piece) for piece in parts])):
                piece.grad = gradient.clone()
        norm.grad = gradients["norm"].clone()
        muon.step()
        adamw.step()
        if step in SAVED:
            saved[step] = {name: [float(f"{x:.9g}") for x in tensor.flatten().tolist()] for name, tensor in now().items()}
    settings = {"lr": LR, "weightDecay": DECAY, "momentum": MOMENTUM, "torch": torch.__version__}
    with open(sys.argv[1], "w") as file:
        json.dump({"settings": settings, "weights": saved}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
