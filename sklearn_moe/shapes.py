"""Shape functions: what all experts learn together about single columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

# The values at the knots are learned in these units, so that a training step changes them little.
SCALE = 0.06

# Lies beyond all encoded numbers, and so does nothing.
NO_KNOT = 1e9


class ShapeFunctions(nn.Module):
    r"""A learned function of each of some columns, which experts read beside the columns.

    The shape function of a column is piecewise linear. Its values at the knots are learned; before
    the first knot and after the last one it is constant. All experts share it, so it costs few
    weights, and can have many knots. Its name is that of the functions whose sum is a generalised
    additive model; here, each hidden unit weighs them.

    Parameters
    ----------
    positions : sequence of int
        Where the columns are in a batch, as the experts read it.
    knots : sequence of ndarray
        The knots of each of these columns, at least two, in ascending order.

    Attributes
    ----------
    value : Parameter of shape (n_columns, n_knots)
        The values at the knots, divided by ``SCALE``; zero at the start. Columns with fewer knots
        use the first of them.

    References
    ----------
    Y. Lou, R. Caruana, J. Gehrke, Intelligible Models for Classification and Regression, KDD 2012.
    """

    has_known_gradient = True
    can_be_captured = True

    position: Tensor
    start: Tensor
    gap: Tensor

    def __init__(self, positions: Sequence[int], knots: Sequence[NDArray]):
        super().__init__()
        most = max(map(len, knots))
        start, gap = torch.full((len(knots), most - 1), NO_KNOT), torch.ones(len(knots), most - 1)
        for row, own in enumerate(map(torch.from_numpy, knots)):
            start[row, : len(own) - 1] = own[:-1]
            gap[row, : len(own) - 1] = own.diff()
        # Not persistent, as the state of the net already holds them in its TableTransformer.
        self.register_buffer("position", torch.tensor(positions), persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("gap", gap, persistent=False)
        self.value = nn.Parameter(torch.zeros(len(knots), most))

    def _risen(self, x):
        """Return how far each sample is from a knot to the next, (N, n_columns, n_knots - 1)."""
        own = x.index_select(1, self.position).unsqueeze(2)
        return own.sub(self.start).div(self.gap).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the functions' values (N, n_columns) for a batch (N, D)."""
        steps = (self._risen(x) * self.value.diff(dim=1)).sum(dim=2)
        return SCALE * (steps + self.value[:, 0])

    def backward(self, x: Tensor, upstream: Tensor) -> None:
        """Set the gradient of the values from that of the output (N, n_columns)."""
        steps = torch.einsum("ns,nsk->sk", upstream, self._risen(x))
        first = upstream.sum(dim=0).unsqueeze(1)
        # What a sample has risen to a knot, it takes from the knot before.
        reached, left = torch.cat([first, steps], dim=1), F.pad(steps, (0, 1))
        self.value.grad = SCALE * (reached - left)


def with_shapes(shapes: ShapeFunctions | None, x: Tensor) -> Tensor:
    """Return a batch (N, D), followed by the values of its shape functions if there are any."""
    return x if shapes is None else torch.cat([x, shapes(x)], dim=1)
