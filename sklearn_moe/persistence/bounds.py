"""Bounds of what a file can make this package do: sizes that it invents raise an error."""

from __future__ import annotations

import math
from typing import Any

from sklearn.base import BaseEstimator
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_moe.tables import TableTransformer
from sklearn_moe.training.net import MoENet

# Building the mixture of a file of n numbers may make this many numbers, and tensors. Sizes that a
# file invents need more.
NUMBERS_TO_MAKE = 2**24
TIMES_TO_MAKE = 32
TENSORS_TO_MAKE = 200_000

# Convolutions of small weights over large images may have this many outputs at once, and take this
# many multiply-adds in all, to build and check a mixture.
OUTPUTS_OF_CONVOLUTION = 2**26
MULTIPLY_ADDS = 2**40

# A sample may have as many numbers as the file has, or this many, for images.
NUMBERS_OF_SAMPLE = 2**22

# More threads would take more memory than mixtures do.
MOST_THREADS = 1024

# Options of torch.compile that a file may hold. Others name programs that training would run.
COMPILE_OPTIONS = {"compile__dynamic", "compile__fullgraph", "compile__mode"}

# Functions of torch that make as many numbers as they are told.
_MAKERS = {
    "aten::arange",
    "aten::empty",
    "aten::empty_strided",
    "aten::eye",
    "aten::full",
    "aten::linspace",
    "aten::new_empty",
    "aten::new_full",
    "aten::new_ones",
    "aten::new_zeros",
    "aten::ones",
    "aten::rand",
    "aten::randint",
    "aten::randn",
    "aten::randperm",
    "aten::zeros",
}


def check_state(cls: type, state: dict[str, Any], n_numbers: int) -> None:
    """Check the state of an object before it takes it over.

    ``n_numbers`` is how many numbers the arrays of the file have.
    """
    for name in state:
        if callable(getattr(cls, name, None)):
            raise ValueError(f"{name} of a {cls.__name__} is a method")
    net_params = state["params"] if cls is MoENet else state.get("net_params") or {}
    if forbidden := forbidden_options(net_params):
        raise ValueError(f"a file can't hold the options {forbidden}")
    if cls is TableTransformer and {*map(type, state["has_infrequent_"])} - {bool}:
        raise ValueError("its columns of categories have no end")
    if cls is MoENet:
        params = net_params
        parts = {
            name: params[name]
            for name in ("experts", "gate", "encoder", "n_experts", "n_classes", "input_shape")
        }
        _check_sizes((parts, state["steps"]), max(n_numbers, NUMBERS_TO_MAKE))
        for step, value in [*state["steps"]["experts"], *state["steps"]["gate"]]:
            if step == "keep" and len(set(value)) < len(value):
                raise ValueError("it keeps an expert more than once")
        n_threads = params["n_threads"]
        if n_threads != "auto" and not (type(n_threads) is int and 1 <= n_threads <= MOST_THREADS):
            raise ValueError(f"it can't predict on {n_threads} threads")
        if max(params["n_experts"], params["n_classes"]) > max(n_numbers, 1000):
            raise ValueError("it has more experts or classes than numbers")
        if math.prod(params["input_shape"]) > max(n_numbers, NUMBERS_OF_SAMPLE):
            raise ValueError(f"samples of shape {params['input_shape']} are too large")


def forbidden_options(net_params: dict[str, Any]) -> list[str]:
    """Return the options in ``net_params`` that choose what ``torch.compile`` runs."""
    names = (name for name in net_params if name.startswith("compile__"))
    return sorted(set(names) - COMPILE_OPTIONS)


def _check_sizes(value, largest):
    """Raise an error if an integer in an object, or in what it holds, is too large for a size."""
    if isinstance(value, int):
        if abs(value) > largest:
            raise ValueError(f"a layer can't have the size {value}")
        return
    if isinstance(value, BaseEstimator):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_sizes(each, largest)


class Bounded(TorchDispatchMode):
    """A context that raises an error if more numbers are made than a file can have use for.

    Parameters
    ----------
    n_numbers : int
        How many numbers the arrays of the file have.
    """

    def __init__(self, n_numbers: int):
        super().__init__()
        self.left = TIMES_TO_MAKE * n_numbers + NUMBERS_TO_MAKE
        self.tensors_left = TENSORS_TO_MAKE
        self.multiply_adds_left = MULTIPLY_ADDS

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition(".")[0]
        if name in _MAKERS:
            # The first list is the shape; without one, numbers are ranges, such as of arange.
            sizes = next((arg for arg in args if isinstance(arg, (list, tuple))), args)
            self.left -= math.prod(size for size in sizes if isinstance(size, int))
            self.tensors_left -= 1
            if self.left < 0 or self.tensors_left < 0:
                raise ValueError("its layers are larger than what the file holds")
        if name == "aten::convolution":
            x, weight, padding = args[0], args[1], args[4]
            sizes = (n + 2 * added for n, added in zip(x.shape[2:], padding, strict=True))
            n_outputs = len(x) * len(weight) * math.prod(sizes)
            self.multiply_adds_left -= n_outputs * math.prod(weight.shape[1:])
            if n_outputs > OUTPUTS_OF_CONVOLUTION or self.multiply_adds_left < 0:
                raise ValueError("its images are too large for its convolutions")
        return function(*args, **(kwargs or {}))
