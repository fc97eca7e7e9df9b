r"""Regularizations: penalties that shape how the experts divide the work.

Each is called with a training batch and returns a scalar that is added to the loss. Sample weights
count as samples: a weight of zero equals removal. ``REGULARIZERS`` names the usual choices.

Symbols: :math:`p` gate_proba after masking, :math:`q` softmax of the full gate logits :math:`l`,
:math:`w` sample weights; samples :math:`n`, :math:`m`; experts :math:`e`.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sklearn_moe.mixture import MixtureOutput


class Regularizer(BaseEstimator):
    """Base class of the regularizations: ``strength`` times ``penalty``.

    A subclass has the parameter ``strength`` (at least 0; a regularization of strength 0 is left
    out) and the method ``penalty(mixture, x, y, sample_weight)``, which returns a scalar tensor.

    Attributes
    ----------
    gate_only : bool, default=False
        Says that the penalty reads ``gate_logits``, ``gate_proba`` and ``routing`` alone of the
        mixture. The training is then faster, and the rest of the mixture is None.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, Regularizer
    >>> class SureExperts(Regularizer):
    ...     def __init__(self, strength=0.1):
    ...         self.strength = strength
    ...     def penalty(self, mixture, x, y, sample_weight):
    ...         log_proba = mixture.expert_logits.log_softmax(dim=2)
    ...         entropy = -(log_proba.exp() * log_proba).sum(dim=2).mean(dim=1)
    ...         return (sample_weight * entropy).mean()
    >>> clf = MoEClassifier(regularization=["importance", SureExperts()])
    """

    gate_only = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "penalty" in vars(cls) and "gate_only" not in vars(cls):
            cls.gate_only = False  # a promise that holds for another penalty

    _parameter_constraints: dict = {"strength": [Interval(Real, 0, None, closed="left")]}

    def __call__(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the weighted penalty of a batch.

        Parameters
        ----------
        mixture : MixtureOutput
            What the mixture says about the batch.
        x : Tensor of shape (n_samples, ...)
            What gate and experts see.
        y : Tensor of shape (n_samples,)
            Indices of the classes.
        sample_weight : Tensor of shape (n_samples,)
            Weights, with a mean of 1 over the training set.

        Returns
        -------
        Tensor of shape ()
        """
        return self.strength * self.penalty(mixture, x, y, sample_weight)


