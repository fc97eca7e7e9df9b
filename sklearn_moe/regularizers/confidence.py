"""Penalties on how sure the gate is."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class Entropy(Regularizer):
    r"""Make the gate sure of its choice: one expert for a sample instead of a little of each.

    .. math:: L = \lambda \, \frac{1}{N} \sum_n w_n \Bigl(-\sum_e q_{ne} \ln q_{ne}\Bigr)

    It does not balance the experts: combine it with ``Importance`` or ``SampleSimilarity`` if a
    few experts take over.

    Parameters
    ----------
    strength : float, default=0.01
        Weight :math:`\lambda`, per nat of the gate's entropy.

    References
    ----------
    A. Muzio, A. Sun, C. He, SEER-MoE: Sparse Expert Efficiency through Regularization for
    Mixture-of-Experts, 2024, arXiv 2404.05089.

    Examples
    --------
    >>> from sklearn_moe import Entropy, MoEClassifier
    >>> clf = MoEClassifier(regularization=["importance", Entropy(0.1)])
    """

    gate_only = sharpens = can_be_captured = True

    def __init__(self, strength: float = 0.01):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the mean entropy of the full gate distribution."""
        log_q = mixture.gate_logits.log_softmax(dim=1)
        return (sample_weight * -(log_q.exp() * log_q).sum(dim=1)).mean()


class ScoreVariance(Regularizer):
    r"""Make the gate tell samples apart: sure for a sample, and even over all of them.

    .. math:: L = -\lambda \sum_e \operatorname{Var}_n(p_{ne})
                = -\lambda \sum_e \Bigl(\overline{p_e^2} - \overline{p_e}^2\Bigr)

    with means over the weighted samples. Its lowest value is :math:`-\lambda (1 - 1/E)`, if each
    sample has one expert and all experts have equally many samples. It is 0 if the gate says the
    same for all samples.

    Parameters
    ----------
    strength : float, default=0.3
        Weight :math:`\lambda`, in nats of loss per unit of variance.

    References
    ----------
    H. Guo et al., Advancing Expert Specialization for Better MoE, 2025, arXiv 2505.22323.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, ScoreVariance
    >>> clf = MoEClassifier(regularization=ScoreVariance(1.0))
    """

    gate_only = has_gradient = balances = sharpens = can_be_captured = True

    def __init__(self, strength: float = 0.3):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the negative sum of the variances of the gate's probabilities."""
        return self.penalty_and_gradient(mixture.gate_proba, sample_weight)[0]

    def penalty_and_gradient(
        self, gate_proba: Tensor, sample_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the penalty and its gradient with respect to the gate's probabilities."""
        total = sample_weight.sum().clamp_min(torch.finfo(sample_weight.dtype).tiny)
        share = sample_weight / total
        distance = gate_proba - share @ gate_proba
        weighted = share.unsqueeze(1) * distance
        return -(weighted * distance).sum(), -2 * weighted


class ZLoss(Regularizer):
    r"""Keep the gate's logits small, so that the gate stays trainable.

    .. math:: L = \lambda \, \frac{1}{N} \sum_n w_n \Bigl(\ln \sum_e e^{l_{ne}}\Bigr)^2

    Parameters
    ----------
    strength : float, default=0.001
        Weight :math:`\lambda`, in nats of loss per squared nat.

    References
    ----------
    B. Zoph et al., ST-MoE: Designing Stable and Transferable Sparse Expert Models, 2022,
    arXiv 2202.08906.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, ZLoss
    >>> clf = MoEClassifier(regularization=ZLoss(0.01))
    """

    gate_only = can_be_captured = True

    def __init__(self, strength: float = 1e-3):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the mean squared log-partition of the gate."""
        return (sample_weight * mixture.gate_logits.logsumexp(dim=1).square()).mean()
