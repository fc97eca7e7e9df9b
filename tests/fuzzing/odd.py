"""What people pass by mistake, or hope that it works: odd samples, labels and weights."""

from __future__ import annotations

import datetime
import decimal
import fractions
from collections import deque

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch
from scipy import sparse


def odd_samples(rng, X):
    """Return odd containers and values, by name, as functions of nothing.

    Parameters
    ----------
    rng : numpy.random.Generator
    X : ndarray of shape (n_samples, n_features), float
        What they are made from.
    """
    n, n_features = X.shape
    X = np.clip(np.nan_to_num(X), -1e6, 1e6)
    row, column = int(rng.integers(n)), int(rng.integers(n_features))
    frame = pd.DataFrame(X, columns=[f"column {j}" for j in range(n_features)])
    name = frame.columns[column]
    dates = pd.date_range("2020", periods=n)
    objects = X.astype(object)

    def with_value(value):
        changed = objects.copy()
        changed[row, column] = value
        return changed

    def with_column(values):
        return frame.assign(**{name: values})

    def of_polars(values, **kwargs):
        return pl.from_pandas(frame).with_columns(pl.Series(name, values, **kwargs))

    def of_arrow(values):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        return table.set_column(column, name, values)

    def renamed(names):
        return frame.set_axis(names, axis=1)

    values = {
        "infinity": np.inf,
        "-infinity": -np.inf,
        "huge int": 10**400,
        "Decimal": decimal.Decimal("1.5"),
        "Decimal NaN": decimal.Decimal("sNaN"),
        "Fraction": fractions.Fraction(1, 3),
        "complex": 1j,
        "bytes": b"1",
        "odd bytes": b"\xff",
        "text": "text",
        "digits": "1_000",
        "infinity as text": "inf",
        "None": None,
        "NA": pd.NA,
        "NaT": pd.NaT,
        "numpy NaT": np.datetime64("NaT"),
        "date": datetime.date(2020, 1, 1),
        "timedelta": datetime.timedelta(1),
        "Timestamp": pd.Timestamp("2020"),
        "Interval": pd.Interval(0, 1),
        "list": [1, 2],
        "dict": {"a": 1},
        "array": np.arange(3),
        "array of one": np.array([1.0]),
        "tensor": torch.tensor(1.0),
        "object": object(),
        "float32": np.float32(1.5),
        "bool": np.True_,
        "Ellipsis": ...,
        "type": float,
    }
    with_values = {
        f"{kind} {holder}": lambda value=value, hold=hold: hold(with_value(value))
        for kind, value in values.items()
        for holder, hold in {
            "in objects": np.asarray,
            "in a list": lambda changed: changed.tolist(),
            "in pandas": lambda changed: pd.DataFrame(changed, columns=frame.columns),
        }.items()
    }
    whole = {
        "complex": lambda: X + 1j,
        "complex without imaginary part": lambda: X + 0j,
        "str": lambda: X.astype(str),
        "StringDType": lambda: X.astype(str).astype(np.dtypes.StringDType()),
        "bytes": lambda: X.astype("S"),
        "void": lambda: X.view("V8"),
        "dates": lambda: np.zeros((n, n_features), dtype="datetime64[D]"),
        "timedeltas": lambda: np.zeros((n, n_features), dtype="timedelta64[s]"),
        "structured": lambda: np.zeros(n, dtype=[("a", float), ("b", int)]),
        "structured, 2-D": lambda: np.zeros((n, 2), dtype=[("a", float), ("b", int)]),
        "recarray": lambda: np.rec.fromarrays([X[:, 0], X[:, 0]], names="a,b"),
        "masked": lambda: np.ma.masked_greater(X, 0),
        "matrix": lambda: np.asmatrix(X),
        "empty": lambda: X[:0],
        "no columns": lambda: X[:, :0],
        "empty frame": lambda: frame.iloc[:0],
        "frame without columns": lambda: frame.iloc[:, :0],
        "empty polars": lambda: pl.DataFrame(),
        "empty list": list,
        "list of empty lists": lambda: [[]] * n,
        "ragged": lambda: [[1.0] * (1 + (i % 2)) for i in range(n)],
        "1-D": lambda: X[:, 0],
        "0-D": lambda: np.float64(1.0),
        "scalar": lambda: 3,
        "string": lambda: "text",
        "None": lambda: None,
        "dict": lambda: {"a": [1.0] * n, "b": [2.0] * n},
        "set": lambda: {1.0, 2.0},
        "generator": lambda: (each for each in X),
        "map": lambda: map(list, X),
        "range": lambda: range(n),
        "deque": lambda: deque(X.tolist()),
        "list of dicts": lambda: [{"a": 1.0}] * n,
        "list of strings": lambda: ["text"] * n,
        "list of tensors": lambda: list(torch.tensor(X)),
        "list of sparse rows": lambda: [sparse.csr_array(X[[i]]) for i in range(n)],
        "memoryview": lambda: memoryview(np.ascontiguousarray(X)),
        "class": lambda: pd.DataFrame,
        "five axes": lambda: np.zeros((n, 2, 2, 2, 2)),
        "images of text": lambda: np.full((n, 4, 4), "a"),
        "images with NaN": lambda: np.full((n, 4, 4), np.nan),
        "images with infinity": lambda: np.full((n, 4, 4), np.inf),
        "images of one pixel": lambda: rng.uniform(size=(n, 1, 1)),
        "images of complex": lambda: np.full((n, 4, 4), 1j),
        "images of dates": lambda: np.zeros((n, 4, 4), dtype="datetime64[D]"),
        "images of objects": lambda: rng.uniform(size=(n, 4, 4)).astype(object),
        "images in a list": lambda: rng.uniform(size=(n, 4, 4)).tolist(),
        "sparse ints": lambda: sparse.csr_array(X.astype(int)),
        "sparse bools": lambda: sparse.csc_array(X > 0),
        "sparse complex": lambda: sparse.csr_array(X + 1j),
        "sparse infinity": lambda: sparse.csr_array(np.where(X == X[0, 0], np.inf, 0)),
        "sparse NaN": lambda: sparse.csr_array(np.where(X == X[0, 0], np.nan, X)),
        "sparse, one axis": lambda: sparse.coo_array(X[:, 0]),
        "sparse, empty": lambda: sparse.csr_array((0, n_features)),
        "DOK": lambda: sparse.dok_array(X),
        "DIA": lambda: sparse.dia_array(X),
        "BSR": lambda: sparse.bsr_array(X),
        "tensor of halves": lambda: torch.tensor(X, dtype=torch.float16),
        "tensor of bfloat16": lambda: torch.tensor(X, dtype=torch.bfloat16),
        "tensor with gradient": lambda: torch.tensor(X, requires_grad=True),
        "tensor of ints": lambda: torch.tensor(X).long(),
        "sparse tensor": lambda: torch.tensor(X).to_sparse(),
        "tensor of complex": lambda: torch.tensor(X + 1j),
        "meta tensor": lambda: torch.empty((n, n_features), device="meta"),
    }
    frames = {
        "pandas Series": lambda: frame[name],
        "pandas Index": lambda: pd.Index(X[:, 0]),
        "polars Series": lambda: pl.Series(X[:, 0]),
        "pyarrow array": lambda: pa.array(X[:, 0]),
        "pyarrow batch": lambda: pa.RecordBatch.from_pandas(frame),
        "one name": lambda: renamed(["a"] * n_features),
        "one name twice": lambda: pd.concat([frame, frame[[name]]], axis=1),
        "names that are numbers": lambda: renamed(range(n_features)),
        "names of several kinds": lambda: renamed([0, *frame.columns[1:]]),
        "names that are missing": lambda: renamed([None, *frame.columns[1:]]),
        "names that are tuples": lambda: renamed([("a", j) for j in range(n_features)]),
        "names that are dates": lambda: renamed(pd.date_range("2020", periods=n_features)),
        "MultiIndex": lambda: renamed(
            pd.MultiIndex.from_product([["a"], list(range(n_features))])
        ),
        "date": lambda: with_column(dates),
        "date with time zone": lambda: with_column(dates.tz_localize("UTC")),
        "period": lambda: with_column(dates.to_period("D")),
        "timedelta": lambda: with_column(dates - dates[0]),
        "interval": lambda: with_column(pd.interval_range(0, n)),
        "category of numbers": lambda: with_column(pd.Categorical(np.arange(n) % 3)),
        "category of intervals": lambda: with_column(pd.cut(np.arange(n), 2)),
        "category of dates": lambda: with_column(pd.Categorical(dates)),
        "category of bools": lambda: with_column(pd.Categorical(np.arange(n) % 2 > 0)),
        "category, nothing but missing": lambda: with_column(pd.Categorical([None] * n)),
        "boolean with NA": lambda: with_column(pd.array([True, None, False] * n)[:n]),
        "Int64 with NA": lambda: with_column(pd.array([1, None, 3] * n)[:n]),
        "UInt8": lambda: with_column(pd.array(np.arange(n) % 7, dtype="UInt8")),
        "string with NA": lambda: with_column(pd.array(["a", None, "b"] * n)[:n]),
        "sparse column": lambda: with_column(pd.arrays.SparseArray(X[:, column])),
        "sparse ints in a column": lambda: with_column(
            pd.arrays.SparseArray(np.arange(n) % 2, fill_value=0)
        ),
        "object, nothing but None": lambda: with_column([None] * n),
        "pandas, complex": lambda: with_column(X[:, column] + 1j),
        "pandas, infinity": lambda: with_column(np.inf),
        "pandas, lists": lambda: with_column([[1.0]] * n),
        "polars, list": lambda: of_polars([[1.0]] * n),
        "polars, array": lambda: of_polars([[1.0]] * n, dtype=pl.Array(pl.Float64, 1)),
        "polars, struct": lambda: of_polars([{"a": 1}] * n),
        "polars, null": lambda: of_polars([None] * n),
        "polars, bytes": lambda: of_polars([b"a"] * n),
        "polars, Decimal": lambda: of_polars(
            [decimal.Decimal(f"{i}.5") for i in range(n)], dtype=pl.Decimal(10, 2)
        ),
        "polars, date": lambda: of_polars([datetime.date(2020, 1, 1)] * n),
        "polars, time": lambda: of_polars([datetime.time(1)] * n),
        "polars, object": lambda: of_polars([object()] * n, dtype=pl.Object),
        "polars, bools with null": lambda: of_polars(([True, None, False] * n)[:n]),
        "polars, ints with null": lambda: of_polars(([1, None, 3] * n)[:n]),
        "polars, Int128": lambda: of_polars(np.arange(n), dtype=pl.Int128),
        "polars, infinity": lambda: of_polars([np.inf] * n),
        "polars, enum": lambda: of_polars(["a"] * n, dtype=pl.Enum(["b", "a"])),
        "pyarrow, null": lambda: of_arrow(pa.nulls(n)),
        "pyarrow, decimal": lambda: of_arrow(
            pa.array([decimal.Decimal(f"{i}.5") for i in range(n)])
        ),
        "pyarrow, list": lambda: of_arrow(pa.array([[1.0]] * n)),
        "pyarrow, struct": lambda: of_arrow(pa.array([{"a": 1}] * n)),
        "pyarrow, bytes": lambda: of_arrow(pa.array([b"a"] * n)),
        "pyarrow, date": lambda: of_arrow(pa.array(dates)),
        "pyarrow, bools with null": lambda: of_arrow(pa.array(([True, None, False] * n)[:n])),
        "pyarrow, dictionary of ints": lambda: of_arrow(
            pa.array(np.arange(n) % 3).dictionary_encode()
        ),
        "pyarrow, half floats": lambda: of_arrow(pa.array(X[:, column].astype(np.float16))),
        "pandas, pyarrow date": lambda: with_column(
            pd.Series(dates).astype("timestamp[ns][pyarrow]")
        ),
        "pandas, pyarrow list": lambda: with_column(
            pd.Series([[1.0]] * n, dtype=pd.ArrowDtype(pa.list_(pa.float64())))
        ),
        "pandas, pyarrow dictionary": lambda: with_column(
            pd.Series(pd.arrays.ArrowExtensionArray(pa.array(["a"] * n).dictionary_encode()))
        ),
        "pandas, pyarrow bool": lambda: with_column(
            pd.Series(([True, None, False] * n)[:n], dtype="bool[pyarrow]")
        ),
        "pandas, pyarrow decimal": lambda: with_column(
            pd.Series([decimal.Decimal("1.5")] * n, dtype=pd.ArrowDtype(pa.decimal128(10, 2)))
        ),
    }
    return {**with_values, **whole, **frames}


