"""The torch layer that encodes a table, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from sklearn_moe.tables import TableTransformer

# Hat functions with closer knots than this need double precision. Others lose 1e-4 at most by
# rounding.
FINE_GAP = 4e-3

# Without squashing, values that are farther from the mean than this, in standard deviations, count
# as being so far away.
FARTHEST = 100


class TableLayer(nn.Module):
    r"""The first layer of a mixture for tables. It encodes a batch of raw columns.

    Numbers :math:`x` are standardised in double precision, so that small differences of large
    numbers survive, and squashed to :math:`s = z / \sqrt{1 + (z / 3)^2}` with
    :math:`z = (x - \mu) / \sigma`. After these come a column of zeros and ones for each column
    that had missing values, which marks them; hat functions of :math:`s`; and one column for each
    category. Between two knots, a hat function falls from 1 to 0 and the next one rises. Before
    the first knot the first one is 1, and after the last knot the last one is 1. With
    ``squash=False`` the first columns are :math:`z` itself, up to 100 standard deviations.

    It has no weights to train.

    Parameters
    ----------
    fitted : TableTransformer
        A fitted transformer, whose encoding the layer applies.

    Attributes
    ----------
    n_out : int
        Number of encoded columns.
    """

    has_known_gradient = True
    can_be_captured = True

    mean: Tensor
    scale: Tensor
    factor: Tensor
    with_missing: Tensor
    column: Tensor
    knots: Tensor
    gap: Tensor
    is_first: Tensor
    start: Tensor

    def __init__(self, fitted: TableTransformer):
        super().__init__()
        self.n_numbers = len(fitted.mean_)
        self.squash = fitted.squash
        self.is_extreme = bool(fitted.exponent_.any())
        self.has_hats = any(map(len, fitted.knots_))
        self.has_categories = bool(fitted.categories_)
        self._keep("mean", fitted.mean_)
        self._keep("scale", fitted.scale_)
        self._keep("factor", np.ldexp(1.0, -fitted.exponent_))
        self._keep("with_missing", np.flatnonzero(fitted.has_missing_))

        column = np.repeat(np.arange(self.n_numbers), [len(knots) for knots in fitted.knots_])
        knots = np.concatenate([np.empty(0), *fitted.knots_])
        is_first = np.diff(column, prepend=-1) > 0
        self._keep("column", column)
        # After the last knot of a column, no hat function falls.
        gap = np.where(np.diff(column, append=-1) == 0, np.diff(knots, append=0), np.inf)
        precision = np.float32 if gap.min(initial=np.inf) >= FINE_GAP else np.float64
        self._keep("knots", knots.astype(precision))
        self._keep("gap", gap.astype(precision))
        self._keep("is_first", is_first.astype(np.float32))

        self.n_categories = sum(fitted.widths_)
        self._keep("start", np.cumsum([0, *fitted.widths_])[:-1])
        self.n_out = self.n_numbers + len(self.with_missing) + len(column) + self.n_categories

    def _keep(self, name, values):
        # Not persistent, as the state of the net already holds them in its TableTransformer.
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (n_samples, n_features) to (n_samples, n_out)."""
        encoded = []
        if self.n_numbers:
            numbers = x[:, : self.n_numbers].double()
            if self.is_extreme:
                numbers = numbers * self.factor
            standard = ((numbers - self.mean) / self.scale).clamp(-1e18, 1e18)
            standard = standard.to(self.knots.dtype)
            is_missing = standard.isnan()
            standard = standard.masked_fill(is_missing, 0)
            squashed = standard / (1 + (standard / 3).square()).sqrt()
            encoded.append(squashed if self.squash else standard.clamp(-FARTHEST, FARTHEST))
        if len(self.with_missing):
            encoded.append(is_missing.index_select(1, self.with_missing).float())
        if self.has_hats:
            risen = squashed.index_select(1, self.column)
            # How far the next hat function has risen, which is how far this one has fallen.
            risen = risen.sub_(self.knots).div_(self.gap).clamp_(0, 1)
            encoded.append(F.pad(risen, (1, -1)).add_(self.is_first).sub_(risen))
        if self.has_categories:
            places = x[:, self.n_numbers :]
            # Unknown categories go to one more column at the end, which is cut off.
            places = torch.where(places >= 0, places + self.start, self.n_categories).long()
            shape = x.shape[0], self.n_categories + 1
            one_hot = x.new_zeros(shape, dtype=torch.float32).scatter_(1, places, 1.0)
            encoded.append(one_hot[:, : self.n_categories])
        return (encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=1)).float()
