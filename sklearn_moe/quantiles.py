"""Quantiles of a column: where its hat functions have their tops, and where its outliers begin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Knots that are closer than this, in standard deviations, become one knot.
SMALLEST_GAP = 1e-9

# The inner range of a column, which shows whether it has outliers, leaves out this share of the
# values at both ends.
OUTERMOST = 0.01


def inner_range(
    values: NDArray, weight: NDArray, weight_of_row: float = 1, share: float = OUTERMOST
) -> tuple[float, float]:
    """Return the range of a column without its outermost values.

    These are a share of the rows at both ends, but at least one row and at most a quarter. If one
    value is so frequent that it would be all of the range, it counts no more than all the others.

    Parameters
    ----------
    values : ndarray of shape (n_distinct,)
        The distinct values of the column, in ascending order.
    weight : ndarray of shape (n_distinct,)
        How often each value occurs.
    weight_of_row : float, default=1
        Weight of an ordinary row.
    share : float, default=0.01
        Share of the rows that is left out at both ends.

    Returns
    -------
    lowest, highest : float
    """
    if len(values) == 1:
        return values[0], values[0]
    most = weight.argmax()
    weight = weight.copy()
    weight[most] = min(weight[most], weight.sum() - weight[most])
    total = weight.sum()
    left_out = min(max(share * total, weight_of_row), total / 4)
    lowest = np.searchsorted(weight.cumsum(), left_out, side="right")
    highest = np.searchsorted(weight[::-1].cumsum(), left_out, side="right")
    return values[lowest], values[::-1][highest]


def choose_knots(
    values: NDArray, weight: NDArray, n_knots: int, least_share: float = 0
) -> NDArray:
    """Return the knots of a column, where its hat functions have their tops: at quantiles.

    If several quantiles fall on one frequent value, it gets one knot, and the other knots go to
    the rest of the values. So all knots differ.

    Parameters
    ----------
    values : ndarray of shape (n_distinct,)
        The distinct values of the column, in ascending order.
    weight : ndarray of shape (n_distinct,)
        How often each value occurs.
    n_knots : int
        The largest number of knots.
    least_share : float, default=0
        Smallest share of the weight between two knots. To reach it, the number of knots falls, but
        not below three.

    Returns
    -------
    ndarray of at most ``n_knots`` values
    """
    least = least_share * weight.sum()
    capped = _capped(weight, n_knots)
    while capped.sum() < least * (n_knots - 1) and n_knots > 3:
        n_knots -= 1
        capped = _capped(weight, n_knots)
    if len(values) > n_knots:
        cumulated = capped.cumsum()
        wanted = np.arange(1, n_knots - 1) / (n_knots - 1) * cumulated[-1]
        inner = np.searchsorted(cumulated, wanted * (1 - 1e-9))
        values = values[np.unique(np.r_[0, inner, len(values) - 1])]
    kept = [values[0]]
    for value in values[1:]:
        if value - kept[-1] > SMALLEST_GAP:
            kept.append(value)
    return np.array(kept)


def _capped(weight, n_knots):
    """Cap the weights, so that no value has more weight than lies between two knots."""
    for _ in range(50):
        most = weight.sum() / (n_knots - 1)
        if weight.max() <= most:
            break
        weight = np.minimum(weight, most)
    return weight
