"""Encoding tables: how columns become the numbers that a net reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from sklearn_moe.data import (
    Table,
    as_dense,
    as_eager,
    as_frame,
    as_objects,
    categorical_columns,
    read_table,
)

# With fewer rows or more columns hat functions took more than they gave (digits, breast_cancer).
ROWS_PER_COLUMN = 50
COLUMNS_FOR_HATS = 100

# Between two knots are at least so many rows, but for those of frequent values.
ROWS_PER_KNOT = 25

# Numbers are encoded in pieces of about so many, in double precision.
NUMBERS_OF_PIECE = 2**20

# Knots that are closer than this, in standard deviations, are one.
SMALLEST_GAP = 1e-6

# Later tables whose median is so many standard deviations from the mean are worth a warning.
FAR_AWAY = 5

# Powers of two beyond which squares of numbers leave the range of double precision.
LARGEST_EXPONENT = 400


def clip_smoothly(X: NDArray) -> NDArray:
    r"""Return :math:`x / \sqrt{1 + (x / 3)^2}`: outliers stay below 3, and order stays."""
    return X / np.hypot(1, X / 3)


class TableTransformer(TransformerMixin, BaseEstimator):
    """Turn the columns of a table into numbers; ``MoEClassifier.encoder_`` is one.

    Parameters
    ----------
    n_knots : int, "auto" or None
        Number of hat functions of a column of numbers.
    max_categories : int or None
        A column of more categories has the rarest of them taken together.

    Attributes
    ----------
    is_categorical_ : ndarray of shape (n_features,)
        Whether a column holds categories.
    mean_, scale_ : ndarray of shape (n_numbers,)
        Mean and standard deviation of each column of numbers, divided by two to the power of its
        ``exponent_``, which is 0 unless the numbers are extreme.
    is_constant_ : ndarray of shape (n_numbers,)
        Whether all values of a column of numbers were the same.
    has_missing_ : ndarray of shape (n_numbers,)
        Whether a column of numbers had missing values.
    knots_ : list of ndarray
        The knots of the hat functions of each column of numbers, standardised; empty for none.
    categories_ : list of lists
        The categories of each column of categories that have a column of their own: numbers as
        float, anything else as str, None for a missing value.
    has_infrequent_ : list of bool
        Whether there is one more column for the rarest categories and unknown ones.
    """

    def __init__(self, n_knots: int | str | None, max_categories: int | None):
        self.n_knots = n_knots
        self.max_categories = max_categories

    def fit(
        self,
        X: Table,
        y: None = None,
        *,
        sample_weight: NDArray | None = None,
    ) -> TableTransformer:
        """Learn scales, knots and categories.

        Parameters
        ----------
        X : Table of n_samples rows
            What :meth:`read` returned.
        y : None
            Not used.
        sample_weight : ndarray of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        self : TableTransformer
        """
        weight = np.ones(len(X)) if sample_weight is None else sample_weight.astype(np.float64)
        self._fit_scales(X.numbers, weight)
        self._fit_knots(X.numbers, weight)
        self._fit_categories(X)
        return self

    def _fit_scales(self, numbers, weight):
        n_columns = numbers.shape[1]
        lowest, highest = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)
        for rows in self._pieces(numbers):
            lowest = np.fmin(lowest, np.fmin.reduce(numbers[rows], axis=0))
            highest = np.fmax(highest, np.fmax.reduce(numbers[rows], axis=0))
        exponent = np.frexp(np.fmax(np.abs(lowest), np.abs(highest)))[1]
        is_extreme = np.isfinite(lowest) & (np.abs(exponent) > LARGEST_EXPONENT)
        self.exponent_ = np.where(is_extreme, exponent, 0)

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
        variance = np.zeros(n_columns)
        for rows in self._pieces(numbers):
            deviation = np.nan_to_num(self._scaled_down(numbers[rows]) - self.mean_)
            variance += weight[rows] @ np.square(deviation)
        self.scale_ = np.sqrt(variance / total)
        # Of a constant column rounding leaves about so much.
        rounding = 8 * np.finfo(np.float64).eps * np.abs(self.mean_)
        self.is_constant_ = self.scale_ <= rounding
        self.scale_[self.is_constant_] = 1

    def _fit_knots(self, numbers, weight):
        self.knots_ = [np.empty(0)] * numbers.shape[1]
        if self.n_knots is None:
            return
        distinct = [self._distinct(numbers, column, weight) for column in range(len(self.knots_))]
        bent = [column for column, (values, _) in enumerate(distinct) if len(values) > 4]
        n_knots, least = self.n_knots, 0
        if n_knots == "auto":
            if len(bent) > min(COLUMNS_FOR_HATS, len(numbers) / ROWS_PER_COLUMN):
                return
            n_knots, least = 7, ROWS_PER_KNOT / len(numbers)
        for column in bent:
            self.knots_[column] = choose_knots(*distinct[column], n_knots, least)

    def _distinct(self, numbers, column, weight):
        """Return the distinct values of a column, standardised, and their weights."""
        values, codes = np.unique(numbers[:, column], return_inverse=True)
        weight = np.bincount(codes, weights=weight)
        values = self._standardised(values[:, None], slice(column, column + 1))[:, 0]
        known = ~np.isnan(values)
        return values[known], weight[known]

    def _fit_categories(self, table):
        self.categories_, self.has_infrequent_ = [], []
        for codes, levels in zip(table.codes.T, table.levels, strict=True):
            counts = np.bincount(codes, minlength=len(levels))
            used = sorted(np.flatnonzero(counts).tolist(), key=lambda code: _key(levels[code]))
            most = self.max_categories
            self.has_infrequent_.append(most is not None and len(used) > most)
            if self.has_infrequent_[-1]:
                frequent = set(sorted(used, key=lambda code: -counts[code])[: most - 1])
                used = [code for code in used if code in frequent]
            self.categories_.append([levels[code] for code in used])

    def read(
        self, X: ArrayLike, categorical_features: ArrayLike | str | None = "as in fit"
    ) -> Table:
        """Read a table, in fit to find out which columns hold categories.

        Parameters
        ----------
        X : data frame or array-like of shape (n_samples, n_features)
            A table.
        categorical_features : "from_dtype", array-like or None
            As in ``MoEClassifier``; by default the columns are those of the last table that was
            read with it.

        Returns
        -------
        Table
        """
        X = as_dense(as_eager(X))
        if as_frame(X) is None:
            X = np.asarray(as_objects(X))
        if not (isinstance(categorical_features, str) and categorical_features == "as in fit"):
            self.is_categorical_ = categorical_columns(X, categorical_features)
        return read_table(X, self.is_categorical_)

    def news(self, table: Table) -> dict[int, str]:
        """Return what a table has that the fitted one had not, by the position of the column."""
        news = {}
        for j, position in enumerate(np.flatnonzero(~self.is_categorical_).tolist()):
            values = self._scaled_down(table.numbers[:, j], j)
            known = values[~np.isnan(values)]
            if len(known) < len(values) and not self.has_missing_[j]:
                news[position] = "has missing values for the first time"
            distance = np.median(np.abs(known - self.mean_[j])) if len(known) else 0.0
            if self.is_constant_[j] and distance > 0:
                news[position] = "was constant so far"
            elif distance > FAR_AWAY * self.scale_[j]:
                news[position] = (
                    f"has values about {distance / self.scale_[j]:.3g} standard deviations from "
                    "the mean of the first training"
                )
        for j, position in enumerate(np.flatnonzero(self.is_categorical_).tolist()):
            present = [table.levels[j][code] for code in np.unique(table.codes[:, j])]
            new = [level for level in present if level not in self.categories_[j]]
            if new and not self.has_infrequent_[j]:
                new = "missing values" if new[0] is None else f"the category {new[0]!r}"
                news[position] = f"has {new} for the first time"
        return news

    def transform(self, X: Table | ArrayLike) -> NDArray[np.float32]:
        """Return a table as numbers.

        Parameters
        ----------
        X : data frame, array-like of shape (n_samples, n_features) or Table
            A table.

        Returns
        -------
        ndarray of shape (n_samples, n_numbers)
            Columns of numbers, standardised; for each of them that had missing values, whether it
            is missing; hat functions; and categories.
        """
        table = X if isinstance(X, Table) else self.read(X)
        n_numbers = len(self.mean_)
        n_missing = np.count_nonzero(self.has_missing_)
        n_hats = sum(map(len, self.knots_))
        widths = np.array(
            [
                len(each) + extra
                for each, extra in zip(self.categories_, self.has_infrequent_, strict=True)
            ],
            dtype=int,
        )
        starts = n_numbers + n_missing + n_hats + np.r_[0, widths.cumsum()]
        encoded = np.zeros((len(table), starts[-1]), dtype=np.float32)
        for rows in self._pieces(encoded):
            piece, out = self._standardised(table.numbers[rows]), encoded[rows]
            missing = np.isnan(piece)
            piece[missing] = 0
            out[:, :n_numbers] = piece
            out[:, n_numbers : n_numbers + n_missing] = missing[:, self.has_missing_]
            if n_hats:
                out[:, n_numbers + n_missing : starts[0]] = self._hats(piece)
        for j, (codes, levels) in enumerate(zip(table.codes.T, table.levels, strict=True)):
            place = {level: i for i, level in enumerate(self.categories_[j])}
            unknown = len(place) if self.has_infrequent_[j] else -1
            places = np.array([place.get(level, unknown) for level in levels], dtype=int)[codes]
            known = np.flatnonzero(places >= 0)
            encoded[known, starts[j] + places[known]] = 1
        return encoded

    def _hats(self, numbers):
        """Return the hat functions of standardised columns.

        Between two knots a hat function falls from 1 to 0 and the next one rises; before the
        first knot and after the last one, the first and the last are 1.
        """
        column = np.repeat(np.arange(len(self.knots_)), [len(knots) for knots in self.knots_])
        knots = np.concatenate(self.knots_)
        is_first = np.r_[True, column[1:] != column[:-1]]
        is_last = np.r_[is_first[1:], True]
        gap = np.where(is_last, 1, np.r_[knots[1:], 0] - knots)
        risen = np.clip((numbers[:, column] - knots) / gap, 0, 1)  # of the next hat function
        risen[:, is_last] = 0
        rest = np.ones_like(risen)
        rest[:, ~is_first] = risen[:, np.flatnonzero(~is_first) - 1]
        return rest - risen

    def _pieces(self, array):
        """Return slices of so many rows that a piece stays small."""
        n_rows = max(1, NUMBERS_OF_PIECE // max(1, array.shape[1]))
        return (slice(start, start + n_rows) for start in range(0, len(array), n_rows))

    def _scaled_down(self, numbers, columns=slice(None)):
        numbers = numbers.astype(np.float64, order="C")  # sums in other orders have other bits
        exponent = self.exponent_[columns]
        return np.ldexp(numbers, -exponent) if exponent.any() else numbers

    def _standardised(self, numbers, columns=slice(None)):
        with np.errstate(over="ignore"):
            deviation = self._scaled_down(numbers, columns) - self.mean_[columns]
            # Whatever is as far from the mean as this is at the end of the range.
            return clip_smoothly(np.clip(deviation / self.scale_[columns], -1e100, 1e100))


def choose_knots(
    values: NDArray, weight: NDArray, n_knots: int, least_share: float = 0
) -> NDArray:
    """Return where the hat functions of a column have their tops: at quantiles.

    A value that is so frequent that several quantiles fall on it gets one knot, and the others go
    to the rest of the values, so that all knots differ.

    Parameters
    ----------
    values : ndarray of shape (n_distinct,)
        The distinct values of the column, in ascending order.
    weight : ndarray of shape (n_distinct,)
        How often each occurs.
    n_knots : int
        The largest number of knots.
    least_share : float, default=0
        The least part of the weight between two knots, for three knots and more.

    Returns
    -------
    ndarray of at most ``n_knots`` values
    """
    least = least_share * weight.sum()
    capped = _capped(weight, n_knots)
    while capped.sum() < least * (n_knots - 1) and n_knots > 3:
        n_knots -= 1
        capped = _capped(weight, n_knots)
    if len(values) > n_knots:
        cumulated = capped.cumsum()
        wanted = np.arange(1, n_knots - 1) / (n_knots - 1) * cumulated[-1]
        inner = np.searchsorted(cumulated, wanted * (1 - 1e-9))
        values = values[np.unique(np.r_[0, inner, len(values) - 1])]
    kept = [values[0]]
    for value in values[1:]:
        if value - kept[-1] > SMALLEST_GAP:
            kept.append(value)
    return np.array(kept)


def _capped(weight, n_knots):
    """Return weights of which none is more than what lies between two knots."""
    for _ in range(50):
        most = weight.sum() / (n_knots - 1)
        if weight.max() <= most:
            break
        weight = np.minimum(weight, most)
    return weight


def _key(level):
    """Sort numbers before text, and a missing value last."""
    return (2, 0) if level is None else (isinstance(level, str), level)
