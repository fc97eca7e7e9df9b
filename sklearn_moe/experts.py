"""Experts: small networks that map a sample to class logits.

An experts object holds hyperparameters only; ``build`` turns it into one torch module that runs
all experts and returns their logits (n_samples, n_experts, n_classes) and hidden vectors
(n_samples, n_experts, hidden_size). Its method ``run_some(x, experts)`` runs some of them, each
with samples of its own, and returns a list of their logits. ``EXPERTS`` names the usual choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from sklearn_moe.convolution import CONVOLUTION_CONSTRAINTS, ConvStack
from sklearn_moe.layers import ACTIVATIONS, StackedMLP, check_layer_sizes, seeded_globally


class MLPExperts(BaseEstimator):
    """Fully connected experts, for tables (images are flattened).

    The weights of all experts are stacked in one parameter per layer, and each expert is
    initialised as a network of ``nn.Linear`` layers would be. The hidden vector that an attentive
    gate reads is the last hidden layer before its activation, or the logits where there is no
    hidden layer.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(256,)
        Sizes of each expert's hidden layers; without any the experts are linear.
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
    ) -> nn.Module:
        """Return the torch module of these experts."""
        self._validate_params()
        hidden_sizes = check_layer_sizes(
            "The experts' hidden_layer_sizes", self.hidden_layer_sizes
        )
        sizes = (math.prod(input_shape), *hidden_sizes, n_classes)
        return MLPExpertsModule(
            n_experts, sizes, generator, activation=self.activation, dropout=self.dropout
        )


class MLPExpertsModule(StackedMLP):
    """The torch module of :class:`MLPExperts`."""

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.logits_and_hidden(x.flatten(1), generator)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        return super().run_some([own.flatten(1) for own in x], experts)


class ConvExperts(BaseEstimator):
    """Convolutional experts, for images.

    Each layer convolves, normalizes, pools and activates; fully connected layers follow. The
    weights of all experts are stacked in one parameter per layer, and each expert is initialised
    as a network of ``nn.Conv2d`` and ``nn.Linear`` layers would be. The hidden vector that an
    attentive gate reads is the last hidden layer before its activation; without hidden layers it
    is the logits.

    Parameters
    ----------
    channels : sequence of int, default=(8, 16)
        Number of channels that each convolution gives.
    hidden_layer_sizes : sequence of int, default=(64,)
        Sizes of the fully connected hidden layers after the convolutions.
    kernel_size : int, default=3
        Height and width of the convolutions' kernels.
    padding : {"same", "valid"}, default="same"
        "same" surrounds an image with zeros so that a convolution keeps its size, "valid" does
        not.
    pooling : int, default=2
        Height and width of the squares whose maximum is taken after each convolution; 1 takes
        none.
    normalization : {"batch", "layer"} or None, default=None
        What makes the outputs of a convolution standard: "batch" over the batch, for each
        channel, "layer" over channels and image, for each sample.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation of all layers but the last.
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
    >>> digits = load_digits()
    >>> experts = ConvExperts(channels=(4, 8), hidden_layer_sizes=())
    >>> clf = MoEClassifier(n_experts=3, experts=experts, max_iter=20, random_state=0)
    >>> clf.fit(digits.images / 16, digits.target).score(digits.images / 16, digits.target) > 0.9
    True
    """

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
    ) -> nn.Module:
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


class ConvExpertsModule(nn.Module):
    """The torch module of :class:`ConvExperts`."""

    def __init__(self, body: ConvStack, head: StackedMLP):
        super().__init__()
        self.body = body
        self.head = head
        self.n_networks = head.n_networks
        self.hidden_size = head.hidden_size
        self.multiply_adds = body.multiply_adds + head.multiply_adds
        self.widest = max(body.widest, head.widest)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.head.logits_and_hidden(self.body(x), generator)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        features = [self.body.run_one(own, expert) for own, expert in zip(x, experts, strict=True)]
        return self.head.run_some(features, experts)


