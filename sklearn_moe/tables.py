"""Encode tables: turn their columns into the numbers that a net reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from sklearn_moe.categories import as_category, number_of, places_of, sort_key
from sklearn_moe.containers import (
    SparseRows,
    Table,
    as_dense,
    as_eager,
    as_frame,
    as_objects,
    column_of,
    read_table,
)
from sklearn_moe.quantiles import OUTERMOST, choose_knots, inner_range
from sklearn_moe.table_layer import TableLayer

# With fewer rows or more columns, hat functions did more harm than good (digits, breast_cancer).
ROWS_PER_COLUMN = 50
COLUMNS_FOR_HATS = 100

# At least this many rows lie between two knots, not counting most rows of very frequent values.
ROWS_PER_KNOT = 25

# With 4,000 rows, shape functions neither helped nor harmed on average; with 8,000 they helped.
ROWS_FOR_SHAPES = 6000

# Tables are processed in pieces of about this many numbers, as double precision takes memory.
NUMBERS_OF_PIECE = 2**20

# Warn about a later column of which more than half of the values, or more than a tenth, are
# farther from the first mean than this, in standard deviations. These are quantiles.
FAR_AWAY = {0.5: 5, 0.9: 30}

# Warn about a later column whose values, without a twentieth at both ends, have a range that is
# smaller than this, in interquartile ranges of the first training ...
NARROW = 0.01

# ... if at least this many values are not the most frequent one.
VALUES_THAT_TELL = 20

# Numbers with larger exponents of two are scaled, so that fourth powers do not leave double
# precision.
LARGEST_EXPONENT = 200


def read_any(X: ArrayLike, is_categorical: NDArray[np.bool_]) -> Table:
    """Read a table from any container, also a list, a lazy frame or a sparse matrix."""
    X = as_dense(as_eager(X))
    if as_frame(X) is None:
        X = np.asarray(as_objects(X))
    return read_table(X, is_categorical)


def clip_smoothly(X: NDArray) -> NDArray:
    r"""Squash numbers into (-3, 3) in the same order, by :math:`x / \sqrt{1 + (x / 3)^2}`."""
    return X / np.hypot(1, X / 3)


class TableTransformer(TransformerMixin, BaseEstimator):
    """Turn the columns of a table into numbers; ``MoEClassifier.encoder_`` is one.

    Parameters
    ----------
    n_knots : int, "auto" or None
        Largest number of hat functions of a column of numbers; see ``TableEncoder``.
    max_categories : int or None
        Largest number of encoded columns for a column of categories; the rarest share one.
    squash : bool
        Whether outliers are squashed smoothly.
    n_shape_knots : int, "auto" or None
        Largest number of knots of a column's shape function; see ``TableEncoder``.

    Attributes
    ----------
    is_categorical_ : ndarray of shape (n_features,)
        True for columns that hold categories.
    mean_, scale_ : ndarray of shape (n_numbers,)
        Mean and standard deviation of each column of numbers, without outliers (see
        ``TableEncoder``), divided by two to the power of its ``exponent_``, which is 0 unless the
        numbers are extreme.
    spread_ : ndarray of shape (n_numbers,)
        How far ordinary values of each column lie apart, likewise divided: about the interquartile
        range, or ``scale_`` where the two are alike.
    is_constant_ : ndarray of shape (n_numbers,)
        True for columns of numbers whose values were all the same.
    has_missing_ : ndarray of shape (n_numbers,)
        True for columns of numbers that had missing values.
    knots_ : list of ndarray
        The knots of the hat functions of each column of numbers, standardised; empty for a column
        without hat functions.
    shape_knots_ : list of ndarray
        The knots of the shape function of each column of numbers, standardised; empty for a column
        without one.
    categories_ : list of lists
        For each column of categories, the categories that are encoded in separate columns:
        numbers as float, anything else as str, None for a missing value.
    has_infrequent_ : list of bool
        For each column of categories, whether one more column encodes the rarest categories and
        unknown ones.
    """

    def __init__(
        self,
        n_knots: int | str | None = "auto",
        max_categories: int | None = 100,
        squash: bool = True,
        n_shape_knots: int | str | None = "auto",
    ):
        self.n_knots = n_knots
        self.max_categories = max_categories
        self.squash = squash
        self.n_shape_knots = n_shape_knots

    def fit(
        self,
        X: Table,
        y: None = None,
        *,
        is_categorical: NDArray[np.bool_],
        sample_weight: NDArray | None = None,
    ) -> TableTransformer:
        """Learn scales, knots and categories.

        Parameters
        ----------
        X : Table of n_samples rows
            What :func:`read_table` returned.
        y : None
            Not used.
        is_categorical : ndarray of shape (n_features,)
            True for the columns that were read as categories.
        sample_weight : ndarray of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        self : TableTransformer
        """
        self.is_categorical_ = is_categorical
        weight = np.ones(len(X)) if sample_weight is None else sample_weight.astype(np.float64)
        may_have_outliers = self._fit_scales(X.numbers, weight)
        self._fit_columns(X.numbers, weight, may_have_outliers)
        self._fit_categories(X)
        return self

    def _fit_scales(self, numbers, weight):
        """Learn mean and scale, and return which columns may have outliers."""
        n_columns = numbers.shape[1]
        lowest, highest = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)
        for rows in self._pieces(numbers):
            lowest = np.fmin(lowest, np.fmin.reduce(numbers[rows], axis=0))
            highest = np.fmax(highest, np.fmax.reduce(numbers[rows], axis=0))
        self.exponent_ = _exponent(lowest, highest)

        total, self.mean_ = np.zeros(n_columns), np.zeros(n_columns)
        self.has_missing_ = np.zeros(n_columns, dtype=bool)
        for rows in self._pieces(numbers):
            piece = self._scaled_down(numbers[rows])
            missing = np.isnan(piece)
            self.has_missing_ |= missing.any(axis=0)
            total += weight[rows] @ ~missing
            self.mean_ += weight[rows] @ np.where(missing, 0, piece)
        total[total == 0] = 1
        self.mean_ /= total
        variance, fourth = np.zeros(n_columns), np.zeros(n_columns)
        for rows in self._pieces(numbers):
            square = np.square(np.nan_to_num(self._scaled_down(numbers[rows]) - self.mean_))
            variance += weight[rows] @ square
            fourth += weight[rows] @ np.square(square, out=square)
        variance /= total
        self.scale_ = np.sqrt(variance)
        has_one_value = np.isfinite(lowest) & (lowest == highest)
        self.mean_[has_one_value] = self._scaled_down(lowest)[has_one_value]
        self.is_constant_ = has_one_value | (self.scale_ <= _rounding(self.mean_))
        self.scale_[self.is_constant_] = 1
        self.spread_ = self.scale_.copy()
        # With a smaller kurtosis, no standard deviation is larger than the inner range.
        smallest = 0.25 / OUTERMOST if len(numbers) * OUTERMOST >= 1 else 0
        return ~self.is_constant_ & (fourth / total > smallest * variance**2)

    def _fit_columns(self, numbers, weight, may_have_outliers):
        """Learn what takes the sorted values of a column: a scale without outliers, and knots."""
        n_columns = numbers.shape[1]
        self.knots_, self.shape_knots_ = [np.empty(0)] * n_columns, [np.empty(0)] * n_columns
        n_knots, least, bent = self.n_knots, 0, set()
        share = ROWS_PER_KNOT / len(numbers)
        if n_knots is not None:
            bent = {i for i in range(n_columns) if _has_many(column_of(numbers, i))}
        if n_knots == "auto":
            n_knots, least = 7, share
            if len(bent) > min(COLUMNS_FOR_HATS, len(numbers) / ROWS_PER_COLUMN):
                bent = set()
        n_shape_knots = self.n_shape_knots if self.squash else None
        if n_shape_knots == "auto":
            n_shape_knots = 32 if len(numbers) >= ROWS_FOR_SHAPES else None
        for column in sorted(bent.union(np.flatnonzero(may_have_outliers).tolist())):
            values, codes = np.unique(column_of(numbers, column), return_inverse=True)
            known = ~np.isnan(values)
            values, weights = values[known], np.bincount(codes, weights=weight)[known]
            if may_have_outliers[column]:
                self._resist_outliers(column, values, weights, weight.mean())
            quartiles = inner_range(values, weights, weight.mean(), share=0.25)
            self.spread_[column] = np.ptp(self._scaled_down(np.array(quartiles), column))
            if column in bent:
                values = self._standardised(values, column)
                self.knots_[column] = choose_knots(values, weights, n_knots, least)
                if n_shape_knots is not None:
                    knots = choose_knots(values, weights, n_shape_knots, share)
                    if len(knots) > len(self.knots_[column]):
                        self.shape_knots_[column] = knots

    def _resist_outliers(self, column, values, weight, weight_of_row):
        """Take mean and scale from clipped values, if outliers determine them."""
        values = values.astype(np.float64)
        lowest, highest = inner_range(values, weight, weight_of_row)
        low, high = self._scaled_down(np.array([lowest, highest]), column)
        is_more_than_rounding = lowest + _rounding(lowest) < highest - _rounding(highest)
        if is_more_than_rounding and self.scale_[column] > high - low:
            self.exponent_[column] = _exponent(lowest, highest)
            clipped = self._scaled_down(np.clip(values, lowest, highest), column)
            self.mean_[column] = np.average(clipped, weights=weight)
            variance = np.average(np.square(clipped - self.mean_[column]), weights=weight)
            self.scale_[column] = np.sqrt(variance)

    def _fit_categories(self, table):
        self.categories_, self.has_infrequent_ = [], []
        for codes, levels in zip(table.codes.T, table.levels, strict=True):
            counts = np.bincount(codes, minlength=len(levels))
            used = sorted(np.flatnonzero(counts).tolist(), key=lambda code: sort_key(levels[code]))
            most = self.max_categories
            self.has_infrequent_.append(most is not None and len(used) > most)
            if self.has_infrequent_[-1]:
                frequent = set(sorted(used, key=lambda code: -counts[code])[: most - 1])
                used = [code for code in used if code in frequent]
            self.categories_.append([as_category(levels[code]) for code in used])

    def read(self, X: ArrayLike) -> NDArray:
        """Read a table into the array that the net, ``module_`` and its gate take.

        Parameters
        ----------
        X : data frame or array-like of shape (n_samples, n_features)
            A table.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The columns of numbers, then for each column of categories the position of the
            category.
        """
        arranged: Any = self.arrange(read_any(X, self.is_categorical_))
        return arranged

    def news(self, table: Table) -> dict[int, str]:
        """Return what is new in a later table, by the position of the column."""
        news = {}
        for j, position in enumerate(np.flatnonzero(~self.is_categorical_).tolist()):
            values = self._scaled_down(column_of(table.numbers, j), j)
            known = values[~np.isnan(values)]
            if len(known) < len(values) and not self.has_missing_[j]:
                news[position] = "has missing values for the first time"
            new = self._new_scale(known, j) if len(known) else None
            if new:
                news[position] = new
        for j, position in enumerate(np.flatnonzero(self.is_categorical_).tolist()):
            present = [table.levels[j][code] for code in np.unique(table.codes[:, j])]
            places = self.places(present, self.categories_[j], self.has_infrequent_[j])
            new = [as_category(present[code]) for code in np.flatnonzero(places < 0)]
            if new:
                new = "missing values" if new[0] is None else f"the category {new[0]!r}"
                news[position] = f"has {new} for the first time"
        return news

    def _new_scale(self, values, column):
        """Say how the known values of a later column differ from those of the first training."""
        mean, scale, spread = self.mean_[column], self.scale_[column], self.spread_[column]
        with np.errstate(over="ignore", invalid="ignore"):
            distance = np.quantile(np.abs(values - mean), list(FAR_AWAY), method="lower") / scale
            if self.is_constant_[column]:
                is_new = distance[-1] > np.finfo(np.float32).eps * np.abs(mean)
                return "was constant so far" if is_new else None
            far = distance[distance > list(FAR_AWAY.values())]
            if len(far):
                return (
                    f"has values about {far[0]:.3g} standard deviations from the mean of the "
                    "first training"
                )
            values, counts = np.unique(values, return_counts=True)
            if counts.sum() - counts.max() >= VALUES_THAT_TELL:
                width = np.ptp(inner_range(values, counts, share=0.05))
                if 0 < width < NARROW * spread:
                    return f"varies {spread / width:.3g} times less than in the first training"
        return None

    def arrange(self, table: Table) -> NDArray | SparseRows:
        """Return the array that the net reads: numbers, then positions of categories.

        A category without a separate column gets the position of the rarest ones, or -1 if these
        have none. A table of floats in row order, or a sparse one, is returned without a copy.

        Returns
        -------
        ndarray or SparseRows of shape (n_samples, n_numbers + n_categorical)
            float64, or float32 if the numbers are. Large numbers with small differences need
            float64 until they are standardised.
        """
        numbers = table.numbers
        if not isinstance(numbers, np.ndarray):
            return numbers
        dtype = np.float64 if numbers.dtype.itemsize == 8 else np.float32
        if table.codes.shape[1] == 0:
            return np.ascontiguousarray(numbers, dtype)
        places = [
            self.places(levels, categories, has_infrequent)[codes]
            for codes, levels, categories, has_infrequent in zip(
                table.codes.T, table.levels, self.categories_, self.has_infrequent_, strict=True
            )
        ]
        return np.column_stack([numbers, *places]).astype(dtype, order="C", copy=False)

    @staticmethod
    def places(levels, categories, has_infrequent):
        """Return the position of each level among the categories.

        If a number is not among them, it may be one in its own precision, or one as text. If text
        is not among them, it may be a number.
        """
        kinds = {type(level) for level in levels if isinstance(level, np.floating)}
        place = places_of(categories, kinds)
        unknown = len(categories) if has_infrequent else -1
        found = np.full(len(levels), unknown, dtype=np.float32)
        for i, level in enumerate(levels):
            number = number_of(level)
            of_number = unknown if number is None else place.get(number, unknown)
            found[i] = place.get(level, of_number)
        return found

    def make_layer(self) -> TableLayer:
        """Return the torch layer that encodes what :meth:`arrange` returns."""
        return TableLayer(self)

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Encode a table into the numbers that gate and experts read.

        Parameters
        ----------
        X : data frame or array-like of shape (n_samples, n_features)
            A table.

        Returns
        -------
        ndarray of shape (n_samples, n_encoded)
            The columns that :meth:`get_feature_names_out` names.
        """
        samples, layer = self.read(X), self.make_layer()
        with torch.inference_mode():
            parts = [
                layer(torch.from_numpy(samples[rows].copy())).numpy()
                for rows in self._pieces(samples, layer.n_out)
            ]
        return np.concatenate(parts) if parts else np.empty((0, layer.n_out), np.float32)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray:
        """Return the names of the encoded columns.

        Parameters
        ----------
        input_features : array-like of str of shape (n_features,), default=None
            Names of the columns of the table; ``x0``, ``x1``, ... by default.

        Returns
        -------
        ndarray of str objects of shape (n_encoded,)
            ``age`` for the standardised column itself, ``age_missing``, ``age_hat0`` and so on
            for its hat functions, and ``town_Ulm`` or ``town_infrequent`` for a category.
        """
        n_features = len(self.is_categorical_)
        if input_features is None:
            input_features = [f"x{position}" for position in range(n_features)]
        names = np.asarray(input_features, dtype=object)
        if len(names) != n_features:
            raise ValueError(
                f"input_features must hold {n_features} names, one for each column, got "
                f"{len(names)}."
            )
        numbers, categorical = names[~self.is_categorical_], names[self.is_categorical_]
        out = [
            *numbers,
            *(f"{name}_missing" for name in numbers[self.has_missing_]),
            *(
                f"{name}_hat{i}"
                for name, knots in zip(numbers, self.knots_, strict=True)
                for i in range(len(knots))
            ),
        ]
        for name, categories, has_infrequent in zip(
            categorical, self.categories_, self.has_infrequent_, strict=True
        ):
            out += [f"{name}_{'missing' if each is None else each}" for each in categories]
            out += [f"{name}_infrequent"] * has_infrequent
        return np.array(out, dtype=object)

    @property
    def widths_(self) -> list[int]:
        """Number of encoded columns of each column of categories."""
        return [
            len(categories) + has_infrequent
            for categories, has_infrequent in zip(
                self.categories_, self.has_infrequent_, strict=True
            )
        ]

    @property
    def sources_(self) -> NDArray[np.int64]:
        """Position of the column of the table from which each encoded column comes."""
        numbers = np.flatnonzero(~self.is_categorical_)
        return np.concatenate(
            [
                numbers,
                numbers[self.has_missing_],
                np.repeat(numbers, [len(knots) for knots in self.knots_]),
                np.repeat(np.flatnonzero(self.is_categorical_), self.widths_),
            ]
        )

    @property
    def is_hat_(self) -> NDArray[np.bool_]:
        """Whether each encoded column is a hat function."""
        n_before = len(self.mean_) + self.has_missing_.sum()
        is_hat = np.zeros(len(self.sources_), dtype=bool)
        is_hat[n_before : n_before + sum(map(len, self.knots_))] = True
        return is_hat

    def _pieces(self, array, width=None):
        """Return slices of rows, each with about ``NUMBERS_OF_PIECE`` numbers."""
        n_rows = max(1, NUMBERS_OF_PIECE // max(1, width or array.shape[1]))
        return (slice(start, start + n_rows) for start in range(0, len(array), n_rows))

    def _scaled_down(self, numbers, columns=slice(None)):
        numbers = numbers.astype(np.float64, order="C")  # so that all layouts round sums alike
        exponent = self.exponent_[columns]
        with np.errstate(over="ignore"):  # outliers may become infinite
            return np.ldexp(numbers, -exponent) if exponent.any() else numbers

    def _standardised(self, values, column):
        with np.errstate(over="ignore"):
            deviation = self._scaled_down(values, column) - self.mean_[column]
            # A value as far from the mean as this is squashed to -3 or 3 anyway.
            return clip_smoothly(np.clip(deviation / self.scale_[column], -1e100, 1e100))


def _has_many(values):
    """Whether a column has more than four distinct values; usually the first rows tell."""
    for part in (values[:1000], values):
        if len(np.unique(part[~np.isnan(part)])) > 4:
            return True
    return False


def _rounding(values):
    """Return about the standard deviation that rounding leaves in columns of these values."""
    return 8 * np.finfo(np.float64).eps * np.abs(values)


def _exponent(lowest, highest):
    """Return the exponents of two by which columns with these extremes are scaled down."""
    exponent = np.frexp(np.fmax(np.abs(lowest), np.abs(highest)))[1]
    is_extreme = np.isfinite(lowest) & (np.abs(exponent) > LARGEST_EXPONENT)
    # A factor with a larger exponent than 1000 would overflow, and none is needed.
    return np.where(is_extreme, np.clip(exponent, -1000, 1000), 0)
