"""Defaults for new tensors: single precision, on the device of the mixture.

A user's ``torch.set_default_dtype`` and ``torch.set_default_device`` affect neither a mixture nor
the modules that the user wrote for it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_RANDOM = {torch.rand, torch.randn, torch.normal}
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
_MAKERS = {
    *_RANDOM,
    *_FROM_DATA,
    torch.arange,
    torch.empty,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.randint,
    torch.randperm,
    torch.scalar_tensor,
    torch.zeros,
}


def widest(device: torch.device | str) -> torch.dtype:
    """Return the most exact type of floats that a device has."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def usual_defaults(device: torch.device | str = "cpu") -> AbstractContextManager:
    """Return a context in which a user's defaults do not apply to the calling thread.

    Parameters
    ----------
    device : torch.device or str, default="cpu"
        The default device in this context.
    """
    if torch.get_default_dtype() is torch.float32 and not _has_default_device():
        return nullcontext()
    return _UsualDefaults(device)


def _has_default_device():
    # This is true for any other mode, too, but takes far less time than an exact check.
    return torch._C._is_torch_function_mode_enabled()


class _UsualDefaults(TorchFunctionMode):
    """A function mode with our defaults; torch keeps a default device in such a mode, too."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in _MAKERS:
            return func(*args, **kwargs)
        data = args[0] if func in _FROM_DATA and args else None
        if kwargs.get("device") is None and not isinstance(data, torch.Tensor):
            kwargs["device"] = self.device
        if kwargs.get("dtype") is not None or isinstance(data, (torch.Tensor, np.ndarray)):
            return func(*args, **kwargs)
        if func in _RANDOM:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        made = func(*args, **kwargs)
        if made.is_floating_point():
            made = func(*args, **{**kwargs, "dtype": torch.float32})
        return made
