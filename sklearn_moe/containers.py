"""Read tables from any container into arrays of numbers and of categories.

Equal values give equal arrays, no matter which container holds them: lists, arrays of any type,
sparse matrices, or data frames of pandas, polars, pyarrow and dask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.utils import assert_all_finite
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a table as arrays.

    Attributes
    ----------
    numbers : ndarray or SparseRows of shape (n_samples, n_numbers)
        The columns of numbers, with NaN where a value is missing.
    codes : ndarray of shape (n_samples, n_categorical)
        The columns of categories, as positions in ``levels``.
    levels : list of lists
        The distinct values of each column of categories: numbers as float, or as numpy's float32
        or float16 where a column had this type; anything else as str, and None for a missing
        value.
    """

    numbers: NDArray | SparseRows
    codes: NDArray[np.int64]
    levels: list[list[float | str | None]]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | NDArray) -> Table:
        return Table(self.numbers[rows], self.codes[rows], self.levels)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Make sure that any error within names the argument that cannot be read."""
    try:
        # scikit-learn looks for infinity in sums, and sums of huge numbers may overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except MemoryError:
        raise
    except Exception as error:
        is_type_error = isinstance(error, TypeError)
        if (is_type_error or isinstance(error, ValueError)) and re.search(
            rf"\b{re.escape(name)}\b", str(error)
        ):
            raise
        kind = TypeError if is_type_error else ValueError
        raise kind(f"{name} is not valid: {error}") from error


class SparseRows:
    """The rows of a sparse matrix, which become dense batch by batch.

    Indexing with a slice, or selecting with a tensor of positions, returns dense rows. Indexing
    with an array of positions returns ``SparseRows`` again.

    Parameters
    ----------
    matrix : sparse matrix or array of shape (n_samples, n_features)
        The values.
    """

    def __init__(self, matrix: Any):
        self.matrix = sparse.csr_array(matrix)
        self.shape, self.dtype = self.matrix.shape, self.matrix.dtype
        self._by_column: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray | Tensor) -> Any:
        if isinstance(rows, np.ndarray):
            return SparseRows(self.matrix[rows])
        return self.matrix[rows.numpy() if isinstance(rows, Tensor) else rows].toarray()

    def index_select(self, axis: int, rows: Tensor) -> Tensor:
        """Return a batch of rows as a tensor."""
        return torch.from_numpy(self[rows])

    def column(self, position: int) -> NDArray:
        """Return the values of a column."""
        if self._by_column is None:
            self._by_column = self.matrix.tocsc()
        return self._by_column[:, [position]].toarray().ravel()


def column_of(numbers: NDArray | SparseRows, position: int) -> NDArray:
    """Return a column of an array or of sparse rows."""
    if isinstance(numbers, SparseRows):
        return numbers.column(position)
    return numbers[:, position]


def stacked(X: NDArray | SparseRows, others: Any) -> NDArray | SparseRows:
    """Return the rows of both."""
    if isinstance(X, SparseRows):
        return SparseRows(sparse.vstack([X.matrix, others.matrix], format="csr"))
    return np.concatenate([X, others])


def as_eager(X: Any) -> Any:
    """Compute a lazy container (dask, polars' LazyFrame), and return any other unchanged."""
    with reading("X"):
        if hasattr(X, "compute"):
            return X.compute()
        if hasattr(X, "collect_schema") and hasattr(X, "collect"):
            return X.collect()
        return X


def as_frame(X: Any) -> nw.DataFrame | None:
    """Return a data frame wrapped by narwhals, and None for anything else."""
    if isinstance(X, np.ndarray):  # narwhals would find this out more slowly
        return None
    with reading("X"):
        frame = nw.from_native(X, eager_only=True, pass_through=True)
    return frame if isinstance(frame, nw.DataFrame) else None


def as_objects(X: Any) -> Any:
    """Return a list with text as an array of objects, so that numbers in it stay numbers."""
    if not isinstance(X, (list, tuple)):
        return X
    with reading("X"):
        is_text = np.asarray(X).dtype.kind in "US"
    return np.array(X, dtype=object) if is_text else X


def read_table(X: Any, is_categorical: NDArray[np.bool_]) -> Table:
    """Read a table into arrays of numbers and of categories.

    Parameters
    ----------
    X : data frame or ndarray of shape (n_samples, n_features)
        A table.
    is_categorical : ndarray of shape (n_features,)
        True for columns that hold categories.

    Returns
    -------
    Table

    Raises
    ------
    ValueError
        If a column cannot be read. The message names it.
    """
    if sparse.issparse(X):
        if not is_categorical.any():
            return _sparse_table(X)
        X = X.toarray()
    frame = as_frame(X)
    of_numbers, of_categories = np.flatnonzero(~is_categorical), np.flatnonzero(is_categorical)
    if frame is None and X.dtype.kind in "fiub":
        numbers = X if len(of_numbers) == X.shape[1] else X[:, of_numbers]
        if numbers.dtype.kind != "f":
            numbers = numbers.astype(np.float64)
    else:
        columns = [_numbers(*_column(X, frame, each)) for each in of_numbers]
        numbers = np.stack(columns, axis=1) if columns else np.empty((len(X), 0))
    if numbers.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float64)
    _check_finite(numbers, X, frame, of_numbers)
    read = [_levels(*_column(X, frame, each)) for each in of_categories]
    codes = [codes for codes, _ in read]
    return Table(
        numbers,
        np.stack(codes, axis=1) if codes else np.empty((len(X), 0), dtype=np.int64),
        [levels for _, levels in read],
    )


