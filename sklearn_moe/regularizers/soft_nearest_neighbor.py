"""A penalty that sends neighbours of one class to the same expert."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor
from torch.nn import functional as F

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class SoftNearestNeighbor(Regularizer):
    r"""Let the neighbours of a sample have its class and its expert.

    .. math:: L = -\frac{\lambda}{N} \sum_n w_n \log
              \frac{\sum_{m:\, y_m = y_n} w_m\, (p_n \cdot p_m)\, k_{nm}}{\sum_m w_m\, k_{nm}},
              \qquad k_{nm} = \exp\Bigl(\frac{\cos(x_n, x_m) - 1}{T}\Bigr)

    A neighbour of sample :math:`n` is drawn with a probability that grows with the similarity
    :math:`k_{nm}` of the features. The fraction is the probability that it has the same class, and
    that the gate sends both to the same expert, :math:`p_n \cdot p_m`. The gate learns to divide
    the samples by classes, and an encoder that is trained learns features in which it can. The
    penalty is also low if one expert gets everything, so take it together with ``Importance``.

    Parameters
    ----------
    strength : float, default=0.1
        Weight :math:`\lambda`, in nats of loss.
    temperature : float, default=0.3
        The :math:`T` by which similarities are divided: the lower, the fewer neighbours count.
    max_samples : int, default=512
        At most this many samples of a batch are compared with each other.

    Notes
    -----
    The loss of the reference, which is for networks without experts, has no :math:`p_n \cdot p_m`.
    A sample counts among its own neighbours here, so that weights act like numbers of samples.

    References
    ----------
    N. Frosst, N. Papernot, G. Hinton, Analyzing and Improving Representations with the Soft
    Nearest Neighbor Loss, 2019, arXiv 1902.01889.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, SoftNearestNeighbor
    >>> clf = MoEClassifier(
    ...     encoder="conv", regularization=["importance", SoftNearestNeighbor(0.2)]
    ... )
    """

    gate_only = sharpens = can_be_captured = True

    _parameter_constraints: dict = {
        **Regularizer._parameter_constraints,
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "max_samples": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(self, strength: float = 0.1, *, temperature: float = 0.3, max_samples: int = 512):
        self.strength = strength
        self.temperature = temperature
        self.max_samples = max_samples

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the mean negative log-probability that a neighbour is alike."""
        # Evenly spaced, because a single batch of all samples is not shuffled.
        step = -(-len(x) // self.max_samples)
        x, y, weight = x[::step].flatten(1), y[::step], sample_weight[::step]
        gate_proba = mixture.gate_proba[::step]
        tiny = torch.finfo(x.dtype).tiny
        directions = F.normalize(x, dim=1)
        closeness = directions @ directions.mT / self.temperature
        # A cosine can be larger than 1 by rounding.
        largest = closeness.detach().amax(dim=1, keepdim=True)
        near = torch.exp(closeness - largest) * weight
        alike = (gate_proba @ gate_proba.mT) * (y == y.unsqueeze(1))
        share = (near * alike).sum(dim=1) / near.sum(dim=1).clamp_min(tiny)
        return -(weight * share.clamp_min(tiny).log()).mean()
