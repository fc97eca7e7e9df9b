"""Prune the hidden layers of experts, by one ranking of the experts of all layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.spatial.distance import cdist

from sklearn_moe.expert_scores import gate_weights, name_of_gate
from sklearn_moe.grouping import cka, group_experts, shares_of
from sklearn_moe.training.batches import evenly

# Experts, and the units of experts, are compared on at most this many evenly spaced samples.
SAMPLES_TO_COMPARE = 2048


def check_hidden(model: Any, n_experts: int) -> None:
    """Check how many experts are left in all hidden layers together."""
    layers = model.module_.layers
    if not layers:
        raise ValueError(
            f"n_hidden_experts={n_experts}, but there are no hidden layers of experts. Pass "
            "n_experts, or fit with encoder='moe'."
        )
    least, present = sum(_least(layers)), sum(len(layer.experts.costs) for layer in layers)
    if not least <= n_experts <= present:
        raise ValueError(
            f"n_hidden_experts={n_experts} must be between {least}, as each layer keeps as many "
            f"as answer for a sample, and {present}, the present number in all layers."
        )


def _least(layers):
    return [max(1, layer.gate.top_k or 1) for layer in layers]


def keep_highest(net: Any, scores: list[NDArray], n_experts: int) -> list[list[list[int]]]:
    """Keep the experts with the highest scores of all hidden layers, and return them as groups.

    Each layer keeps as many as answer for a sample, and its best ordinary expert among them.
    """
    layers = net.module_.layers
    least = _least(layers)
    ranks = [
        _ranks(own, layer.experts.is_ordinary) for own, layer in zip(scores, layers, strict=True)
    ]
    is_needed = np.concatenate([own < n for own, n in zip(ranks, least, strict=True)])
    layer = np.repeat(np.arange(len(scores)), [len(own) for own in scores])
    # Those that a layer needs come first.
    order = np.lexsort((-np.concatenate(scores), ~is_needed))[:n_experts]
    first = np.cumsum([0, *map(len, scores)])
    kept = [np.sort(order[layer[order] == i] - first[i]).tolist() for i in range(len(scores))]
    net.change_layers("keep", kept)
    return [[[expert] for expert in own] for own in kept]


def _ranks(scores, is_ordinary):
    """Return the ranks of a layer's experts: the best ordinary one first, then by their scores."""
    order = np.argsort(-scores, kind="stable")
    best = order[np.asarray(is_ordinary)[order]][0]
    return np.argsort([best, *order[order != best]])


def group_similar(
    net: Any, X: Any, n_experts: int, similarity: str, reduce: str
) -> list[list[list[int]]]:
    """Group the similar experts of each hidden layer, and replace each group by one expert."""
    layers = net.module_.layers
    outputs: Any = [None] * len(layers) if X is None else _outputs(net, X)
    distances, usages = [], []
    for number, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        n_own = len(layer.experts.costs)
        usages.append(np.full(n_own, 1 / n_own) if output is None else output[0].mean(axis=0))
        distance = _distance(net, number, output, similarity)
        # Weights of layers of other scales would not be comparable.
        distances.append(distance / (distance.mean() or 1.0))
    sizes = [len(own) for own in usages]
    of_layer = np.repeat(np.arange(len(layers)), sizes)
    found = group_experts(
        block_diag(*distances), np.concatenate(usages), n_experts, of_layer, _least(layers)
    )
    first = np.cumsum([0, *sizes])
    groups: list[list[list[int]]] = [[] for _ in layers]
    for group in found:
        i = of_layer[group[0]]
        own = [int(each - first[i]) for each in group]
        groups[i].append(sorted(own, key=lambda each: -usages[i][each]))
    for own, usage, layer in zip(groups, usages, layers, strict=True):
        _let_one_be_ordinary(own, usage, layer.experts.is_ordinary)
    groups = [sorted(own) for own in groups]
    shares = [shares_of(own, usage) for own, usage in zip(groups, usages, strict=True)]
    can_merge = X is not None and all(layer.experts.can_merge for layer in layers)
    merges = reduce == "merge" or (reduce == "auto" and can_merge)
    inputs = None
    if merges:
        inputs = [torch.from_numpy(output[2]).to(net.device) for output in outputs]
    net.change_layers("merge", groups, shares, inputs)
    return groups


def _let_one_be_ordinary(groups, usage, is_ordinary):
    """Let an ordinary expert stand for its group, unless one stands for another group."""
    if any(is_ordinary[group[0]] for group in groups):
        return
    best = max(np.flatnonzero(is_ordinary), key=lambda expert: usage[expert])
    for group in groups:
        if best in group:
            group.remove(best)
            group.insert(0, int(best))


def _outputs(net, X):
    """Return gate probabilities, outputs and inputs of each hidden layer for some samples."""
    X = X[evenly(len(X), SAMPLES_TO_COMPARE)]

    def part(number, name):
        return net.evaluate(X, lambda module, x: getattr(module(x).layers[number], name))

    return [
        tuple(part(number, name) for name in ("gate_proba", "expert_logits", "x"))
        for number in range(len(net.module_.layers))
    ]


def _distance(net, number, output, similarity):
    """Return how different each pair of a layer's experts is."""
    layer = net.module_.layers[number]
    if similarity == "weights":
        return layer.experts.distances().numpy()
    if similarity == "gate":
        weights = gate_weights(layer.gate, name_of_gate(net, number))
        return cdist(weights, weights, "sqeuclidean")
    gate_proba, vectors = (each.astype(np.float64) for each in output[:2])
    if similarity == "cka":
        return 1 - cka(vectors)
    return vector_distance(vectors, gate_proba)


def vector_distance(vectors: NDArray, gate_proba: NDArray) -> NDArray[np.float64]:
    """Return the mean squared distance of each pair's outputs, on the samples that it gets."""
    n_experts = gate_proba.shape[1]
    distance = np.zeros((n_experts, n_experts))
    for one in range(n_experts):
        for other in range(one):
            weight = gate_proba[:, one] + gate_proba[:, other]
            squares = np.square(vectors[:, one] - vectors[:, other]).sum(axis=1)
            if weight.any():
                distance[one, other] = distance[other, one] = np.average(squares, weights=weight)
    return distance
