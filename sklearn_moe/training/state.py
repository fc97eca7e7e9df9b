"""The saved state of a net: parameters, arrays and plain values, no objects of torch or skorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def arrays(state: Any) -> Any:
    """Return a torch state with arrays instead of tensors."""

    def array(value):
        if not isinstance(value, Tensor):
            return value
        # numpy has no bfloat16; loading converts it back.
        value = value.float() if value.dtype == torch.bfloat16 else value
        return value.detach().cpu().numpy()

    return _mapped(array, state)


def tensors(state: Any) -> Any:
    """Return such a state with new tensors instead of arrays."""

    def tensor(value):
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    return _mapped(tensor, state)


def _mapped(function: Callable, state: Any) -> Any:
    """Apply a function to each value in nested dicts and lists."""
    if isinstance(state, dict):
        return {name: _mapped(function, value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_mapped(function, value) for value in state)
    return function(state)


def plain(value: Any) -> Any:
    """Return a numpy number as a Python number."""
    return value.item() if isinstance(value, np.generic) else value


def lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's tensors the memory layout of their parameters, as fused steps need."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                values[name] = like.copy_(value)


def device_here(device: str) -> str:
    """Return the device; if this machine does not have it, warn and return another."""
    wanted = torch.device(device)
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type != "cuda" or (wanted.index or 0) < n_devices:
        return device
    found = "cuda" if n_devices else "cpu"
    warnings.warn(
        f"The mixture was on the device {device!r}, which is not there. It is on {found!r} now.",
        stacklevel=4,
    )
    return found
