"""Random images, and the containers that hold them."""

from __future__ import annotations

import numpy as np
import torch

from fuzzing.tables import pick


def draw_images(rng):
    """Draw images of bytes, fractions or any floats, as an array."""
    n = int(rng.integers(5, 40))
    shape = pick(rng, [(8, 8), (6, 7), (8, 8, 3), (3, 8, 8), (6, 6, 1), (1, 6, 6), (2, 2)])
    kind = pick(rng, ["bytes", "fractions", "floats", "few bytes", "black"])
    if kind == "fractions":
        return rng.uniform(size=(n, *shape))
    if kind == "floats":
        return rng.normal(size=(n, *shape))
    highest = {"bytes": 256, "few bytes": 2, "black": 1}[kind]
    return rng.integers(0, highest, (n, *shape)).astype(np.uint8)


OF_ANY = {
    "C": np.copy,
    "F": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=-1)[..., ::2],
    "list": np.ndarray.tolist,
    "list of arrays": list,
    "tensor": torch.tensor,
}

OF_WHOLE_NUMBERS = {
    "int64": lambda X: X.astype(np.int64),
    "uint16": lambda X: X.astype(np.uint16),
}


def containers(X):
    """Return functions to the containers that hold such images, by name."""
    return {**OF_ANY, **OF_WHOLE_NUMBERS} if X.dtype == np.uint8 else OF_ANY
