"""What is kept of a net: parameters, arrays and plain values, and no object of torch or skorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def arrays(state: Any) -> Any:
    """Return a state of torch with arrays in place of tensors."""

    def array(value):
        if not isinstance(value, Tensor):
            return value
        # numpy does not know bfloat16; loading makes it that again.
        value = value.float() if value.dtype == torch.bfloat16 else value
        return value.detach().cpu().numpy()

    return _mapped(array, state)


def tensors(state: Any) -> Any:
    """Return such a state with tensors of its own."""

    def tensor(value):
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    return _mapped(tensor, state)


def _mapped(function: Callable, state: Any) -> Any:
    """Return nested dicts and lists with what a function makes of each value in them."""
    if isinstance(state, dict):
        return {name: _mapped(function, value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_mapped(function, value) for value in state)
    return function(state)


def plain(value: Any) -> Any:
    """Return a number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's tensors the memory layout of their parameters, as fused steps need."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                values[name] = like.copy_(value)


def device_here(device: str) -> str:
    """Return the device, or if it is not there another, with a warning."""
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
