"""What a mixture keeps of the samples that it was fitted on: one normal distribution per class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from sklearn_moe.containers import SparseRows
from sklearn_moe.gates.grown import log_density
from sklearn_moe.training.net import MoENet

# Main directions of a class, and samples of it that are read. More of either take longer, and
# separate handwritten digits no better.
N_DIRECTIONS = 32
SAMPLES_PER_CLASS = 2000

# Numbers that are read, and numbers that are kept, for all classes together.
NUMBERS_TO_READ = 2**24
NUMBERS_TO_KEEP = 2**20

# Up to so many inputs, it is faster to find all directions than the main ones alone.
EXACT_UP_TO = 256

# Samples whose variance is larger than this are not summarized: squares would not be finite.
LARGEST_VARIANCE = 1e30

# Variance along all other directions, as a part of the mean variance of an input.
REMAINING_VARIANCE = 0.1


@dataclass(frozen=True, eq=False)
class InputSummary:
    r"""What a gate read in training, as one normal distribution for each class.

    The covariance of class :math:`k` is
    :math:`U_k^T\, \mathrm{diag}(\lambda_k)\, U_k + \sigma^2 I`.

    Attributes
    ----------
    means : ndarray of shape (n_classes, n_inputs)
        Mean of each class.
    directions : ndarray of shape (n_classes, n_directions, n_inputs)
        Its main directions :math:`U_k`; zeros where it has fewer. They are most of the numbers,
        and so have half precision.
    variances : ndarray of shape (n_classes, n_directions)
        The variances :math:`\lambda_k` along them.
    counts : ndarray of shape (n_classes,)
        Number of samples of each class, or the sum of their weights.
    remaining : float
        The variance :math:`\sigma^2`, which is the same for all classes.
    """

    means: NDArray[np.float32]
    directions: NDArray[np.float16]
    variances: NDArray[np.float32]
    counts: NDArray[np.float32]
    remaining: float

    def log_density(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return log-densities (n_samples, n_classes) of inputs, up to a constant."""
        arrays = (x, self.means, self.directions, self.variances)
        samples, means, directions, variances = (
            torch.from_numpy(array).float() for array in arrays
        )
        density = log_density(samples, means, directions, variances, self.remaining)
        return density.numpy().astype(np.float64)


def gate_input(net: MoENet, X: NDArray | SparseRows) -> NDArray[np.float32]:
    """Return what the gate of a net reads, (n_samples, n_inputs)."""
    return net.evaluate(X, lambda module, x: module.for_gate(module.encode(x)).flatten(1))


def rows_to_read(y: NDArray[np.int64], n_inputs: int) -> NDArray[np.int64]:
    """Return the samples on which a summary is computed, evenly spaced in each class."""
    labels = np.unique(y)
    most = max(2, min(SAMPLES_PER_CLASS, NUMBERS_TO_READ // (len(labels) * n_inputs)))
    rows = [np.flatnonzero(y == label) for label in labels]
    return np.concatenate([own[:: -(-len(own) // most)] for own in rows])


def summarize(
    net: MoENet, X: NDArray | SparseRows, y: NDArray[np.int64], weight: NDArray
) -> InputSummary | None:
    """Return a summary of weighted samples; None if it has too many or too large numbers."""
    counts = counts_of(y, weight)
    n_inputs = gate_input(net, X[:1]).shape[1]
    n_directions = min(N_DIRECTIONS, n_inputs, NUMBERS_TO_KEEP // (len(counts) * n_inputs) - 1)
    if n_directions < 1:
        return None
    rows = rows_to_read(y, n_inputs)
    x = gate_input(net, X[rows])
    remaining = REMAINING_VARIANCE * float(x.var(axis=0, dtype=np.float64).mean()) or 1.0
    if not (remaining < LARGEST_VARIANCE and np.isfinite(counts).all()):
        return None
    return summary_of(x, y[rows], weight[rows], counts, n_directions, remaining)


def counts_of(y: NDArray[np.int64], weight: NDArray) -> NDArray[np.float32]:
    """Return the sum of the weights of each class that is there."""
    counts = np.bincount(y, weights=weight)
    return counts[np.unique(y)].astype(np.float32)


def summary_of(
    x: NDArray,
    y: NDArray[np.int64],
    weight: NDArray,
    counts: NDArray[np.float32],
    n_directions: int,
    remaining: float,
) -> InputSummary:
    """Return the summary of inputs of a gate, with so many directions."""
    labels, n_inputs = np.unique(y), x.shape[1]
    means = np.empty((len(labels), n_inputs), np.float32)
    directions = np.zeros((len(labels), n_directions, n_inputs), np.float16)
    variances = np.zeros((len(labels), n_directions), np.float32)
    for k, label in enumerate(labels):
        own, share = x[y == label], weight[y == label]
        share = share / share.sum()
        means[k] = np.average(own, axis=0, weights=share)
        spread = (own - means[k]) * np.sqrt(share[:, np.newaxis])
        own_variances, axes = _main_directions(spread, n_directions)
        directions[k, : len(axes)], variances[k, : len(axes)] = axes, own_variances
    return InputSummary(means, directions, variances, counts, remaining)


def _main_directions(spread, n_directions):
    """Return the largest variances and their directions, one in each row."""
    if spread.shape[1] > EXACT_UP_TO:
        _, sizes, axes = randomized_svd(spread, n_directions, random_state=0)
        return sizes**2, axes
    n_found = min(n_directions, len(spread))
    variances, axes = np.linalg.eigh(spread.T @ spread)
    return variances[::-1][:n_found].clip(0), axes.T[::-1][:n_found]


def joined(one: InputSummary, other: InputSummary) -> InputSummary:
    """Return the summary of the samples of both."""
    arrays = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("means", "directions", "variances", "counts")
    }
    return InputSummary(**arrays, remaining=one.remaining)
