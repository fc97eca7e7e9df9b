"""What each regularization adds to the time of a training.

    python benchmarks/speed_regularization.py

Every figure is a ratio of times within one process: the median over pairs of fits that take turns,
with and without the regularization, on as many features as MNIST has and in batches of 512. The
last column is the closed form of the sample similarity beside the sums over pairs of samples and
experts that it stands for.
"""

import argparse

import torch
from timing import make_data, markdown, ratios

from sklearn_moe import REGULARIZERS, MoEClassifier, SampleSimilarity
from sklearn_moe.mixture import MixtureOutput


def added_by(name, X, y, gate, options):
    """Return by how much a regularization multiplies the time of a fit."""

    def fit(regularization):
        return lambda: MoEClassifier(
            n_experts=options.experts,
            gate=gate,
            regularization=regularization,
            encoder=None,
            batch_size=options.batch,
            max_iter=3,
            device="cpu",
            random_state=0,
        ).fit(X, y)

    found = ratios(fit(name), {"none": fit(None)}, n_pairs=options.pairs, choose=True)
    return found["none"]


def in_loops(gate_proba, x):
    """Sample similarity as the paper writes it: a sum over pairs of experts."""
    distance = torch.cdist(x, x)
    n_experts = gate_proba.shape[1]
    same = sum(
        (gate_proba[:, e].outer(gate_proba[:, e]) * distance).sum() for e in range(n_experts)
    )
    different = sum(
        (gate_proba[:, e].outer(gate_proba[:, other]) * distance).sum()
        for e in range(n_experts)
        for other in range(n_experts)
        if other != e
    )
    return n_experts * same / (same + different)


def loop_over_closed_form(X, options):
    x = torch.from_numpy(X[: options.batch])
    weight, penalty = torch.ones(len(x)), SampleSimilarity(1.0)
    logits = torch.randn(len(x), options.experts, requires_grad=True)

    def closed():
        gate_proba = logits.softmax(dim=1)
        mixture = MixtureOutput(None, logits, gate_proba, None, None, None)
        penalty(mixture, x, None, weight).backward()

    found = ratios(
        closed,
        {"loops": lambda: in_loops(logits.softmax(dim=1), x).backward()},
        n_pairs=options.pairs,
        repeat=3,
    )
    return 1 / found["loops"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="number of pairs (default: 7)")
    parser.add_argument("--batch", type=int, default=512, help="batch size (default: 512)")
    parser.add_argument("--experts", type=int, default=8, help="experts of 64 units (default: 8)")
    options = parser.parse_args()
    X, y = make_data(10 * options.batch, 784, 10)
    rows = (
        (name, *(added_by(name, X, y, gate, options) for gate in ("noisy_top_k", "attentive")))
        if name != "load"
        else (name, added_by(name, X, y, "noisy_top_k", options), "")
        for name in REGULARIZERS
    )
    markdown(["fit with it, against without", "noisy top-k gate", "attentive gate"], rows)
    print(f"\nclosed form of the sample similarity: {loop_over_closed_form(X, options):.0f} times")
    print("as fast as the sums over pairs of samples and of experts")
