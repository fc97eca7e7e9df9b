"""Shapley values of the columns of a table, by sampled permutations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of the samples on the walks that are evaluated at once.
AT_ONCE = 2**22


def sampled_shapley(
    function: Callable[[NDArray, NDArray[np.int64]], NDArray[np.float64]],
    samples: NDArray,
    background: NDArray,
    n_permutations: int,
    random_state: np.random.RandomState,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Estimate Shapley values by walks from rows of a background to each sample.

    A walk goes from a row :math:`b` of the background to the sample :math:`x` column by column, in
    the order of a permutation :math:`\pi`. What the function :math:`f` changes at the step of a
    column is the column's contribution on this walk; their mean over the walks estimates

    .. math:: \phi_j = \mathrm{E}_{b, \pi}
              \bigl[f(x_{\pi \le j}, b_{\pi > j}) - f(x_{\pi < j}, b_{\pi \ge j})\bigr]

    On each walk the contributions sum to :math:`f(x) - f(b)`. So their means and the base value,
    the mean of :math:`f(b)` over the rows that were used, sum to :math:`f(x)` exactly. Each
    permutation is walked in reverse as well (antithetic), which lowers the variance.

    Parameters
    ----------
    function : callable
        Maps rows (k, n_features), and the positions (k,) of the samples to which they lead, to
        values (k, n_values).
    samples : ndarray of shape (n_samples, n_features)
        The samples to explain.
    background : ndarray of shape (n_rows, n_features)
        Rows to start from.
    n_permutations : int
        Number of permutations; each starts from a row of its own as long as there are enough.
    random_state : RandomState
        Draws rows and permutations. All samples get the same ones.

    Returns
    -------
    contributions : ndarray of shape (n_samples, n_features, n_values)
    base : ndarray of shape (n_samples, n_values)
    """
    n_samples, n_features = samples.shape
    rows = np.resize(random_state.permutation(len(background)), n_permutations)
    start = np.repeat(background[rows], 2, axis=0)
    orders = np.array([random_state.permutation(n_features) for _ in range(n_permutations)])
    orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, n_features)
    step_of = np.argsort(orders, axis=1)
    contributions: Any = 0.0
    base: Any = 0.0
    walks = np.arange(n_samples * len(orders))
    at_once = max(1, AT_ONCE // ((n_features + 1) * n_features))
    for part in np.split(walks, range(at_once, len(walks), at_once)):
        sample, walk = np.divmod(part, len(orders))
        has_come = np.arange(n_features + 1)[:, np.newaxis] > step_of[walk][:, np.newaxis]
        path = np.where(has_come, samples[sample][:, np.newaxis], start[walk][:, np.newaxis])
        values = function(path.reshape(-1, n_features), np.repeat(sample, n_features + 1))
        values = values.reshape(*path.shape[:2], -1)
        if part[0] == 0:
            contributions = np.zeros((n_samples, n_features, values.shape[2]))
            base = np.zeros((n_samples, values.shape[2]))
        steps = np.diff(values, axis=1)
        np.add.at(
            contributions, sample, np.take_along_axis(steps, step_of[walk][..., np.newaxis], 1)
        )
        np.add.at(base, sample, values[:, 0])
    return contributions / len(orders), base / len(orders)