def odd_labels(rng, codes):
    """Return odd labels, by name, as functions of nothing, made from indices of classes."""
    n = len(codes)
    row = int(rng.integers(n))
    names = np.array(["no", "yes", "perhaps", "never", "always"], dtype=object)[codes]

    def with_value(value, labels):
        changed = labels.astype(object)
        changed[row] = value
        return changed

    values = [None, np.nan, pd.NA, pd.NaT, np.inf, 1j, 0.5, b"a", (1, 2), object(), 10**30, "1"]
    values += [datetime.date(2020, 1, 1), decimal.Decimal(1), True, {}, [1], np.datetime64("NaT")]
    with_values = {
        f"{value!r} among {kind}": lambda value=value, labels=labels: with_value(value, labels)
        for value in values
        for kind, labels in {"integers": codes, "text": names}.items()
    }
    return {
        **with_values,
        "values": lambda: rng.normal(size=n),
        "NaN": lambda: np.where(np.arange(n) == row, np.nan, codes),
        "infinity": lambda: np.where(np.arange(n) == row, np.inf, codes),
        "one class": lambda: np.zeros(n, dtype=int),
        "as many classes as samples": lambda: np.arange(n),
        "too few": lambda: codes[:-1],
        "too many": lambda: np.r_[codes, 0],
        "none": lambda: codes[:0],
        "None": lambda: None,
        "string": lambda: "labels",
        "bytes": lambda: b"labels",
        "scalar": lambda: 1,
        "dict": lambda: dict(enumerate(codes.tolist())),
        "set": lambda: {0, 1},
        "generator": lambda: (each for each in codes),
        "two columns": lambda: np.c_[codes, codes],
        "one-hot": lambda: np.eye(int(codes.max()) + 1)[codes],
        "three axes": lambda: codes[:, None, None],
        "ragged": lambda: [[0], [0, 1]] * n,
        "lists": lambda: [[each] for each in codes.tolist()],
        "complex": lambda: codes + 1j,
        "complex without imaginary part": lambda: codes + 0j,
        "dates": lambda: codes.astype("datetime64[D]"),
        "timedeltas": lambda: codes.astype("timedelta64[D]"),
        "pandas dates": lambda: pd.Series(pd.to_datetime(codes)),
        "periods": lambda: pd.Series(pd.to_datetime(codes)).dt.to_period("D"),
        "intervals": lambda: pd.Series(pd.cut(codes, 2)),
        "structured": lambda: np.zeros(n, dtype=[("a", int)]),
        "void": lambda: np.zeros(n, dtype="V3"),
        "sparse": lambda: sparse.csr_array(np.c_[codes]),
        "masked": lambda: np.ma.masked_equal(codes, 1),
        "frame": lambda: pd.DataFrame({"y": codes}),
        "frame of two columns": lambda: pd.DataFrame({"y": codes, "z": codes}),
        "nullable with NA": lambda: pd.Series(with_value(pd.NA, codes), dtype="Int64"),
        "string with NA": lambda: pd.Series(with_value(pd.NA, names), dtype="string"),
        "category with NaN": lambda: pd.Series(with_value(None, names), dtype="category"),
        "pyarrow with null": lambda: pd.Series(with_value(None, names)).astype("string[pyarrow]"),
        "polars with null": lambda: pl.Series(with_value(None, codes).tolist()),
        "polars frame": lambda: pl.DataFrame({"y": codes}),
        "pyarrow": lambda: pa.array(codes),
        "pyarrow table": lambda: pa.table({"y": codes}),
        "float16": lambda: codes.astype(np.float16),
        "huge integers": lambda: codes.astype(np.uint64) + np.uint64(2**64 - 6),
        "huge floats": lambda: codes * 1e308,
        "Decimals": lambda: [decimal.Decimal(int(each)) for each in codes],
        "tuples": lambda: [(int(each), 1) for each in codes],
        "StringDType": lambda: names.astype(np.dtypes.StringDType()),
        "tensor with gradient": lambda: torch.tensor(codes.astype(float), requires_grad=True),
        "class": lambda: int,
    }


