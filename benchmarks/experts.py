"""Classifiers as experts on tables, beside each of them, stacking, voting and boosting libraries.

    python benchmarks/experts.py                               # scikit-learn's own data sets
    python benchmarks/experts.py --data FOLDER --results experts.csv
    python benchmarks/experts.py --report --results experts.csv

FOLDER, the tables and their splits are those of ``tabular.py``. Each model adds a row to the
results, and rows that are there are not computed again. The classifiers are those of
``experts="strong"``, with one seed and the same folds for all lists, so that each fit is made once
and kept; its time counts for all that use it. "the fits alone" are what all lists need: the fits
on five folds and on all samples; it predicts with their mean. "strong" is the default gate.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from tabular import MODELS as ALONE
from tabular import results_of, run

from sklearn_moe import EstimatorExperts, MoEClassifier, SoftmaxGate, StrongExperts

COLUMNS = ["table", "model", "split", "n_train", "error", "log_loss", "fit", "predict"]
COLUMNS += ["columns", "shares"]

NAMES = "boosting", "forest", "mixture", "regression"

# The folder that keeps the fits.
FITS = Path(tempfile.gettempdir())


class Kept(ClassifierMixin, BaseEstimator):
    """One of the strong classifiers, whose fits are kept in a folder."""

    seconds = 0.0  # what the kept fits took when they were made

    def __init__(self, name, seed):
        self.name = name
        self.seed = seed

    def fit(self, X, y):
        key = joblib.hash((self.name, self.seed, list(X), X.index.to_numpy(), np.asarray(y)))
        path = FITS / f"{key}.joblib"
        if path.exists():
            self.fitted_, seconds = joblib.load(path)
            Kept.seconds += seconds
        else:
            start = time.perf_counter()
            is_categorical = (X.dtypes == "category").to_numpy()
            strong = dict(StrongExperts().for_table(is_categorical).estimators)[self.name]
            seeds = [name for name in strong.get_params() if name.endswith("random_state")]
            strong.set_params(**dict.fromkeys(seeds, self.seed))
            self.fitted_ = strong.fit(X, y)
            joblib.dump((self.fitted_, time.perf_counter() - start), path)
        self.classes_ = self.fitted_.classes_
        return self

    def predict_proba(self, X):
        return self.fitted_.predict_proba(X)

    def predict(self, X):
        return self.fitted_.predict(X)


def classifiers(seed):
    return [(name, Kept(name, seed)) for name in NAMES]


def folds(seed):
    return StratifiedKFold(5, shuffle=True, random_state=seed)


class TheFits(ClassifierMixin, BaseEstimator):
    """Fit classifiers on folds and on all samples, and predict with their mean."""

    def __init__(self, seed):
        self.seed = seed

    def fit(self, X, y):
        for _, each in classifiers(self.seed):
            cross_val_predict(each, X, y, cv=folds(self.seed), method="predict_proba")
        self.fitted_ = [each.fit(X, y) for _, each in classifiers(self.seed)]
        self.classes_ = self.fitted_[0].classes_
        return self

    def predict_proba(self, X):
        return np.mean([each.predict_proba(X) for each in self.fitted_], axis=0)


def mixture(seed, **params):
    listed = EstimatorExperts(classifiers(seed), cv=folds(seed))
    return MoEClassifier(experts=listed, random_state=seed, **params)


MODELS = {
    **{name: lambda seed, name=name: Kept(name, seed) for name in NAMES},
    "the fits alone": TheFits,
    "StackingClassifier": lambda seed: StackingClassifier(
        classifiers(seed), LogisticRegression(max_iter=1000), cv=folds(seed)
    ),
    "VotingClassifier": lambda seed: VotingClassifier(classifiers(seed), voting="soft"),
    "constant gate": lambda seed: mixture(seed, gate="constant"),
    "strong": mixture,
    "gate with a layer": lambda seed: mixture(seed, gate=SoftmaxGate(hidden_layer_sizes=(16,))),
    "hard gate": lambda seed: mixture(seed, gate="hard"),
    "LightGBM": ALONE["LightGBM"],
    "CatBoost": ALONE["CatBoost"],
}


def measure(make, seed, n_classes, X_train, X_test, y_train, y_test):
    """Return what one model makes of one split, and for a list the shares of its experts."""
    made = []

    def keep(seed):
        made.append(make(seed))
        return made[0]

    Kept.seconds = 0.0
    row = run(keep, seed, n_classes, X_train, X_test, y_train, y_test)
    row["fit"] += Kept.seconds
    row["shares"] = row["columns"] = ""
    names = getattr(made[0], "expert_names_", None)
    if names is not None:
        shares = made[0].gate_proba(X_test).mean(axis=0).round(3).tolist()
        row["shares"] = json.dumps(dict(zip(names, shares, strict=True)))
        row["columns"] = len(made[0].gate_columns_)
    return {name: row[name] for name in COLUMNS if name in row}


def report(results):
    """Print the means over splits, the times beside those of the fits, and the shares."""
    for name in ("error", "log_loss"):
        means = results.pivot_table(index="table", columns="model", values=name)
        means = means[means.mean().sort_values().index]
        means.loc["mean"] = means.dropna().mean()
        print(f"\n{name} ({results.groupby(['table', 'model']).size().max()} splits)\n")
        print(means.T.round(4).to_markdown())
    times = results.pivot_table(index="table", columns="model", values="fit")
    print("\nmedian time of a fit, over that of the fits alone\n")
    print(times.div(times["the fits alone"], axis=0).median().round(2).to_markdown())
    listed = results.dropna(subset="shares")
    shares = listed["shares"].map(json.loads).apply(pd.Series)
    columns = listed["columns"].rename("columns of the gate")
    print("\nmean shares of the experts, and columns that the gate reads\n")
    print(shares.join(columns).groupby(listed["model"]).mean().round(3).to_markdown())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tables.json")
    parser.add_argument("--tables", nargs="+")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--train-rows", type=int, default=4000)
    parser.add_argument("--test-rows", type=int, default=10000)
    parser.add_argument("--results", type=Path, default=Path("experts.csv"))
    parser.add_argument("--fits", type=Path, help="folder that keeps the fits of the classifiers")
    parser.add_argument("--report", action="store_true", help="only show the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        global FITS
        FITS = args.fits or Path(folder)
        report(results_of(args, MODELS, args.models, COLUMNS, measure))


if __name__ == "__main__":
    main()
