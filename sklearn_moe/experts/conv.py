"""Convolutional experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sklearn_moe.convolution import CONVOLUTION_CONSTRAINTS, ConvStack
from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.experts.mlp import MLPExperts
from sklearn_moe.layers import StackedMLP, check_layer_sizes


class ConvExperts(Experts):
    """Convolutional experts, for images.

    Each layer convolves, normalizes, pools and activates; fully connected layers follow. The
    weights of all experts are stacked in one parameter per layer, and each expert is initialised
    as a network of ``nn.Conv2d`` and ``nn.Linear`` layers would be. The hidden vector that an
    attentive gate reads is the last hidden layer before its activation; without hidden layers it
    is the logits.

    Parameters
    ----------
    channels : sequence of int, default=(8, 16)
        Number of output channels of each convolution.
    hidden_layer_sizes : sequence of int, default=(64,)
        Sizes of the fully connected hidden layers after the convolutions.
    kernel_size : int, default=3
        Height and width of the convolutions' kernels.
    padding : {"same", "valid"}, default="same"
        "same" pads an image with zeros, so that a convolution keeps its size; "valid" does not
        pad.
    pooling : int, default=2
        Height and width of the max-pooling after each convolution; 1 means no pooling.
    normalization : {"batch", "layer"} or None, default=None
        How the outputs of each convolution are normalized: "batch" normalizes each channel over
        the batch, "layer" normalizes each sample over channels and pixels.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of all layers except the last.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a fully connected hidden unit is dropped in
        training.

    Notes
    -----
    Images have the shape (height, width), (height, width, n_channels) with at most 4 channels, or
    (n_channels, height, width).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_moe import ConvExperts, MoEClassifier
    >>> digits = load_digits(n_class=4)
    >>> experts = ConvExperts(channels=(4, 8), hidden_layer_sizes=())
    >>> clf = MoEClassifier(n_experts=3, experts=experts, max_iter=20, random_state=0)
    >>> clf.fit(digits.images / 16, digits.target).score(digits.images / 16, digits.target) > 0.9
    True
    """

    needs_images = True

    _parameter_constraints: dict = {
        **CONVOLUTION_CONSTRAINTS,
        "hidden_layer_sizes": MLPExperts._parameter_constraints["hidden_layer_sizes"],
        "dropout": MLPExperts._parameter_constraints["dropout"],
    }

    def __init__(
        self,
        channels: Sequence[int] = (8, 16),
        hidden_layer_sizes: Sequence[int] = (64,),
        *,
        kernel_size: int = 3,
        padding: str = "same",
        pooling: int = 2,
        normalization: str | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.channels = channels
        self.hidden_layer_sizes = hidden_layer_sizes
        self.kernel_size = kernel_size
        self.padding = padding
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
        body = ConvStack.of(self, n_experts, input_shape, generator)
        hidden_sizes = check_layer_sizes(
            "The experts' hidden_layer_sizes", self.hidden_layer_sizes
        )
        head = StackedMLP(
            n_experts,
            (body.n_features, *hidden_sizes, n_classes),
            generator,
            activation=self.activation,
            dropout=self.dropout,
        )
        return ConvExpertsModule(body, head)


class ConvExpertsModule(ExpertsModule):
    """The torch module of :class:`ConvExperts`."""

    runs_at_once = True

    def __init__(self, body: ConvStack, head: StackedMLP):
        super().__init__()
        self.body = body
        self.head = head
        self.n_networks = head.n_networks
        self.hidden_size = head.hidden_size
        self.multiply_adds = body.multiply_adds + head.multiply_adds
        self.widest = max(body.widest, head.widest)

    @property
    def costs(self) -> tuple[int, ...]:
        return (self.multiply_adds,) * self.n_networks

    def keep(self, experts: list[int]) -> None:
        self.body.keep(experts)
        self.head.keep(experts)
        self.n_networks = len(experts)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.head.logits_and_hidden(self.body(x), generator)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        features = [self.body.run_one(own, expert) for own, expert in zip(x, experts, strict=True)]
        return self.head.run_some(features, experts)
