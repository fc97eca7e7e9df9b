r"""Measures of how the experts divide the work, on plain arrays.

All entropies are in bits and computed over all samples at once:

.. math:: H_s = \frac{1}{N} \sum_n H(p_n), \qquad H_u = H\Bigl(\frac{1}{N} \sum_n p_n\Bigr),
          \qquad I(E; Y) = H(E) + H(Y) - H(E, Y)

with the gate probabilities :math:`p_n` of sample :math:`n`, the chosen expert :math:`E` and the
class :math:`Y`. A good decomposition has a low :math:`H_s` (one expert answers for a sample), a
high :math:`H_u` (all experts are used) and a high :math:`I(E; Y)` (experts are tied to classes).
Experts may divide the samples by something else than the class. So :func:`specialization` also
asks how much an expert knows that the others do not.

References
----------
Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of Experts,
2023, arXiv 2302.14703.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, logsumexp
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


def specialization(
    gate_proba: ArrayLike, expert_log_likelihood: ArrayLike, *, to_best: bool = False
) -> float:
    r"""Return how many bits a sample loses if other experts replace the chosen one.

    .. math:: S = \frac{1}{N} \sum_n \Bigl( \log_2 o_{n, e_n}
              - \log_2 \frac{1}{E - 1} \sum_{f \ne e_n} o_{nf} \Bigr)

    with the probability :math:`o_{nf}` that expert :math:`f` gives the true class of sample
    :math:`n`, and the chosen (most probable) expert :math:`e_n`. With ``to_best=True`` one expert
    replaces the chosen one, not the mean of all others. Each expert has one such replacement: the
    expert with the highest mean log-likelihood on the samples for which it is chosen.

    Parameters
    ----------
    gate_proba : array-like of shape (n_samples, n_experts)
        Gate probabilities; the chosen expert is the most probable one.
    expert_log_likelihood : array-like of shape (n_samples, n_experts)
        Natural logarithm of the probability that each expert gives the class of the sample, as
        from :meth:`MoEClassifier.expert_log_likelihood`. Samples with a nan are left out.
    to_best : bool, default=False
        Whether to compare with the best other expert instead of the mean of the others.

    Returns
    -------
    float
        In bits. About 0 if the experts are interchangeable, negative if the others are better than
        the chosen one; 0 for a single expert, and nan if all samples are left out.

    Examples
    --------
    Each expert is right on its own sample, and guesses among four classes on the other:

    >>> import numpy as np
    >>> specialization([[1, 0], [0, 1]], np.log([[1, 0.25], [0.25, 1]]))
    2.0
    """
    return mean_of_known(bits_lost(gate_proba, expert_log_likelihood, to_best=to_best))


def bits_lost(
    gate_proba: ArrayLike, expert_log_likelihood: ArrayLike, *, to_best: bool
) -> NDArray[np.float64]:
    """Return the bits of :func:`specialization` for each sample; nan for those left out."""
    gate_proba = check_gate_proba(gate_proba)
    log_likelihood = check_array(
        expert_log_likelihood,
        dtype=np.float64,
        ensure_all_finite="allow-nan",
        input_name="expert_log_likelihood",
    )
    if log_likelihood.shape != gate_proba.shape:
        raise ValueError(
            f"expert_log_likelihood must have the shape of gate_proba, {gate_proba.shape}, got "
            f"{log_likelihood.shape}."
        )
    if (log_likelihood > 1e-3).any():  # they may be rounded
        raise ValueError("expert_log_likelihood must hold logarithms of probabilities, at most 0.")
    known = ~np.isnan(log_likelihood).any(axis=1)
    n_experts = gate_proba.shape[1]
    if n_experts == 1:
        return np.where(known, 0.0, np.nan)
    chosen = gate_proba.argmax(axis=1)[:, np.newaxis]
    gained = log_likelihood - np.take_along_axis(log_likelihood, chosen, axis=1)
    np.put_along_axis(gained, chosen, -np.inf, axis=1)  # only others can replace it
    if not to_best:  # in log space, where no probability is rounded to 0
        lost = np.log(n_experts - 1) - logsumexp(gained, axis=1)
        return np.where(known, lost / np.log(2), np.nan)
    lost = np.full(len(gained), np.nan)
    for expert in np.unique(chosen[known]):
        rows = known & (chosen[:, 0] == expert)
        lost[rows] = 0.0 - gained[rows, gained[rows].mean(axis=0).argmax()]  # never -0.0
    return lost / np.log(2)


def mean_of_known(values: NDArray) -> float:
    """Return the mean of the values that are not nan; nan if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def mean_differences(
    table: NDArray, chosen: NDArray[np.integer], n_experts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how each expert's samples differ from all others in the means of columns.

    Parameters
    ----------
    table : ndarray of shape (n_samples, n_columns)
        Numbers; nan is left out.
    chosen : ndarray of shape (n_samples,)
        The expert of each sample.
    n_experts : int
        Number of experts.

    Returns
    -------
    differences : ndarray of shape (n_experts, n_columns)
        In standard deviations of all samples; 0 if there is nothing to compare, and nan for an
        expert without samples.
    means : ndarray of shape (2, n_experts, n_columns)
        The means of the expert's samples and of the others.
    """
    table = np.ma.masked_invalid(table)
    varies = np.ma.filled(table.max(axis=0) > table.min(axis=0), False)
    center, scale = table.mean(axis=0), table.std(axis=0)
    table = (table - center) / scale
    is_known, values = ~np.ma.getmaskarray(table), table.filled(0.0)
    own = (chosen == np.arange(n_experts)[:, np.newaxis]).astype(np.float64)
    totals, counts = own @ values, own @ is_known
    rest, n_rest = values.sum(axis=0) - totals, is_known.sum(axis=0) - counts
    means = np.stack([totals / np.maximum(counts, 1), rest / np.maximum(n_rest, 1)])
    differences = means[0] - means[1]
    # Without a sample on either side, or a value to compare, there is no difference.
    differences[~varies | (counts == 0) | (n_rest == 0)] = 0.0
    differences[own.sum(axis=1) == 0] = np.nan
    return differences, np.ma.filled(center + scale * means, np.nan)


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
