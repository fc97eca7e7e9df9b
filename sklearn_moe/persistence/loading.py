"""Load what ``save`` has written, also from people whom you do not trust."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sklearn_moe.checks import check_device
from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.model_selection.ensemble import MixtureEnsemble
from sklearn_moe.persistence.bounds import NUMBERS_TO_MAKE, Bounded, check_state
from sklearn_moe.persistence.files import (
    CHECKSUM_KEY,
    CONTENT_KEY,
    FORM,
    FORM_KEY,
    KIND,
    MOST_TEXT,
    checksum,
    named_classes,
)
from sklearn_moe.persistence.saving import as_custom
from sklearn_moe.plain import CLASS, STATE, restore
from sklearn_moe.reader import Reader
from sklearn_moe.tables import TableTransformer
from sklearn_moe.training.net import MoENet


def load(
    path: str | os.PathLike,
    *,
    custom: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> MoEClassifier | MixtureEnsemble:
    """Load a mixture that :func:`save` has written.

    Nothing in the file is executed, so it may come from anyone. What can't be read raises an
    error, before it takes much more memory than the file is large.

    Parameters
    ----------
    path : str or path-like
        The file.
    custom : dict of object by str, default=None
        Your own functions and classes, as they were passed to :func:`save`.
    device : str, default=None
        Where the mixture predicts, such as "cpu", "cuda" or "auto". By default it is where it was
        when it was saved, or the CPU if this machine does not have that device.

    Returns
    -------
    MoEClassifier or MixtureEnsemble
        The fitted mixture.

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    ValueError
        If ``save`` did not write the file, a newer version of this package did, the file is
        damaged or was changed, or ``custom`` lacks a name.

    See Also
    --------
    save : Write the file; has an example.
    """
    custom = as_custom(custom)
    if device is not None:
        device = check_device(device)
    name = str(Path(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={name!r} is not a file.")
    content, arrays = _read(name)
    missing = sorted(set(content["custom"]) - set(custom))
    if missing:
        raise ValueError(
            f"{name} needs what its author passed to save as custom: {missing}. Pass the same "
            "functions and classes as custom={name: ...} to load."
        )
    n_numbers = sum(array.size for array in arrays.values())
    check = partial(check_state, n_numbers=n_numbers)
    try:
        with Bounded(n_numbers):
            flat = _Reader(custom, arrays, check).read(content["mixture"])
            _put_on(flat, device)
            clf = restore(flat, check)
            _check_fitted(clf)
    except Exception as error:  # whatever a file can make our own code raise
        raise ValueError(f"{name} holds no mixture that can be built: {error!r}") from error
    return clf


def _read(name):
    """Return the content and the arrays of a file, after all checks of its form."""
    advice = "Only load takes files of save, and skops or pickle take theirs."
    try:
        with safe_open(name, framework="numpy") as file:
            header = file.metadata() or {}
            if FORM_KEY not in header:
                raise ValueError(
                    f"{name} is a file of safetensors, but not one of a mixture: save did not "
                    "write it."
                )
            _check_form(name, header)
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, TypeError, OSError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"{name} is damaged, or save did not write it: {error}. {advice}"
        ) from error
    try:
        text = header[CONTENT_KEY]
        if len(text) > MOST_TEXT:
            raise ValueError("its header is too long")
        if header[CHECKSUM_KEY] != checksum(text, arrays):
            raise ValueError("its checksum is another one")
        content = json.loads(text)
        if not isinstance(content["custom"], list) or "mixture" not in content:
            raise ValueError("it holds no mixture")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged or was changed: {error}.") from error
    return content, arrays


def _check_form(name, header):
    form = header[FORM_KEY]
    if form.isdecimal() and len(form) < 9 and int(form) > FORM:
        raise ValueError(
            f"{name} has the form {form}, and this version of sklearn_moe reads forms up to "
            f"{FORM}. A newer version wrote it: pip install --upgrade sklearn-moe."
        )
    if form != str(FORM):
        raise ValueError(f"{name} is damaged: its form is {form!r}.")


class _Reader:
    """Turns JSON and arrays into plain values again.

    Parameters
    ----------
    custom : dict of object by str
        The functions and classes of a user.
    arrays : dict of ndarray by str
        The arrays of the file.
    check : callable
        Checks the states of objects, as in :func:`restore`.
    """

    def __init__(
        self,
        custom: dict[str, Any],
        arrays: dict[str, NDArray],
        check: Callable[[type, dict[str, Any]], None],
    ):
        self.custom = custom
        self.arrays = arrays
        self.check = check
        self.classes = named_classes()

    def read(self, value: Any) -> Any:
        """Return the value of which ``save`` has made this."""
        if isinstance(value, list):
            return [self.read(each) for each in value]
        if not isinstance(value, dict):
            return value
        if KIND not in value:
            return {key: self.read(each) for key, each in value.items()}
        kinds: dict[str, Callable[[dict], Any]] = {
            "array": self._read_array,
            "class": lambda node: self.classes[node["value"]],
            "custom": self._read_custom,
            "dict": lambda node: dict(map(tuple, self.read(node["value"]))),
            "float": lambda node: float(node["value"]),
            "items": self._read_items,
            "random_state": self._read_random_state,
            "scalar": lambda node: self.read(node["value"])[()],
            "tensor": lambda node: torch.from_numpy(self.read(node["value"])),
            "tuple": lambda node: tuple(self.read(node["value"])),
        }
        return kinds[value[KIND]](value)

    def _read_array(self, node):
        # Each array is in the file once, so that none can be copied many times.
        array, dtype = self.arrays.pop(node["value"]), np.dtype(node["dtype"])
        if dtype.newbyteorder("=") != array.dtype:
            raise ValueError(f"an array of {array.dtype} can't have the type {dtype}")
        return array.astype(dtype)

    def _read_custom(self, node):
        found = self.custom[node["value"]]
        if "params" not in node:
            return found
        # A file must not choose the arguments of a function.
        if not hasattr(found, "get_params") or not isinstance(found, type):
            raise ValueError(f"{node['value']!r} in custom is no class with get_params")
        return found(**restore(self.read(node["params"]), self.check))

    def _read_items(self, node):
        dtype, items = np.dtype(node["dtype"]), self.read(node["value"])
        # A type of text says how long each text may be.
        longest = max((len(item) for item in items if isinstance(item, str)), default=1)
        is_large = dtype.itemsize * len(items) > 4 * NUMBERS_TO_MAKE
        if dtype.kind not in "UO" or dtype.itemsize > 4 * longest + 8 or is_large:
            raise ValueError(f"an array can't have the type {dtype}")
        array = np.empty(len(items), dtype)
        array[:] = items
        return array.reshape(node["shape"])

    def _read_random_state(self, node):
        random_state = np.random.RandomState()
        state = self.read(node["value"])
        if not 0 <= state[2] <= len(state[1]):  # numpy would read beyond its numbers
            raise ValueError(f"a random state can't be at place {state[2]}")
        random_state.set_state(state)
        return random_state


def _put_on(value, device):
    """Set the device of each net; None means its own one, if it is there."""
    if isinstance(value, (list, tuple)):
        for each in value:
            _put_on(each, device)
    elif isinstance(value, dict):
        if value.get(CLASS) == "MoENet":
            params = value[STATE]["params"]
            params["device"] = device or _own_device(params["device"])
        for each in value.values():
            _put_on(each, device)


def _own_device(device):
    try:
        return check_device(device)
    except ValueError:
        return "cpu"


def _check_fitted(clf):
    """Check that what was loaded is a mixture that can predict."""
    if isinstance(clf, MixtureEnsemble):
        members = clf.members_
        if not members or not all(type(each) is MoEClassifier for each in members):
            raise ValueError("its members are no mixtures")
        for each in members:
            _check_fitted(each)
        return
    if type(clf) is not MoEClassifier:
        raise ValueError(f"it holds a {type(clf).__name__}")
    missing = set(clf.get_params(deep=False)) - set(vars(clf))
    if missing:
        raise ValueError(f"it lacks {sorted(missing)}")
    clf._validate_params()
    net, reader = clf.net_, clf.reader_
    if type(net) is not MoENet or type(reader) is not Reader or reader.committee is not None:
        raise ValueError("its reader and its net do not fit")
    _check_columns(clf)
    if clf.classes_.shape != (net.n_classes,) or not clf.temperature_ > 0:
        raise ValueError("its classes are not those of its net")
    sample = np.zeros((1, *net.input_shape), np.float32)
    proba = net.evaluate(sample, MixtureOfExperts.predict_proba)
    if proba.shape != (1, net.n_classes):
        raise ValueError(f"its predictions have the shape {proba.shape}")


def _check_columns(clf):
    """Check that the columns of a table fit together."""
    names = getattr(clf, "feature_names_in_", None)
    if names is not None and [type(name) for name in names.tolist()] != [str] * clf.n_features_in_:
        raise ValueError("it has no names of columns")
    table = clf.reader_.table
    if table is None:
        return
    if type(table) is not TableTransformer or table is not clf.net_.table:
        raise ValueError("its reader and its net encode different tables")
    if np.shape(clf.reader_.is_categorical) != (clf.n_features_in_,):
        raise ValueError("its columns are not those of its table")
