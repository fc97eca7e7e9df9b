"""Objects of this package as plain values: dictionaries, lists, arrays, numbers and text.

A pickle, a skops file or a saved file of a mixture holds no other classes of this package than
that of the mixture itself, so that they stay readable when classes move.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

from sklearn.base import BaseEstimator

# The keys of a dictionary that stands for an object, and of one that stands for an object which
# has occurred before. A dictionary of a user with such a key becomes a list of pairs.
CLASS, STATE, SAME = "class of sklearn_moe", "state", "same as object"


class Plain:
    """Base class of what is pickled as plain values."""

    def get_state(self) -> dict[str, Any]:
        """Return all that makes up the object; it may hold other objects of this package."""
        return dict(vars(self))

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_state` has returned."""
        vars(self).update(state)

    def __copy__(self) -> Plain:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __deepcopy__(self, memo: dict) -> Plain:
        new = memo[id(self)] = object.__new__(type(self))
        vars(new).update(deepcopy(vars(self), memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        return flatten(self.get_state())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.set_state(restore(state))


@cache
def own_classes() -> dict[str, type]:
    """Return the classes that a mixture can be made of, by name."""
    from sklearn_moe.persistence.trusted import CLASSES  # they import this module

    return {cls.__name__: cls for cls in CLASSES}


def flatten(value: Any) -> Any:
    """Return plain values in place of the objects of this package; others stay as they are."""
    classes = {cls: name for name, cls in own_classes().items()}
    places: dict[int, int] = {}

    def flat(value):
        if type(value) in (list, tuple):
            return _mapped(flat, value)
        if type(value) is dict:
            if CLASS in value or SAME in value:
                pairs = [[flat(key), flat(each)] for key, each in value.items()]
                return {CLASS: "dict", STATE: pairs}
            return {key: flat(each) for key, each in value.items()}
        if type(value) not in classes:
            return value
        if id(value) in places:
            return {SAME: places[id(value)]}
        places[id(value)] = len(places)
        state = value.get_state() if isinstance(value, Plain) else vars(value)
        return {CLASS: classes[type(value)], STATE: flat(dict(state))}

    return flat(value)


def restore(value: Any, check: Callable[[type, dict[str, Any]], None] | None = None) -> Any:
    """Return objects again in place of what :func:`flatten` has made of them.

    Parameters
    ----------
    value : object
        What ``flatten`` has returned.
    check : callable, default=None
        ``check(cls, state)`` is called for each object before it takes over its state, and may
        raise an error.

    Returns
    -------
    object
    """
    objects: list[Any] = []

    def deep(value):
        if type(value) in (list, tuple):
            return _mapped(deep, value)
        if type(value) is not dict:
            return value
        if SAME in value:
            if objects[value[SAME]] is None:
                raise ValueError("An object can't be a part of itself.")
            return objects[value[SAME]]
        if CLASS not in value:
            return {key: deep(each) for key, each in value.items()}
        if value[CLASS] == "dict":
            return {key: deep(each) for key, each in map(deep, value[STATE])}
        if value[CLASS] not in own_classes():
            raise ValueError(f"This version of sklearn_moe has no class {value[CLASS]!r}.")
        cls = own_classes()[value[CLASS]]
        restored, place = object.__new__(cls), len(objects)
        objects.append(None)
        state = deep(value[STATE])
        if check is not None:
            check(cls, state)
        if isinstance(restored, Plain):
            restored.set_state(state)
        else:
            vars(restored).update({**_defaults(cls), **state})
        objects[place] = restored
        return restored

    return deep(value)


def _mapped(function, values):
    """Apply a function to each value; return the same list or tuple if nothing changes.

    So what two parameters share stays shared in a pickle.
    """
    changed = [function(each) for each in values]
    is_same = all(one is other for one, other in zip(values, changed, strict=True))
    return values if is_same else type(values)(changed)


def _defaults(cls):
    """Return the default values of hyperparameters, which an older version may not have had."""
    if not issubclass(cls, BaseEstimator):
        return {}
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}
