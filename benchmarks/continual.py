"""Tasks that come one after the other: does a mixture that grows forget the first ones?

    python benchmarks/continual.py                # downloads the data through scikit-learn
    python benchmarks/continual.py --data FOLDER  # reads FOLDER/mnist.npz and covertype.csv.gz
    python benchmarks/continual.py --quick        # few samples and epochs

Split MNIST has five tasks of two digits each. The drifting table is the forest cover table in
five parts from the lowest to the highest land; each part has its own mix of the same seven
classes. No method is told to which task a test sample belongs.

- grow: a mixture of one expert, and ``grow`` with one more for each task, without old samples
- grow, memory: the same, with a few kept samples of each class and former task
- sequence: one network with as many hidden units in all, which trains on one task after the other
- replay: the same, with the kept samples among those of each new task
- at once: the same network on all tasks together, which no method in sequence can expect to beat

Shown are the accuracy on all test samples of the tasks so far, after each task; then the
forgetting, which is by how much the accuracy on a task fell from its best to the end, as a mean
over all tasks but the last; and the seconds of training. Means over the seeds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import fetch_covtype, fetch_openml
from sklearn.model_selection import train_test_split

from sklearn_moe import MLPExperts, MoEClassifier, grow

N_TASKS = 5
HIDDEN = 64  # units of an expert


def split_mnist(folder, n_samples, seed):
    if folder is None:
        X, y = fetch_openml("mnist_784", return_X_y=True, as_frame=False)
        y = y.astype(int)
        X_train, y_train, X_test, y_test = X[:60000], y[:60000], X[60000:], y[60000:]
    else:
        file = np.load(folder / "mnist.npz")
        X_train, y_train, X_test, y_test = (
            file[name] for name in ("X_train", "y_train", "X_test", "y_test")
        )
    chosen = np.random.RandomState(seed).permutation(len(X_train))[:n_samples]
    X_train, y_train = X_train[chosen], y_train[chosen]
    X_train, X_test = (X.reshape(len(X), -1).astype(np.float32) / 255 for X in (X_train, X_test))
    return X_train, y_train, y_train // 2, X_test, y_test, y_test // 2


def drifting_table(folder, n_samples, seed):
    if folder is None:
        X, y = fetch_covtype(return_X_y=True)
    else:
        table = pd.read_csv(folder / "covertype.csv.gz")
        y = table.pop("target").to_numpy()
        X = table.to_numpy()
    X = X.astype(np.float32)
    X, _, y, _ = train_test_split(X, y, train_size=2 * n_samples, stratify=y, random_state=seed)
    height = X[:, 0]  # the first column is the elevation
    task = np.searchsorted(np.quantile(height, np.arange(1, N_TASKS) / N_TASKS), height)
    parts = train_test_split(X, y, task, test_size=0.5, stratify=task, random_state=seed)
    X_train, X_test, y_train, y_test, task_train, task_test = parts
    return X_train, y_train, task_train, X_test, y_test, task_test


def kept(X, y, task, n_tasks, n_kept):
    """Return a few samples of each class of each former task."""
    rows = [
        np.flatnonzero((task == t) & (y == label))[:n_kept]
        for t in range(n_tasks)
        for label in np.unique(y)
    ]
    rows = np.concatenate(rows)
    return X[rows], y[rows]


def after_each_task(method, data, n_kept, epochs, seed):
    """Yield the fitted classifier after each task."""
    X, y, task = data
    classes = np.unique(y)
    clf = MoEClassifier(
        1,
        experts=MLPExperts((HIDDEN if method.startswith("grow") else N_TASKS * HIDDEN,)),
        max_iter=epochs,
        random_state=seed,
    )
    for t in range(N_TASKS):
        X_new, y_new = X[task == t], y[task == t]
        memory = kept(X, y, task, t, n_kept) if t > 0 else None
        if method == "at once":
            clf = clf.fit(X[task <= t], y[task <= t])
        elif method.startswith("grow") and t == 0:
            clf = clf.fit(X_new, y_new)
        elif method.startswith("grow"):
            clf = grow(clf, X_new, y_new, memory=memory if method != "grow" else None)
        else:
            if method == "replay" and t > 0:
                X_new = np.concatenate([X_new, memory[0]])
                y_new = np.concatenate([y_new, memory[1]])
            for _ in range(epochs):
                clf.partial_fit(X_new, y_new, classes=classes)
        yield clf


def measure(method, data, n_kept, epochs, seed):
    """Return accuracies (task, after task), those on all tasks so far, and the seconds."""
    *train, X_test, y_test, task_test = data
    accuracy, so_far, seconds = np.full((N_TASKS, N_TASKS), np.nan), [], 0.0
    start = time.perf_counter()
    for t, clf in enumerate(after_each_task(method, train, n_kept, epochs, seed)):
        seconds += time.perf_counter() - start
        correct = clf.predict(X_test[task_test <= t]) == y_test[task_test <= t]
        so_far.append(correct.mean())
        for former in range(t + 1):
            accuracy[former, t] = correct[task_test[task_test <= t] == former].mean()
        start = time.perf_counter()
    forgetting = np.mean(np.nanmax(accuracy[:-1], axis=1) - accuracy[:-1, -1])
    return [*so_far, forgetting, seconds]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with mnist.npz and covertype.csv.gz")
    parser.add_argument("--samples", type=int, default=20000, help="training samples of all tasks")
    parser.add_argument("--epochs", type=int, default=20, help="epochs for each task")
    parser.add_argument("--kept", type=int, default=20, help="kept samples per class and task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.epochs, args.seeds = 2000, 5, 1

    methods = ["grow", f"grow, memory of {args.kept}", "sequence", "replay", "at once"]
    for name, load in (("split MNIST", split_mnist), ("drifting table", drifting_table)):
        print(f"{name} | 1 | 2 | 3 | 4 | 5 tasks | forgetting | seconds")
        print("---|" + "---|" * 7)
        for method in methods:
            rows = [
                measure(method, load(args.data, args.samples, seed), args.kept, args.epochs, seed)
                for seed in range(args.seeds)
            ]
            *accuracies, seconds = np.mean(rows, axis=0)
            cells = [*(f"{value:.3f}" for value in accuracies), f"{seconds:.0f}"]
            print(f"{method} | " + " | ".join(cells), flush=True)
        print()


if __name__ == "__main__":
    main()
