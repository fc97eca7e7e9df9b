"""Default settings on tables: ours beside its peers, on any folder of tables.

    python benchmarks/tabular.py                             # scikit-learn's own data sets
    python benchmarks/tabular.py --data FOLDER --results tabular.csv
    python benchmarks/tabular.py --report --results tabular.csv --picture tabular.png

FOLDER has a file tables.json, which says for each table its "file" (CSV), its "target" and which
columns are "categorical". All models see the same splits. Each fit adds a row to the results, and
rows that are there are not computed again. Peers that are not installed (catboost, lightgbm,
pytabkit) are left out.
"""

import argparse
import csv
import itertools
import json
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from sklearn_moe import MoEClassifier, decomposition_entropy, tune

# Ours again, which the picture of the ranks leaves out.
TUNED = ["MoEClassifier, tuned", "MoEClassifier, tuned, ensemble"]
VARIANTS = [*TUNED, "MoEClassifier in a pipeline"]

COLUMNS = ["table", "model", "split", "n_train", "error", "log_loss", "usage", "fit", "predict"]


def with_numbers(clf, *, scale=True):
    """Return a classifier behind the usual pipeline: imputation, scaling, encoding."""
    numbers = [SimpleImputer(strategy="median", keep_empty_features=True)]
    missing = SimpleImputer(strategy="constant", fill_value="missing")
    if scale:
        numbers.append(StandardScaler())
        encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    else:
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer(
        (make_pipeline(*numbers), make_column_selector(dtype_include="number")),
        (make_pipeline(missing, encoder), make_column_selector(dtype_exclude="number")),
    )
    return make_pipeline(columns, clf)


def tuned(seed, refit=True):
    class Tuned:
        def fit(self, X, y):
            cv = StratifiedKFold(3, shuffle=True, random_state=seed)
            clf = MoEClassifier(random_state=seed)
            options = {"n_trials": 30, "refit": refit, "random_state": seed}
            return tune(clf, X, y, cv=cv, **options).best_estimator_

    return Tuned()


def cat_boost(seed):
    from catboost import CatBoostClassifier

    class CatBoost(CatBoostClassifier):
        def fit(self, X, y):
            return super().fit(_as_text(X), y, cat_features=_categorical(X))

        def predict_proba(self, X):
            return super().predict_proba(_as_text(X))

    return CatBoost(random_seed=seed, verbose=0, thread_count=1, allow_writing_files=False)


def light_gbm(seed):
    from lightgbm import LGBMClassifier

    return LGBMClassifier(random_state=seed, n_jobs=1, verbose=-1)


def from_pytabkit(name, seed):
    import pytabkit

    class Net(getattr(pytabkit, name)):
        def fit(self, X, y):
            self.medians_ = X.median(numeric_only=True)  # it takes no missing numbers
            names = _categorical(X)
            return super().fit(_as_text(X.fillna(self.medians_)), y, cat_col_names=names)

        def predict_proba(self, X):
            return super().predict_proba(_as_text(X.fillna(self.medians_)))

    return Net(device="cpu", random_state=seed, n_threads=1, verbosity=0)


def _categorical(X):
    return [name for name in X if X[name].dtype == "category"]


def _as_text(X):
    """Return a frame with categories as text, a missing one as a category of its own."""
    text = {name: X[name].astype(object).where(X[name].notna(), "?") for name in _categorical(X)}
    return X.assign(**{name: column.astype(str) for name, column in text.items()})


MODELS = {
    "MoEClassifier": lambda seed: MoEClassifier(random_state=seed),
    "MoEClassifier, tuned": tuned,
    "MoEClassifier, tuned, ensemble": lambda seed: tuned(seed, "ensemble"),
    "MoEClassifier in a pipeline": lambda seed: with_numbers(MoEClassifier(random_state=seed)),
    "logistic regression": lambda seed: with_numbers(LogisticRegression(max_iter=1000)),
    "MLPClassifier": lambda seed: with_numbers(MLPClassifier(random_state=seed)),
    "MLPClassifier, early stopping": lambda seed: with_numbers(
        MLPClassifier(random_state=seed, early_stopping=True)
    ),
    "random forest": lambda seed: with_numbers(
        RandomForestClassifier(random_state=seed), scale=False
    ),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(
        l2_regularization=1, random_state=seed
    ),
    "LightGBM": light_gbm,
    "CatBoost": cat_boost,
    "RealMLP": lambda seed: from_pytabkit("RealMLP_TD_Classifier", seed),
    "TabM": lambda seed: from_pytabkit("TabM_D_Classifier", seed),
}
NEEDS = {"LightGBM": "lightgbm", "CatBoost": "catboost", "RealMLP": "pytabkit", "TabM": "pytabkit"}


