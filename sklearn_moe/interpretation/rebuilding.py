"""Tables with other values, for the classifiers among the experts."""

from __future__ import annotations

from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sklearn_moe.containers import as_dense, as_frame, as_level, as_objects
from sklearn_moe.tables import TableTransformer


class Template:
    """A table whose container, names and types of columns others get.

    Parameters
    ----------
    X : data frame, sparse matrix or array-like of shape (n_samples, n_features)
        The table.
    table : TableTransformer or None
        Encodes it; None if all columns are numbers.
    """

    def __init__(self, X: Any, table: TableTransformer | None):
        self.X = X
        self.frame = as_frame(X)
        self.array = None if self.frame is not None else np.asarray(as_objects(as_dense(X)))
        # For each column of categories, a value for each position, and a missing one at the end.
        self.values: dict[int, list] = {}
        if table is not None:
            columns = np.flatnonzero(table.is_categorical_).tolist()
            for *of_column, column in zip(
                table.categories_, table.has_infrequent_, columns, strict=True
            ):
                self.values[column] = self._values(column, *of_column)

    def _values(self, column, categories, has_infrequent):
        """Return values for the positions of categories, as they are in the table."""
        if self.frame is None:
            found = self.array[:, column].tolist()
        else:
            found = self.frame[:, column].to_list()
            kind = getattr(self.frame[:, column].to_native(), "dtype", None)
            found += list(getattr(kind, "categories", []))  # of pandas and polars
        found = list(dict.fromkeys(found))
        values = [*categories, *[None] * has_infrequent, None]
        places = TableTransformer.places([*map(as_level, found)], categories, has_infrequent)
        for value, place in zip(found, places.astype(int).tolist(), strict=True):
            if place >= 0:
                values[place] = value
        return values

    def fill(self, samples: NDArray) -> Any:
        """Return a table with these values.

        Parameters
        ----------
        samples : ndarray of shape (n_samples, n_features)
            Numbers, or positions of categories; -1 is a missing value.
        """
        columns = [
            [self.values[column][int(place)] for place in values]
            if column in self.values
            else values
            for column, values in enumerate(samples.T)
        ]
        if self.frame is None:
            return self._array(columns)
        series = [
            _series(like, values, column in self.values)
            for column, (like, values) in enumerate(
                zip(self.frame.iter_columns(), columns, strict=True)
            )
        ]
        if self.frame.implementation.is_pandas_like():
            native = self.frame.to_native()
            filled = type(native)(dict(enumerate(series)))
            filled.columns = native.columns
            return filled
        filled = nw.from_dict(
            dict(zip(self.frame.columns, series, strict=True)), backend=self.frame.implementation
        )
        # Narwhals knows fewer types of categories and text than polars and pyarrow.
        return filled.to_native().cast(self.frame.to_native().schema)

    def _array(self, columns):
        kind = self.array.dtype
        if kind.kind not in "fiub":
            filled = np.empty((len(columns[0]), len(columns)), dtype=object)
            for column, values in enumerate(columns):
                filled[:, column] = list(values)
            return filled
        filled = np.array(columns, dtype=np.float64).T
        if kind.kind == "f":
            filled = filled.astype(kind)
        elif not np.isnan(filled).any():
            filled = np.rint(filled).astype(kind)
        return self.X.tocsr().__class__(filled) if sparse.issparse(self.X) else filled


def _series(like, values, holds_categories):
    """Return a column with these values and the type of another column."""
    kind = like.dtype
    if not holds_categories:
        make = bool if kind == nw.Boolean else round if kind.is_integer() else float
        missing = np.nan if kind == nw.Object else None
        values = [missing if value != value else make(value) for value in values.tolist()]
    native = like.to_native()
    if like.implementation.is_pandas_like():
        try:
            return type(native)(values, dtype=native.dtype)
        except (TypeError, ValueError):  # whole numbers, but some are missing now
            return type(native)(values)
    return nw.new_series(like.name, values, kind, backend=like.implementation)
