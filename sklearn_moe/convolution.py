"""The convolutions that experts and gates share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_moe.images import channels_first
from sklearn_moe.layers import ACTIVATIONS, check_layer_sizes, fill_like_linear, keep_rows

# For images of one channel and at most this many output channels, pooling two by two in our own
# way is faster than torch's (see ``StackedConv._convolve_places``).
CHANNELS_AT_ONCE = 32

# If a layer has at least this many outputs for a sample, a CPU runs networks faster one by one.
LAYER_FOR_ONE_BY_ONE = 40_000


CONVOLUTION_CONSTRAINTS: dict = {
    "channels": ["array-like", Interval(Integral, 1, None, closed="left")],
    "kernel_size": [Interval(Integral, 1, None, closed="left")],
    "padding": [StrOptions({"same", "valid"})],
    "pooling": [Interval(Integral, 1, None, closed="left")],
    "normalization": [StrOptions({"batch", "layer"}), None],
    "activation": [StrOptions(set(ACTIVATIONS))],
}


def convolutions(module: nn.Module) -> list[ConvStack]:
    """Return the convolutional layers within a module."""
    return [part for part in module.modules() if isinstance(part, ConvStack)]


def multiply_adds(module: nn.Module) -> int:
    """Return roughly how many multiply-adds a module takes for a sample.

    Linear layers take one for each weight; convolutions report their own number.
    """
    convolved = sum(stack.n_networks * stack.multiply_adds for stack in convolutions(module))
    return sum(parameter.numel() for parameter in module.parameters()) + convolved


class StackedConv(nn.Module):
    """Convolution, normalization, max-pooling and activation, for several networks.

    Parameters
    ----------
    n_networks, n_in, n_out : int
        Number of networks, and of input and output channels of each.
    generator : torch.Generator
        Source of the initial weights; each network is initialised as ``nn.Conv2d`` would be.
    kernel_size, pooling : int
        Height and width of the kernel and of the pooled squares, which do not overlap.
    padding : {"same", "valid"}
        "same" surrounds an image with zeros so that the convolution keeps its size.
    normalization : {"batch", "layer"} or None
        Normalization of the outputs of the convolution: "batch" over the batch, for each channel;
        "layer" over the channels and the image, for each sample.
    activation : {"relu", "gelu", "tanh"}
        Activation after the pooling. "relu" and "tanh" are monotone, so for them the order makes
        no difference.
    """

    def __init__(
        self,
        n_networks: int,
        n_in: int,
        n_out: int,
        generator: torch.Generator,
        *,
        kernel_size: int,
        padding: str,
        pooling: int,
        normalization: str | None,
        activation: str,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_networks, n_out, n_in, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(n_networks, n_out))
        for parameter in self.parameters():
            fill_like_linear(parameter, n_in * kernel_size**2, generator)
        self.padding = kernel_size // 2 if padding == "same" else 0
        self.pooling = pooling
        self.normalization = normalization
        self.activation = activation
        if normalization is not None:
            self.norm_scale = nn.Parameter(torch.ones(n_networks, n_out))
            self.norm_shift = nn.Parameter(torch.zeros(n_networks, n_out))
        if normalization == "batch":
            self.register_buffer("running_mean", torch.zeros(n_networks, n_out))
            self.register_buffer("running_var", torch.ones(n_networks, n_out))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the height and width of the output for images of a given height and width."""
        lost = self.weight.shape[-1] - 1 - 2 * self.padding
        return tuple(max(length - lost, 0) // self.pooling for length in size)

    def forward(self, x: Tensor, network: int | None = None) -> Tensor:
        """Map images for all networks at once, or for one.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_in, height, width) or \
                (n_samples, n_networks * n_in, height, width)
            Images that all networks share, or the channels of each network's own images in turn.
        network : int, default=None
            The only network to run; None runs all.

        Returns
        -------
        Tensor of shape (n_samples, n_networks * n_out, new_height, new_width)
        """

        def own(values):
            return values.flatten(0, 1) if network is None else values[network]

        groups = x.shape[1] // self.weight.shape[2]
        weight, bias = own(self.weight), own(self.bias)

        def normalize(images):
            if self.normalization == "batch":
                return F.batch_norm(
                    images,
                    own(self.running_mean),
                    own(self.running_var),
                    own(self.norm_scale),
                    own(self.norm_shift),
                    training=self.training,
                )
            if self.normalization == "layer":
                n_groups = len(weight) // self.weight.shape[1]
                return F.group_norm(images, n_groups, own(self.norm_scale), own(self.norm_shift))
            return images

        if self._pools_at_once(weight, x):
            places = self._convolve_places(x, weight, bias)
            x = _Maximum.apply(normalize(places.flatten(0, 1)).view_as(places))
        else:
            x = normalize(F.conv2d(x, weight, bias, padding=self.padding, groups=groups))
            x = F.max_pool2d(x, self.pooling) if self.pooling > 1 else x
        return ACTIVATIONS[self.activation].function(x)

    def _pools_at_once(self, weight, x):
        lost = self.weight.shape[-1] - 1 - 2 * self.padding
        divides = all((length - lost) % self.pooling == 0 for length in x.shape[2:])
        return (
            self.pooling == 2  # the work grows with the square of the pooling
            and (self.normalization is None or (self.normalization == "batch" and divides))
            and x.shape[1] == 1
            and len(weight) <= CHANNELS_AT_ONCE
            and x.device.type == "cpu"
        )

    def _convolve_places(self, x, weight, bias):
        """Return (n_samples, p^2, n_out, height, width), whose maximum over p^2 is the pooling.

        Torch pools few channels slowly. But a convolution followed by p by p pooling is the same
        as p^2 convolutions with stride p, each with the kernel at another place of the window,
        followed by a maximum over them. This maximum is vectorised.
        """
        p = self.pooling
        kernels = [
            F.pad(weight, (right, p - 1 - right, down, p - 1 - down))
            for down in range(p)
            for right in range(p)
        ]
        x = F.conv2d(x, torch.cat(kernels), bias.repeat(p**2), p, padding=self.padding)
        return x.unflatten(1, (p**2, -1))


class _Maximum(torch.autograd.Function):
    """The maximum over the second axis; equal values share the gradient, as in ``Tensor.amax``.

    All its steps are vectorised, so it is much faster than ``Tensor.amax``.
    """

    @staticmethod
    def forward(ctx, x):
        first, *others = x.unbind(1)
        out = first.clone()
        for other in others:
            torch.maximum(out, other, out=out)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx, upstream):
        x, out = ctx.saved_tensors
        best = (x == out.unsqueeze(1)).to(x.dtype)
        return best.mul_((upstream / best.sum(dim=1)).unsqueeze(1))


