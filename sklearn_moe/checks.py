"""Checks of parameters and data that scikit-learn does not provide."""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from copy import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import assert_all_finite
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import _check_sample_weight, column_or_1d
from skorch import NeuralNet
from skorch.callbacks import Callback

from sklearn_moe.containers import is_missing, reading


def resolve(parameter, value, room):
    """Return the object that a user passed, or the one with this name in a room like ``GATES``."""
    if isinstance(value, str):
        if value not in room:
            raise ValueError(f"{parameter}={value!r} is not known; the names are {sorted(room)}.")
        value = room[value]
    elif isinstance(value, type):
        raise ValueError(
            f"{parameter} must be an object, not a class: write {parameter}={value.__name__}(...)."
        )
    # A copy, so that changing the object later does not change a fitted net.
    return copy(value) if isinstance(value, BaseEstimator) else value


def check_no_booleans(part, prefix=""):
    """Raise an error for booleans in place of numbers, in an object and the objects within it.

    Python counts booleans as integers, and so do scikit-learn's intervals.
    """
    constraints = getattr(part, "_parameter_constraints", {})
    for name, value in part.get_params(deep=False).items():
        kinds = {each.type for each in constraints.get(name, ()) if isinstance(each, Interval)}
        if kinds and isinstance(value, (bool, np.bool_)):
            kind = "an integer" if kinds == {Integral} else "a number"
            raise ValueError(f"{prefix}{name} must be {kind}, got {value!r}.")
        parts = {name: value}
        if isinstance(value, (list, tuple)):
            parts = {f"{name}__{place}": each for place, each in enumerate(value)}
        for key, each in parts.items():
            if isinstance(each, BaseEstimator):
                check_no_booleans(each, f"{prefix}{key}__")


def check_sizes(params):
    """Raise an error for integers that are too large for torch and for floats."""
    for name, value in params.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            is_huge = isinstance(number, Integral) and abs(int(number)) >= 2**63
            if is_huge and name != "batch_size":  # a huge batch is just all samples
                bits = int(number).bit_length()
                raise ValueError(
                    f"{name} must be smaller than 2**63, got a number of {bits} bits."
                )


def check_signature(name, function, *arguments):
    """Raise an error unless a user's function takes these arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} must take the arguments ({', '.join(arguments)}), but {function!r} does not: "
            f"{error}."
        ) from error
    except ValueError:  # some built-in functions do not tell their signature
        pass


def call_maker(name, maker, **arguments):
    """Return what a user's function or class makes of these arguments.

    If a class fails, the error says what it must take: a class of networks often reads others.
    """
    if not isinstance(maker, type):  # an error inside a function is clear enough
        check_signature(name, maker, *arguments)
        return maker(*arguments.values())
    try:
        return maker(*arguments.values())
    except Exception as error:
        kind, names = maker.__name__, ", ".join(arguments)
        raise TypeError(
            f"{name}={kind} must take the arguments ({names}), but "
            f"{kind}({', '.join(map(repr, arguments.values()))}) raises {type(error).__name__}: "
            f"{error}. Pass a function, such as lambda {names}: {kind}(...)."
        ) from error


def same_parameters(one, other):
    """Whether two values are equal, or two objects of the same class have equal parameters."""
    if isinstance(one, BaseEstimator) and type(one) is type(other):
        others = other.get_params(deep=False)
        return all(
            same_parameters(value, others[name])
            for name, value in one.get_params(deep=False).items()
        )
    return one is other or np.array_equal(one, other)


def check_device(device: Any, n_axes: int | None = None) -> str:
    """Return the name of a device, and raise an error if torch does not have it.

    ``n_axes`` is the number of axes of a sample: MPS lacks the double precision of tables.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except (RuntimeError, TypeError):
        kind = index = None
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(
            f"device={device!r} must be 'auto', 'cpu', 'cuda', 'mps' or such as 'cuda:1'."
        )
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r}, but torch finds {torch.cuda.device_count()} CUDA devices. Use "
            "device='cpu' or 'auto'."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            f"device={device!r}, but torch finds no such device. Use device='cpu' or 'auto'."
        )
    if kind == "mps" and n_axes == 1:
        raise ValueError(
            f"device={device!r} is for images: tables need double precision, which MPS does not "
            "have. Use device='cpu'."
        )
    return device


