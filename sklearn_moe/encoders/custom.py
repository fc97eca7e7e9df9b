"""An encoder that a user's function makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sklearn_moe.checks import call_maker
from sklearn_moe.encoders.base import Encoder
from sklearn_moe.layers import seeded_globally


class CustomEncoder(Encoder):
    """An encoder that a function of yours makes; the function may return any torch backbone.

    ``MoEClassifier(encoder=function)`` wraps the function in this class.

    Parameters
    ----------
    factory : callable
        ``factory(input_shape)`` returns a ``nn.Module`` that maps a batch
        ``(n_samples, *input_shape)``, with the axes of ``X``, to features of any shape.

    Notes
    -----
    Such modules draw their initial weights and their dropout from torch's global random state.
    This state is seeded from ``random_state`` and restored afterwards, under a lock.

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
        if isinstance(self.factory, nn.Module):
            raise TypeError(
                "encoder must be a function (input_shape) -> torch.nn.Module that makes the "
                f"encoder, not a module: {self.factory!r}."
            )
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded_globally(seed):
            module = call_maker("encoder", self.factory, input_shape=input_shape)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"encoder(input_shape) must return a torch.nn.Module, but {self.factory!r} "
                f"returns {module!r}."
            )
        module.uses_global_random_state = True  # type: ignore[assignment]
        return module
