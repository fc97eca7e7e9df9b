"""Groups of samples that get one expert, such as the visits of a patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator
from sklearn.utils import resample
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sklearn_moe.containers import is_missing, reading
from sklearn_moe.decomposition import final_model

# If this many draws in a row lack a class, the class is too rare for a bootstrap.
MANY_DRAWS = 1000


def read_groups(groups: ArrayLike, samples: Any) -> tuple[NDArray[np.intp], NDArray]:
    """Return the number of the group of each sample, and the labels of the groups."""
    with reading("groups"):
        groups = column_or_1d(groups)
    check_consistent_length(samples, groups)
    if any(is_missing(label) for label in groups.tolist()):
        raise ValueError("groups has missing values. Give each sample a group.")
    labels, group = np.unique(groups, return_inverse=True)
    return group, labels


def joint_of_groups(
    log_gate: NDArray, log_of_class: NDArray, group: NDArray, sample_weight: NDArray
) -> NDArray[np.float64]:
    """Return the log-probability that a group gets an expert, which predicts all its classes.

    Parameters
    ----------
    log_gate, log_of_class : ndarray of shape (n_samples, n_experts)
        Logarithms of the gate's probabilities, which are the same within a group, and of the
        probabilities that the experts give the class.
    group : ndarray of shape (n_samples,)
        Number of the group of each sample; not all numbers need to occur.
    sample_weight : ndarray of shape (n_samples,)
        Weights of the samples, with a mean of 1.

    Returns
    -------
    ndarray of shape (n_groups, n_experts)
    """
    group, counts = np.unique(group, return_inverse=True, return_counts=True)[1:]
    parts = log_gate / counts[group, np.newaxis] + log_of_class * sample_weight[:, np.newaxis]
    joint = np.zeros((len(counts), parts.shape[1]))
    np.add.at(joint, group, parts)
    return joint


def posterior(
    log_gate: NDArray, log_of_class: NDArray, group: NDArray | None = None
) -> NDArray[np.float64]:
    """Return the probability of each expert once the classes are known.

    Parameters
    ----------
    log_gate, log_of_class : ndarray of shape (n_samples, n_experts)
        Logarithms of the gate's probabilities, -inf for masked experts, and of the probabilities
        that the experts give the class.
    group : ndarray of shape (n_samples,), default=None
        Number of the group of each sample; all samples of a group come from one expert.

    Returns
    -------
    ndarray of shape (n_samples, n_experts)
        Rows sum to 1.
    """
    if group is None:
        return softmax(log_gate + log_of_class, axis=1)
    joint = joint_of_groups(log_gate, log_of_class, group, np.ones(len(group)))
    return softmax(joint, axis=1)[np.unique(group, return_inverse=True)[1]]


def log_likelihood_of_groups(
    estimator: BaseEstimator, X: Any, y: NDArray, group: NDArray, sample_weight: Any = None
) -> float:
    r"""Return the log-likelihood :math:`\sum_g \log \sum_e p_{ge} \prod_n o_{ne}(y_n)^{w_n}`.

    The weights are scaled to a mean of 1, as in the fit.
    """
    weight = np.ones(len(group)) if sample_weight is None else sample_weight / sample_weight.mean()
    model, samples = final_model(estimator, X)
    gate_proba = np.asarray(model.gate_proba(samples), dtype=np.float64)
    log_gate = np.log(np.maximum(gate_proba, np.finfo(np.float64).tiny))
    joint = joint_of_groups(log_gate, model.expert_log_likelihood(samples, y), group, weight)
    return float(np.logaddexp.reduce(joint, axis=1).sum())


def draw_again(
    y: NDArray, group: NDArray | None, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp] | None]:
    """Draw a bootstrap sample with all classes.

    Samples are drawn with replacement within each class. Groups are drawn as a whole, and again
    until each class is there.

    Returns
    -------
    rows : ndarray of int
        The drawn samples.
    copies : ndarray of int or None
        Number of the drawn group that each of these samples comes from; None without groups.

    Raises
    ------
    ValueError
        If ``MANY_DRAWS`` draws in a row lack a class.
    """
    if group is None:
        return resample(np.arange(len(y)), stratify=y, random_state=seed), None
    members = np.split(np.argsort(group, kind="stable"), np.bincount(group).cumsum()[:-1])
    random_state = np.random.RandomState(seed)
    for _ in range(MANY_DRAWS):
        drawn = [members[one] for one in random_state.randint(len(members), size=len(members))]
        rows = np.concatenate(drawn)
        missing = np.setdiff1d(y, y[rows])
        if len(missing) == 0:
            return rows, np.repeat(np.arange(len(drawn)), [len(each) for each in drawn])
    raise ValueError(
        f"{MANY_DRAWS} bootstrap samples of groups, one after the other, lacked a class, the last "
        f"one {missing.tolist()}. It is in too few groups: leave it out, or take resample='seeds'."
    )