@contextmanager
def explained_memory(n_experts):
    """Say what to do when torch runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not any(word in str(error) for word in ("memory", "overflow", "too large")):
            raise
        raise MemoryError(
            f"There is not enough memory for this mixture with n_experts={n_experts}. Take fewer "
            f"or smaller experts, or smaller batches (batch_size). {error}"
        ) from error


_ARGUMENTS_OF_NETS = {*inspect.signature(NeuralNet).parameters, "classes"}

_CLASSES_OF_NETS = {
    "module": "sklearn_moe.mixture.MixtureOfExperts",
    "criterion": "torch.nn.NLLLoss",
    "optimizer": "torch.optim.Adam",
    "iterator_train": "torch.utils.data.DataLoader",
    "iterator_valid": "torch.utils.data.DataLoader",
}


def check_net_params(net_params):
    """Raise a clear error where skorch would raise an obscure one later."""
    for name in net_params:
        if not isinstance(name, str) or name.partition("__")[0] not in _ARGUMENTS_OF_NETS:
            raise ValueError(
                f"net_params has {name!r}, which is no argument of skorch.NeuralNetClassifier."
            )
    callbacks = net_params.get("callbacks", [])
    if not isinstance(callbacks, list):
        raise ValueError(f"net_params['callbacks'] must be a list, got {callbacks!r}.")
    for callback in callbacks:
        named = callback[1] if isinstance(callback, tuple) and len(callback) == 2 else callback
        if not (isinstance(named, Callback) or _is_kind(named, Callback)):
            raise ValueError(
                "net_params['callbacks'] must hold skorch callbacks, or pairs of a name and a "
                f"callback, got {callback!r}."
            )
    for name, example in _CLASSES_OF_NETS.items():
        if name in net_params and not callable(net_params[name]):
            raise ValueError(
                f"net_params[{name!r}] must be a class such as {example}, got "
                f"{net_params[name]!r}."
            )
    for name in ("max_epochs", "batch_size"):
        number = net_params.get(name, 1)
        is_whole = isinstance(number, Integral) and not isinstance(number, bool)
        if not (is_whole and (number >= 1 or (name, number) == ("batch_size", -1))):
            raise ValueError(
                f"net_params[{name!r}] must be an integer of at least 1, got {number!r}."
            )


@contextmanager
def of_net_params(name):
    """Say that the arguments of a constructor that fails came from ``net_params``."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"net_params[{name!r}] can't be made with its arguments in net_params: {error}"
        ) from error


def _is_kind(value, kind):
    return isinstance(value, type) and issubclass(value, kind)


def check_shape(name, X, input_shape):
    """Raise an error unless the samples have the shape that the mixture was made for."""
    if X.shape[1:] != input_shape:
        raise ValueError(
            f"{name} has samples of shape {X.shape[1:]}, but MoEClassifier is fitted with samples "
            f"of shape {input_shape}."
        )


def encode(y, classes, name):
    """Return the index of each label among the sorted classes."""
    known = np.isin(y, classes)
    if not known.all():
        unknown = list({repr(label): label for label in y[~known].tolist()}.values())
        raise ValueError(
            f"{name} contains {unknown}, which are not among the classes {classes.tolist()}."
        )
    return np.searchsorted(classes, y)