def _sparse_table(X):
    numbers = X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)
    if not (np.isfinite(numbers.data) | np.isnan(numbers.data)).all():
        numbers = X.tocoo()
        place = numbers.col[np.isinf(numbers.data.astype(np.float64))][0]
        raise _infinite(str(place))
    return Table(SparseRows(numbers), np.empty((X.shape[0], 0), dtype=np.int64), [])


def _infinite(name):
    return ValueError(
        f"Column {name} of X contains infinity or a value too large for float64. Clip or "
        "drop such values first."
    )


def _column(X, frame, position):
    """Return the values of a column, and its name for messages."""
    if frame is None:
        return X[:, position], str(position)
    column = frame[:, int(position)]
    name, kind = repr(column.name), column.dtype
    if kind.is_temporal():
        raise _temporal(name, kind)
    with reading(f"Column {name} of X"):
        if kind in _AS_ARRAYS:
            return column.to_numpy(), name
        # As arrays, other types may lose their missing values or gain an axis.
        return np.fromiter(column.to_list(), dtype=object, count=len(column)), name


_AS_ARRAYS = {
    nw.Float64,
    nw.Float32,
    getattr(nw, "Float16", nw.Unknown),  # older versions of narwhals do not have it
    nw.Int64,
    nw.Int32,
    nw.Int16,
    nw.Int8,
    nw.UInt64,
    nw.UInt32,
    nw.UInt16,
    nw.UInt8,
    nw.Boolean,
    nw.Unknown,
}


def _temporal(name, kind):
    return ValueError(
        f"Column {name} of X holds {kind}. X must be numbers and categories: make numbers of "
        "times first, such as the hour or the days since an event."
    )


def _numbers(values, name):
    """Return a column of numbers as floats."""
    if values.dtype.kind in "iub":
        return values.astype(np.float64)
    if values.dtype.kind == "f":
        return values
    if values.dtype.kind in "mM":
        raise _temporal(name, values.dtype)
    return np.array([_number(value, name) for value in values.tolist()], dtype=np.float64)


def _number(value, name):
    if is_missing(value):
        return np.nan
    try:
        if isinstance(value, (Real, Decimal, np.bool_, str, bytes)):
            return float(value)
    except OverflowError:
        return np.inf  # the check for infinity raises the error
    except ValueError:
        pass
    raise ValueError(
        f"Column {name} of X is a column of numbers and holds {value!r}. Name it in "
        "categorical_features if it holds categories, or make numbers of it first."
    )


def check_numbers(X: Any) -> None:
    """Raise an error that names the first column of a frame with values that are no numbers.

    Parameters
    ----------
    X : data frame or ndarray
        Samples that are read without an encoder.

    Raises
    ------
    ValueError
        If there is such a column.
    """
    frame = as_frame(X)
    if frame is None:  # scikit-learn says what is wrong with an array
        return
    for position in range(X.shape[1]):
        values, name = _column(X, frame, position)
        for value in values.tolist():
            if is_missing(value) or not isinstance(value, (Real, Decimal, np.bool_)):
                raise ValueError(
                    f"Column {name} of X holds {value!r}, which is no number. Leave "
                    "encoder='auto', which reads text, categories and missing values, or make "
                    "numbers of it first."
                )


def _check_finite(numbers, X, frame, positions):
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            assert_all_finite(numbers, allow_nan=True)
    except ValueError as error:
        column = int(np.flatnonzero(np.isinf(numbers).any(axis=0))[0])
        position = positions[column]
        name = str(position) if frame is None else repr(frame.columns[position])
        raise _infinite(name) from error


def _levels(values, name):
    """Return the codes of a column of categories, and the categories that they stand for."""
    if values.dtype.kind in "fiub":
        distinct, codes = np.unique(values, return_inverse=True)
        if values.dtype.kind != "f" or values.dtype.itemsize >= 8:
            distinct = distinct.astype(np.float64).tolist()
        return codes, [None if value != value else value for value in distinct]
    if values.dtype.kind in "mM":
        raise _temporal(name, values.dtype)
    positions: dict[float | str | None, int] = {}
    seen: dict[Any, int] = {}
    codes = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values.tolist()):
        try:
            code = seen.get(value)
        except TypeError:
            raise ValueError(
                f"Column {name} of X holds {value!r}, which is no category. Categories must be "
                "numbers, text or other hashable values."
            ) from None
        if code is None:
            level = as_level(value)
            code = seen[value] = positions.setdefault(level, len(positions))
        codes[row] = code
    return codes, list(positions)


