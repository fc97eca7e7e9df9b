"""Save a fitted mixture in one file that holds no code."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as serialize
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

import sklearn_moe
from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.model_selection.ensemble import MixtureEnsemble
from sklearn_moe.persistence.bounds import COMPILE_OPTIONS, forbidden_options
from sklearn_moe.persistence.files import (
    CHECKSUM_KEY,
    CONTENT_KEY,
    FORM,
    FORM_KEY,
    KIND,
    MOST_TEXT,
    NUMERIC,
    checksum,
    named_classes,
    replacing,
)
from sklearn_moe.plain import CLASS, STATE, flatten


def save(
    clf: BaseEstimator, path: str | os.PathLike, *, custom: Mapping[str, Any] | None = None
) -> None:
    """Save a fitted mixture in one file, which :func:`load` reads without executing anything.

    The file is one of `safetensors <https://huggingface.co/docs/safetensors>`_. Its arrays are the
    weights and what was found out about the columns; the rest is JSON in its header. A checksum
    tells whether a file was damaged.

    Parameters
    ----------
    clf : MoEClassifier or MixtureEnsemble
        A fitted mixture, also one that was distilled, pruned, grown or found by a search
        (``search.best_estimator_``), or an ensemble of mixtures.
    path : str or path-like
        The file to write. One that is there is replaced, but only once the new one is complete.
    custom : dict of object by str, default=None
        The functions and classes of your own that the mixture contains, such as a function that
        makes experts, by names of your choice. The file holds only the names. For an object of
        your own class, pass the class; its ``get_params`` must return what its constructor takes.

    Raises
    ------
    TypeError
        If ``clf`` is not a mixture. If it contains anything but arrays, numbers, text, parts of
        this package and what is in ``custom``; classifiers of scikit-learn, for example.
    ValueError
        If ``net_params`` chooses what ``torch.compile`` runs, or the text is too long.
    sklearn.exceptions.NotFittedError
        If the mixture is not fitted.
    FileNotFoundError
        If the directory is not there.

    See Also
    --------
    load : Read the file.
    export : Write predictions and preprocessing for other runtimes.

    Notes
    -----
    The loaded mixture predicts the same, bit for bit. The file leaves out what the optimizer has
    found out about the gradients, which is twice as large as the weights. If a training goes on
    after loading, the optimizer starts anew. A pickle keeps it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(max_iter=10, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory, "iris.safetensors")
    ...     save(clf, path)
    ...     twin = load(path)
    >>> bool((twin.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    if type(clf) not in (MoEClassifier, MixtureEnsemble):
        raise TypeError(_advice(clf))
    check_is_fitted(clf)
    _check_no_classifiers(clf)
    writer = _Writer(as_custom(custom))
    mixture = writer.write(flatten(clf), type(clf).__name__)
    content = json.dumps(
        {
            "versions": {
                "sklearn_moe": sklearn_moe.__version__,
                "scikit-learn": sklearn.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "custom": sorted(writer.used),
            "mixture": mixture,
        },
        separators=(",", ":"),
    )
    if len(content) > MOST_TEXT:
        raise ValueError(
            f"The mixture has {len(content)} characters of text and settings, and a file can hold "
            f"{MOST_TEXT}. Pickle it, or fit it with fewer or shorter categories."
        )
    header = {
        FORM_KEY: str(FORM),
        CONTENT_KEY: content,
        CHECKSUM_KEY: checksum(content, writer.arrays),
    }
    with replacing(path) as new:
        new.write_bytes(serialize(writer.arrays, metadata=header))


def _advice(clf):
    """Say what to do with something that is not a mixture."""
    kind = f"{type(clf).__name__} is not a mixture"
    if isinstance(clf, Pipeline):
        return (
            f"save needs a MoEClassifier or a MixtureEnsemble, but {kind}. Save its last step, "
            "save(pipeline[-1], path), and the other steps with skops. encoder='auto' scales, "
            "fills in and encodes tables within the mixture, so that most pipelines need no other "
            "steps."
        )
    if hasattr(clf, "best_estimator_"):
        return (
            f"save needs a MoEClassifier or a MixtureEnsemble, but {kind}. Save what it found: "
            "save(search.best_estimator_, path)."
        )
    if isinstance(clf, type):
        return f"save needs a fitted mixture, got the class {clf.__name__}."
    return f"save needs a fitted MoEClassifier or MixtureEnsemble, but {kind}. skops may save it."


def _check_no_classifiers(clf):
    """Raise an error if classifiers answer beside a net: a file holds nets alone."""
    members = getattr(clf, "members_", [clf])
    found = {
        name: expert
        for each in members
        for name, expert in getattr(each, "named_experts_", {}).items()
    }
    if found and members == [clf]:
        name, expert = next(iter(found.items()))
        raise TypeError(
            f"The expert {name!r} is {expert!r}, of which a file can't hold the state. Pickle the "
            "mixture or save it with skops."
        )
    if found:
        raise TypeError(
            f"The ensemble has the classifiers {sorted(found)} among its experts, of which a file "
            "can't hold the state. Pickle it or save it with skops. An ensemble without them "
            "comes from tune(..., space=suggest_parameters, refit='ensemble')."
        )


def as_custom(custom):
    """Return the functions and classes of a user by name."""
    custom = {} if custom is None else custom
    if not isinstance(custom, Mapping) or not all(isinstance(name, str) for name in custom):
        raise TypeError(f"custom must be a dict of functions and classes by name, got {custom!r}.")
    return dict(custom)


class _Writer:
    """Turns plain values into JSON and arrays.

    Parameters
    ----------
    custom : dict of object by str
        The functions and classes that only their names stand for.
    """

    def __init__(self, custom: dict[str, Any]):
        self.custom = custom
        self.used: set[str] = set()
        self.arrays: dict[str, NDArray] = {}
        self.classes = {cls: name for name, cls in named_classes().items()}

    def write(self, value: Any, place: str) -> Any:
        """Return a value for JSON; ``place`` says in an error where it was found."""
        if isinstance(value, np.generic):
            return self._tagged("scalar", self.write(np.asarray(value), place))
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else self._tagged("float", str(value))
        if type(value) is list:
            return [self.write(each, f"{place}[{i}]") for i, each in enumerate(value)]
        if type(value) is tuple:
            return self._tagged("tuple", self.write(list(value), place))
        if type(value) is dict:
            return self._write_dict(value, place)
        if isinstance(value, np.ndarray):
            return self._write_array(value, place)
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            return self._tagged("tensor", self.write(value.detach().cpu().numpy(), place))
        if isinstance(value, np.random.RandomState):
            return self._tagged("random_state", self.write(value.get_state(), place))
        return self._write_custom(value, place)

    def _tagged(self, kind, value):
        return {KIND: kind, "value": value}

    def _write_dict(self, value, place):
        if value.get(CLASS) == "MoENet":
            value = {**value, STATE: {**value[STATE], "optimizer": None}}
        if KIND not in value and all(isinstance(key, str) for key in value):
            if options := forbidden_options(value):
                raise TypeError(
                    f"{place} has the options {options}, which may name programs that a training "
                    f"runs. A file holds no others than {sorted(COMPILE_OPTIONS)}. Leave them out "
                    "of net_params, or pickle the mixture."
                )
            return {
                key: self.write(each, place if key == STATE else f"{place}.{key}")
                for key, each in value.items()
            }
        pairs = [[key, each] for key, each in value.items()]
        return self._tagged("dict", self.write(pairs, place))

    def _write_array(self, value, place):
        if value.dtype.kind in NUMERIC and value.dtype.itemsize <= 8:
            name = str(len(self.arrays))
            native = value.astype(value.dtype.newbyteorder("="), order="C")
            self.arrays[name] = native
            return {KIND: "array", "value": name, "dtype": value.dtype.str}
        if value.dtype.kind not in "UO":
            raise TypeError(
                f"{place} is an array of type {value.dtype}, which a file can't hold. Fit the "
                "mixture on numbers or text instead."
            )
        items = self.write(value.reshape(-1).tolist(), place)
        return {KIND: "items", "value": items, "dtype": value.dtype.str, "shape": value.shape}

    def _write_custom(self, value, place):
        """Write the name of what a user has made."""
        if isinstance(value, type) and value in self.classes:
            return self._tagged("class", self.classes[value])
        for name, known in self.custom.items():
            if value is known:
                self.used.add(name)
                return self._tagged("custom", name)
            if isinstance(known, type) and type(value) is known and hasattr(known, "get_params"):
                self.used.add(name)
                params = value.get_params(deep=False)
                params = self.write(flatten(params), f"{place}.{name}")
                return {KIND: "custom", "value": name, "params": params}
        if isinstance(value, (BaseEstimator, nn.Module)):
            raise TypeError(
                f"{place} is {value!r}, of which a file can't hold the state. Pickle the mixture "
                "or save it with skops."
                if not hasattr(value, "build")
                else self._unknown(value, place)
            )
        raise TypeError(self._unknown(value, place))

    def _unknown(self, value, place):
        thing = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
        name = getattr(thing, "__name__", "")
        name = name if name.isidentifier() else "my_function"  # "<lambda>" is no name
        if thing is not value and not hasattr(thing, "get_params"):
            return (
                f"{place} is {value!r}, which a file can't hold. Pass this object itself, "
                f"custom={{'my_{name}': ...}}, to save and to load."
            )
        return (
            f"{place} is {value!r}, which is not of this package. If it is a function or class of "
            f"yours, pass custom={{{name!r}: {name}}} to save and to load."
        )
