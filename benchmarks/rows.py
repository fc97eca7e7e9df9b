"""The default over the number of training rows, beside gradient boosting.

    python benchmarks/rows.py                                       # made tables
    python benchmarks/rows.py --data FOLDER --tables adult covertype --rows 1000 4000 15000 50000
    python benchmarks/rows.py --tables thresholds --weight-decay auto 0.2 0.02
    python benchmarks/rows.py --tables rules --rows 500000 --batch-size auto 2048

FOLDER is as in tabular.py; a quarter of a table's rows is left for the test. Two tables need
none: "thresholds", six columns whose classes change at sharp thresholds, and "rules", 30 columns
of which one chooses among three linear rules. Each line has error and log loss, our error as a
part of that of HistGradientBoostingClassifier(l2_regularization=1), CPU seconds of a fit and how
many times its own they are, and the share of subnormal numbers among our weights: a decay that
kills weights leaves them, and processors are slow with them.
"""

import argparse
import itertools
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from tabular import split, tables
from timing import markdown, threads

from sklearn_moe import MoEClassifier


def thresholds(n_rows, random):
    """Return six columns and two classes by the sum of 60 trees; the best error is about .18."""
    rule = np.random.RandomState(0)
    X, logit = random.uniform(size=(n_rows, 6)), np.zeros(n_rows)
    for _ in range(60):
        leaf = (X[:, rule.randint(6, size=3)] > rule.uniform(0.05, 0.95, size=3)) @ [1, 2, 4]
        logit += rule.normal(size=8)[leaf] / 2.2
    return X, random.uniform(size=n_rows) < 1 / (1 + np.exp(-logit))


def rules(n_rows, random):
    """Return 30 columns, of which the first chooses a linear rule; 6 % of the labels are wrong."""
    rule = np.random.RandomState(0)
    weights = rule.normal(size=(3, 30)) * (rule.uniform(size=(3, 30)) < 0.3)
    X = random.normal(size=(n_rows, 30))
    scores = (X * weights[np.digitize(X[:, 0], [-0.45, 0.45])]).sum(axis=1)
    return X, (scores > 0) ^ (random.uniform(size=n_rows) < 0.06)


MADE = {"thresholds": thresholds, "rules": rules}


def parts(name, folder, n_rows, n_test, seed):
    """Return X_train, X_test, y_train, y_test."""
    if name in MADE:
        X, y = MADE[name](n_rows + n_test, np.random.RandomState(seed))
        return X[:n_rows], X[n_rows:], y[:n_rows], y[n_rows:]
    X, y = tables(folder)[name]()
    if name == "bank_marketing":
        X = X.drop(columns="duration")  # known only after the call
    return split(X, y, seed, n_rows, n_test)[1:]


def run(clf, X_train, X_test, y_train, y_test):
    """Return error, log loss and CPU seconds of the fit."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(X_train, y_train)
    seconds = time.process_time() - start
    proba = clf.predict_proba(X_test).astype(float)
    proba /= proba.sum(axis=1, keepdims=True)
    error = np.mean(clf.classes_[proba.argmax(axis=1)] != y_test)
    return error, log_loss(y_test, proba, labels=clf.classes_), seconds


def subnormal_share(clf):
    weights = torch.cat([weight.detach().flatten() for weight in clf.module_.parameters()])
    tiny = torch.finfo(weights.dtype).tiny
    return ((weights != 0) & (weights.abs() < tiny)).double().mean().item()


def auto_or(kind):
    return lambda text: text if text == "auto" else kind(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tables.json")
    parser.add_argument("--tables", nargs="+", default=list(MADE))
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000, 15_000, 50_000])
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--weight-decay", type=auto_or(float), nargs="+", default=["auto"])
    parser.add_argument("--batch-size", type=auto_or(int), nargs="+", default=["auto"])
    parser.add_argument("--max-iter", type=auto_or(int), default="auto")
    args = parser.parse_args()
    markdown(
        [
            "table, rows, epochs, weight decay, batches",
            *("error, %", "log loss", "of boosting's"),
            *("boosting's error, %", "log loss"),
            *("seconds", "times boosting's", "subnormal, %"),
        ],
        rows(args),
    )


def rows(args):
    for name, n_rows in itertools.product(args.tables, args.rows):
        data = {seed: parts(name, args.data, n_rows, args.test_rows, seed) for seed in args.seeds}
        peers = {
            seed: run(
                HistGradientBoostingClassifier(l2_regularization=1, random_state=seed), *each
            )
            for seed, each in data.items()
        }
        peer_error, peer_loss, peer_seconds = np.mean(list(peers.values()), axis=0)
        for decay, batch_size in itertools.product(args.weight_decay, args.batch_size):
            ours, shares = [], []
            for seed, each in data.items():
                clf = MoEClassifier(
                    weight_decay=decay,
                    batch_size=batch_size,
                    max_iter=args.max_iter,
                    random_state=seed,
                )
                ours.append(run(clf, *each))
                shares.append(subnormal_share(clf))
            error, loss, seconds = np.mean(ours, axis=0)
            net = clf.net_
            yield [
                f"{name}, {len(each[0])}, {net.max_epochs}, {net.optimizer__weight_decay:.2g}, "
                f"{net.batch_size}",
                *(100 * error, f"{loss:.3f}", error / peer_error),
                *(100 * peer_error, f"{peer_loss:.3f}"),
                *(seconds, seconds / peer_seconds, 100 * max(shares)),
            ]


if __name__ == "__main__":
    with threads(1):
        main()
