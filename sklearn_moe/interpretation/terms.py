"""The statements that a linear part of a mixture makes about the columns of a table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from sklearn_moe.interpretation.words import in_words
from sklearn_moe.tables import TableTransformer


class Term(NamedTuple):
    """A difference between two values of a column, whose effect is a coefficient.

    Attributes
    ----------
    column : int
        Position of the column in the table; -1 for the intercept.
    kind : {"intercept", "number", "missing", "value", "category"}
        One more unit of a number, a missing number, a value of a number against another, or a
        category against another.
    value, against : object
        The value or category, and what it is compared with.
    """

    column: int
    kind: str
    value: object = None
    against: object = None

    def words(self, names: NDArray) -> Words:
        """Return the term in words, with the names of the columns."""
        if self.kind == "intercept":
            return Words("intercept", "intercept")
        name = str(names[self.column])
        if self.kind == "number":
            return Words(name, name)
        if self.kind == "missing":
            return Words(f"{name} missing", name, "missing", "known")
        exact = self.kind == "category"
        value, against = (in_words(each, exact) for each in (self.value, self.against))
        return Words(f"{name} = {value} (against {against})", name, value, against)


class Words(NamedTuple):
    """A term in words.

    Attributes
    ----------
    feature : str
        All of it.
    column : str
        The name of the column, or "intercept".
    value, against : str or None
        The values that are compared; None for a number and the intercept.
    """

    feature: str
    column: str
    value: str | None = None
    against: str | None = None


def column_names(model: BaseEstimator) -> NDArray:
    """Return the names of a fitted mixture's columns; ``x0``, ``x1``, ... if they have none."""
    unnamed = [f"x{i}" for i in range(model.n_features_in_)]
    return getattr(model, "feature_names_in_", np.array(unnamed, dtype=object))


class Terms:
    """The terms of the columns that a part of a mixture reads.

    Parameters
    ----------
    model : MoEClassifier
        A fitted mixture.
    columns : ndarray of int
        Positions of the encoded columns that the part reads.
    samples : ndarray
        Samples as the net reads them. The most frequent category is the one that others are
        compared with.
    """

    def __init__(self, model: BaseEstimator, columns: NDArray, samples: NDArray):
        table: TableTransformer | None = model.encoder_
        self.columns = columns
        if table is None:
            self.terms = [Term(column, "number") for column in columns.tolist()]
            n_encoded = model.n_features_in_
        else:
            self.terms = list(_terms_of_table(table, columns, samples))
            n_encoded = len(table.sources_)
        self.terms.insert(0, Term(-1, "intercept"))
        self._code = _Code(table, n_encoded, columns)

    def unit(self, term: Term) -> float:
        """Return how many units of a number are one standard deviation; 1 for anything else."""
        return self._code.scale(term.column) if term.kind == "number" else 1.0

    def direction(self, term: Term) -> NDArray[np.float64]:
        """Return the factors of the bias and of the encoded columns in a term."""
        if term.kind != "intercept":
            return np.concatenate([[0.0], self._code.direction(term)[self.columns]])
        # All columns at the value that they are compared with: for numbers, this is 0.
        start = np.zeros_like(self._code.empty)
        for column in {each.column for each in self.terms if each.column >= 0}:
            first = next(each for each in self.terms if each.column == column)
            if first.kind == "number":
                start += self._code.zero(column)
            elif first.kind != "missing":
                start += self._code.at(first._replace(value=first.against))
        return np.concatenate([[1.0], start[self.columns]])


def _terms_of_table(table, columns, samples):
    sources, read = table.sources_, np.zeros(len(table.sources_), dtype=bool)
    read[columns] = True
    numbers = np.flatnonzero(~table.is_categorical_).tolist()
    categorical = np.flatnonzero(table.is_categorical_).tolist()
    n_numbers = len(numbers)
    is_missing = np.zeros(len(sources), dtype=bool)
    is_missing[n_numbers : n_numbers + table.has_missing_.sum()] = True
    for column in np.unique(sources[read]).tolist():
        own = read & (sources == column)
        if column in categorical:
            position = categorical.index(column)
            levels = [*table.categories_[position]]
            levels += ["infrequent"] * table.has_infrequent_[position]
            places = samples[:, n_numbers + position].astype(int)
            counts = np.bincount(places[places >= 0], minlength=len(levels))
            base = int(counts.argmax())
            for i, level in enumerate(levels):
                if i != base:
                    yield Term(column, "category", level, levels[base])
            continue
        position = numbers.index(column)
        if (own & table.is_hat_).any():
            knots = _in_units(table, position, table.knots_[position])
            for knot in knots[1:].tolist():
                yield Term(column, "value", knot, float(knots[0]))
        elif (own & ~is_missing).any():
            yield Term(column, "number")
        if (own & is_missing).any():
            yield Term(column, "missing")


def _in_units(table, position, knots):
    """Return knots, which are standardised and squashed, in the units of the column."""
    standard = knots / np.sqrt(1 - np.square(knots / 3))
    scaled = table.mean_[position] + table.scale_[position] * standard
    scaled[np.abs(scaled) < 1e-9 * table.scale_[position]] = 0.0  # what rounding leaves of it
    return np.ldexp(scaled, table.exponent_[position])


class _Code:
    """The encoding of single values of a table's columns."""

    def __init__(self, table, n_encoded, columns):
        self.table = table
        self.empty = np.zeros(n_encoded)
        if table is not None:
            self.layer = table.make_layer()
            self.numbers = np.flatnonzero(~table.is_categorical_).tolist()
            self.categorical = np.flatnonzero(table.is_categorical_).tolist()

    def direction(self, term):
        code = self.empty.copy()
        if self.table is None:
            code[term.column] = 1.0
        elif term.kind == "number":
            code[self.numbers.index(term.column)] = 1 / self.scale(term.column)
        elif term.kind == "missing":
            with_missing = np.flatnonzero(self.table.has_missing_).tolist()
            place = with_missing.index(self.numbers.index(term.column))
            code[len(self.numbers) + place] = 1.0
        else:
            code = self.at(term) - self.at(term._replace(value=term.against))
        return code

    def zero(self, column):
        """Return the code of a number without hat functions that is 0."""
        code = self.empty.copy()
        if self.table is not None:
            position = self.numbers.index(column)
            code[position] = -self.table.mean_[position] / self.table.scale_[position]
        return code

    def at(self, term):
        """Return the code of the term's value in its own encoded columns."""
        table, code = self.table, self.empty.copy()
        own = table.sources_ == term.column
        if term.kind == "category":
            position = self.categorical.index(term.column)
            levels = table.categories_[position]
            place = levels.index(term.value) if term.value in levels else len(levels)
            code[np.flatnonzero(own)[place]] = 1.0
            return code
        row = np.full((1, len(self.numbers) + len(self.categorical)), -1.0)
        row[0, self.numbers.index(term.column)] = term.value
        encoded = self.layer(torch.from_numpy(row)).numpy()[0]
        code[own] = encoded[own]
        return code

    def scale(self, column):
        if self.table is None:
            return 1.0
        position = self.numbers.index(column)
        return float(np.ldexp(self.table.scale_[position], self.table.exponent_[position]))
