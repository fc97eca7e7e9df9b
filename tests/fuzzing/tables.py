"""Random tables, and the containers that hold them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch
from scipy import sparse


def pick(rng, options, p=None):
    """Return one of some options, as it is; of a dict, one of its keys."""
    options = list(options)
    return options[rng.choice(len(options), p=p)]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of float64, with NaN, or of objects: text and None, perhaps among numbers."""

    columns: dict[str, np.ndarray]

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __str__(self):
        return f"{len(self)} x {len(self.columns)}"

    def __getitem__(self, rows):
        return Table({name: values[rows] for name, values in self.columns.items()})

    @property
    def text(self):
        return [name for name, values in self.columns.items() if values.dtype == object]

    def array(self):
        kind = object if self.text else float
        return np.column_stack([values.astype(kind) for values in self.columns.values()])

    def frame(self):
        return pd.DataFrame(self.columns)


# Columns


def with_missing(draw):
    def draw_with_missing(rng, n):
        values = draw(rng, n)
        values[rng.uniform(size=n) < 0.2] = None if values.dtype == object else np.nan
        return values

    return draw_with_missing


def among(*choices):
    return lambda rng, n: np.array([pick(rng, choices) for _ in range(n)], dtype=object)


def whole(low, high):
    return lambda rng, n: rng.integers(low, high, n).astype(float)


def normal(rng, n):
    return rng.normal(size=n)


NUMBERS = {
    "normal": normal,
    "halves": lambda rng, n: np.round(2 * rng.normal(size=n)) / 2,
    "small integers": whole(0, 4),
    "bytes": whole(0, 256),
    "zeros and ones": whole(0, 2),
    "constant": lambda rng, n: np.full(n, rng.normal()),
    "mostly zero": lambda rng, n: np.where(rng.uniform(size=n) < 0.8, 0, rng.normal(size=n)),
    "far from zero": lambda rng, n: 1e9 + rng.normal(size=n),
    "huge": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(30, 307),
    "largest": lambda rng, n: rng.choice([-1, 1, 0.5], n) * np.finfo(float).max,
    "tiny": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-320, -30),
    "any magnitude": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "large integers": whole(-(2**53), 2**53),
    "negative zeros": lambda rng, n: rng.choice([-0.0, 0.0, 1.0], n),
    "missing here and there": with_missing(normal),
    "missing integers": with_missing(whole(0, 9)),
    "missing": lambda rng, n: np.full(n, np.nan),
}

CATEGORIES = {
    "colours": among("red", "green", "blue"),
    "missing colours": with_missing(among("red", "green", "blue")),
    "odd text": among("", " ", "é", "日本", "a\x00b", "nan", "None", "<NA>", "x" * 300),
    "digits": among("1", "2", "2.0", "1e3", "-1"),
    "names": lambda rng, n: np.array([f"name {i}" for i in rng.integers(0, 999, n)], object),
    "one word": among("word"),
}

MIXED = {
    "numbers and text": among(1, 2, 2.5, "many", "few"),
    "numbers, text and None": among(1, True, 2.5, "1", None, "few", float("nan")),
}

# Columns that most types hold exactly.
SIMPLE = ["halves", "small integers", "zeros and ones", "bytes"]


def draw_table(rng):
    """Draw a table: of numbers, often with text, rarely with columns that mix both."""
    n_rows = pick(rng, [int(rng.integers(5, 120)), 120, 2, 16], p=[0.85, 0.07, 0.04, 0.04])
    shares = pick(rng, [(1, 0, 0), (0.5, 0.5, 0), (0.4, 0.3, 0.3)], p=[0.6, 0.3, 0.1])
    is_simple = rng.uniform() < 0.4
    columns = {}
    for j in range(rng.integers(1, 7)):
        kind = pick(rng, [NUMBERS, CATEGORIES, MIXED], p=shares)
        name = pick(rng, SIMPLE if is_simple and kind is NUMBERS else kind)
        values = columns[f"column {j}"] = kind[name](rng, n_rows)
        if kind is not NUMBERS:
            values[0] = "word"  # so that any container knows it for a column of text
    return Table(columns)


# Containers return None for a table whose values they cannot hold.


def array_of(kind, order="C"):
    def convert(table):
        X = table.array()
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = np.array(X, dtype=kind, order=order)
            is_same = np.array_equal(held.astype(float), X, equal_nan=True)
        return held if is_same else None

    return convert


def strided(table):
    X = table.array()
    wide = np.zeros((2 * len(X), 2 * X.shape[1]), dtype=X.dtype)
    wide[::2, ::2] = X
    return wide[::2, ::2]


def backwards(table):
    return np.ascontiguousarray(table.array()[::-1, ::-1])[::-1, ::-1]


def read_only(table):
    X = table.array()
    X.flags.writeable = False
    return X


def memory_map(table):
    with TemporaryFile() as file:
        X = np.memmap(file, dtype=float, shape=table.array().shape)
        X[:] = table.array()
        return X


