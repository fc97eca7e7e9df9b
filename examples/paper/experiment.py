"""What the scripts of this folder share: the models of the paper, one run, and the results' file.

Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of Experts,
2023, arXiv 2302.14703.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.datasets import fetch_openml

from sklearn_moe import Importance, SampleSimilarity, decomposition_entropy, distill

COLUMNS = [
    "data",
    "settings",
    "model",
    "seed",
    "error",
    "one_expert_error",
    "train_error",
    "information",
    "sample_entropy",
    "usage_entropy",
    "n_experts",
    "n_parameters",
    "n_parameters_of_gate",
    "experts",
    "gate",
    "regularization",
    "augmentation",
    "epochs",
    "batch_size",
    "learning_rate",
    "learning_rate_schedule",
    "weight_decay",
    "n_train",
    "n_test",
]


def models(base, attentive_gate, importance, sample_similarity):
    """Return the paper's models: an ordinary mixture, and what is changed in the others."""
    gate, attentive = base.gate, {"gate": attentive_gate}
    regularizations = {
        "importance": {"regularization": Importance(importance)},
        "sample similarity": {
            "regularization": SampleSimilarity(sample_similarity, max_samples=base.batch_size)
        },
    }
    changes = {"single network": {"n_experts": 1}, "mixture": {}, "attentive": attentive}
    for name, regularization in regularizations.items():
        changes[f"mixture, {name}"] = regularization
        changes[f"attentive, {name}"] = attentive | regularization
    for top_k in (1, 2):
        changes[f"top-{top_k}"] = {"gate": clone(gate).set_params(top_k=top_k)}
    return {name: clone(base).set_params(**change) for name, change in changes.items()}


def run(data_name, settings, model_name, model, seed, data, students=True, extra=None):
    """Fit a model, and the student of an attentive one, and return rows of results."""
    X_train, y_train, X_test, y_test = data
    clf = clone(model).set_params(random_state=seed).fit(X_train, y_train)
    fitted = {model_name: clf}
    if students and "attentive" in model_name:
        fitted[f"{model_name}, distilled"] = distill(clf, X_train, y_train, top_k=None)
    rows = []
    for name, clf in fitted.items():
        measured = decomposition_entropy(clf, X_test)  # with the predicted classes, as the paper
        one_expert = clf.expert_proba(X_test, chosen_only=True).argmax(axis=1)
        n_parameters, of_gate = (
            sum(parameter.numel() for parameter in module.parameters())
            for module in (clf.module_, clf.module_.gate)
        )
        rows.append(
            {
                "data": data_name,
                "settings": settings,
                "model": name,
                "seed": seed,
                "error": 1 - clf.score(X_test, y_test),
                "one_expert_error": np.mean(clf.classes_[one_expert] != y_test),
                "train_error": 1 - clf.score(X_train, y_train),
                "information": measured.expert_class_information,
                "sample_entropy": measured.sample_entropy,
                "usage_entropy": measured.usage_entropy,
                "n_experts": clf.n_experts,
                "n_parameters": n_parameters,
                "n_parameters_of_gate": of_gate,
                **{
                    name: " ".join(repr(getattr(clf, name)).split())
                    for name in ("experts", "gate", "regularization", "augmentation")
                },
                "epochs": clf.n_iter_,
                "batch_size": clf.batch_size,
                "learning_rate": clf.learning_rate,
                "learning_rate_schedule": clf.learning_rate_schedule,
                "weight_decay": clf.weight_decay,
                "n_train": len(X_train),
                "n_test": len(X_test),
            }
        )
        if extra is not None:
            print(f"{name}, seed {seed}: split {extra(clf, X_test, y_test):.4f}", flush=True)
    return rows


def append(path, rows):
    """Append rows to the results."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            rounded = {
                name: f"{value:.5f}" if isinstance(value, float) else value
                for name, value in row.items()
            }
            writer.writerow(rounded)


def load(name, folder):
    """Return the images of a data set as bytes: X_train, y_train, X_test, y_test."""
    if folder is None:
        X, y = fetch_openml(OPENML[name], version=1, return_X_y=True, as_frame=False)
        X, y = X.astype(np.uint8), y.astype(int)
        if name == "cifar100":
            X, n_train = X.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), 50000
        else:
            X, n_train = X.reshape(-1, 28, 28), 60000
        return X[:n_train], y[:n_train], X[n_train:], y[n_train:]
    if name == "cifar100":
        parts = [
            np.load(folder / f"cifar100_{part}.npz") for part in ("train_0", "train_1", "test")
        ]
        X, y = [_images(part["D"]) for part in parts], [part["y"] for part in parts]
        return np.concatenate(X[:2]), np.concatenate(y[:2]), X[2], y[2]
    content = np.load(folder / f"{name}.npz")
    return tuple(content[key] for key in ("X_train", "y_train", "X_test", "y_test"))


def _images(differences):
    """Undo differences along rows and columns of the planes green, red - green, blue - green."""
    green, red, blue = differences.cumsum(-1, dtype=np.uint8).cumsum(-2, dtype=np.uint8)
    return np.stack([red + green, green, blue + green], axis=-1)


OPENML = {"mnist": "mnist_784", "fashion_mnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}


def standardize(X, mean, std):
    """Return images of bytes as float32, standardised as in the paper."""
    return ((X / np.float32(255) - np.float32(mean)) / np.float32(std)).astype(np.float32)


def main(description, data_name, read, make_models, extra=None):
    """Run what the command line asks for.

    ``read(folder)`` returns the data, ``make_models(settings)`` a dict of unfitted classifiers;
    ``extra(clf, X_test, y_test)`` is one more measure to print.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the data; else from openml.org")
    parser.add_argument("--settings", choices=["paper", "ours"], default="paper")
    parser.add_argument("--models", nargs="+", help="names of the models to run; else all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="another number of epochs")
    parser.add_argument("--samples", type=int, help="only so many training images")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV file to append to")
    parser.add_argument(
        "--students",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether attentive models are distilled, too",
    )
    parser.add_argument("--n-jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    every = make_models(args.settings)
    names = args.models or list(every)
    if unknown := set(names) - set(every):
        parser.error(f"unknown models {sorted(unknown)}; the names are {list(every)}")
    X_train, y_train, X_test, y_test = read(args.data)
    data = X_train[: args.samples], y_train[: args.samples], X_test, y_test
    for model in every.values():
        # One thread, as another number of them gives other bits; --n-jobs takes more processors.
        model.set_params(device=args.device, n_threads=1)
        if args.epochs is not None:
            model.set_params(max_iter=args.epochs)
    tasks = (
        delayed(run)(data_name, args.settings, name, every[name], seed, data, args.students, extra)
        for seed in args.seeds
        for name in names
    )
    results = Parallel(n_jobs=args.n_jobs, return_as="generator_unordered")(tasks)
    for rows in results:
        append(args.results, rows)
        for row in rows:
            print(
                f"{row['model']}, seed {row['seed']}: error {row['error']:.4f}, with one expert "
                f"{row['one_expert_error']:.4f}, I {row['information']:.2f}, H_s "
                f"{row['sample_entropy']:.3f}, H_u {row['usage_entropy']:.2f}",
                flush=True,
            )


RESULTS = Path(__file__).parent / "results.csv"
