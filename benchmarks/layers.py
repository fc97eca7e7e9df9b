"""Hidden layers of experts: depth, gating residuals, cheap experts and orthogonal ones.

    python benchmarks/layers.py --data FOLDER           # letter, satimage and FashionMNIST
    python benchmarks/layers.py --data FOLDER --seeds 1  # a quick look
    python benchmarks/layers.py --data FOLDER --prune    # half of the experts of "two layers"

Each row is an encoder of residual blocks, each with 8 experts of which two answer for a sample,
before one linear layer for the classes. So all experts are in hidden layers. "one layer" has as
many parameters as "two layers", by twice the number of experts. In the rows with cheap experts,
half of the eight are cheap, and ``tau`` decides how many samples go to them. All other rows have
the regularization "importance" (0.2) over the layers.

4,000 training rows of a table, 6,000 images. H_s and I(E;Y) are means over the layers. "ordinary"
is the share of the choices that fall on ordinary experts. "time" is that of the layers for
8,192 samples in prediction, relative to "two layers": the median over pairs of runs that take
turns, one thread.

With --prune, 8 of the 16 hidden experts of "two layers" are left, by one ranking over both layers,
of mixtures with and without the regularization: the error before, after, and after five epochs of
fine-tuning with the penalty "entropy".
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from timing import threads

from sklearn_moe import (
    Importance,
    MLPExperts,
    MoEClassifier,
    MoELayers,
    ZeroComputationBalance,
    decomposition_entropy,
    prune_experts,
)

TWO = MoELayers(2)


def cheap(tau, **params):
    encoder = clone(TWO).set_params(experts="zero_computation", **params)
    return encoder, ZeroComputationBalance(0.1, tau=tau)


ROWS = {
    "one layer": (MoELayers(1, n_experts=16), Importance(0.2)),
    "two layers": (TWO, Importance(0.2)),
    "two layers, no gating residual": (
        clone(TWO).set_params(gating_residual=False),
        Importance(0.2),
    ),
    "two layers, orthogonal experts": (
        clone(TWO).set_params(experts="orthogonal"),
        Importance(0.2),
    ),
    "two layers, orthogonal outputs": (clone(TWO).set_params(orthogonal=True), Importance(0.2)),
    "two layers, MPO experts": (clone(TWO).set_params(experts="mpo"), Importance(0.2)),
    "two layers, cheap experts, tau 0.75": cheap(0.75),
    "two layers, cheap experts, tau 0.25": cheap(0.25),
    "the same, no gating residual": cheap(0.25, gating_residual=False),
}


def draw(folder, name, seed):
    """Return training and test samples."""
    if name == "FashionMNIST":
        file, random = np.load(folder / "fashion_mnist.npz"), np.random.RandomState(seed)
        rows = random.permutation(len(file["y_train"]))[:6000]
        return file["X_train"][rows], file["X_test"], file["y_train"][rows], file["y_test"]
    table = pd.read_csv(folder / f"{name}.csv.gz")
    X, y = table.iloc[:, :-1], table.iloc[:, -1].to_numpy()
    return train_test_split(X, y, train_size=4000, stratify=y, random_state=seed)


def measure(clf, X, y):
    """Return error, log loss, and H_s, I(E;Y) and the share of ordinary experts in the layers."""
    proba = clf.predict_proba(X)
    layers = decomposition_entropy(clf, X, y).layers
    ordinary = [
        (clf.gate_proba(X, layer=number) > 0)[:, module.experts.is_ordinary].sum(axis=1).mean() / 2
        for number, module in enumerate(clf.module_.layers)
    ]
    return (
        100 * np.mean(clf.classes_[proba.argmax(axis=1)] != y),
        log_loss(y, proba, labels=clf.classes_),
        np.mean([layer.sample_entropy for layer in layers]),
        np.mean([layer.expert_class_information for layer in layers]),
        np.mean(ordinary),
    )


@torch.no_grad()
def times(fitted, X, n_pairs=7):
    """Return the time of the layers for the samples, relative to "two layers"."""
    seconds, inputs = {name: [] for name in fitted}, {}
    for name, clf in fitted.items():
        samples = torch.as_tensor(clf.reader_.read(X, clf))
        inputs[name] = clf.module_.table(samples).float()[torch.arange(8192) % len(samples)]
    with threads(1):
        for _ in range(n_pairs + 1):
            for name, clf in fitted.items():
                start = time.perf_counter()
                clf.module_.encoder(inputs[name])
                seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds["two layers"][1:])
    return {name: np.median(np.array(own[1:]) / base) for name, own in seconds.items()}


METHODS = {
    "random": {"method": "random"},
    "router norm": {"method": "router_norm"},
    "heavy hitters": {"method": "heavy_hitters"},
    "similarity": {"method": "similarity"},
    "similarity of weights": {"method": "similarity", "similarity": "weights"},
}


def prune(args):
    """Print how the methods of pruning compare, for each set and regularization."""
    for name in args.sets:
        for regularization in (None, Importance(0.2)):
            found = {method: [] for method in METHODS}
            for seed in range(args.seeds):
                X, X_test, y, y_test = draw(args.data, name, seed)
                clf = MoEClassifier(
                    1,
                    encoder=TWO,
                    experts=MLPExperts(()),
                    regularization=regularization,
                    random_state=seed,
                ).fit(X, y)
                for method, params in METHODS.items():
                    common = {**params, "n_hidden_experts": 8, "X": X, "y": y}
                    common["random_state"] = seed
                    small = prune_experts(clf, **common)
                    tuned = prune_experts(clf, **common, fine_tune=True, max_iter=5)
                    found[method].append(
                        [100 * (1 - each.score(X_test, y_test)) for each in (clf, small, tuned)]
                    )
            print(f"\n{name}, {regularization}\n\n| method | before | after | fine-tuned |")
            print("|---|---:|---:|---:|")
            for method, errors in found.items():
                cells = " | ".join(f"{each:.2f}" for each in np.mean(errors, axis=0))
                print(f"| {method} | {cells} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data")
    parser.add_argument("--sets", nargs="+", default=["letter", "satimage", "FashionMNIST"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prune", action="store_true", help="prune the hidden layers instead")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "The gate has collapsed")
    if args.prune:
        return prune(args)
    for name in args.sets:
        found, relative = {row: [] for row in ROWS}, []
        for seed in range(args.seeds):
            X, X_test, y, y_test = draw(args.data, name, seed)
            fitted = {}
            for row, (encoder, regularization) in ROWS.items():
                clf = MoEClassifier(
                    1,
                    encoder=encoder,
                    experts=MLPExperts(()),
                    regularization=regularization,
                    random_state=seed,
                ).fit(X, y)
                fitted[row] = clf
                found[row].append(measure(clf, X_test, y_test))
            relative.append(times(fitted, X_test))
        print(f"\n{name}\n")
        header = ["error, %", "sd", "log loss", "H_s", "I(E;Y)", "ordinary", "parameters", "time"]
        print("| " + " | ".join(["encoder", *header]) + " |")
        print("|---|" + "---:|" * len(header))
        for row, runs in found.items():
            means, spread = np.mean(runs, axis=0), np.std(runs, axis=0)
            cells = [f"{means[0]:.2f}", f"{spread[0]:.2f}", *(f"{each:.3f}" for each in means[1:])]
            ratio = np.median([each[row] for each in relative])
            cells += [f"{fitted[row].n_parameters_:,}", f"{ratio:.2f}"]
            print("| " + " | ".join([row, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