def tables(folder):
    """Return functions that read the tables of a folder, or scikit-learn's own, by their names."""
    if folder is None:
        own = {"breast_cancer": load_breast_cancer, "digits": load_digits, "wine": load_wine}
        return {
            name: lambda read=read: read(return_X_y=True, as_frame=True)
            for name, read in own.items()
        }
    described = json.loads((folder / "tables.json").read_text())
    return {
        name: lambda about=about: read_table(folder, about) for name, about in described.items()
    }


def read_table(folder, about):
    X = pd.read_csv(folder / about["file"], low_memory=False)
    y = X.pop(about["target"]).astype(str)
    for name in X:
        if name in about["categorical"] or X[name].dtype.kind not in "iuf":
            X[name] = X[name].astype(object).astype("category")
    return X, y


def split(X, y, seed, n_train, n_test):
    """Return X_train, X_test, y_train, y_test, stratified if each class has two samples."""
    classes, y = np.unique(y, return_inverse=True)
    n_train = min(n_train, int(0.75 * len(y)))
    parts = train_test_split(
        X,
        y,
        train_size=n_train,
        test_size=min(n_test, len(y) - n_train),
        stratify=y if np.bincount(y).min() > 1 else None,
        random_state=seed,
    )
    return len(classes), *parts


def run(make, seed, n_classes, X_train, X_test, y_train, y_test):
    """Return what one model makes of one split."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        clf = make(seed).fit(X_train, y_train)
        fitted = time.perf_counter()
        given = clf.predict_proba(X_test)
        predicted = time.perf_counter()
    proba = np.full((len(y_test), n_classes), 1e-7)  # for classes that training did not have
    proba[:, np.asarray(clf.classes_).astype(int)] = np.clip(given, 1e-7, 1)
    usage = ""
    mixture = clf[-1] if hasattr(clf, "steps") else clf
    if isinstance(mixture, MoEClassifier):
        usage = decomposition_entropy(clf, X_test).usage_entropy / np.log2(mixture.n_experts)
    proba /= proba.sum(axis=1, keepdims=True)
    return {
        "error": np.mean(proba.argmax(axis=1) != y_test),
        "log_loss": log_loss(y_test, proba, labels=np.arange(n_classes)),
        "usage": usage,
        "fit": fitted - start,
        "predict": predicted - fitted,
    }


def results_of(args, models, names, columns, measure):
    """Return the results in a file, after adding those that it lacks, unless only a report is due.

    ``measure`` takes what :func:`run` takes and returns the rest of a row.
    """
    if not args.results.exists():
        args.results.write_text(",".join(columns) + "\n")
    done = pd.read_csv(args.results)
    seen = set(zip(done.table, done.model, done.split, strict=True))
    available = tables(args.data)
    for name in [] if args.report else names:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            print(f"{name}: {NEEDS[name]} is not installed")
            continue
        for seed in args.splits:
            for table in args.tables or available:
                if (table, name, seed) in seen:
                    continue
                parts = split(*available[table](), seed, args.train_rows, args.test_rows)
                row = {"table": table, "model": name, "split": seed, "n_train": len(parts[1])}
                row |= measure(models[name], seed, *parts)
                with args.results.open("a", newline="") as file:
                    csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
                print(f"{table}, {name}, {seed}: error {row['error']:.4f}", flush=True)
    return pd.read_csv(args.results)


def report(results, picture):
    """Print means over splits and tables, and draw the models' ranks."""
    for measure in ("error", "log_loss"):
        means = results.pivot_table(index="table", columns="model", values=measure).dropna(axis=1)
        means = means[means.mean().sort_values().index]
        print(f"\n{measure} ({results.groupby(['table', 'model']).size().max()} splits)\n")
        means.loc["mean"] = means.mean()
        means.loc["mean rank"] = means.iloc[:-1].rank(axis=1).mean()
        print(means.round(4).to_markdown())
        if measure == "error" and picture is not None:
            draw(means.iloc[:-2].drop(columns=VARIANTS, errors="ignore"), picture)
    peers = results[~results.model.isin(VARIANTS)]
    if {"random forest"} < set(peers.model):
        print("\nElo of the errors, with 95 % intervals over tables; a random forest has 1000\n")
        print(elo(peers).to_markdown())
    print("\nmedian seconds, and the least usage of the experts (H_u as a part of its maximum)\n")
    print(results.groupby("model")[["fit", "predict"]].median().round(2).to_markdown())
    print(results.dropna(subset="usage").groupby("model")["usage"].min().round(3).to_markdown())