class CustomExperts(BaseEstimator):
    """Experts from a user's own function; ``MoEClassifier(experts=function)`` wraps it in this.

    Parameters
    ----------
    factory : callable
        ``factory(input_shape, n_outputs)`` returns a new ``nn.Module`` each time. Its forward
        takes a batch ``(n_samples, *input_shape)``, returns the logits (n_samples, n_outputs), or
        the pair (logits, hidden) with hidden vectors (n_samples, hidden_size) for an attentive
        gate to read. Without them it reads the logits.

    Notes
    -----
    Such modules draw their initial weights and their dropout from torch's global random state. It
    is seeded from ``random_state`` and restored afterwards, under a lock: mixtures of custom
    experts that are fitted in several threads wait for one another.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier
    >>> from torch import nn
    >>> def linear_expert(input_shape, n_outputs):
    ...     return nn.Linear(input_shape[0], n_outputs)
    >>> clf = MoEClassifier(experts=linear_expert)
    """

    _parameter_constraints: dict = {"factory": [callable]}

    def __init__(self, factory: Callable[[tuple[int, ...], int], nn.Module]):
        self.factory = factory

    def build(
        self,
        input_shape: tuple[int, ...],
        n_experts: int,
        n_classes: int,
        generator: torch.Generator,
    ) -> nn.Module:
        """Return the torch module of these experts."""
        self._validate_params()
        if isinstance(self.factory, nn.Module):
            raise TypeError(
                "experts must be a function (input_shape, n_outputs) -> torch.nn.Module that "
                f"makes one expert, not a module: {self.factory!r}."
            )
        experts: list[nn.Module] = []
        hidden_sizes = set()
        for seed in torch.randint(2**62, (n_experts,), generator=generator).tolist():
            with seeded_globally(seed):
                expert = self.factory(input_shape, n_classes)
                if not isinstance(expert, nn.Module) or expert in experts:
                    raise TypeError(
                        "experts(input_shape, n_outputs) must return a new torch.nn.Module in "
                        f"each call, got {expert!r}."
                    )
                hidden_sizes.add(_probe(expert, input_shape, n_classes))
            experts.append(expert)
        if len(hidden_sizes) > 1:
            raise ValueError(f"All experts must have one hidden size, got {sorted(hidden_sizes)}.")
        return _CustomExpertsModule(experts, hidden_sizes.pop())


def _probe(expert, input_shape, n_classes):
    """Run one sample through an expert, check what comes out and return its hidden size."""
    with torch.no_grad():
        output = expert.eval()(torch.zeros(1, *input_shape))
    tensors = output if isinstance(output, tuple) else (output,)
    shapes = [tuple(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)]
    if len(shapes) != len(tensors) or len(shapes) not in (1, 2) or shapes[0] != (1, n_classes):
        raise ValueError(
            f"An expert must return logits of shape (n_samples, {n_classes}), or the pair "
            f"(logits, hidden); a batch of shape {(1, *input_shape)} gave {shapes or output!r}."
        )
    if len(shapes[-1]) != 2:
        raise ValueError(
            "An expert's hidden must have the shape (n_samples, hidden_size); a batch of shape "
            f"{(1, *input_shape)} gave {shapes[-1]}."
        )
    return shapes[-1][1]


class _CustomExpertsModule(nn.Module):
    uses_global_random_state = True

    def __init__(self, experts, hidden_size):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.hidden_size = hidden_size

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        # Each gets a copy, as its first layer may work in place.
        outputs = [expert(x.clone()) for expert in self.experts]
        pairs = [each if isinstance(each, tuple) else (each, each) for each in outputs]
        logits, hidden = zip(*pairs, strict=True)
        return torch.stack(logits, dim=1), torch.stack(hidden, dim=1)

    def run_some(self, x: list[Tensor], experts: list[int]) -> list[Tensor]:
        outputs = [self.experts[expert](own) for own, expert in zip(x, experts, strict=True)]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]


EXPERTS: dict[str, BaseEstimator] = {
    "mlp": MLPExperts(),
    "conv": ConvExperts(),
}
"""The experts that ``MoEClassifier(experts=...)`` knows by name."""
