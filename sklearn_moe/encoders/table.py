"""The encoder of tables."""

from __future__ import annotations

from numbers import Integral

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sklearn_moe.encoders.base import Encoder
from sklearn_moe.tables import TableTransformer


class TableEncoder(Encoder):
    r"""Encode the numbers and categories of a table as numbers on one scale.

    Columns of numbers are standardised, and outliers are squashed smoothly into (-3, 3) by
    :math:`x / \sqrt{1 + (x / 3)^2}` (Holzmueller, Grinsztajn, Steinwart 2024, arXiv 2407.04491).
    If the standard deviation of a column is larger than the range of its values without the
    hundredth at each end, it tells of outliers only. Mean and standard deviation are then those of
    the values clipped to this range, in which a very frequent value counts as half of the values.
    A missing value becomes the column's mean. If the training set has missing values in a column,
    one more column marks them. Columns of categories become one column per category; a missing
    value counts as a category, too, if the training set has one. A category that did not occur in
    training is zero in all of these columns, or counts as a rare one (see ``max_categories``).
    Later numbers of float32 are the categories that round to them. Later text such as "1" is the
    number 1, and a later number is the text that stands for it, unless training had the other.

    Columns of numbers with more than four values are also encoded by hat functions: piecewise
    linear functions with their tops at quantiles of the column. They let the first layer bend at
    each of these quantiles (Gorishniy, Rubachev, Babenko 2022, arXiv 2203.05556). If several
    quantiles fall on one frequent value, it has one hat function, and the others go to the rest of
    the column.

    If the table is large, fully connected experts (``MLPExperts``, ``MPOExperts``) also read a
    learned function of each of these columns, its *shape function*. It is piecewise linear, with
    more knots than there are hat functions, so that it can have sharp thresholds. All experts
    share it, and the gate does not read it.

    Parameters
    ----------
    n_knots : int, "auto" or None, default="auto"
        Largest number of hat functions of a column, at least 2; None uses none. "auto" is 7 for
        tables with at most 100 such columns and at least 50 rows for each of them, where it pays,
        and none otherwise. A column whose less frequent values would have fewer than 25 rows for
        each hat function gets fewer.
    max_categories : int or None, default=100
        Largest number of encoded columns for a column of categories. If there are more categories,
        the rarest of them share one column. None keeps all apart.
    n_shape_knots : int, "auto" or None, default="auto"
        Largest number of knots of a shape function, at least 2; None uses none. "auto" is 32 for
        tables with at least 6,000 rows, where they pay, and none otherwise. A column has a shape
        function if it has hat functions, but fewer than that function would have knots, of which
        each needs 25 of the less frequent values.
    squash : bool, default=True
        Whether outliers are squashed into (-3, 3). If not, the columns are only standardised, so
        that linear experts are linear in them; values beyond 100 standard deviations count as
        100. There are no shape functions then.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, TableEncoder
    >>> clf = MoEClassifier(encoder=TableEncoder(n_knots=16, max_categories=20))
    """

    _parameter_constraints: dict = {
        "n_knots": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left"), None],
        "max_categories": [Interval(Integral, 2, None, closed="left"), None],
        "n_shape_knots": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left"), None],
        "squash": ["boolean"],
    }

    needs_tables = True

    def __init__(
        self,
        *,
        n_knots: int | str | None = "auto",
        max_categories: int | None = 100,
        n_shape_knots: int | str | None = "auto",
        squash: bool = True,
    ):
        self.n_knots = n_knots
        self.max_categories = max_categories
        self.n_shape_knots = n_shape_knots
        self.squash = squash

    def make_transformer(self) -> TableTransformer:
        """Return a transformer with these parameters, to be fitted on a table."""
        self._validate_params()
        return TableTransformer(self.n_knots, self.max_categories, self.squash, self.n_shape_knots)

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return an identity, as the layer of the transformer has encoded the table already."""
        return nn.Identity()
