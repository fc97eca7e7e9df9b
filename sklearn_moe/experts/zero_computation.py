"""Ordinary experts, and experts that compute almost nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.experts.mlp import MLPExperts
from sklearn_moe.layers import StackedMLP, check_layer_sizes, fill_like_linear, keep_rows

_NUMBER = [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})]


class ZeroComputationExperts(Experts):
    r"""Fully connected experts, and cheap experts for easy samples.

    The cheap experts come last. The logits of *zero* experts are zero, *copy* experts are linear,
    and *constant* experts learn the same logits for all samples:

    .. math:: z_\mathrm{zero} = 0, \qquad z_\mathrm{copy} = A x, \qquad z_\mathrm{constant} = b

    In prediction, the other experts that the gate chooses for a sample share the probability of
    the zero experts, in proportion to their own. If the gate chooses no others, all classes are
    equally probable. In training, a zero expert always predicts that all classes are equally
    probable, so that the gate learns where this is not good enough. Under a soft gate all experts
    answer, and a zero expert is of no use.

    Use a gate that keeps the top k experts (two in the reference), so that a prediction really
    skips the ordinary experts. Use ``regularization="zero_computation"`` to control how many
    samples skip them.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(256,)
        Sizes of the hidden layers of the ordinary experts.
    n_zero, n_copy, n_constant : int or "auto", default="auto"
        Number of zero, copy and constant experts. If all three are "auto", half of the experts are
        cheap, but at most four: one zero, one copy and two constant experts, chosen in this order.
        If any of the three is a number, "auto" means 0.
    capacity : float or None, default=None
        Largest number of samples that an expert takes from a training batch, relative to its fair
        share (1.1 in the reference). Samples count in the order of the batch. Those beyond the
        limit lose the expert, unless they would lose all of their experts. It needs a gate with a
        ``top_k`` of at least 2. None: no limit.
    tau : float, default=0.75
        Fair share of an ordinary expert relative to that of a cheap one, for ``capacity``.
        ``ZeroComputationBalance`` has a separate ``tau``. In the reference both are the same
        number, so set both.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of the hidden layers.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a hidden unit is dropped in training.

    Notes
    -----
    With :math:`N_F` ordinary and :math:`N_Z` cheap experts, :math:`T` samples in a batch and
    :math:`k` experts per sample, the capacities are

    .. math:: C_F = \frac{\gamma k \tau T}{\tau N_F + N_Z}, \qquad
              C_Z = \frac{\gamma k T}{\tau N_F + N_Z}.

    In the reference the experts are layers inside a network; here each is a whole classifier.
    Without the zero experts, the gate probabilities of the other experts are scaled to sum to 1.
    The code of the reference does the same, but its equations do not. The reference also does so
    in training; here only predictions do, because the gate would get no gradient. An attentive
    gate has to run all experts anyway. For a cheap expert it reads a learned vector, because such
    an expert has no hidden vector.

    References
    ----------
    P. Jin, B. Zhu, L. Yuan, S. Yan, MoE++: Accelerating Mixture-of-Experts Methods with
    Zero-Computation Experts, 2024, arXiv 2410.07348.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(gate="top_k", experts="zero_computation",
    ...                     regularization="zero_computation", random_state=0).fit(X, y)
    >>> clf.module_.experts.is_ordinary
    [True, True, True, True, False, False, False, False]
    """

    _parameter_constraints: dict = {
        **MLPExperts._parameter_constraints,
        "n_zero": _NUMBER,
        "n_copy": _NUMBER,
        "n_constant": _NUMBER,
        "capacity": [Interval(Real, 0, None, closed="neither"), None],
        "tau": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        n_zero: int | str = "auto",
        n_copy: int | str = "auto",
        n_constant: int | str = "auto",
        capacity: float | None = None,
        tau: float = 0.75,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_zero = n_zero
        self.n_copy = n_copy
        self.n_constant = n_constant
        self.capacity = capacity
        self.tau = tau
        self.activation = activation
        self.dropout = dropout

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> ExpertsModule:
        """Return the torch module of these experts."""
        return self._build(
            ZeroComputationExpertsModule, input_shape, n_experts, n_classes, generator
        )

    def build_hidden(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_outputs: int,
        generator: torch.Generator,
    ) -> ExpertsModule:
        """Return the torch module of these experts for a hidden layer."""
        return self._build(
            HiddenZeroComputationModule, input_shape, n_experts, n_outputs, generator
        )

    def _build(self, kind, input_shape, n_experts, n_outputs, generator):
        self._validate_params()
        hidden_sizes = check_layer_sizes(
            "The experts' hidden_layer_sizes", self.hidden_layer_sizes
        )
        counts = self._counts(n_experts)
        n_ordinary = n_experts - sum(counts)
        if n_ordinary < 1:
            raise ValueError(
                f"n_zero, n_copy and n_constant, together {sum(counts)}, must leave an ordinary "
                f"expert of n_experts={n_experts}. Lower them, or raise n_experts."
            )
        n_features = math.prod(input_shape)
        ordinary = StackedMLP(
            n_ordinary,
            (n_features, *hidden_sizes, n_outputs),
            generator,
            activation=self.activation,
            dropout=self.dropout,
        )
        return kind(ordinary, *counts, n_features, n_outputs, generator, self.capacity, self.tau)

    def _counts(self, n_experts: int) -> tuple[int, int, int]:
        given = self.n_zero, self.n_copy, self.n_constant
        if given == ("auto",) * 3:
            n_cheap = min(4, n_experts // 2)
            return min(n_cheap, 1), min(max(n_cheap - 1, 0), 1), max(n_cheap - 2, 0)
        counts: Any = tuple(0 if number == "auto" else number for number in given)
        return counts


class ZeroComputationExpertsModule(ExpertsModule):
    """The torch module of :class:`ZeroComputationExperts`."""

    def __init__(
        self,
        ordinary: StackedMLP,
        n_zero: int,
        n_copy: int,
        n_constant: int,
        n_features: int,
        n_classes: int,
        generator: torch.Generator,
        capacity: float | None,
        tau: float,
    ):
        super().__init__()
        self.ordinary = ordinary
        self.copy, self.constant = self._make_cheap(
            n_copy, n_constant, n_features, n_classes, generator
        )
        self.hidden_size = ordinary.hidden_size
        n_cheap = n_zero + n_copy + n_constant
        self.key = _Parameter((n_cheap, self.hidden_size), self.hidden_size, generator)
        self.capacity = capacity
        self.tau = tau
        self.widest = max(ordinary.widest, n_classes)
        self.kinds = (
            ["ordinary"] * ordinary.n_networks
            + ["zero"] * n_zero
            + ["copy"] * n_copy
            + ["constant"] * n_constant
        )

    def _make_cheap(self, n_copy, n_constant, n_features, n_classes, generator):
        """Return the modules of the copy and of the constant experts."""
        return (
            _Parameter((n_copy, n_classes, n_features), n_features, generator),
            _Parameter((n_constant, n_classes), n_features, generator),
        )

    def _copy(self, x, own):
        return F.linear(x, self.copy.weight[own])

    def _constant(self, x, own):
        return self.constant.weight[own].expand(x.shape[0], -1)

    @property
    def is_ordinary(self) -> list[bool]:
        return self._are("ordinary")

    def _are(self, kind):
        return [own == kind for own in self.kinds]

    @property
    def costs(self) -> tuple[int, ...]:
        cost = {"ordinary": self.ordinary.multiply_adds, "copy": self.copy.weight[:1].numel()}
        return tuple(cost.get(kind, 0) for kind in self.kinds)

    def _own(self, expert):
        """Return the index of an expert among the experts of its kind."""
        return self.kinds[:expert].count(self.kinds[expert])

    def keep(self, experts: list[int]) -> None:
        kept: dict[str, list[int]] = {
            kind: [] for kind in ("ordinary", "zero", "copy", "constant")
        }
        for expert in experts:
            kept[self.kinds[expert]].append(expert)
        if not kept["ordinary"] or [e for kind in kept.values() for e in kind] != list(experts):
            raise ValueError(
                "Of zero-computation experts, one ordinary expert at least must be kept, and the "
                f"cheap ones must come after the ordinary ones; got {list(experts)}."
            )
        cheap = [expert - self.ordinary.n_networks for expert in experts]
        own = {kind: [self._own(expert) for expert in kept[kind]] for kind in kept}
        self.ordinary.keep(own["ordinary"])
        keep_rows(self.copy, own["copy"])
        keep_rows(self.constant, own["constant"])
        keep_rows(self.key, cheap[len(kept["ordinary"]) :])
        self.kinds = [kind for kind in kept for _ in kept[kind]]

    def check_gate(self, gate: nn.Module) -> None:
        if self.capacity is not None and (gate.top_k is None or gate.top_k == 1):
            raise ValueError(
                f"capacity={self.capacity} needs a gate that takes a few experts for a sample, so "
                f"that it can lose one of them, got top_k={gate.top_k}. Take a gate with top_k=2 "
                "or more, or leave capacity=None."
            )
        if gate.refits and {"zero", "constant"} & set(self.kinds):
            raise ValueError(
                "Zero and constant experts cannot answer for a cluster of their own, so a k-means "
                "gate makes no sense for them. Take another gate, or "
                "ZeroComputationExperts(n_copy=...) alone."
            )

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        logits, hidden = self.ordinary.logits_and_hidden(x, generator)
        cheap = [
            self._run_one(x, expert).unsqueeze(1)
            for expert in range(self.ordinary.n_networks, len(self.kinds))
        ]
        key = self.key.weight.expand(x.shape[0], -1, -1)
        return torch.cat([logits, *cheap], 1), torch.cat([hidden, key], 1)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        return [
            self._run_one(own.flatten(1), expert) for own, expert in zip(x, experts, strict=True)
        ]

    def _run_one(self, x, expert):
        kind, own = self.kinds[expert], self._own(expert)
        if kind == "ordinary":
            return self.ordinary.run_some([x], [own])[0]
        if kind == "copy":
            return self._copy(x, own)
        if kind == "constant":
            return self._constant(x, own)
        return x.new_zeros(x.shape[0], self.constant.weight.shape[1])

    def limit(self, gate_log_proba: Tensor) -> Tensor:
        answers = gate_log_proba > -torch.inf
        if not self.training and "zero" in self.kinds:
            kept = answers & ~torch.tensor(self._are("zero"), device=answers.device)
        elif self.training and self.capacity is not None:
            share = torch.tensor(self.is_ordinary, device=answers.device)
            share = torch.where(share, self.tau, 1.0)
            capacity = self.capacity * answers.sum() * share / share.sum()
            kept = answers & (answers.cumsum(dim=0) <= capacity)
        else:
            return gate_log_proba
        kept = kept | (answers & ~kept.any(dim=1, keepdim=True))
        return gate_log_proba.masked_fill(~kept, -torch.inf).log_softmax(dim=1)


class HiddenZeroComputationModule(ZeroComputationExpertsModule):
    """The torch module of :class:`ZeroComputationExperts` in a hidden layer, as in the reference.

    Zero experts return zeros, copy experts their input, and constant experts
    :math:`a_1 x + a_2 u` with a learned vector :math:`u` and :math:`a = softmax(W x)`.
    """

    def _make_cheap(self, n_copy, n_constant, n_features, n_classes, generator):
        constant = _Parameter((n_constant, n_classes), n_features, generator)
        constant.blend = nn.Parameter(torch.empty(n_constant, 2, n_features))
        fill_like_linear(constant.blend, n_features, generator)
        return _Parameter((n_copy, 0), n_features, generator), constant

    def _copy(self, x, own):
        return x

    def _constant(self, x, own):
        shares = F.linear(x, self.constant.blend[own]).softmax(dim=1)
        return shares[:, :1] * x + shares[:, 1:] * self.constant.weight[own]

    def limit(self, gate_log_proba: Tensor) -> Tensor:
        # In a prediction, a zero expert adds nothing, and its share goes to nobody.
        return super().limit(gate_log_proba) if self.training else gate_log_proba


class _Parameter(nn.Module):
    """Weights of some experts, initialised as in ``nn.Linear``."""

    def __init__(self, shape, n_in, generator):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        fill_like_linear(self.weight, n_in, generator)
