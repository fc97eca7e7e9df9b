"""Checks of parameters and data that scikit-learn does not have."""

from __future__ import annotations

from copy import copy
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_sample_weight
from skorch.callbacks import Callback
from torch.optim import Optimizer


def resolve(parameter, value, room):
    """Return the object that a name of the room stands for, or the one that a user passed."""
    if isinstance(value, str):
        if value not in room:
            raise ValueError(f"{parameter}={value!r} is not known; the names are {sorted(room)}.")
        value = room[value]
    elif isinstance(value, type):
        raise ValueError(
            f"{parameter} must be an object, not a class: write {parameter}={value.__name__}(...)."
        )
    # A copy, so that later changes of the object do not reach a fitted net.
    return copy(value) if isinstance(value, BaseEstimator) else value


def same_parameters(one, other):
    """Whether two objects of a room, or two plain values, are alike."""
    if isinstance(one, BaseEstimator) and type(one) is type(other):
        others = other.get_params(deep=False)
        return all(
            same_parameters(value, others[name])
            for name, value in one.get_params(deep=False).items()
        )
    return one is other or np.array_equal(one, other)


def check_device(device):
    """Return a device that torch has, as a string."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except (RuntimeError, TypeError):
        kind = index = None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} must be 'auto', 'cpu', 'cuda' or such as 'cuda:1'.")
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r}, but torch finds {torch.cuda.device_count()} CUDA devices. Use "
            "device='cpu' or 'auto'."
        )
    return device


def check_net_params(net_params):
    """Raise where skorch would with an error of its depths."""
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
    optimizer = net_params.get("optimizer", Optimizer)
    if not callable(optimizer):
        raise ValueError(
            f"net_params['optimizer'] must be a class such as torch.optim.Adam, got {optimizer!r}."
        )


def _is_kind(value, kind):
    return isinstance(value, type) and issubclass(value, kind)


def check_shape(name, X, input_shape):
    """Raise unless the samples have the shape that the mixture was made for."""
    if X.shape[1:] != input_shape:
        raise ValueError(
            f"{name} has samples of shape {X.shape[1:]}, but MoEClassifier is fitted with samples "
            f"of shape {input_shape}."
        )


def encode(y, classes, name):
    """Return the index of each label among the sorted classes."""
    known = np.isin(y, classes)
    if not known.all():
        raise ValueError(
            f"{name} contains {np.unique(y[~known]).tolist()}, which are not among the classes "
            f"{classes.tolist()}."
        )
    return np.searchsorted(classes, y)


def check_weight(sample_weight, X, name):
    """Return non-negative weights of the samples; ones for None."""
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if weight.min() < 0:
        raise ValueError(f"{name} must be at least 0, got {weight.min().item()}.")
    return weight


def class_weights(class_weight, y, weight, classes):
    """Return the weight of each class; samples of weight zero do not count for "balanced"."""
    if class_weight is None:
        return np.ones(len(classes))
    if class_weight == "balanced":
        totals = np.bincount(y, weights=weight, minlength=len(classes))
        return np.divide(1.0, totals, out=np.zeros(len(classes)), where=totals > 0)
    for label, value in class_weight.items():
        if label not in classes:
            raise ValueError(
                f"class_weight has a weight for {label!r}, which is not among the classes "
                f"{classes.tolist()}."
            )
        if not (isinstance(value, Real) and np.isfinite(value) and value >= 0):
            raise ValueError(
                f"class_weight must hold finite numbers of at least 0, got {value!r} for "
                f"{label!r}."
            )
    return np.array([class_weight.get(label, 1.0) for label in classes.tolist()])


def drop_weightless(*arrays):
    """Drop the samples whose weight, the last array, is zero: they shall count as removed."""
    rows = arrays[-1] > 0
    if not rows.any():
        raise ValueError(
            "All weights are zero (sample_weight times class_weight). At least one training "
            "sample, and one validation sample, must have a positive weight."
        )
    return arrays if rows.all() else tuple(_safe_indexing(array, rows) for array in arrays)


def normalize(weight):
    """Give the weights a mean of 1, once for all batches."""
    weight = weight / weight.max()  # the mean of very large weights would overflow
    return (weight / weight.mean()).astype(np.float32)


def split(X, y, *weights, fraction, random_state):
    """Set a part of the data aside, stratified unless a class is too rare for that."""
    counts = np.bincount(y)
    rarest = counts[counts > 0].min()
    smaller_part = min(fraction, 1 - fraction) * len(X)
    can_stratify = rarest >= 2 and smaller_part >= np.count_nonzero(counts)
    return train_test_split(
        X,
        y,
        *weights,
        test_size=fraction,
        stratify=y if can_stratify else None,
        random_state=random_state,
    )
