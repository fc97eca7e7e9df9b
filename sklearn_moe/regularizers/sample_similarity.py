"""A penalty that sends similar samples to the same expert."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class SampleSimilarity(Regularizer):
    r"""Send similar samples to the same expert and different samples to different ones.

    .. math:: L = \lambda \, E \,
              \frac{\sum_{nm} w_n w_m (p p^T)_{nm} d_{nm}}{\sum_{nm} w_n w_m d_{nm}}

    :math:`(p p^T)_{nm}` is the probability that two samples go to the same expert, and
    :math:`d_{nm}` is their distance. The ratio does not change with the scale of the data, the
    size of the batch or the number of experts: it is 1 for a uniform gate, :math:`E` when one
    expert gets everything and 0 when every expert owns one cluster of identical samples. This is
    the sample similarity loss of the reference in closed form. The reference has one term for the
    same expert and one for different experts; both become one term, because the rows of :math:`p`
    sum to 1.

    Parameters
    ----------
    strength : float, default=0.3
        Weight :math:`\lambda`, in nats of loss. The reference's :math:`\beta_s` for batches of
        :math:`N` samples corresponds to :math:`\beta_s N^2 \bar d / E^2`; the default is its
        choice for MNIST.
    metric : "euclidean" or callable, default="euclidean"
        Distance between samples, in the flattened features that gate and experts see. It has no
        gradient. A callable gets two tensors, as ``torch.cdist`` does: all samples, and the
        samples to compare them with. It returns the matrix of distances. Scale the features first
        if their units differ.
    max_samples : int, default=256
        Each sample is compared with at most this many samples of its batch.

    References
    ----------
    Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of
    Experts, 2023, arXiv 2302.14703.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, SampleSimilarity
    >>> clf = MoEClassifier(gate="attentive", regularization=SampleSimilarity(strength=0.1))
    """

    gate_only = balances = can_be_captured = True

    _parameter_constraints: dict = {
        **Regularizer._parameter_constraints,
        "metric": [StrOptions({"euclidean"}), callable],
        "max_samples": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(
        self,
        strength: float = 0.3,
        *,
        metric: str | Callable[[Tensor, Tensor], Tensor] = "euclidean",
        max_samples: int = 256,
    ):
        self.strength = strength
        self.metric = metric
        self.max_samples = max_samples

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the mean distance within experts relative to that of all samples, times E."""
        gate_proba, others = mixture.gate_proba, slice(None)
        if len(x) > self.max_samples:
            # Evenly spaced, because a single batch of all samples is not shuffled.
            steps = torch.arange(self.max_samples, device=x.device)
            others = steps * (len(x) - 1) // (self.max_samples - 1)
        x = x.flatten(1)
        with torch.no_grad():
            metric = self.metric if callable(self.metric) else _euclidean
            distance = metric(x, x[others]) * sample_weight.outer(sample_weight[others])
            distance = distance / distance.sum().clamp_min(torch.finfo(x.dtype).tiny)
        # This is sum((p p^T) * d) without the product of the gate with itself.
        return gate_proba.shape[1] * ((distance @ gate_proba[others]) * gate_proba).sum()


def _euclidean(x: Tensor, others: Tensor) -> Tensor:
    """Return the distances between rows of both, up to a common factor."""
    # Distances from matrix products are exact enough, and do not overflow, near the origin only.
    centre = x.mean(dim=0)
    centred = x - centre
    scale = centred.abs().max().clamp_min(torch.finfo(x.dtype).tiny)
    centred, others = centred / scale, (others - centre) / scale
    squares = centred.square().sum(dim=1, keepdim=True) + others.square().sum(dim=1)
    return squares.addmm_(centred, others.mT, alpha=-2).clamp_min_(0).sqrt_()
