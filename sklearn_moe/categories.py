"""Categories of a table: how they are kept, sorted and found again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def sort_key(level: Any) -> tuple:
    """Sort numbers before text, and a missing value last."""
    return (2, 0) if level is None else (isinstance(level, str), level)


def as_category(level: Any) -> Any:
    """Return a level as it is kept: float32 as the shortest number that rounds to it."""
    return float(str(level)) if isinstance(level, np.floating) else level


def places_of(categories: Sequence[Any], kinds: Iterable[type] = ()) -> dict[Any, int]:
    """Return the positions of categories, also of the numbers that text stands for.

    ``kinds`` are types of numbers, beside float, in which the categories are found, too.
    """
    place = {category: i for i, category in enumerate(categories)}
    for i, category in enumerate(categories):
        number = number_of(category)
        if number is not None:
            with np.errstate(over="ignore"):
                for kind in (float, *kinds):
                    place.setdefault(kind(number), i)
    return place


def number_of(level: Any) -> Any:
    """Return a number, or the number that a text stands for; None for anything else."""
    try:
        number = float(level) if isinstance(level, str) else level
    except ValueError:
        return None
    return number if number == number else None
