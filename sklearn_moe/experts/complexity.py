"""Experts of different size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.experts.conv import ConvExperts
from sklearn_moe.experts.mlp import MLPExperts


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
    Experts of different size run one by one. For an attentive gate, the hidden vectors are padded
    with zeros to the length of the longest. For images, take :class:`ComplexityConvExperts`.

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
        sizes = growing_sizes(self.smallest, self.largest, n_experts, "hidden units")
        return ComplexityExpertsModule(
            MLPExperts((size,), activation=self.activation, dropout=self.dropout).build(
                input_shape, 1, n_classes, generator
            )
            for size in sizes
        )


class ComplexityConvExperts(Experts):
    """Convolutional experts of growing kernel and width, for images.

    The first expert has few channels and sees little around each pixel. Each next one has more
    channels, which grow geometrically, and a kernel that is higher and wider by two pixels. Use a
    gate with ``top_k=1`` (``gate="hard"``) and ``regularization="complexity"``, which makes large
    experts expensive. Then easy images go to the small experts, and a prediction costs less.

    Parameters
    ----------
    smallest, largest : int, default=4 and 16
        Number of channels of each convolution of the first and of the last expert.
    n_convolutions : int, default=2
        Number of convolutions of each expert, each with pooling.
    hidden_layer_sizes : sequence of int, default=(64,)
        Sizes of the fully connected hidden layers after the convolutions, of each expert.
    kernel_size : int, default=3
        Height and width of the first expert's kernels, an odd number.
    pooling : int, default=2
        Height and width of the max-pooling after each convolution; 1 means no pooling.
    normalization : {"batch", "layer"} or None, default=None
        How the outputs of each convolution are normalized, as in :class:`ConvExperts`.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of all layers except the last.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a fully connected hidden unit is dropped in
        training.

    Notes
    -----
    In the reference the experts are blocks of a network that restores images, and a gate in each
    layer also reads the image's frequencies. Here each expert is a whole network. Images have the
    shapes that :class:`ConvExperts` reads. They are padded with zeros, so that a convolution keeps
    their size. Experts of different size run one by one.

    References
    ----------
    E. Zamfir, Z. Wu, N. Mehta, Y. Tan, D. P. Paudel, Y. Zhang, R. Timofte, Complexity Experts are
    Task-Discriminative Learners for Any Image Restoration, 2024, arXiv 2411.18466.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_moe import ComplexityBalance, ComplexityConvExperts, MoEClassifier
    >>> digits = load_digits(n_class=4)
    >>> clf = MoEClassifier(n_experts=3, gate="hard", experts=ComplexityConvExperts(2, 8),
    ...                     regularization=ComplexityBalance(1.0), max_iter=20, random_state=0)
    >>> clf.fit(digits.images / 16, digits.target).score(digits.images / 16, digits.target) > 0.9
    True
    >>> clf.expert_costs_.tolist()
    [2496, 14080, 77568]
    """

    needs_images = True

    _parameter_constraints: dict = {
        "smallest": [Interval(Integral, 1, None, closed="left")],
        "largest": [Interval(Integral, 1, None, closed="left")],
        "n_convolutions": [Interval(Integral, 1, None, closed="left")],
        **{
            name: ConvExperts._parameter_constraints[name]
            for name in (
                *("hidden_layer_sizes", "kernel_size", "pooling"),
                *("normalization", "activation", "dropout"),
            )
        },
    }

    def __init__(
        self,
        smallest: int = 4,
        largest: int = 16,
        *,
        n_convolutions: int = 2,
        hidden_layer_sizes: Sequence[int] = (64,),
        kernel_size: int = 3,
        pooling: int = 2,
        normalization: str | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.smallest = smallest
        self.largest = largest
        self.n_convolutions = n_convolutions
        self.hidden_layer_sizes = hidden_layer_sizes
        self.kernel_size = kernel_size
        self.pooling = pooling
        self.normalization = normalization
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
        sizes = growing_sizes(self.smallest, self.largest, n_experts, "channels")
        return ComplexityExpertsModule(
            ConvExperts(
                (size,) * self.n_convolutions,
                self.hidden_layer_sizes,
                kernel_size=self.kernel_size + 2 * expert,
                pooling=self.pooling,
                normalization=self.normalization,
                activation=self.activation,
                dropout=self.dropout,
            ).build(input_shape, 1, n_classes, generator)
            for expert, size in enumerate(sizes)
        )


def growing_sizes(smallest: int, largest: int, n_experts: int, what: str) -> list[int]:
    """Return sizes that grow geometrically, one for each expert; one expert has the largest."""
    sizes = np.geomspace(largest, smallest, n_experts).round().astype(int)[::-1].tolist()
    if len(set(sizes)) < n_experts or smallest > largest:
        raise ValueError(
            f"n_experts={n_experts} experts cannot each be larger than the one before between "
            f"smallest={smallest} and largest={largest} {what}. Raise largest, or lower smallest "
            "or n_experts."
        )
    return sizes


class ComplexityExpertsModule(ExpertsModule):
    """The torch module of :class:`ComplexityExperts` and :class:`ComplexityConvExperts`.

    Parameters
    ----------
    networks : iterable of ExpertsModule
        The experts, each of which is a module of one expert.
    """

    networks: Any  # ModuleList of ExpertsModule

    def __init__(self, networks: Iterable[ExpertsModule]):
        super().__init__()
        parts = list(networks)
        self.networks = nn.ModuleList(parts)
        self.hidden_size = max(part.hidden_size for part in parts)
        self.widest = max(part.widest or part.hidden_size for part in parts)

    @property
    def costs(self) -> tuple[int, ...]:
        return tuple(cost for network in self.networks for cost in network.costs)

    def keep(self, experts: list[int]) -> None:
        self.networks = nn.ModuleList(self.networks[expert] for expert in experts)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        pairs = [network(x, generator) for network in self.networks]
        logits, hidden = zip(*pairs, strict=True)
        padded = [F.pad(each, (0, self.hidden_size - each.shape[2])) for each in hidden]
        return torch.cat(logits, dim=1), torch.cat(padded, dim=1)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        return [
            self.networks[expert].run_some([own], [0])[0]
            for own, expert in zip(x, experts, strict=True)
        ]
