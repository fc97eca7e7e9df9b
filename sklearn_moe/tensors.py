"""Data as tensors of torch, which scikit-learn's array API dispatch allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn import config_context, get_config
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])


def takes_tensors(method: Method) -> Method:
    """Let a method ``(self, X, ...)`` of an estimator take tensors.

    With ``sklearn.config_context(array_api_dispatch=True)``, numbers that it returns become a
    tensor on the device of X, as scikit-learn's own estimators do. A tensor on the CPU shares its
    memory with the array that the method gets. One on another device is copied to the CPU, as the
    statistics of the samples are computed by numpy. Without dispatch, a tensor on the CPU is an
    array like any other, and one on another device is an error.
    """

    @wraps(method)
    def with_tensors(self, X, *args, **kwargs):
        if not any(isinstance(each, Tensor) for each in (X, *args, *kwargs.values())):
            return method(self, X, *args, **kwargs)
        as_array = _as_array if get_config()["array_api_dispatch"] else _checked
        with config_context(array_api_dispatch=False):
            args = [as_array(each) for each in args]
            kwargs = {name: as_array(each) for name, each in kwargs.items()}
            result = method(self, as_array(X), *args, **kwargs)
        if as_array is _as_array and isinstance(X, Tensor) and _holds_numbers(result):
            return torch.from_numpy(result).to(X.device)
        return result

    return with_tensors  # type: ignore[return-value]


def _as_array(value):
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _checked(value):
    """Raise an error for a tensor that numpy cannot read, as dispatch is off."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise TypeError(
            f"got a tensor on the device {str(value.device)!r}. Pass tensor.cpu(), or turn on "
            "scikit-learn's dispatch: sklearn.set_config(array_api_dispatch=True)."
        )
    return value


def _holds_numbers(result):
    return isinstance(result, np.ndarray) and result.dtype.kind in "biuf"
