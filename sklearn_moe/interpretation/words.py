"""A value of a column in words."""

from __future__ import annotations

from typing import Any

import numpy as np

MISSING = "missing"

# Whole numbers get commas from here on, so that years have none.
LARGE = 10_000

# Significant digits of numbers that are not whole.
DIGITS = 4


def in_words(value: Any, exact: bool = False) -> str:
    """Return a value of a column as people write it.

    Parameters
    ----------
    value : float, str or None
        A number, a category, or a missing value.
    exact : bool, default=False
        Whether to keep all digits of a number, for a bound or a category, which must not become
        another one. Otherwise, numbers that are not whole have four significant digits.

    Returns
    -------
    str

    Examples
    --------
    >>> [in_words(each) for each in (2019.0, 12500, 0.1, "north", None)]
    ['2019', '12,500', '0.1', 'north', 'missing']
    >>> in_words(0.12345678), in_words(0.12345678, exact=True)
    ('0.1235', '0.12345678')
    """
    if value is None or value != value:
        return MISSING
    if isinstance(value, (str, bool, np.bool_)):
        return str(value)
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not exact and not value.is_integer():
        value = float(f"{value:.{DIGITS}g}")
    if value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return f"{value:,}" if abs(value) >= LARGE else str(value)