def as_level(value):
    """Return a category as a float, a str, or None for a missing one."""
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (Real, Decimal, np.bool_)):
        try:
            return float(value)
        except OverflowError:
            pass
    return str(value)


def is_missing(value):
    """Whether a value is None, NaN, NaT or pandas' NA."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas' NA is neither equal nor unequal to itself
        return type(value).__name__ == "NAType"
    except ArithmeticError:  # Decimal's signalling NaN
        return True


def categorical_columns(X: Any, categorical_features: ArrayLike | str | None) -> NDArray[np.bool_]:
    """Return for each column whether it holds categories.

    Parameters
    ----------
    X : data frame or ndarray of shape (n_samples, n_features)
        A table.
    categorical_features : "from_dtype", array-like or None
        As in ``MoEClassifier``.

    Returns
    -------
    ndarray of shape (n_features,)
    """
    n_features = X.shape[1]
    frame = as_frame(X)
    is_categorical = np.zeros(n_features, dtype=bool)
    if categorical_features is None or n_features == 0:
        return is_categorical
    if isinstance(categorical_features, str):
        if frame is not None:
            is_categorical[:] = [_holds_categories(column) for column in frame.iter_columns()]
        elif X.dtype == object:
            is_categorical[:] = [_is_text(X[:, column].tolist()) for column in range(n_features)]
        return is_categorical
    return select_columns(X, categorical_features, "categorical_features")


def select_columns(
    X: Any, features: ArrayLike | Callable[[ArrayLike], ArrayLike], parameter: str
) -> NDArray[np.bool_]:
    """Return for each column of a table whether a user selected it.

    Parameters
    ----------
    X : data frame, ndarray or sparse matrix of shape (n_samples, n_features)
        A table.
    features : array-like or callable
        A mask, or names or positions of columns; or a function that returns one of these for X,
        such as scikit-learn's ``make_column_selector``.
    parameter : str
        The name of the parameter, for error messages.

    Returns
    -------
    ndarray of shape (n_features,)
    """
    n_features, frame = X.shape[1], as_frame(X)
    if callable(features):
        features = features(X)
    is_selected = np.zeros(n_features, dtype=bool)
    with reading(parameter):
        chosen = np.asarray(features)
    if chosen.size == 0:
        return is_selected
    if chosen.dtype.kind == "b":
        if chosen.shape != (n_features,):
            raise ValueError(
                f"{parameter} is a mask of shape {chosen.shape}, but X has {n_features} features."
            )
        return chosen.copy()
    if chosen.dtype.kind in "UTO" and all(isinstance(name, str) for name in chosen.tolist()):
        names = [] if frame is None else frame.columns
        unknown = [name for name in np.atleast_1d(chosen).tolist() if name not in names]
        if unknown:
            raise ValueError(
                f"{parameter} has {unknown[0]!r}, but the columns of X are {names}."
                if names
                else f"{parameter} has the name {unknown[0]!r}, but X has no column names. Pass a "
                "data frame, or positions."
            )
        chosen = np.array([names.index(name) for name in np.atleast_1d(chosen).tolist()])
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
        allowed = "'from_dtype', None, " if parameter == "categorical_features" else "None, "
        raise ValueError(
            f"{parameter} must be {allowed}a mask, or a list of names or of positions of columns, "
            f"got {features!r}."
        )
    if chosen.min() < 0 or chosen.max() >= n_features:
        raise ValueError(
            f"{parameter} must be positions from 0 to {n_features - 1}, got {features!r}."
        )
    is_selected[chosen] = True
    return is_selected


def _holds_categories(column):
    kind = column.dtype
    if kind in (nw.Categorical, nw.Enum):
        return True
    if kind == nw.String and str(getattr(column.to_native(), "dtype", "")) != "object":
        return True  # narwhals also says String for pandas' object columns without any value
    return (kind not in _AS_ARRAYS or kind == nw.Unknown) and _is_text(column.to_list())


def _is_text(values):
    """Whether any of these values is text; the others may be numbers."""
    return any(isinstance(value, str) for value in values)


def as_dense(X: Any) -> Any:
    """Return a sparse matrix as an array, and pandas' sparse columns as dense ones."""
    with reading("X"):
        if sparse.issparse(X):
            return X.toarray()
        # pandas has this accessor only if all columns are sparse.
        return X.sparse.to_dense() if hasattr(X, "sparse") and hasattr(X, "columns") else X


def has_single_precision(X: Any) -> bool:
    """Whether all values of an array or a data frame are float32 or float16."""
    frame = as_frame(X)
    if frame is not None:
        kinds = {str(kind) for kind in frame.schema.values()}
        return bool(kinds) and kinds <= {"Float32", "Float16"}
    return getattr(X, "dtype", None) in (np.float32, np.float16)
