"""A penalty that balances ordinary and zero-computation experts."""

from __future__ import annotations

from numbers import Real

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from sklearn_moe.gates import mask_all_but_top_k
from sklearn_moe.mixture import MixtureOutput
from sklearn_moe.regularizers.base import Regularizer


class ZeroComputationBalance(Regularizer):
    r"""Give every expert a share of the samples, and the cheap experts larger shares.

    .. math:: L = \lambda \sum_e \eta_e f_e P_e, \qquad f_e = \frac{1}{N} \sum_n w_n
              [e \in \mathrm{top}_k(l_n)], \qquad P_e = \frac{1}{N} \sum_n w_n q_{ne}

    with :math:`\eta_e = 1` for ordinary experts and :math:`\tau` for zero-computation experts:
    the smaller :math:`\tau` is, the more samples skip computation. :math:`f` counts the experts
    that the gate chooses, before a ``capacity`` removes some of them. For a gate that asks all
    experts, it counts the most probable one. Only :math:`P` has a gradient. If all experts are
    ordinary, this is the balance loss of the Switch Transformer, times ``1 / E``.

    Parameters
    ----------
    strength : float, default=0.01
        Weight :math:`\lambda`, in nats of loss.
    tau : float, default=0.75
        Weight of the zero-computation experts, above 0 and at most 1.
        ``ZeroComputationExperts`` has a separate ``tau`` for its ``capacity``.

    References
    ----------
    P. Jin, B. Zhu, L. Yuan, S. Yan, MoE++: Accelerating Mixture-of-Experts Methods with
    Zero-Computation Experts, 2024, arXiv 2410.07348.

    W. Fedus, B. Zoph, N. Shazeer, Switch Transformers, 2021, arXiv 2101.03961.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, ZeroComputationBalance
    >>> clf = MoEClassifier(gate="top_k", experts="zero_computation",
    ...                     regularization=ZeroComputationBalance(tau=0.25))
    """

    sums_over_layers = True

    _parameter_constraints: dict = {
        **Regularizer._parameter_constraints,
        "tau": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(self, strength: float = 0.01, *, tau: float = 0.75):
        self.strength = strength
        self.tau = tau

    def penalty(
        self, mixture: MixtureOutput, x: Tensor, y: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Return the weighted sum of the products of shares."""
        share = sample_weight / sample_weight.sum().clamp_min(
            torch.finfo(sample_weight.dtype).tiny
        )
        logits, routing = mixture.gate_logits, mixture.routing
        decisive = logits.detach() if routing is None else routing.noisy_logits.detach()
        chosen = mask_all_but_top_k(decisive, mixture.top_k or 1) > -torch.inf
        weight = torch.ones(logits.shape[1], dtype=logits.dtype, device=logits.device)
        if mixture.experts is not None:
            is_ordinary = torch.tensor(mixture.experts.is_ordinary, device=logits.device)
            weight = weight.masked_fill(~is_ordinary, self.tau)
        return (weight * (share @ chosen.to(share.dtype)) * (share @ logits.softmax(dim=1))).sum()
