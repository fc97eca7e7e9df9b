"""Linear experts: one multinomial logistic regression each."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from sklearn_moe.experts.base import Experts
from sklearn_moe.experts.mlp import MLPExpertsModule


class LinearExperts(Experts):
    r"""Linear experts: each is a multinomial logistic regression.

    .. math:: o_e(x) = \mathrm{softmax}(B_e x + b_e)

    With these experts the mixture is a mixture of logistic regressions: it finds parts of the
    data, *regimes*, each of which follows a simple rule. Flexible experts would each learn all
    rules. Under linear experts, "auto" means what finds regimes (see ``MoEClassifier``).

    They read the standardised columns of a table and its categories, but no hat functions, which
    are left to the gate.

    Parameters
    ----------
    l2 : float, default=1e-4
        Strength of the penalty :math:`\sum_e \lVert B_e \rVert^2` in nats of the mean loss. It
        keeps coefficients finite where a column separates the classes.
    l1 : float, default=0.0
        Strength of the penalty :math:`\sum_e \lVert B_e \rVert_1`, which brings coefficients close
        to zero.

    References
    ----------
    B. Grün, F. Leisch, FlexMix Version 2: Finite Mixtures with Concomitant Variables and Varying
    and Constant Parameters, Journal of Statistical Software 28, 2008.

    M. I. Jordan, R. A. Jacobs, Hierarchical Mixtures of Experts and the EM Algorithm, Neural
    Computation 6, 1994.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn_moe import LinearExperts, MoEClassifier
    >>> X, y = make_classification(random_state=0)
    >>> clf = MoEClassifier(3, experts=LinearExperts(l2=1e-3), n_init=1, random_state=0).fit(X, y)
    >>> clf.expert_proba(X).shape
    (100, 3, 2)
    """

    is_linear = True

    _parameter_constraints: dict = {
        "l2": [Interval(Real, 0, None, closed="left")],
        "l1": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, l2: float = 1e-4, l1: float = 0.0):
        self.l2 = l2
        self.l1 = l1

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> LinearExpertsModule:
        """Return the torch module of these experts."""
        self._validate_params()
        sizes = math.prod(input_shape), n_classes
        return LinearExpertsModule(n_experts, sizes, generator, l2=self.l2, l1=self.l1)


class LinearExpertsModule(MLPExpertsModule):
    """The torch module of :class:`LinearExperts`."""

    has_known_gradient = True
    can_be_captured = True
    is_linear = True

    def __init__(
        self,
        n_experts: int,
        sizes: tuple[int, int],
        generator: torch.Generator,
        *,
        l2: float,
        l1: float,
    ):
        super().__init__(n_experts, sizes, generator)
        self.l2 = l2
        self.l1 = l1

    @property
    def weight(self) -> Tensor:
        """The coefficients, (n_experts, n_classes, n_columns)."""
        return self.layers[0].weight

    @property
    def bias(self) -> Tensor:
        """The intercepts, (n_experts, n_classes)."""
        return self.layers[0].bias

    def penalty(self) -> Tensor:
        penalty = self.l2 * self.weight.square().sum(dim=(1, 2))
        return penalty + self.l1 * self.weight.abs().sum(dim=(1, 2)) if self.l1 else penalty

    def backward(self, trail: list, upstream: Tensor) -> Tensor:
        super().backward(trail, upstream)
        weight: Any = self.weight
        weight.grad.add_(weight, alpha=2 * self.l2)
        if self.l1:
            weight.grad.add_(weight.sign(), alpha=self.l1)
        return upstream
