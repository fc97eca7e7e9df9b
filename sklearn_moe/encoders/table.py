"""The encoder of tables."""

from __future__ import annotations

from numbers import Integral

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sklearn_moe.encoders.base import Encoder
from sklearn_moe.tables import TableTransformer


class TableEncoder(Encoder):
    r"""Numbers and categories of a table, as numbers of one scale.

    Columns of numbers are standardised, and outliers are squashed smoothly into (-3, 3) by
    :math:`x / \sqrt{1 + (x / 3)^2}` (Holzmueller, Grinsztajn, Steinwart 2024, arXiv 2407.04491).
    A missing value becomes the column's mean, and if the training set has any, one more column
    says where. Columns of categories become one column per category; a missing value is a category
    of its own if the training set has any. A category that was not there in training is none of
    them.

    Columns of numbers with more than four values are also encoded by hat functions, piecewise
    linear functions with their tops at quantiles of the column, so that a first layer can bend at
    each of them (Gorishniy, Rubachev, Babenko 2022, arXiv 2203.05556). A value that is so frequent
    that several quantiles fall on it has one hat function, and the rest of the column the others.

    Parameters
    ----------
    n_knots : int, "auto" or None, default="auto"
        Most hat functions of a column, at least 2; None takes none. "auto" is 7 for tables of
        at least 50 rows per such column, where it pays, if there are at most 100, and none
        otherwise. A column whose rare values would have fewer than 25 rows for each gets fewer.
    max_categories : int or None, default=100
        A column of more categories has the rarest of them taken together; None keeps all.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, TableEncoder
    >>> clf = MoEClassifier(encoder=TableEncoder(n_knots=16, max_categories=20))
    """

    _parameter_constraints: dict = {
        "n_knots": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left"), None],
        "max_categories": [Interval(Integral, 2, None, closed="left"), None],
    }

    needs_tables = True

    def __init__(self, *, n_knots: int | str | None = "auto", max_categories: int | None = 100):
        self.n_knots = n_knots
        self.max_categories = max_categories

    def make_transformer(self) -> TableTransformer:
        """Return what is fitted on a table, with these parameters."""
        self._validate_params()
        return TableTransformer(n_knots=self.n_knots, max_categories=self.max_categories)

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return what comes after the layer of the transformer: nothing."""
        return nn.Identity()
