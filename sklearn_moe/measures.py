r"""Measures of how the experts divide the work, on plain arrays.

All entropies are in bits and computed over all samples at once:

.. math:: H_s = \frac{1}{N} \sum_n H(p_n), \qquad H_u = H\Bigl(\frac{1}{N} \sum_n p_n\Bigr),
          \qquad I(E; Y) = H(E) + H(Y) - H(E, Y)

with the gate probabilities :math:`p_n` of sample :math:`n`, the chosen expert :math:`E` and the
class :math:`Y`. A good decomposition has a low :math:`H_s` (one expert answers for a sample), a
high :math:`H_u` (all experts are used) and a high :math:`I(E; Y)` (experts are tied to classes).

References
----------
Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of Experts,
2023, arXiv 2302.14703.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr
from sklearn.metrics.cluster import contingency_matrix
from sklearn.utils import check_array
from sklearn.utils.validation import check_consistent_length, column_or_1d


def sample_entropy(gate_proba: ArrayLike) -> float:
    """Return H_s, the mean over samples of the entropy of the gate, in bits.

    Parameters
    ----------
    gate_proba : array-like of shape (n_samples, n_experts)
        Gate probabilities; rows sum to 1.

    Returns
    -------
    float
        Between 0 (one expert answers for each sample) and log2(n_experts).

    Examples
    --------
    >>> sample_entropy([[1, 0], [0.5, 0.5]])
    0.5
    """
    return entropy(check_gate_proba(gate_proba), axis=1).mean().item()


def usage_entropy(gate_proba: ArrayLike) -> float:
    """Return H_u, the entropy of the mean gate probabilities, in bits.

    Parameters
    ----------
    gate_proba : array-like of shape (n_samples, n_experts)
        Gate probabilities; rows sum to 1.

    Returns
    -------
    float
        Between 0 (one expert answers for all samples) and log2(n_experts).

    Examples
    --------
    >>> usage_entropy([[1, 0], [0, 1]])
    1.0
    """
    return entropy(check_gate_proba(gate_proba).mean(axis=0)).item()


def expert_class_information(gate_proba: ArrayLike, y: ArrayLike) -> float:
    """Return I(E;Y), the mutual information of the chosen expert and the class, in bits.

    Parameters
    ----------
    gate_proba : array-like of shape (n_samples, n_experts)
        Gate probabilities; the chosen expert is the most probable one.
    y : array-like of shape (n_samples,)
        Classes.

    Returns
    -------
    float
        Between 0 (the expert says nothing about the class) and the smaller of log2(n_experts) and
        the entropy of the classes.

    Examples
    --------
    >>> expert_class_information([[1, 0], [1, 0], [0, 1], [0, 1]], ["a", "a", "b", "b"])
    1.0
    """
    gate_proba = check_gate_proba(gate_proba)
    y = column_or_1d(y)
    check_consistent_length(gate_proba, y)
    return mutual_information(contingency_matrix(gate_proba.argmax(axis=1), y))


def mutual_information(table: ArrayLike) -> float:
    """Return the mutual information of rows and columns of a table of counts, in bits.

    Parameters
    ----------
    table : array-like of shape (n_rows, n_columns)
        Counts, or sums of weights.

    Returns
    -------
    float
        At least 0.

    Examples
    --------
    >>> mutual_information([[2, 0], [0, 2]])
    1.0
    """
    # scikit-learn's mutual_info_score would round weights to integers.
    joint = np.asarray(table) / np.sum(table)
    bits = entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint)
    return max(0.0, float(bits))


def check_gate_proba(gate_proba):
    gate_proba = check_array(gate_proba, dtype=np.float64, input_name="gate_proba")
    if gate_proba.min() < 0 or not np.allclose(gate_proba.sum(axis=1), 1, atol=1e-3):
        raise ValueError("gate_proba must hold probabilities: rows at least 0 that sum to 1.")
    return gate_proba / gate_proba.sum(axis=1, keepdims=True)  # they may be rounded to float32


def entropy(proba, axis=None):
    """Entropy in bits; never -0.0."""
    return np.maximum(entr(proba).sum(axis=axis) / np.log(2), 0.0)


def running_cost(
    gate_proba: NDArray, expert_costs: ArrayLike, all_run: bool
) -> tuple[float, NDArray[np.bool_]]:
    """Return the mean multiply-adds of the experts that run for a sample, and which of them run.

    Parameters
    ----------
    gate_proba : ndarray of shape (n_samples, n_experts)
        Gate probabilities.
    expert_costs : array-like of shape (n_experts,)
        Multiply-adds that each expert takes for a sample.
    all_run : bool
        Whether all experts run, also those with a probability of zero.
    """
    costs = check_array(expert_costs, ensure_2d=False, input_name="expert_costs")
    if costs.shape != gate_proba.shape[1:]:
        raise ValueError(
            f"expert_costs must have one cost per expert, {gate_proba.shape[1]}, got the shape "
            f"{costs.shape}."
        )
    runs = np.full(gate_proba.shape, True) if all_run else gate_proba > 0
    return float((runs @ costs).mean()), runs
