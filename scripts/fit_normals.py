"""Fits the polynomials for normal random numbers (csrc/cpu/philox.cpp, csrc/cuda/ops/philox.cu).

    python3 scripts/fit_normals.py        (needs NumPy)

The fits are minimax fits in float64 by Lawson's algorithm: least squares whose weights grow where
the error is large. The script prints each polynomial's coefficients, lowest degree first, as the
f32 values in the kernels, and the largest error before rounding.
"""

import numpy as np

POINTS, ROUNDS = 4000, 3000


def fit(name, f, degree, low, high, weight):
    x = np.cos(np.linspace(0, np.pi, POINTS)) * (high - low) / 2 + (low + high) / 2
    powers, y, w = np.vander(x, degree + 1, increasing=True), f(x), weight(x)
    lawson = np.full(POINTS, 1 / POINTS)
    best = (np.inf, None)
    for _ in range(ROUNDS):
        scale = np.sqrt(lawson) * w
        coefficients = np.linalg.lstsq(powers * scale[:, None], y * scale, rcond=None)[0]
        error = np.abs(w * (powers @ coefficients - y))
        if error.max() < best[0]:
            best = (error.max(), coefficients)
        lawson *= error
        lawson /= lawson.sum()
    error, coefficients = best
    print(f"{name}: error {error:.2e}\n  " + " ".join(str(np.float32(c)) for c in coefficients))


def log_quotient(m):  # -2 ln(1 + m) / m
    return np.where(np.abs(m) < 1e-9, -2 + m, -2 * np.log1p(m) / np.where(m == 0, 1, m))


def sine_quotient(q):  # sin(pi/2 t) / t, q = t^2
    t = np.sqrt(q)
    return np.where(q < 1e-14, np.pi / 2, np.sin(np.pi / 2 * t) / np.where(q == 0, 1, t))


ones = np.ones_like
fit("logarithm, relative", log_quotient, 7, np.sqrt(0.5) - 1, np.sqrt(2) - 1, lambda m: 1 / np.abs(log_quotient(m)))
fit("sine over the angle in quarter turns", sine_quotient, 4, 0, 1, ones)
fit("cosine", lambda q: np.cos(np.pi / 2 * np.sqrt(q)), 4, 0, 1, ones)
