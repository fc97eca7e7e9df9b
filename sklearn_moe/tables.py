"""Tables: which columns hold categories, and how columns become the numbers that a net reads."""

from __future__ import annotations

from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.preprocessing import SplineTransformer
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_array, has_fit_parameter

# With fewer rows or more columns hat functions took more than they gave (digits, breast_cancer).
ROWS_PER_COLUMN = 50
COLUMNS_FOR_HATS = 100


def as_frame(X: Any) -> nw.DataFrame | None:
    """Return a data frame as narwhals sees it, and None for all else."""
    frame = nw.from_native(X, eager_only=True, pass_through=True)
    return frame if isinstance(frame, nw.DataFrame) else None


def categorical_columns(
    X: ArrayLike, categorical_features: ArrayLike | str | None
) -> NDArray[np.bool_]:
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
        return is_categorical
    chosen = np.asarray(categorical_features)
    if chosen.size == 0:
        return is_categorical
    if chosen.dtype.kind == "b":
        if chosen.shape != (n_features,):
            raise ValueError(
                f"categorical_features is a mask of shape {chosen.shape}, but X has {n_features} "
                "features."
            )
        return chosen
    if chosen.dtype.kind in "UTO" and all(isinstance(name, str) for name in chosen.tolist()):
        names = [] if frame is None else frame.columns
        unknown = [name for name in chosen.tolist() if name not in names]
        if unknown:
            raise ValueError(
                f"categorical_features has {unknown[0]!r}, but the columns of X are {names}."
                if names
                else f"categorical_features has the name {unknown[0]!r}, but X has no names of "
                "columns. Pass a data frame, or positions."
            )
        chosen = np.array([names.index(name) for name in chosen.tolist()])
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
        raise ValueError(
            "categorical_features must be 'from_dtype', None, a mask, or a list of names or of "
            f"positions of columns, got {categorical_features!r}."
        )
    if chosen.min() < 0 or chosen.max() >= n_features:
        raise ValueError(
            f"categorical_features must be positions from 0 to {n_features - 1}, got "
            f"{categorical_features!r}."
        )
    is_categorical[chosen] = True
    return is_categorical


def _holds_categories(column):
    kind = column.dtype
    if kind.is_temporal():
        raise ValueError(
            f"Column {column.name!r} holds {kind}. X must be numbers and categories: make numbers "
            "of times first, such as the hour or the days since an event."
        )
    if kind == nw.Object:  # numbers, too, where pandas had no type for them
        return any(isinstance(value, str) for value in column.to_list())
    return kind in (nw.Categorical, nw.Enum, nw.String)


def clip_smoothly(X: NDArray) -> NDArray:
    r"""Return :math:`x / \sqrt{1 + (x / 3)^2}`: outliers stay below 3, and order stays."""
    return X / np.sqrt(1 + np.square(X / 3))


class TableTransformer(TransformerMixin, BaseEstimator):
    """Turn the columns of a table into numbers; ``MoEClassifier.encoder_`` is one.

    Parameters
    ----------
    numbers : list of transformers
        What columns of numbers pass through, one after the other.
    n_knots : int, "auto" or None
        Number of hat functions of a column of numbers.
    categories : transformer
        What columns of categories pass through; a missing one is None there.

    Attributes
    ----------
    is_categorical_ : ndarray of shape (n_features,)
        Whether a column holds categories.
    numbers_ : list of transformers
        The fitted ones; empty where no column holds numbers.
    bent_ : ndarray of int
        Positions among the columns of numbers that have hat functions.
    hats_ : SplineTransformer or None
        The hat functions, if a column has any.
    categories_ : transformer or None
        The fitted one, if a column holds categories.
    """

    def __init__(self, numbers: list, n_knots: int | str | None, categories: Any):
        self.numbers = numbers
        self.n_knots = n_knots
        self.categories = categories

    def fit(
        self,
        X: ArrayLike,
        y: None = None,
        *,
        is_categorical: NDArray[np.bool_],
        sample_weight: NDArray | None = None,
    ) -> TableTransformer:
        """Fit the transformers.

        Parameters
        ----------
        X : data frame or ndarray of shape (n_samples, n_features)
            A table, with NaN, None or NA where a value is missing.
        y : None
            Not used.
        is_categorical : ndarray of shape (n_features,)
            Whether a column holds categories.
        sample_weight : ndarray of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        self : TableTransformer
        """
        self.is_categorical_ = is_categorical
        self.numbers_, self.hats_, self.categories_ = [], None, None
        if not is_categorical.all():
            numbers = _numbers(X, is_categorical)
            for step in self.numbers:
                weighted = has_fit_parameter(step, "sample_weight")
                weight = {"sample_weight": sample_weight} if weighted else {}
                self.numbers_.append(clone(step).fit(numbers, **weight))
                numbers = self.numbers_[-1].transform(numbers)
            self._fit_hats(numbers[:, : np.count_nonzero(~is_categorical)], sample_weight)
        if is_categorical.any():
            self.categories_ = clone(self.categories).fit(_categories(X, is_categorical))
        return self

    def _fit_hats(self, numbers, sample_weight):
        self.bent_ = np.flatnonzero([len(np.unique(column)) > 4 for column in numbers.T])
        n_knots = self.n_knots
        if n_knots == "auto":
            n_columns = len(self.bent_)
            pays = n_columns <= min(COLUMNS_FOR_HATS, len(numbers) / ROWS_PER_COLUMN)
            n_knots = 7 if pays else None
        if n_knots is not None and len(self.bent_):
            self.hats_ = SplineTransformer(
                n_knots=n_knots, degree=1, knots="quantile", extrapolation="constant"
            ).fit(numbers[:, self.bent_], sample_weight=sample_weight)

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return a table as numbers.

        Parameters
        ----------
        X : data frame or ndarray of shape (n_samples, n_features)
            A table.

        Returns
        -------
        ndarray of shape (n_samples, n_numbers)
        """
        parts = []
        if self.numbers_:
            numbers = _numbers(X, self.is_categorical_)
            for step in self.numbers_:
                numbers = step.transform(numbers)
            parts.append(numbers)
            if self.hats_ is not None:
                parts.append(self.hats_.transform(numbers[:, self.bent_]))
        if self.categories_ is not None:
            parts.append(self.categories_.transform(_categories(X, self.is_categorical_)))
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")


def _numbers(X, is_categorical):
    """Return the columns of numbers."""
    columns = np.flatnonzero(~is_categorical)
    numbers = X if len(columns) == X.shape[1] else _safe_indexing(X, columns, axis=1)
    return check_array(
        numbers,
        dtype=[np.float64, np.float32],
        ensure_all_finite="allow-nan",
        estimator="MoEClassifier",
        input_name="X",
    )


def _categories(X, is_categorical):
    """Return the columns of categories as objects, with None where one is missing."""
    columns = np.flatnonzero(is_categorical)
    frame = as_frame(X)
    if frame is None:
        values = X[:, columns]
        if values.dtype != object:
            return values
        missing = values != values  # NaN
    else:
        series = [frame[:, int(column)] for column in columns]
        values = np.stack([column.to_numpy().astype(object) for column in series], axis=1)
        missing = np.stack([column.is_null().to_numpy() for column in series], axis=1)
    return np.where(missing, None, values)
