"""The saved state of a net: parameters, arrays and plain values, no objects of torch or skorch."""

from __future__ import annotations

import itertools
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


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a history as one array, or list, for each of its figures.

    With it goes an array of booleans, which says which rows have the figure, or None for all.
    """
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        has = np.array([name in row for row in rows])
        values = [plain(row[name]) for row in rows if name in row]
        if {type(value) for value in values} in ({float}, {int}, {bool}):
            values = np.array(values)
        columns[name] = (None if has.all() else has, values)
    return columns


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows again of which :func:`columns_of` has made columns."""
    sizes = (len(values if has is None else has) for has, values in columns.values())
    rows: list[dict[str, Any]] = [{} for _ in range(max(sizes, default=0))]
    for name, (has, values) in columns.items():
        values = values.tolist() if isinstance(values, np.ndarray) else values
        own = rows if has is None else itertools.compress(rows, has)
        for row, value in zip(own, values, strict=True):
            row[name] = value
    return rows


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
    if wanted.type == "mps":
        is_here = torch.backends.mps.is_available()
    else:
        is_here = wanted.type != "cuda" or (wanted.index or 0) < n_devices
    if is_here:
        return device
    found = "cuda" if n_devices else "cpu"
    warnings.warn(
        f"The mixture was on the device {device!r}, which is not there. It is on {found!r} now.",
        stacklevel=4,
    )
    return found
