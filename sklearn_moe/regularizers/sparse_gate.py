"""A penalty that lets the gate read few columns."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer

# Part of the penalty that stays once the columns are chosen.
RELAXATION = 0.1


class SparseGate(Regularizer):
    r"""Let the gate read as few columns as possible.

    A group lasso on the weights :math:`W` of the gate's first layer. The weights of a column of
    the table, with its hat functions or categories and for all experts, are one group:

    .. math:: L = \lambda \sum_g \sqrt{d_g} \, \lVert W_g \rVert

    with the number :math:`d_g` of encoded columns in group :math:`g`. At the end of a training,
    the groups that the gate does not need become exactly zero. The columns that are left are in
    ``gate_columns_``.

    A linear gate of linear experts then drops the hat functions of its columns where this lowers
    the AIC, so that it is linear in them. With its columns chosen, it keeps a tenth of the
    penalty, which makes all weights too small (the relaxed lasso).

    Parameters
    ----------
    strength : float, default=1e-3
        Weight :math:`\lambda`, in nats of loss per unit of the norm.

    References
    ----------
    M. Yuan, Y. Lin, Model Selection and Estimation in Regression with Grouped Variables, Journal
    of the Royal Statistical Society B 68, 2006.

    N. Meinshausen, Relaxed Lasso, Computational Statistics and Data Analysis 52, 2007.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, SparseGate
    >>> clf = MoEClassifier(experts="linear", regularization=SparseGate(3e-3))
    """

    of_weights = can_be_captured = True

    def relaxed(self) -> SparseGate:
        """Return a tenth of this penalty."""
        other = copy(self)
        other.strength = RELAXATION * self.strength
        return other

    def __init__(self, strength: float = 1e-3):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the sum of the norms."""
        return self.penalty_of(mixture.gate).sum()

    def penalty_of(self, gate: Any) -> Tensor:
        """Return the sum of the norms in each restart."""
        norm, size = self._norms(gate)
        return norm @ size.sqrt()

    @torch.no_grad()
    def add_gradient(self, gate: Any) -> Tensor:
        """Add the weighted gradient to that of the gate's weights; return the penalties."""
        norm, size = self._norms(gate)
        weight = gate.input_weight
        weight.grad.addcmul_(weight, self._slope(gate, norm, size).unsqueeze(1))
        return norm @ size.sqrt()

    @torch.no_grad()
    def slope(self, gate: Any) -> Tensor:
        """Return the weighted gradient over the weight, (n_restarts, n_inputs)."""
        return self._slope(gate, *self._norms(gate))

    def _slope(self, gate, norm, size):
        return (self.strength * size.sqrt() / norm)[:, gate.column_groups]

    def _norms(self, gate):
        """Return the norm of each group in each restart, and the sizes of the groups."""
        if gate.input_weight is None or gate.column_groups is None:
            raise ValueError(
                "regularization='sparse_gate' needs a gate whose first layer reads the columns of "
                f"a table, such as gate='softmax' with encoder='auto', got {type(gate).__name__}."
            )
        # So far from zero that the slope stays finite.
        return (gate.column_squares() + 1e-10).sqrt(), gate.group_sizes