def odd_weights(rng, n):
    """Return odd weights of samples, by name, as functions of nothing."""
    weight = rng.uniform(size=n)
    row = int(rng.integers(n))

    def with_value(value):
        changed = weight.astype(object)
        changed[row] = value
        return changed

    return {
        "negative": lambda: with_value(-1.0).astype(float),
        "NaN": lambda: with_value(np.nan).astype(float),
        "infinity": lambda: with_value(np.inf).astype(float),
        "None in it": lambda: with_value(None),
        "text in it": lambda: with_value("heavy"),
        "NA in it": lambda: pd.Series(with_value(pd.NA), dtype="Float64"),
        "null in it": lambda: pl.Series(with_value(None).tolist()),
        "a list in it": lambda: with_value([1]),
        "huge int": lambda: with_value(10**400),
        "zeros": lambda: np.zeros(n),
        "zeros but one": lambda: (np.arange(n) == row).astype(float),
        "too few": lambda: weight[:-1],
        "none": lambda: weight[:0],
        "two columns": lambda: np.c_[weight, weight],
        "one column": lambda: weight[:, None],
        "text": lambda: "balanced",
        "texts": lambda: ["a"] * n,
        "digits": lambda: ["1"] * n,
        "scalar": lambda: 3,
        "float": lambda: 0.5,
        "True": lambda: True,
        "zero": lambda: 0,
        "one NaN": lambda: np.nan,
        "one infinity": lambda: np.inf,
        "one complex": lambda: 1j,
        "complex": lambda: weight + 1j,
        "dates": lambda: np.zeros(n, dtype="datetime64[D]"),
        "dict": lambda: dict(enumerate(weight)),
        "set": lambda: set(weight.tolist()),
        "generator": lambda: (each for each in weight),
        "sparse": lambda: sparse.csr_array(weight[None]),
        "ragged": lambda: [[1.0], [1.0, 2.0]] * n,
        "structured": lambda: np.zeros(n, dtype=[("a", float)]),
        "longdouble": lambda: weight.astype(np.longdouble) * np.longdouble("1e4000"),
        "class": lambda: float,
    }
