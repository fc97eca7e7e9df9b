"""A penalty on experts whose hidden vectors are alike."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class SoftOrthogonality(Regularizer):
    r"""Make the experts' hidden vectors differ for each sample, by a penalty.

    .. math:: L = \lambda \, \frac{1}{N} \sum_n w_n \sum_{e < f} \cos^2(h_{ne}, h_{nf})

    ``experts="orthogonal"`` makes them exactly orthogonal.

    Parameters
    ----------
    strength : float, default=0.01
        Weight :math:`\lambda`, in nats of loss per squared cosine.

    References
    ----------
    J. Feng, Z. Pu, T. Hu, D. Li, X. Ai, H. Wang, OMoE: Diversifying Mixture of Low-Rank Adaptation
    by Orthogonal Finetuning, 2025, arXiv 2501.10062 (a constraint, not a penalty).

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, SoftOrthogonality
    >>> clf = MoEClassifier(regularization=["importance", SoftOrthogonality(0.1)])
    """

    sums_over_layers = True

    def __init__(self, strength: float = 0.01):
        self.strength = strength

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the mean sum of the squared cosines of all pairs of experts."""
        units = F.normalize(mixture.hidden, dim=2)
        squares = (units @ units.mT).square().triu(diagonal=1)
        return (sample_weight * squares.sum(dim=(1, 2))).mean()
