"""A penalty that trains every expert on every sample."""

from __future__ import annotations

from torch import Tensor

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class Competence(Regularizer):
    r"""Train every expert on every sample, not only on those that the gate gives to it.

    .. math:: L = \lambda \, \frac{1}{N E} \sum_n w_n \sum_e -\ln o_{n e y_n}

    On a small table, experts that only learn from their own samples see few of them. This penalty
    is the mean loss of the single experts, so that each learns from all samples. The mixture then
    predicts like an ensemble, with better probabilities. But the experts specialise less, and the
    gate's choice matters less.

    Parameters
    ----------
    strength : float, default=1.0
        Weight :math:`\lambda`, per nat of the experts' mean loss.

    References
    ----------
    Y. Gorishniy, A. Kotelnikov, A. Babenko, TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling, 2024, arXiv 2410.24210 (the mean loss of the members).

    Examples
    --------
    >>> from sklearn_moe import Competence, MoEClassifier
    >>> clf = MoEClassifier(regularization=["importance", Competence(3.0)])
    """

    can_be_captured = True

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    @property
    def per_nat_of_experts(self) -> float:  # type: ignore[override]
        """The strength, because the penalty is the experts' mean negative log-likelihood."""
        return self.strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the mean negative log-likelihood of the single experts."""
        of_class = y.view(-1, 1, 1).expand(-1, mixture.expert_logits.shape[1], 1)
        log_proba = mixture.expert_logits.log_softmax(dim=2).gather(2, of_class)
        return (sample_weight * -log_proba.mean(dim=(1, 2))).mean()