class Array:
    """Has nothing but ``__array__``."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


class Subclass(np.ndarray):
    pass


OF_OBJECTS = {
    "list": lambda table: table.array().tolist(),
    "tuple of tuples": lambda table: tuple(map(tuple, table.array().tolist())),
    "list of arrays": lambda table: list(table.array()),
    "C": Table.array,
    "F": lambda table: np.asfortranarray(table.array()),
    "strided": strided,
    "backwards": backwards,
    "read-only": read_only,
    "subclass": lambda table: table.array().view(Subclass),
    "__array__": lambda table: Array(table.array()),
}

OF_NUMBERS = {
    "object": lambda table: table.array().astype(object),
    "memory map": memory_map,
    **{
        kind: array_of(kind)
        for kind in ["f2", "f4", "g", ">f8", ">f4", "i1", "i2", "i4", "i8", "u1", "u8", "?"]
    },
    "f4, F": array_of("f4", "F"),
    "masked, nothing": lambda table: np.ma.masked_array(table.array()),
    "tensor": lambda table: torch.tensor(table.array()),
    "CSR": lambda table: sparse.csr_array(table.array()),
    "CSC matrix": lambda table: sparse.csc_matrix(table.array()),
    "COO": lambda table: sparse.coo_array(table.array()),
    "LIL": lambda table: sparse.lil_array(table.array()),
}


def pandas_of(kind):
    def convert(table):
        with np.errstate(all="ignore"):
            try:
                held = table.frame().astype(kind)
            except (TypeError, ValueError):
                return None
        is_same = np.array_equal(held.astype(float).to_numpy(), table.array(), equal_nan=True)
        return held if is_same else None

    return convert


def pandas_category(table):
    return table.frame().astype(dict.fromkeys(table.text, "category"))


def pandas_index(table):
    return table.frame().set_axis([0] * len(table))


def pandas_na(table):
    frame = table.frame().astype(object)
    return frame.mask(frame.isna(), pd.NA)


def polars(table):
    return pl.DataFrame({name: values.tolist() for name, values in table.columns.items()})


def polars_of(kind):
    def convert(table):
        held = polars(table).cast(kind, strict=False)
        is_same = np.array_equal(held.to_numpy().astype(float), table.array(), equal_nan=True)
        return held if is_same else None

    return convert


def polars_categorical(table):
    return polars(table).with_columns(pl.col(table.text).cast(pl.Categorical))


def polars_enum(table):
    frame = polars(table)
    kinds = {name: pl.Enum(frame[name].drop_nulls().unique()) for name in table.text}
    return frame.with_columns(pl.col(name).cast(kind) for name, kind in kinds.items())


def arrow(table):
    return pa.table({name: values.tolist() for name, values in table.columns.items()})


def arrow_dictionary(table):
    frame = arrow(table)
    for name in table.text:
        position = frame.column_names.index(name)
        frame = frame.set_column(position, name, frame[name].dictionary_encode())
    return frame


def dask(table):
    from dask.dataframe import from_pandas

    return from_pandas(table.frame(), npartitions=2)


PANDAS = {
    "pandas": Table.frame,
    "pandas, object": lambda table: table.frame().astype(object),
    "pandas, one index": pandas_index,
    "pandas, NA": pandas_na,
}

FRAMES = {
    "pandas, nullable": lambda table: table.frame().convert_dtypes(),
    "pandas, pyarrow": lambda table: table.frame().convert_dtypes(dtype_backend="pyarrow"),
    "pandas, category": pandas_category,
    "polars": polars,
    "polars, nulls": lambda table: polars(table).fill_nan(None),
    "polars, lazy": lambda table: polars(table).lazy(),
    "polars, categorical": polars_categorical,
    "polars, enum": polars_enum,
    "pyarrow": arrow,
    "pyarrow, dictionary": arrow_dictionary,
}

FRAMES_OF_NUMBERS = {
    "pandas, sparse": pandas_of(pd.SparseDtype(float)),
    "pandas, float32": pandas_of("float32"),
    "pandas, Float64": pandas_of("Float64"),
    "pandas, Int64": pandas_of("Int64"),
    "pandas, bool": pandas_of("bool"),
    "polars, Float32": polars_of(pl.Float32),
    "polars, UInt8": polars_of(pl.UInt8),
    "polars, Boolean": polars_of(pl.Boolean),
}


def containers(table):
    """Return functions to the containers that hold such a table, by name."""
    if not table.text:
        return {**OF_OBJECTS, **OF_NUMBERS, **PANDAS, **FRAMES, **FRAMES_OF_NUMBERS}
    is_mixed = any(
        not isinstance(value, (str, type(None)))
        for name in table.text
        for value in table.columns[name]
    )
    return {**OF_OBJECTS, **PANDAS} if is_mixed else {**OF_OBJECTS, **PANDAS, **FRAMES}
