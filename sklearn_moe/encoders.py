"""Encoders: what comes before gate and experts.

An encoder object holds hyperparameters only; ``build`` turns it into a torch module that maps a
batch to what the layers after it read. ``ENCODERS`` names the usual choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from sklearn_moe.convolution import CONVOLUTION_CONSTRAINTS, ConvStack
from sklearn_moe.layers import seeded_globally
from sklearn_moe.tables import TableTransformer
from sklearn_moe.validation import check_signature, resolve


class TableEncoder(BaseEstimator):
    r"""Numbers and categories of a table, as numbers of one scale.

    Columns of numbers are standardised, and outliers are squashed smoothly into (-3, 3) by
    :math:`x / \sqrt{1 + (x / 3)^2}` (Holzmueller, Grinsztajn, Steinwart 2024, arXiv 2407.04491).
    A missing value becomes the column's mean, and if the training set has any, one more column
    says where. Columns of categories become one column per category; a missing value is a category
    of its own if the training set has any. A category that was not there in training is none of
    them.

    Columns of numbers with more than four values are also encoded by hat functions, piecewise
    linear functions with their tops at quantiles of the column, so that a first layer can bend at
    each of them (Gorishniy, Rubachev, Babenko 2022, arXiv 2203.05556). A value that is so frequent
    that several quantiles fall on it has one hat function, and the rest of the column the others.

    Parameters
    ----------
    n_knots : int, "auto" or None, default="auto"
        Most hat functions of a column, at least 2; None takes none. "auto" is 7 for tables of
        at least 50 rows per such column, where it pays, if there are at most 100, and none
        otherwise. A column whose rare values would have fewer than 25 rows for each gets fewer.
    max_categories : int or None, default=100
        A column of more categories has the rarest of them taken together; None keeps all.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier, TableEncoder
    >>> clf = MoEClassifier(encoder=TableEncoder(n_knots=16, max_categories=20))
    """

    _parameter_constraints: dict = {
        "n_knots": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left"), None],
        "max_categories": [Interval(Integral, 2, None, closed="left"), None],
    }

    def __init__(self, *, n_knots: int | str | None = "auto", max_categories: int | None = 100):
        self.n_knots = n_knots
        self.max_categories = max_categories

    def make_transformer(self) -> TableTransformer:
        """Return what turns the columns of a table into numbers, to be fitted."""
        self._validate_params()
        return TableTransformer(n_knots=self.n_knots, max_categories=self.max_categories)

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return the torch module of this encoder, which leaves those numbers as they are."""
        return nn.Identity()


class ConvEncoder(BaseEstimator):
    """Convolutions that turn images into features.

    Parameters
    ----------
    channels : sequence of int, default=(16, 32)
        Number of channels that each convolution gives.
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
        Activation of the convolutions.

    Examples
    --------
    >>> from sklearn_moe import AttentiveGate, ConvEncoder, MoEClassifier
    >>> shared = MoEClassifier(encoder=ConvEncoder(channels=(8,)))
    >>> gate_alone = MoEClassifier(gate=AttentiveGate(encoder="conv"))
    """

    _parameter_constraints: dict = CONVOLUTION_CONSTRAINTS

    needs_images = True

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        *,
        kernel_size: int = 3,
        padding: str = "same",
        pooling: int = 2,
        normalization: str | None = None,
        activation: str = "relu",
    ):
        self.channels = channels
        self.kernel_size = kernel_size
        self.padding = padding
        self.pooling = pooling
        self.normalization = normalization
        self.activation = activation

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return the torch module of this encoder."""
        self._validate_params()
        return ConvEncoderModule.of(self, 1, input_shape, generator)


class ConvEncoderModule(ConvStack):
    """The torch module of :class:`ConvEncoder`: images to features (n_samples, n_features)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.run_one(x, 0)


class CustomEncoder(BaseEstimator):
    """An encoder from a user's own function, which may return any torch backbone.

    ``MoEClassifier(encoder=function)`` wraps it in this.

    Parameters
    ----------
    factory : callable
        ``factory(input_shape)`` returns a ``nn.Module`` that maps a batch
        ``(n_samples, *input_shape)``, with the axes of ``X``, to features of any shape.

    Notes
    -----
    Such modules draw their initial weights and their dropout from torch's global random state. It
    is seeded from ``random_state`` and restored afterwards, under a lock.

    Examples
    --------
    >>> from sklearn_moe import MoEClassifier
    >>> from torch import nn
    >>> def backbone(input_shape):
    ...     return nn.Sequential(nn.Linear(input_shape[0], 16), nn.ReLU())
    >>> clf = MoEClassifier(encoder=backbone)
    """

    _parameter_constraints: dict = {"factory": [callable]}

    def __init__(self, factory: Callable[[tuple[int, ...]], nn.Module]):
        self.factory = factory

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return the torch module of this encoder."""
        self._validate_params()
        check_signature("encoder", self.factory, "input_shape")
        seed = torch.randint(2**62, (), generator=generator).item()
        with seeded_globally(seed):
            module = None if isinstance(self.factory, nn.Module) else self.factory(input_shape)
        if not isinstance(module, nn.Module):
            raise TypeError(
                "encoder must be a function (input_shape) -> torch.nn.Module that makes the "
                f"encoder, got {self.factory!r}"
                + ("." if isinstance(self.factory, nn.Module) else f", which returns {module!r}.")
            )
        module.uses_global_random_state = True
        return module


def output_shape(encoder: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that an encoder gives a sample."""
    if isinstance(encoder, nn.Identity):
        return tuple(input_shape)
    was_training = encoder.training
    device = next((parameter.device for parameter in encoder.parameters()), None)
    try:
        with torch.no_grad():
            output = encoder.eval()(torch.zeros(2, *input_shape, device=device))
    except Exception as error:
        raise ValueError(
            f"An encoder must read batches of shape {('n_samples', *input_shape)}, but "
            f"{type(encoder).__name__} raises {type(error).__name__}: {error}"
        ) from error
    encoder.train(was_training)
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else output
        raise ValueError(
            "An encoder must return features of shape (n_samples, ...); a batch of shape "
            f"{(2, *input_shape)} gave {got!r}."
        )
    return tuple(output.shape[1:])


ENCODERS: dict[str, BaseEstimator] = {
    "table": TableEncoder(),
    "conv": ConvEncoder(),
}
"""The encoders that ``MoEClassifier(encoder=...)`` and gates know by name."""


def as_encoder(encoder: str | BaseEstimator | Callable | None) -> BaseEstimator | None:
    """Return the object that a name or a function stands for, or a copy of the object."""
    if encoder is None:
        return None
    if callable(encoder) and not hasattr(encoder, "build"):
        return CustomEncoder(encoder)
    return resolve("encoder", encoder, ENCODERS)


def build_encoder(
    encoder: str | BaseEstimator | Callable | None,
    input_shape: tuple[int, ...],
    generator: torch.Generator,
) -> nn.Module:
    """Return the torch module of an encoder, which leaves samples as they are for None."""
    encoder = as_encoder(encoder)
    return nn.Identity() if encoder is None else encoder.build(input_shape, generator)
