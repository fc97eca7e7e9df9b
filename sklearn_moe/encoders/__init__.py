"""Encoders: the layers before gate and experts.

An encoder object holds hyperparameters only; ``build`` turns it into a torch module that maps a
batch to what the layers after it read. ``ENCODERS`` names the usual choices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sklearn_moe.checks import resolve
from sklearn_moe.encoders.base import Encoder, output_shape
from sklearn_moe.encoders.conv import ConvEncoder
from sklearn_moe.encoders.custom import CustomEncoder
from sklearn_moe.encoders.moe import ConvMoELayers, MoELayers
from sklearn_moe.encoders.table import TableEncoder

ENCODERS: dict[str, Encoder] = {
    "table": TableEncoder(),
    "conv": ConvEncoder(),
    "moe": MoELayers(),
    "conv_moe": ConvMoELayers(),
}
"""The encoders that ``MoEClassifier(encoder=...)`` and gates know by name."""


def as_encoder(encoder: Any) -> Encoder | None:
    """Return the object that a name or a function stands for, or a copy of the object."""
    if encoder is None:
        return None
    if callable(encoder) and not hasattr(encoder, "build"):
        return CustomEncoder(encoder)
    encoder = resolve("encoder", encoder, ENCODERS)
    if not isinstance(encoder, Encoder):
        raise TypeError(
            f"encoder={encoder!r} must derive from sklearn_moe.encoders.Encoder. Or pass a "
            "function (input_shape) -> torch.nn.Module."
        )
    return encoder


def build_encoder(
    encoder: Any,
    input_shape: tuple[int, ...],
    generator: torch.Generator,
) -> nn.Module:
    """Return the torch module of an encoder; for None, it returns samples unchanged."""
    encoder = as_encoder(encoder)
    return nn.Identity() if encoder is None else encoder.build(input_shape, generator)


# The public names. A new class needs only its line in ENCODERS above.
__all__ = [
    "ENCODERS",
    "CustomEncoder",
    *dict.fromkeys(type(each).__name__ for each in ENCODERS.values()),
]
