"""The scores by which pruning keeps experts, in the mixture or in a hidden layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from sklearn_moe.gates import GateModule, GateOutput


def norm_change(gate: GateModule, name: str) -> NDArray[np.float64]:
    """Return how much the norm of each expert's weights in a gate has grown in training."""
    change = gate.norm_change()
    if change is None:
        raise ValueError(
            "method='router_norm' needs a gate with trained weights for each expert. "
            f"{name} has none (no norm_change), or had its experts merged. Distil an attentive "
            "gate first, or take another method."
        )
    return change.cpu().numpy().astype(np.float64)


def gate_weights(gate: GateModule, name: str) -> NDArray[np.float64]:
    """Return the weights (n_experts, n_numbers) with which a gate scores the experts."""
    weights = gate.expert_weights
    if weights is None:
        raise ValueError(
            "similarity='gate' needs a gate with weights for each expert. "
            f"{name} has none, or had its experts merged. Take another similarity."
        )
    return weights.detach().cpu().numpy().astype(np.float64)


def name_of_gate(net: Any, layer: int | None = None) -> str:
    """Return what errors call the gate of a mixture, or of a hidden layer."""
    return repr(net.gate) if layer is None else f"The gate of hidden layer {layer}"


def heavy_hitters(
    net: Any, X: Any, y: NDArray | None, counting: str, layer: int | None = None
) -> NDArray[np.float64]:
    """Return how many samples each expert gets; with labels, its largest share of a class."""

    def scores(module, x):
        if layer is None:
            output = module.route(x)
        else:
            part = module(x).layers[layer]
            output = GateOutput(part.gate_logits, part.gate_proba.log(), part.routing)
        return output.logits if counting == "soft" else output.log_proba

    found = net.evaluate(X, scores)
    gate = net.module_.gate if layer is None else net.module_.layers[layer].gate
    if counting == "soft":
        got = softmax(found.astype(np.float64), axis=1)
    elif gate.top_k is None:
        got = np.eye(found.shape[1])[found.argmax(axis=1)]
    else:
        got = found > -np.inf
    if y is None:
        return got.sum(axis=0)
    return np.max([got[y == label].mean(axis=0) for label in np.unique(y)], axis=0)


def scores_of(
    net: Any,
    method: str,
    X: Any,
    y: NDArray | None,
    counting: str,
    random_state: np.random.RandomState,
    layer: int | None = None,
) -> NDArray[np.float64]:
    """Return the score of each expert of a mixture, or of a hidden layer, by a method."""
    mixture = net.module_ if layer is None else net.module_.layers[layer]
    if method == "router_norm":
        return norm_change(mixture.gate, name_of_gate(net, layer))
    if method == "heavy_hitters":
        return heavy_hitters(net, X, y, counting, layer)
    return random_state.random(len(mixture.experts.costs))
