"""Experts of different size."""

from __future__ import annotations

import math
from numbers import Integral

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.experts.mlp import MLPExperts
from sklearn_moe.layers import StackedMLP


class ComplexityExperts(Experts):
    """Small experts for easy samples, and large experts for hard ones.

    Each expert has one hidden layer. The sizes grow geometrically from the first expert to the
    last. Use a gate with ``top_k=1`` (``gate="hard"``) and ``regularization="complexity"``, which
    makes large experts expensive. Then easy samples go to the small experts, and a prediction
    costs less.

    Parameters
    ----------
    smallest, largest : int, default=8 and 256
        Number of hidden units of the first and of the last expert.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of the hidden layers.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a hidden unit is dropped in training.

    Notes
    -----
    In the reference the experts are blocks of an image network, and their ranks and kernels grow.
    Here, experts of different size run one by one. For an attentive gate, the hidden vectors are
    padded with zeros to the length of the longest.

    References
    ----------
    E. Zamfir, Z. Wu, N. Mehta, Y. Tan, D. P. Paudel, Y. Zhang, R. Timofte, Complexity Experts are
    Task-Discriminative Learners for Any Image Restoration, 2024, arXiv 2411.18466.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import ComplexityExperts, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=4, gate="hard", experts=ComplexityExperts(2, 16),
    ...                     regularization="complexity", random_state=0).fit(X, y)
    >>> [weights.hidden_size for weights in clf.module_.experts.networks]
    [2, 4, 8, 16]
    """

    _parameter_constraints: dict = {
        "smallest": [Interval(Integral, 1, None, closed="left")],
        "largest": [Interval(Integral, 1, None, closed="left")],
        "activation": MLPExperts._parameter_constraints["activation"],
        "dropout": MLPExperts._parameter_constraints["dropout"],
    }

    def __init__(
        self,
        smallest: int = 8,
        largest: int = 256,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.smallest = smallest
        self.largest = largest
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
        self._validate_params()
        sizes = np.geomspace(self.largest, self.smallest, n_experts).round().astype(int)[::-1]
        if len(set(sizes.tolist())) < n_experts or self.smallest > self.largest:
            raise ValueError(
                f"n_experts={n_experts} experts cannot each be larger than the one before between "
                f"smallest={self.smallest} and largest={self.largest} hidden units. Raise "
                "largest, or lower smallest or n_experts."
            )
        return ComplexityExpertsModule(
            StackedMLP(
                1,
                (math.prod(input_shape), size, n_classes),
                generator,
                activation=self.activation,
                dropout=self.dropout,
            )
            for size in sizes.tolist()
        )


class ComplexityExpertsModule(ExpertsModule):
    """The torch module of :class:`ComplexityExperts`."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.hidden_size = max(network.hidden_size for network in self.networks)
        self.widest = max(network.widest for network in self.networks)

    @property
    def costs(self) -> tuple[int, ...]:
        return tuple(network.multiply_adds for network in self.networks)

    def keep(self, experts: list[int]) -> None:
        self.networks = nn.ModuleList(self.networks[expert] for expert in experts)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        pairs = [network.logits_and_hidden(x, generator) for network in self.networks]
        logits, hidden = zip(*pairs, strict=True)
        padded = [F.pad(each, (0, self.hidden_size - each.shape[2])) for each in hidden]
        return torch.cat(logits, dim=1), torch.cat(padded, dim=1)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        return [
            self.networks[expert].run_some([own.flatten(1)], [0])[0]
            for own, expert in zip(x, experts, strict=True)
        ]
