"""Random labels and weights of samples, and the containers that hold them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch

from fuzzing.tables import pick

NAMES = np.array(["no", "yes", "perhaps", "never", "always"])


def draw_codes(rng, score):
    """Draw the class of each sample, of two to five, which depends on its score."""
    n_classes = pick(rng, [2, 3, 5], p=[0.5, 0.35, 0.15])
    noise = rng.normal(size=len(score))
    order = np.argsort(np.argsort(score) / len(score) + 0.3 * noise)
    codes = np.empty(len(score), dtype=int)
    codes[order] = np.arange(len(score)) * n_classes // len(score)
    return codes


LABELS = {
    "integers": lambda codes: codes,
    "list": lambda codes: codes.tolist(),
    "list of strings": lambda codes: NAMES[codes].tolist(),
    "strings": lambda codes: NAMES[codes],
    "objects": lambda codes: NAMES[codes].astype(object),
    "bytes": lambda codes: NAMES[codes].astype("S"),
    "negative": lambda codes: 3 - 10 * codes,
    "bool": lambda codes: codes > 0,
    "int8": lambda codes: codes.astype(np.int8),
    "uint64": lambda codes: codes.astype(np.uint64),
    "floats": lambda codes: codes.astype(float),
    "objects of integers": lambda codes: codes.astype(object),
    "column": lambda codes: codes[:, None],
    "strided": lambda codes: np.repeat(codes, 2)[::2],
    "tensor": torch.tensor,
    "pandas": lambda codes: pd.Series(NAMES[codes], index=np.arange(len(codes))[::-1]),
    "pandas, category": lambda codes: pd.Series(pd.Categorical(NAMES[codes])),
    "pandas, Categorical": lambda codes: pd.Categorical(NAMES[codes]),
    "pandas, Index": lambda codes: pd.Index(NAMES[codes]),
    "pandas, Int64": lambda codes: pd.Series(codes, dtype="Int64"),
    "pandas, boolean": lambda codes: pd.Series(codes > 0, dtype="boolean"),
    "pandas, pyarrow": lambda codes: pd.Series(NAMES[codes]).astype("string[pyarrow]"),
    "pandas, frame": lambda codes: pd.DataFrame({"y": codes}),
    "polars": lambda codes: pl.Series(NAMES[codes].tolist()),
    "polars, integers": lambda codes: pl.Series(codes),
    "polars, categorical": lambda codes: pl.Series(NAMES[codes].tolist(), dtype=pl.Categorical),
    "pyarrow": lambda codes: pa.array(NAMES[codes].tolist()),
}


WEIGHTS = {
    "uniform": lambda rng, n: rng.uniform(0.1, 1, n),
    "list": lambda rng, n: rng.uniform(0.1, 1, n).tolist(),
    "integers": lambda rng, n: rng.integers(1, 4, n),
    "bool": lambda rng, n: np.arange(n) % 3 > 0,
    "some zeros": lambda rng, n: np.where(np.arange(n) % 3 > 0, rng.uniform(0.1, 1, n), 0),
    "huge": lambda rng, n: rng.uniform(0.1, 1, n) * 1e307,
    "tiny": lambda rng, n: rng.uniform(0.1, 1, n) * 1e-307,
    "denormal": lambda rng, n: rng.uniform(0.1, 1, n) * 1e-318,
    "any magnitude": lambda rng, n: 10.0 ** rng.uniform(-9, 9, n),
    "float32": lambda rng, n: rng.uniform(0.1, 1, n).astype(np.float32),
    "tensor": lambda rng, n: torch.tensor(rng.uniform(0.1, 1, n)),
    "pandas": lambda rng, n: pd.Series(rng.uniform(0.1, 1, n), index=np.arange(n)[::-1]),
    "pandas, Float64": lambda rng, n: pd.Series(rng.uniform(0.1, 1, n), dtype="Float64"),
    "polars": lambda rng, n: pl.Series(rng.uniform(0.1, 1, n)),
    "pyarrow": lambda rng, n: pa.array(rng.uniform(0.1, 1, n)),
    "read-only": lambda rng, n: np.broadcast_to(np.float64(2.0), n),
}
