"""Penalties on an unequal use of the experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class Importance(Regularizer):
    r"""Use all experts equally often.

    .. math:: L = \lambda \, \mathrm{CV}^2\Bigl(\sum_n w_n p_{n1}, \ldots, \sum_n w_n p_{nE}\Bigr)

    The squared coefficient of variation (with the unbiased variance) of the batch's importances is
    zero when every expert gets the same share of the batch and :math:`E` when one gets all of it.

    Parameters
    ----------
    strength : float, default=0.2
        Weight :math:`\lambda`, in nats of loss per unit of squared variation.

    References
    ----------
    N. Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
    Layer, 2017, arXiv 1701.06538.

    Examples
    --------
    >>> from sklearn_moe import Importance, MoEClassifier
    >>> MoEClassifier(regularization=Importance(0.5)).get_params()["regularization__strength"]
    0.5
    """

    gate_only = has_gradient = balances = can_be_captured = True

    def __init__(self, strength: float = 0.2):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the squared variation of the importances."""
        return squared_variation(sample_weight @ mixture.gate_proba)

    def penalty_and_gradient(
        self, gate_proba: Tensor, sample_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the penalty and its gradient with respect to the gate's probabilities."""
        importance = sample_weight @ gate_proba
        n_experts = len(importance)
        if n_experts == 1:
            return importance.sum() * 0, torch.zeros_like(gate_proba)
        mean = importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
        distance = importance / mean - 1
        squares = distance @ distance
        slope = (distance - squares / n_experts) * (2 / (n_experts - 1) / mean)
        return squares / (n_experts - 1), torch.outer(sample_weight, slope)


class Load(Regularizer):
    r"""Choose all experts equally often, for noisy top-k gates.

    The load of an expert is the number of samples for which it would be among the :math:`k` first
    if its noise were drawn again, against the threshold that the sample's present noise sets:

    .. math:: L = \lambda \, \mathrm{CV}^2\Bigl(\sum_n w_n P_{n1}, \ldots, \sum_n w_n P_{nE}\Bigr),
              \qquad P_{ne} = \Phi\Bigl(\frac{l_{ne} - t_n}{\sigma}\Bigr)

    with the sample's :math:`k`-th largest noisy logit :math:`t_n` and the noise's standard
    deviation :math:`\sigma`.

    Parameters
    ----------
    strength : float, default=0.1
        Weight :math:`\lambda`, in nats of loss per unit of squared variation.

    References
    ----------
    N. Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
    Layer, 2017, arXiv 1701.06538.

    C. Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021, arXiv 2106.05974
    (the form with one threshold for all experts).

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier
    >>> clf = MoEClassifier(gate="noisy_top_k", regularization=["importance", "load"])
    """

    gate_only = balances = can_be_captured = True

    def __init__(self, strength: float = 0.1):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the squared variation of the loads."""
        if mixture.routing is None or mixture.routing.top_k is None:
            raise ValueError(
                "regularization='load' needs a gate that draws noise and keeps the top k experts, "
                "such as gate='noisy_top_k' or gate=SoftmaxGate(top_k=2, noise=1.0). So do the "
                "gates of hidden layers of experts."
            )
        return squared_variation(mean_load(mixture, sample_weight))


def mean_load(mixture: MixtureOutput, sample_weight: Tensor) -> Tensor:
    """Return the loads of the experts, up to a factor, under a noisy top-k gate."""
    routing: Any = mixture.routing
    noisy_logits, noise_scale, top_k = routing
    threshold = noisy_logits.topk(top_k, dim=1).values[:, -1:]
    chosen = torch.special.ndtr((mixture.gate_logits - threshold) / noise_scale)
    return sample_weight @ chosen


def squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation, unbiased; 0 for one value or all zeros."""
    if len(values) == 1:
        return values.sum() * 0
    tiny = torch.finfo(values.dtype).tiny
    return values.var() / values.mean().square().clamp_min(tiny)
