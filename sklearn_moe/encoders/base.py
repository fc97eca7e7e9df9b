"""What all encoders have in common."""

from __future__ import annotations

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sklearn_moe.documentation import Documented
from sklearn_moe.tables import TableTransformer


class Encoder(Documented, BaseEstimator):
    """Base class of the encoders: layers before gate and experts that are trained with them.

    A subclass implements ``build``.

    Attributes
    ----------
    needs_images : bool, default=False
        Whether it reads images only. Otherwise tables are encoded first, as by default.
    needs_tables : bool, default=False
        Whether it reads tables only.
    has_mixtures : bool, default=False
        Whether there are mixtures of experts within it. Its module then has a list of them,
        ``mixtures``, and is called as :class:`MixtureOfExperts` says.
    """

    needs_images = False
    needs_tables = False
    has_mixtures = False

    def make_transformer(self) -> TableTransformer:
        """Return the transformer that is fitted on a table and encodes it before this encoder."""
        return TableTransformer()

    def build(self, input_shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """Return a torch module that maps a batch ``(N, *input_shape)`` to features."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a method build(input_shape, generator)."
        )


def output_shape(encoder: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a sample after an encoder."""
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
    if output.dtype != torch.float32:
        raise ValueError(
            f"An encoder must return torch.float32, but {type(encoder).__name__} returns "
            f"{output.dtype}. End it with .float()."
        )
    return tuple(output.shape[1:])
