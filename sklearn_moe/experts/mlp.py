"""Fully connected experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sklearn_moe.experts.base import Experts, ExpertsModule
from sklearn_moe.layers import ACTIVATIONS, LayerTrail, StackedMLP, check_layer_sizes
from sklearn_moe.shapes import ShapeFunctions, with_shapes


class MLPExperts(Experts):
    """Fully connected experts, for tables (images are flattened).

    Of a large table they also read the shape functions of its columns, which they learn together
    (see ``TableEncoder``).

    The weights of all experts are stacked in one parameter per layer, and each expert is
    initialised as a network of ``nn.Linear`` layers would be. The hidden vector that an attentive
    gate reads is the last hidden layer before its activation, or the logits where there is no
    hidden layer.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(256,)
        Sizes of each expert's hidden layers; without hidden layers the experts are linear.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of the hidden layers.
    dropout : float, default=0.0
        Probability, at least 0 and below 1, with which a hidden unit is dropped in training.

    Examples
    --------
    >>> from sklearn_moe import MLPExperts, MoEClassifier
    >>> MoEClassifier(experts=MLPExperts(hidden_layer_sizes=(32, 16), dropout=0.1)).experts
    MLPExperts(dropout=0.1, hidden_layer_sizes=(32, 16))
    """

    reads_shapes = True

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256,),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
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
        hidden_sizes = check_layer_sizes(
            "The experts' hidden_layer_sizes", self.hidden_layer_sizes
        )
        sizes = (math.prod(input_shape), *hidden_sizes, n_classes)
        return MLPExpertsModule(
            n_experts, sizes, generator, activation=self.activation, dropout=self.dropout
        )


class MLPExpertsModule(StackedMLP, ExpertsModule):
    """The torch module of :class:`MLPExperts`."""

    has_known_gradient = True
    can_be_captured = True
    runs_at_once = True
    can_merge = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.shapes: ShapeFunctions | None = None

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.logits_and_hidden(x.flatten(1), generator)

    def run(self, x: Tensor, generator: torch.Generator | None = None) -> list[LayerTrail]:
        return super().run(with_shapes(self.shapes, x), generator)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        own = [with_shapes(self.shapes, each.flatten(1)) for each in x]
        return super().run_some(own, experts)

    def backward(self, trail: list[LayerTrail], upstream: Tensor) -> Tensor:
        upstream = super().backward(trail, upstream)
        if self.shapes is not None:
            weight = self.layers[0].weight.flatten(0, 1)[:, -len(self.shapes.value) :]
            self.shapes.backward(trail[0].x, (weight.mT @ upstream.flatten(0, 1)).mT)
        return upstream

    def merge(self, groups: list[list[int]], shares: list[list[float]], x: Tensor) -> None:
        super().merge(groups, shares, x.flatten(1))
