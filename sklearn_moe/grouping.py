"""Find experts that are alike: measure how similar they are, and group them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import entr


def divergence(expert_proba: NDArray, gate_proba: NDArray) -> NDArray[np.float64]:
    """Return how differently each pair of experts predicts the samples that the gate gives it.

    Parameters
    ----------
    expert_proba : ndarray of shape (n_samples, n_experts, n_classes)
        Each expert's probabilities.
    gate_proba : ndarray of shape (n_samples, n_experts)
        Gate probabilities.

    Returns
    -------
    ndarray of shape (n_experts, n_experts)
        Mean Jensen-Shannon divergence of each pair, in nats, over the samples, weighted with the
        sum of the pair's gate probabilities; 0 for a pair that gets no samples.
    """
    n_experts = gate_proba.shape[1]
    by_expert = np.ascontiguousarray(expert_proba.transpose(1, 0, 2))
    entropy = entr(by_expert).sum(axis=2)
    distance = np.zeros((n_experts, n_experts))
    for one in range(n_experts):
        for other in range(one):
            weight = gate_proba[:, one] + gate_proba[:, other]
            if weight.any():
                mean = entr((by_expert[one] + by_expert[other]) / 2).sum(axis=1)
                values = mean - (entropy[one] + entropy[other]) / 2
                distance[one, other] = max(0.0, np.average(values, weights=weight))
    return distance + distance.T


def cka(features: NDArray) -> NDArray[np.float64]:
    """Return the linear centred kernel alignment of each pair of experts.

    Parameters
    ----------
    features : ndarray of shape (n_samples, n_experts, n_features)
        The experts' features of the samples. An expert with the same features for all samples has
        an alignment of 0 with all others.

    Returns
    -------
    ndarray of shape (n_experts, n_experts)
        Between 0 and 1.
    """
    n_samples, n_experts, n_features = features.shape
    features = (features - features.mean(axis=0)).reshape(n_samples, -1)
    products = (features.T @ features).reshape(n_experts, n_features, n_experts, n_features)
    aligned = np.square(products).sum(axis=(1, 3))
    own = np.sqrt(aligned.diagonal())
    scale = np.outer(own, own)
    similarity = np.divide(aligned, scale, out=np.zeros_like(aligned), where=scale > 0)
    np.fill_diagonal(similarity, 1.0)
    return np.clip(similarity, 0.0, 1.0)


def group_experts(
    distance: NDArray,
    usage: NDArray,
    n_groups: int,
    layer: NDArray | None = None,
    least: list[int] | None = None,
) -> list[list[int]]:
    """Group the experts: join the cheapest pair of groups, again and again.

    Parameters
    ----------
    distance : ndarray of shape (n_experts, n_experts)
        How different each pair is.
    usage : ndarray of shape (n_experts,)
        Weights of the experts. Joining groups of weights a and b costs their mean distance times
        ab / (a + b), so that experts that are used little are joined first.
    n_groups : int
        How many groups to leave.
    layer : ndarray of int of shape (n_experts,), default=None
        The layer of each expert. Experts of different layers are never joined.
    least : list of int, default=None
        How many groups each layer keeps at least.

    Returns
    -------
    list of list of int
    """
    layer = np.zeros(len(usage), dtype=int) if layer is None else layer
    left = np.bincount(layer) - (1 if least is None else least)
    weight = usage + np.finfo(float).eps  # so that unused experts join the most similar group
    total = distance * np.outer(weight, weight)
    groups = [[expert] for expert in range(len(usage))]
    while len(groups) > n_groups:
        # The total is the mean distance times the product of the weights: only the sum is missing.
        cost = total / np.add.outer(weight, weight)
        np.fill_diagonal(cost, np.inf)
        own = layer[[group[0] for group in groups]]
        cost[(own[:, np.newaxis] != own) | (left[own] <= 0)] = np.inf
        one, other = sorted(np.unravel_index(cost.argmin(), cost.shape))
        left[own[one]] -= 1
        groups[one] += groups.pop(other)
        weight[one] += weight[other]
        total[one] += total[other]
        total[:, one] += total[:, other]
        weight = np.delete(weight, other)
        total = np.delete(np.delete(total, other, axis=0), other, axis=1)
    return groups


def shares_of(groups: list[list[int]], usage: NDArray) -> list[list[float]]:
    """Return the shares of the members of each group in its usage; equal ones if it is unused."""
    used = [usage[group] for group in groups]
    return [
        (own / own.sum() if own.sum() > 0 else np.full(len(own), 1 / len(own))).tolist()
        for own in used
    ]


def match_experts(one: NDArray, other: NDArray) -> NDArray[np.intp]:
    """Return the expert of the other fit that matches each expert of one fit.

    Parameters
    ----------
    one, other : ndarray of shape (n_samples, n_experts)
        Responsibilities of the experts of two fits for the same samples.

    Returns
    -------
    ndarray of shape (n_experts,)
        The permutation with the largest sum of mean products, by the Hungarian method.

    Examples
    --------
    >>> import numpy as np
    >>> match_experts(np.eye(3), np.eye(3)[:, [2, 0, 1]]).tolist()
    [1, 2, 0]
    """
    return linear_sum_assignment(one.T @ other, maximize=True)[1]
