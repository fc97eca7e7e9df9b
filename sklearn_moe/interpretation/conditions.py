"""Conditions on the columns of a table, which read well and become SQL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sklearn_moe.categories import as_category
from sklearn_moe.containers import (
    as_dense,
    as_eager,
    as_frame,
    as_objects,
    read_table,
)
from sklearn_moe.interpretation.words import MISSING, in_words

# A short text names at most this many categories.
SHORT = 2


class Categories(NamedTuple):
    """A column of categories: the code of each row, and the category of each code."""

    codes: NDArray[np.int64]
    levels: list[float | str | None]


@dataclass(frozen=True)
class Range:
    """A number within an interval, low < x <= high, or a missing one.

    Attributes
    ----------
    column : str
        Name of the column.
    low, high : float
        Bounds of the interval.
    missing : bool
        Whether the condition holds for missing values.
    may_miss : bool
        Whether the column has missing values, so that the text has to speak of them.
    """

    column: str
    low: float = -np.inf
    high: float = np.inf
    missing: bool = False
    may_miss: bool = False

    def holds(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return for each value whether the condition holds."""
        known = (values > self.low) & (values <= self.high)
        return known | np.isnan(values) if self.missing else known

    def negated(self) -> Range:
        """Return the opposite of a condition with one bound."""
        if np.isfinite(self.high):
            return replace(self, low=self.high, high=np.inf, missing=not self.missing)
        return replace(self, low=-np.inf, high=self.low, missing=not self.missing)

    def joined(self, other: Range) -> Range:
        """Return the condition that both hold."""
        return replace(
            self,
            low=max(self.low, other.low),
            high=min(self.high, other.high),
            missing=self.missing and other.missing,
        )

    @property
    def is_impossible(self) -> bool:
        """Whether no value meets the condition."""
        return self.low >= self.high and not self.missing

    def text(self, short: bool = False) -> str:
        """Return the condition in words."""
        if self.low >= self.high:
            return f"{self.column} is missing"
        if self.low == -np.inf and self.high == np.inf:
            return f"{self.column} is known"
        low, high = (in_words(bound, exact=True) for bound in (self.low, self.high))
        if self.low == -np.inf:
            text = f"{self.column} <= {high}"
        elif self.high == np.inf:
            text = f"{self.column} > {low}"
        else:
            text = f"{low} < {self.column} <= {high}"
        return f"{text} (or missing)" if self.missing and self.may_miss else text

    def sql(self) -> str:
        """Return the condition as an expression of SQL."""
        column = quoted(self.column)
        if self.low >= self.high:
            return f"{column} IS NULL"
        bounds = []
        if self.low > -np.inf:
            bounds.append(f"{column} > {literal(self.low)}")
        if self.high < np.inf:
            bounds.append(f"{column} <= {literal(self.high)}")
        if not bounds:
            return f"{column} IS NOT NULL"
        text = " AND ".join(bounds)
        if not self.missing:
            return text
        return f"(({text}) OR {column} IS NULL)" if len(bounds) > 1 else or_missing(text, column)


