"""Time predictions beside MLPClassifier, and experts that run beside experts that do not.

    python benchmarks/speed_predict.py

The first table is of the default settings: a table of 54 numbers that the mixture encodes itself.
It stands beside ``make_pipeline(StandardScaler(), MLPClassifier())``, whose default is one hidden
layer of 100 units, and beside one of as many parameters as the mixture has. All others have
``encoder=None``, and an ``MLPClassifier`` of as many parameters as experts and gate together.

Every figure is a ratio of times within one process: the median over pairs that take turns.
MLPClassifier has the better of one and two threads; ours chooses for itself.
"""

import argparse
import warnings

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import make_data, markdown, ratios

from sklearn_moe import MLPExperts, MoEClassifier


def fitted(X, y, n_experts, hidden, gate="softmax"):
    experts = MLPExperts((hidden,))
    clf = MoEClassifier(
        n_experts,
        experts=experts,
        gate=gate,
        encoder=None,
        max_iter=1,
        batch_size=2048,
        device="cpu",
        random_state=0,
    )
    return clf.fit(X[:4096], y[:4096])


def beside_mlp_classifier(n_samples, n_features, n_experts, hidden, options):
    X, y = make_data(max(n_samples, 4096), n_features, 7)
    ours = fitted(X, y, n_experts, hidden)
    n_units = round((ours.n_parameters_ - 7) / (n_features + 1 + 7))
    peer = MLPClassifier((n_units,), max_iter=1, batch_size=2048).fit(X[:4096], y[:4096])
    X = X[:n_samples]
    method = "predict" if n_samples == 1 else "predict_proba"
    found = ratios(
        lambda: getattr(ours, method)(X),
        {"MLPClassifier": lambda: getattr(peer, method)(X)},
        n_pairs=options.pairs,
        repeat=200 if n_samples == 1 else 1,
    )
    return found["MLPClassifier"]


def default_path(options):
    """Yield the time of predictions with the default settings beside both pipelines."""
    X, y = make_data(50_000, 54, 7)
    X = X.astype(np.float64)
    first = X[:4000], y[:4000]
    ours = MoEClassifier(max_iter=1, device="cpu", random_state=0).fit(*first)
    n_units = round((ours.n_parameters_ - 7) / (54 + 1 + 7))
    peers = {
        name: make_pipeline(
            StandardScaler(), MLPClassifier((units,), max_iter=1, batch_size=2048)
        ).fit(*first)
        for name, units in (("100 units", 100), (f"{n_units} units", n_units))
    }
    for n_samples, method in ((1, "predict"), (50_000, "predict_proba")):
        rows = X[:n_samples]
        found = ratios(
            lambda rows=rows, method=method: getattr(ours, method)(rows),
            {
                name: lambda peer=peer, rows=rows, method=method: getattr(peer, method)(rows)
                for name, peer in peers.items()
            },
            n_pairs=options.pairs if n_samples == 1 else max(1, options.pairs // 3),
            repeat=100 if n_samples == 1 else 1,
        )
        yield f"{method}, {n_samples} rows", *(found[name] for name in peers)


def top_1(n_features, options):
    """Return how much faster one of 64 experts is than all, and 64 than 4 with one of each."""
    X, y = make_data(4096, n_features, 7)
    experts = {
        (n_experts, gate): fitted(X, y, n_experts, 128, gate)
        for n_experts, gate in ((64, "hard"), (64, "softmax"), (4, "hard"))
    }
    functions = {key: lambda clf=clf: clf.predict_proba(X) for key, clf in experts.items()}
    peers = {key: functions[key] for key in ((64, "softmax"), (4, "hard"))}
    found = ratios(functions[64, "hard"], peers, n_pairs=options.pairs, repeat=3, choose=True)
    return 1 / found[64, "softmax"], found[4, "hard"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="number of pairs (default: 7)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that one epoch has not converged
    markdown(
        ["default settings, 54 numbers", "100 units", "as many parameters"], default_path(options)
    )
    print()
    header = ["predict_proba of many rows, predict of one; 54 features", "against MLPClassifier"]
    sizes = [
        (n_samples, n_experts, hidden)
        for n_samples in (50_000, 1)
        for n_experts, hidden in ((8, 16), (8, 64), (64, 128))
    ]
    markdown(
        header,
        (
            (
                f"{n_samples} rows, {n_experts} experts of {hidden}",
                beside_mlp_classifier(n_samples, 54, n_experts, hidden, options),
            )
            for n_samples, n_experts, hidden in sizes
        ),
    )
    print()
    header = ["top-1, 4096 rows, experts of 128", "64 experts, faster than dense", "64 against 4"]
    markdown(
        header, ((f"{features} features", *top_1(features, options)) for features in (54, 784))
    )