def _squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation, unbiased; 0 for one value or all zeros."""
    if len(values) == 1:
        return values.sum() * 0
    tiny = torch.finfo(values.dtype).tiny
    return values.var() / values.mean().square().clamp_min(tiny)


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

    gate_only = True

    def __init__(self, strength: float = 0.2):
        self.strength = strength

    def penalty(self, mixture, x, y, sample_weight):
        """Return the squared variation of the importances."""
        return _squared_variation(sample_weight @ mixture.gate_proba)


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

    gate_only = True

    def __init__(self, strength: float = 0.1):
        self.strength = strength

    def penalty(self, mixture, x, y, sample_weight):
        """Return the squared variation of the loads."""
        if mixture.routing is None or mixture.routing.top_k is None:
            raise ValueError(
                "regularization='load' needs a gate that draws noise and keeps the top k experts, "
                "such as gate='noisy_top_k' or gate=SoftmaxGate(top_k=2, noise=1.0)."
            )
        noisy_logits, noise_scale, top_k = mixture.routing
        threshold = noisy_logits.topk(top_k, dim=1).values[:, -1:]
        chosen = torch.special.ndtr((mixture.gate_logits - threshold) / noise_scale)
        return _squared_variation(sample_weight @ chosen)


class SampleSimilarity(Regularizer):
    r"""Send similar samples to the same expert and different samples to different ones.

    .. math:: L = \lambda \, E \,
              \frac{\sum_{nm} w_n w_m (p p^T)_{nm} d_{nm}}{\sum_{nm} w_n w_m d_{nm}}

    :math:`(p p^T)_{nm}` is the chance that two samples meet in one expert and :math:`d_{nm}` their
    distance. The ratio does not change with the scale of the data, the size of the batch or the
    number of experts: it is 1 for a uniform gate, :math:`E` when one expert gets everything and 0
    when every expert owns one cluster of equal samples. This is the sample similarity loss of the
    reference in closed form: as rows of :math:`p` sum to 1, its terms for the same and for
    different experts are one.

    Parameters
    ----------
    strength : float, default=0.3
        Weight :math:`\lambda`, in nats of loss. The reference's :math:`\beta_s` for batches of
        :math:`N` samples corresponds to :math:`\beta_s N^2 \bar d / E^2`; the default is its
        choice for MNIST.
    metric : "euclidean" or callable, default="euclidean"
        Distance of samples, computed without gradient from what gate and experts see, flattened. A
        callable gets two tensors, as ``torch.cdist`` does, all samples and those that they are
        compared with, and returns the matrix of their distances. Scale the features first where
        their units differ.
    max_samples : int, default=256
        Each sample is compared with at most this many of its batch.

    References
    ----------
    Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of
    Experts, 2023, arXiv 2302.14703.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, SampleSimilarity
    >>> clf = MoEClassifier(gate="attentive", regularization=SampleSimilarity(strength=0.1))
    """

    gate_only = True

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

    def penalty(self, mixture, x, y, sample_weight):
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
    """Distances of the rows of both, up to a common factor."""
    # Matrix products give distances that are exact enough near the origin, and finite up to there.
    centre = x.mean(dim=0)
    centred = x - centre
    scale = centred.abs().max().clamp_min(torch.finfo(x.dtype).tiny)
    centred, others = centred / scale, (others - centre) / scale
    squares = centred.square().sum(dim=1, keepdim=True) + others.square().sum(dim=1)
    return squares.addmm_(centred, others.mT, alpha=-2).clamp_min_(0).sqrt_()


class Entropy(Regularizer):
    r"""Make the gate sure of its choice: one expert for a sample instead of a little of each.

    .. math:: L = \lambda \, \frac{1}{N} \sum_n w_n \Bigl(-\sum_e q_{ne} \ln q_{ne}\Bigr)

    It says nothing about balance: combine it with ``Importance`` or ``SampleSimilarity`` if few
    experts take over.

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

    gate_only = True

    def __init__(self, strength: float = 0.01):
        self.strength = strength

    def penalty(self, mixture, x, y, sample_weight):
        """Return the mean entropy of the full gate distribution."""
        log_q = mixture.gate_logits.log_softmax(dim=1)
        return (sample_weight * -(log_q.exp() * log_q).sum(dim=1)).mean()


class Competence(Regularizer):
    r"""Make every expert answer every sample, not only those that the gate gives to it.

    .. math:: L = \lambda \, \frac{1}{N E} \sum_n w_n \sum_e -\ln o_{n e y_n}

    Experts that only know their own samples know few of a small table. This penalty, the mean loss
    of the experts on their own, shows them all; the mixture then predicts like an ensemble, with
    better probabilities, and the gate's choice matters less: specialisation is what it costs.

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

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    def penalty(self, mixture, x, y, sample_weight):
        """Return the mean negative log-likelihood of the experts on their own."""
        of_class = y.view(-1, 1, 1).expand(-1, mixture.expert_logits.shape[1], 1)
        log_proba = mixture.expert_logits.log_softmax(dim=2).gather(2, of_class)
        return (sample_weight * -log_proba.mean(dim=(1, 2))).mean()


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

    gate_only = True

    def __init__(self, strength: float = 1e-3):
        self.strength = strength

    def penalty(self, mixture, x, y, sample_weight):
        """Return the mean squared log-partition of the gate."""
        return (sample_weight * mixture.gate_logits.logsumexp(dim=1).square()).mean()


REGULARIZERS: dict[str, Regularizer] = {
    "importance": Importance(),
    "load": Load(),
    "sample_similarity": SampleSimilarity(),
    "entropy": Entropy(),
    "competence": Competence(),
    "z_loss": ZLoss(),
}
"""The regularizations that ``MoEClassifier(regularization=...)`` knows by name."""