@dataclass(frozen=True)
class Among:
    """A category that is among some, or that is not.

    Attributes
    ----------
    column : str
        Name of the column.
    values : frozenset
        Categories; None stands for a missing value.
    levels : frozenset
        All known categories of the column.
    inside : bool
        Whether the category is one of ``values``, or none of them.
    """

    column: str
    values: frozenset
    levels: frozenset
    inside: bool = True

    def holds(self, values: Categories | NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return for each value whether the condition holds."""
        if isinstance(values, Categories):
            is_one = np.array([level in self.values for level in values.levels], dtype=bool)
            return is_one[values.codes] == self.inside
        is_one = np.isin(values, [value for value in self.values if value is not None])
        if None in self.values:
            is_one |= np.isnan(values)
        return is_one == self.inside

    def negated(self) -> Among:
        """Return the opposite."""
        return replace(self, inside=not self.inside)

    def joined(self, other: Among) -> Among:
        """Return the condition that both hold."""
        if self.inside and other.inside:
            return replace(self, values=self.values & other.values)
        if not self.inside and not other.inside:
            return replace(self, values=self.values | other.values)
        one, rest = (self, other) if self.inside else (other, self)
        return replace(one, values=one.values - rest.values)

    @property
    def is_impossible(self) -> bool:
        """Whether no value meets the condition."""
        return self.inside and not self.values

    def text(self, short: bool = False) -> str:
        """Return the condition in words; a short text leaves all but two categories out."""
        others = self.levels - self.values
        # Name the fewer categories: those that are meant, or those that are not.
        is_turned = 0 < len(others) < len(self.values) + (not self.inside)
        names = sorted(
            (in_words(value, exact=True) for value in (others if is_turned else self.values)),
            key=lambda name: (name == MISSING, name),
        )
        if short and len(names) > SHORT + 1:
            names = [*names[:SHORT], f"{len(names) - SHORT} more"]
        *first, last = names
        listed = f"{', '.join(first)} or {last}" if first else last
        return f"{self.column} is {'' if self.inside != is_turned else 'not '}{listed}"

    def sql(self) -> str:
        """Return the condition as an expression of SQL."""
        column = quoted(self.column)
        known = sorted((each for each in self.values if each is not None), key=sort_key)
        has_missing = None in self.values
        if not known:
            return f"{column} IS {'' if self.inside else 'NOT '}NULL"
        listed = ", ".join(map(literal, known))
        if len(known) == 1:
            text = f"{column} {'=' if self.inside else '<>'} {listed}"
        else:
            text = f"{column} {'IN' if self.inside else 'NOT IN'} ({listed})"
        # In SQL, NULL is neither equal nor unequal to anything.
        return or_missing(text, column) if has_missing == self.inside else text


Condition = Range | Among


def sort_key(level):
    """Sort numbers before text, and a missing value last."""
    return (2, 0) if level is None else (isinstance(level, str), level)


def or_missing(text, column):
    return f"({text} OR {column} IS NULL)"


def quoted(column: str) -> str:
    """Return the name of a column as an identifier of SQL."""
    return '"' + column.replace('"', '""') + '"'


def literal(value: float | str) -> str:
    """Return a value as a literal of SQL."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def as_words(conditions: tuple[Condition, ...], short: bool = False) -> str:
    """Return conditions that hold together as one text."""
    return " and ".join(each.text(short) for each in conditions) or "all samples"


def exclude(one: tuple[Condition, ...], other: tuple[Condition, ...]) -> bool:
    """Whether no row can meet both of two lists of conditions."""
    return any(
        mine.joined(yours).is_impossible  # type: ignore[arg-type]  # of one column, so alike
        for mine in one
        for yours in other
        if mine.column == yours.column
    )


def as_table(X: Any) -> Any:
    """Return a table as a data frame or a dense array, whatever holds it."""
    X = as_dense(as_objects(as_eager(X)))
    return X if as_frame(X) is not None else np.asarray(X)


def column_names(X: Any) -> list[str]:
    """Return the names of the columns of a table, x0, x1, ... where there are none."""
    frame = as_frame(X)
    return [f"x{i}" for i in range(X.shape[1])] if frame is None else list(map(str, frame.columns))


def read_columns(
    X: Any, columns: dict[str, bool], names: list[str]
) -> dict[str, Categories | NDArray[np.float64]]:
    """Read some columns of a table.

    Parameters
    ----------
    X : data frame or ndarray of shape (n_samples, n_features)
        A table, as from :func:`as_table`.
    columns : dict
        For the name of each column to read, whether it holds categories.
    names : list of str
        The names of the columns of an array.

    Returns
    -------
    dict
        The columns by name.

    Raises
    ------
    ValueError
        If ``X`` does not have the columns.
    """
    frame = as_frame(X)
    if frame is not None:
        names = column_names(X)
        if lacking := sorted(set(columns) - set(names)):
            raise ValueError(f"X has no column {lacking[0]!r}, which the rules read.")
    elif X.ndim != 2 or X.shape[1] != len(names):
        raise ValueError(
            f"X must be a table with {len(names)} columns, got an array of shape {X.shape}."
        )
    if not columns:
        return {}
    places = [names.index(name) for name in columns]
    is_categorical = np.array(list(columns.values()))
    table = read_table(X[:, places] if frame is None else frame[:, places], is_categorical)
    numbers, codes = iter(np.asarray(table.numbers, np.float64).T), iter(table.codes.T)
    levels = ([as_category(level) for level in each] for each in table.levels)
    return {
        name: Categories(next(codes), next(levels)) if holds else next(numbers)
        for name, holds in columns.items()
    }
