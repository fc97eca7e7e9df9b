"""The encoder of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklearn_moe.convolution import CONVOLUTION_CONSTRAINTS, ConvStack
from sklearn_moe.encoders.base import Encoder


class ConvEncoder(Encoder):
    """Convolutions that turn images into features.

    Parameters
    ----------
    channels : sequence of int, default=(16, 32)
        Number of output channels of each convolution.
    kernel_size : int, default=3
        Height and width of the convolutions' kernels.
    padding : {"same", "valid"}, default="same"
        "same" surrounds an image with zeros so that a convolution keeps its size, "valid" does
        not.
    pooling : int, default=2
        Height and width of the squares whose maximum is taken after each convolution; 1 means no
        pooling.
    normalization : {"batch", "layer"} or None, default=None
        Normalization of the outputs of a convolution: "batch" over the batch, for each channel;
        "layer" over channels and image, for each sample.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Activation after each convolution.

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
