"""Do neural experts find the regimes of images? Two data sets, two colours and four angles.

    python benchmarks/regimes_images.py --data FOLDER            # mnist.npz, fashion_mnist.npz
    python benchmarks/regimes_images.py --data FOLDER --seeds 1  # a quick look

- sets: MNIST and FashionMNIST share the ten labels; the regime is the data set.
- colours: MNIST digits are red or green, and in green the label is the digit plus 3, modulo 10.
- angles: MNIST digits are turned by k times 90 degrees, and the label is the digit plus 3 k,
  modulo 10; the regime is k.

In the rows with "components", the mixture reads a table: principal components of the pixels and,
in one row, the shares of black, white and four kinds of grey pixels, which only the gate reads.

There are 3,000 training and 2,000 test images. "Own" is the share of test images whose expert gets
most of its images from the same regime. "ARI" is the adjusted Rand index between ``apply`` and the
regime, and "alone" is the accuracy of the chosen expert alone. Each fit is a row of
``regimes_images.csv``, which is written as the fits end; the means over the seeds are printed.
"""

import argparse
import csv
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer

from sklearn_moe import LinearExperts, MLPExperts, MoEClassifier, SampleSimilarity

N_TRAIN, N_TEST = 3000, 2000
MOE = MoEClassifier(experts=MLPExperts((32,)))
ATTENTIVE = {"gate": "attentive"}
IMPORTANCE = {"regularization": "importance"}
SIMILAR = {"regularization": SampleSimilarity(1.0)}
LONG = {"experts": LinearExperts(l2=1e-3), "max_iter": 120, "n_init": 5}


def flatten(images):
    return images.reshape(len(images), -1)


def grey_shares(pixels):
    """Return the shares of black, dark, ..., bright and white pixels of each image."""
    edges = [0, 1, 64, 128, 192, 254, 256]
    return np.column_stack(
        [((low <= pixels) & (pixels < high)).mean(axis=1) for low, high in pairwise(edges)]
    )


PIXELS = PCA(30, random_state=0)
GREY = make_union(PIXELS, FunctionTransformer(grey_shares))
TABLE = {"experts": LinearExperts(l2=1e-3), "n_init": 40}
FOR_GREY = TABLE | {"expert_features": list(range(30)), "columns": GREY}
ROWS = {
    ("colours", "softmax, importance", 2): IMPORTANCE,
    ("colours", "softmax, sample similarity 1", 2): SIMILAR,
    ("colours", "attentive, sample similarity 1", 2): ATTENTIVE | SIMILAR,
    ("sets", "attentive, importance", 10): ATTENTIVE | IMPORTANCE,
    ("sets", "attentive, sample similarity 1", 10): ATTENTIVE | SIMILAR,
    ("sets", "attentive, sample similarity 1", 20): ATTENTIVE | SIMILAR,
    ("sets", "linear experts, 30 components", 2): TABLE | {"columns": PIXELS},
    ("sets", "linear experts, 30 components and grey values", 2): FOR_GREY,
    ("angles", "attentive, sample similarity 1", 4): ATTENTIVE | SIMILAR,
    ("angles", "linear experts, 120 epochs, 5 starts", 4): LONG,
}


def read(folder, name):
    file = np.load(folder / f"{name}.npz")
    return [(file[f"X_{part}"], file[f"y_{part}"]) for part in ("train", "test")]


def draw(task, data, seed):
    """Return images, labels and regimes for training and test."""
    rng, parts = np.random.RandomState(seed), []
    for part, n in enumerate((N_TRAIN, N_TEST)):
        n_regimes = {"sets": 2, "colours": 2, "angles": 4}[task]
        regime = rng.permutation(np.arange(n) % n_regimes)
        X, y = np.empty((n, 28, 28), np.uint8), np.empty(n, int)
        for name, rows in (
            ("mnist", (regime == 0) | (task != "sets")),
            ("fashion_mnist", (regime == 1) & (task == "sets")),
        ):
            images, labels = data[name][part]
            drawn = rng.permutation(len(images))[: rows.sum()]
            X[rows], y[rows] = images[drawn], labels[drawn]
        if task == "colours":
            coloured = np.zeros((n, 28, 28, 3), np.uint8)
            coloured[np.arange(n), :, :, regime] = X
            X = coloured
        if task == "angles":
            X = np.stack([np.rot90(image, k) for image, k in zip(X, regime, strict=True)])
        parts.append((X, y if task == "sets" else (y + 3 * regime) % 10, regime))
    return parts


def run(task, n_experts, params, data, seed):
    (X, y, _), (X_test, y_test, regime) = draw(task, data, seed)
    params = dict(params)
    columns = params.pop("columns", None)
    clf = clone(MOE).set_params(n_experts=n_experts, random_state=seed, **params)
    start = time.process_time()
    if columns is not None:
        columns = make_pipeline(FunctionTransformer(flatten), clone(columns))
        X, X_test = columns.fit_transform(X), columns.transform(X_test)
    clf.fit(X, y)
    seconds = time.process_time() - start
    chosen = clf.apply(X_test)
    own = sum(np.bincount(regime[chosen == e]).max() for e in np.unique(chosen)) / len(regime)
    answer = clf.expert_proba(X_test)[np.arange(len(chosen)), chosen].argmax(axis=1)
    return {
        "own": own,
        "ari": adjusted_rand_score(regime, chosen),
        "accuracy": clf.score(X_test, y_test),
        "alone": np.mean(clf.classes_[answer] == y_test),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=["sets", "colours", "angles"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()

    data = {name: read(args.data, name) for name in ("mnist", "fashion_mnist")}
    print("task | experts | mixture | own, mean | lowest | ARI, mean | lowest | accuracy | alone")
    print("---|---|---|---|---|---|---|---|---")
    with args.out.open("w", newline="") as file:
        writer = None
        for (task, name, n_experts), params in ROWS.items():
            if task not in args.tasks:
                continue
            results = []
            for seed in range(args.seeds):
                results.append(run(task, n_experts, params, data, seed))
                row = {"task": task, "mixture": name, "experts": n_experts, "seed": seed}
                row |= {key: round(float(value), 4) for key, value in results[-1].items()}
                if writer is None:
                    writer = csv.DictWriter(file, row, lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
            own, ari, accuracy, alone = (
                np.array([result[key] for result in results])
                for key in ("own", "ari", "accuracy", "alone")
            )
            print(
                f"{task} | {n_experts} | {name} | {own.mean():.3f} | {own.min():.3f} | "
                f"{ari.mean():.3f} | {ari.min():.3f} | {accuracy.mean():.3f} | {alone.mean():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