def check_y(y, name="y"):
    """Return labels as a one-dimensional array; raise an error if any is missing."""
    if y is None:
        raise ValueError(
            "This MoEClassifier estimator requires y to be passed, but the target y is None."
        )
    if isinstance(y, (str, bytes, dict, set, frozenset)):
        raise ValueError(f"{name} must be array-like of shape (n_samples,), got {y!r}.")
    try:
        with reading(name):
            y = column_or_1d(y, warn=True)
    except ValueError as error:
        if "Complex data" not in str(error):
            raise
        raise ValueError(f"Complex data not supported: {name} must hold class labels.") from error
    if y.dtype.kind == "V":
        raise ValueError(f"{name} must hold class labels, got records of type {y.dtype}.")
    advice = "Every sample needs a class label: drop those without."
    if y.dtype == object and any(map(is_missing, y.tolist())):
        raise ValueError(f"Input {name} contains NaN. {advice}")
    try:
        with reading(name):
            assert_all_finite(y, input_name=name)
    except ValueError as error:
        what = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{what}. {advice}") from error
    if y.dtype == object:
        kinds = sorted({"text" if isinstance(each, str) else "other labels" for each in y})
        if len(kinds) > 1:
            raise ValueError(f"{name} mixes text and other labels. Use one type for all labels.")
    return y


def check_weight(sample_weight, X, name):
    """Return the weights of the samples, which must be at least 0; None gives ones."""
    try:
        with reading("sample_weight"):
            weight = _check_sample_weight(sample_weight, np.empty((len(X), 1)), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error).replace("sample_weight", name)) from error
    for value in (weight.min().item(), weight.max().item()):
        if not 0 <= value < np.inf:  # scikit-learn does not check one number for all samples
            raise ValueError(f"{name} must be finite and at least 0, got {value}.")
    return weight


def class_weights(class_weight, y, weight, classes):
    """Return the weight of each class; samples of weight zero do not count for "balanced"."""
    if class_weight is None:
        return np.ones(len(classes))
    if class_weight == "balanced":
        totals = np.bincount(y, weights=weight, minlength=len(classes))
        mean = totals.sum() / max(np.count_nonzero(totals), 1)
        return np.divide(mean, totals, out=np.zeros(len(classes)), where=totals > 0)
    known = classes.tolist()
    for label, value in class_weight.items():
        # As in scikit-learn, a class that is missing in this part of the data may have a weight.
        if label not in known and not set(known) <= set(class_weight):
            raise ValueError(
                f"class_weight has a weight for {label!r}, which is not among the classes {known}."
            )
        if not (isinstance(value, Real) and 0 <= value <= sys.float_info.max):
            raise ValueError(
                f"class_weight must hold finite numbers of at least 0, got {value!r} for "
                f"{label!r}."
            )
    return np.array([class_weight.get(label, 1.0) for label in known], dtype=float)


def scaled(weight):
    """Scale weights to a maximum of 1, so that their sums neither overflow nor underflow."""
    # Scale by a power of two first: numpy 1.26 warns when it divides by a subnormal number.
    weight = np.ldexp(weight, -np.frexp(weight.max())[1])
    return weight / (weight.max() or 1.0)


def weighty(weight):
    """Return the positions of samples with a positive weight; the others count as removed."""
    rows = np.flatnonzero(weight > 0)
    if len(rows) == 0:
        raise ValueError(
            "All weights are zero (sample_weight times class_weight). At least one training "
            "sample, and one validation sample, must have a positive weight."
        )
    return rows


def normalize(weight):
    """Scale the weights to a mean of 1 over all samples, not in each batch."""
    weight = scaled(weight)
    return (weight / weight.mean()).astype(np.float32)


def split(rows, y, *, fraction, random_state):
    """Set a fraction of the rows aside, stratified unless a class is too rare for that."""
    counts = np.bincount(y)
    rarest = counts[counts > 0].min()
    smaller_part = min(fraction, 1 - fraction) * len(rows)
    can_stratify = rarest >= 2 and smaller_part >= np.count_nonzero(counts)
    try:
        return train_test_split(
            rows,
            test_size=fraction,
            stratify=y if can_stratify else None,
            random_state=random_state,
        )
    except ValueError as error:
        raise ValueError(
            f"early_stopping=True cannot set validation_fraction={fraction} of {len(rows)} "
            "samples aside. Pass X_val and y_val, more samples, or early_stopping=False."
        ) from error