def elo(results, n_draws=200):
    """Return the Elo of each model, as Chatbot Arena and TabArena have it.

    Two models that predict the same split play one game, which the lower error wins. 400 points
    more mean ten times as many wins as losses. Intervals are from bootstrap samples of tables.
    """
    errors = results.pivot_table(index=["table", "split"], columns="model", values="error")
    errors = errors.dropna(axis=1)
    models, names = list(errors), errors.index.get_level_values("table")
    pairs = list(itertools.combinations(range(len(models)), 2))
    games = np.zeros((len(pairs), len(models)))
    for game, (one, other) in zip(games, pairs, strict=True):
        game[[one, other]] = 1, -1
    values = errors.to_numpy()
    wins = [(values[:, i] < values[:, j]) + 0.5 * (values[:, i] == values[:, j]) for i, j in pairs]
    wins = pd.DataFrame(np.transpose(wins), index=names).groupby(level=0).mean().to_numpy()

    def points(tables):
        share = wins[tables].mean(axis=0)
        fitted = LogisticRegression(C=100, fit_intercept=False).fit(
            np.concatenate([games, games]),
            np.repeat([1, 0], len(games)),
            np.concatenate([share, 1 - share]),
        )
        found = 400 / np.log(10) * fitted.coef_[0]
        return 1000 + found - found[models.index("random forest")]

    random = np.random.RandomState(0)
    n_tables = len(wins)
    draws = [points(random.randint(n_tables, size=n_tables)) for _ in range(n_draws)]
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    found = {"Elo": points(np.arange(n_tables)), "from": low, "to": high}
    return (
        pd.DataFrame(found, index=models).sort_values("Elo", ascending=False).round().astype(int)
    )


def draw(errors, path):
    """Draw mean ranks; a bar joins models that Nemenyi's test does not tell apart."""
    import matplotlib.pyplot as plt
    from scipy.stats import studentized_range

    n_tables, n_models = errors.shape
    ranks = errors.rank(axis=1).mean().sort_values()
    quantile = studentized_range.ppf(0.95, n_models, np.inf) / np.sqrt(2)
    critical = quantile * np.sqrt(n_models * (n_models + 1) / (6 * n_tables))
    fig, ax = plt.subplots(figsize=(7, 0.35 * n_models + 1), layout="constrained")
    ax.plot(ranks, range(n_models), "o", color="tab:blue")
    end = -1
    for first in range(n_models):
        last = int(np.searchsorted(ranks, ranks.iloc[first] + critical, side="right")) - 1
        if last > max(end, first):
            ax.plot(ranks.iloc[[first, first]], [first, last], color="tab:gray", lw=3, alpha=0.4)
            end = last
    ax.set_yticks(range(n_models), ranks.index)
    ax.invert_yaxis()
    ax.set(
        xlabel=f"mean rank of the error over {n_tables} tables",
        title=f"A bar joins models that do not differ\n(Nemenyi, 5 %: {critical:.1f} ranks)",
    )
    ax.grid(axis="x", alpha=0.3)
    fig.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tables.json")
    parser.add_argument("--tables", nargs="+")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=4000)
    parser.add_argument("--test-rows", type=int, default=10000)
    parser.add_argument("--results", type=Path, default=Path("tabular.csv"))
    parser.add_argument("--report", action="store_true", help="only show the results")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    names = args.models or [name for name in MODELS if name not in TUNED]
    report(results_of(args, MODELS, names, COLUMNS, run), args.picture)


if __name__ == "__main__":
    main()
