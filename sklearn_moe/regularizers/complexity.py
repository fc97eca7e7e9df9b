"""A penalty that makes large experts expensive."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.balance import mean_load, squared_variation
from sklearn_moe.regularizers.base import Regularizer


class ComplexityBalance(Regularizer):
    r"""Use experts in inverse proportion to what they cost.

    .. math:: L = \frac{\lambda}{2} \, \mathrm{CV}^2\Bigl(c_e \sum_n w_n q_{ne}\Bigr)
              + \frac{\lambda}{2} \, \mathrm{CV}^2\Bigl(\sum_n w_n P_{ne}\Bigr)

    with the costs :math:`c_e` of the experts and the loads of ``Load``. The first term is smallest
    when an expert of twice the cost gets half as many samples. The second pulls towards equal
    loads. Only gates that draw noise and keep the top k have the second term.

    Parameters
    ----------
    strength : float, default=0.01
        Weight :math:`\lambda`, in nats of loss per unit of squared variation.

    References
    ----------
    E. Zamfir, Z. Wu, N. Mehta, Y. Tan, D. P. Paudel, Y. Zhang, R. Timofte, Complexity Experts are
    Task-Discriminative Learners for Any Image Restoration, 2024, arXiv 2411.18466.

    Examples
    --------
    >>> from sklearn_moe import ComplexityBalance, MoEClassifier
    >>> clf = MoEClassifier(gate="hard", experts="complexity",
    ...                     regularization=ComplexityBalance(0.1))
    """

    sums_over_layers = True

    def __init__(self, strength: float = 0.01):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return half the squared variation of importance times cost; with noise, also of load."""
        importance = sample_weight @ mixture.gate_logits.softmax(dim=1)
        if mixture.experts is not None:
            costs = torch.tensor(mixture.experts.costs, device=importance.device)
            importance = importance * costs / costs.max()
        penalty = squared_variation(importance) / 2
        if mixture.routing is not None and mixture.routing.top_k is not None:
            penalty = penalty + squared_variation(mean_load(mixture, sample_weight)) / 2
        return penalty