class ConvStack(nn.Module):
    """The convolutional layers of several networks, from images to flat features.

    Parameters
    ----------
    n_networks : int
        Number of networks.
    input_shape : tuple of int
        Shape of an image: (height, width), (height, width, n_channels) or
        (n_channels, height, width).
    generator : torch.Generator
        Source of the initial weights.
    channels : sequence of int
        Number of output channels of each layer.
    **layer
        Parameters of :class:`StackedConv`.

    Attributes
    ----------
    n_features : int
        Number of features that each network returns for a sample.
    multiply_adds : int
        Number of multiply-adds of each network for a sample.
    widest : int
        Number of outputs of the widest layer of each network for a sample.
    sizes : list of tuple of int
        Height and width of the output of each layer.
    """

    def __init__(
        self,
        n_networks: int,
        input_shape: tuple[int, ...],
        generator: torch.Generator,
        *,
        channels: Sequence[int],
        **layer: Any,
    ):
        super().__init__()
        if layer["padding"] == "same" and layer["kernel_size"] % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd with padding='same', got {layer['kernel_size']}."
            )
        _, n_channels, *size = channels_first(torch.empty(1, *input_shape)).shape
        layers = [
            StackedConv(n_networks, n_in, n_out, generator, **layer)
            for n_in, n_out in pairwise((n_channels, *channels))
        ]
        self.layers = nn.ModuleList(layers)
        self.n_networks = n_networks
        self.multiply_adds = self.widest = 0
        self.sizes = []
        for each in layers:
            size = each.output_size(size)
            self.sizes.append(size)
            n_outputs = each.weight.shape[1] * math.prod(size) * each.pooling**2
            self.multiply_adds += n_outputs * math.prod(each.weight.shape[2:])
            self.widest = max(self.widest, n_outputs)
        if 0 in size:
            raise ValueError(
                f"Images of shape {tuple(input_shape)} are too small for {len(self.layers)} "
                f"convolutions with kernel_size={layer['kernel_size']}, "
                f"padding={layer['padding']!r} and pooling={layer['pooling']}. Pass fewer "
                "channels, pooling=1, or experts='mlp'."
            )
        self.n_features = (channels[-1] if len(channels) else n_channels) * math.prod(size)

    @classmethod
    def of(cls, params, n_networks, input_shape, generator):
        """Build the layers from an object that has the parameters of convolutions."""
        layer = {name: getattr(params, name) for name in CONVOLUTION_CONSTRAINTS}
        channels = check_layer_sizes("channels", layer.pop("channels"))
        return cls(n_networks, input_shape, generator, channels=channels, **layer)

    def keep(self, networks: list[int]) -> None:
        """Keep only these networks, in this order."""
        for layer in self.layers:
            keep_rows(layer, networks)
        self.n_networks = len(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images to features of shape (n_networks, n_features, n_samples)."""
        if not self.layers:  # without convolutions, the features are the image itself
            return self.run_one(x, 0).mT.expand(self.n_networks, -1, -1)
        x = channels_first(x)
        if x.shape[1] > 1:
            x = x.contiguous(memory_format=torch.channels_last)
        is_wide = self.n_networks * self.widest >= LAYER_FOR_ONE_BY_ONE
        if self.n_networks > 1 and is_wide and x.device.type == "cpu":
            one_by_one = [self._run(x, network) for network in range(self.n_networks)]
            return torch.stack(one_by_one).mT
        return self._run(x).unflatten(1, (self.n_networks, -1)).permute(1, 2, 0)

    def run_one(self, x: Tensor, network: int) -> Tensor:
        """Map a batch of images with one network to features (n_samples, n_features)."""
        return self._run(channels_first(x), network)

    def _run(self, x, network=None):
        for layer in self.layers:
            x = layer(x, network)
        return x.flatten(1)
