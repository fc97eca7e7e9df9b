"""Are known regimes found, and found again? Linear experts beside other mixtures.

    python benchmarks/regimes.py                       # made tables
    python benchmarks/regimes.py --data FOLDER         # and regimes planted in FOLDER/adult.csv.gz
    python benchmarks/regimes.py --report              # only show the results

FOLDER is as in tabular.py. In each table, a few columns choose the regime of a row, and a logistic
rule of the regime draws its label. In "planted", the regime is a subgroup of the real table adult,
whose labels are turned round; there, the truth is a logistic regression of the true labels.

Each row of the results is a fit on one of five data sets, from one of two random states. On new
rows, it has the adjusted Rand index of the chosen expert and the regime (``ari``), that of the
gate that made the data (``truth_ari``), that of the two random states (``agreement``), and the log
loss of the model and of the truth. ``fit`` and ``boosting`` are CPU seconds of the fit, and of
HistGradientBoostingClassifier on the same rows.

R's flexmix takes part if Rscript is there, and the R package is installed:

    python benchmarks/regimes.py --models flexmix
"""

import argparse
import csv
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import adjusted_rand_score, log_loss
from sklearn.neural_network import MLPClassifier
from tabular import tables, with_numbers

from sklearn_moe import MoEClassifier, SoftmaxGate

COLUMNS = ["data", "sample", "model", "random_state", "ari", "truth_ari", "agreement"]
COLUMNS += ["init_agreement", "log_loss", "truth_log_loss", "fit", "boosting"]

# A regime counts as found from this share of the true gate's adjusted Rand index on.
FOUND = 0.9


class Sample(NamedTuple):
    """Rows with known regimes, and what the model that made them says about them."""

    X: pd.DataFrame
    y: np.ndarray
    regime: np.ndarray
    chosen: np.ndarray  # the most probable regime
    proba: np.ndarray  # of class 1
    rules: np.ndarray | None = None  # coefficients of x3 to x6 in each regime

    def part(self, rows):
        return Sample(self.X.iloc[rows], *(each[rows] for each in self[1:5]), self.rules)


# Data


def draw(rng, columns, gate, rules):
    """Draw regimes and labels: the gate reads the first columns, the rules the next four."""
    X = pd.DataFrame(columns)
    regime = (gate.cumsum(axis=1) > rng.random((len(X), 1))).argmax(axis=1)
    of_regime = expit(X[["x3", "x4", "x5", "x6"]].to_numpy(float) @ rules.T)
    y = (rng.random(len(X)) < of_regime[np.arange(len(X)), regime]).astype(int)
    return Sample(X, y, regime, gate.argmax(axis=1), (gate * of_regime).sum(axis=1), rules)


def draw_rules(rng, n_regimes):
    """Draw coefficients of 2 to 3; any two rules differ in two signs, so that both are there."""
    while True:
        signs = rng.choice([-1, 1], (n_regimes, 4))
        # The products of two rules' signs sum to 4 less twice the number of signs that differ.
        if np.triu(signs @ signs.T, 1).max() <= 0:
            return signs * rng.uniform(2, 3, signs.shape)


def draw_columns(rng, n):
    return {f"x{i}": rng.normal(size=n) for i in range(1, 7)}


def sectors(n, rng, folder):
    """Three regimes, by the angle of two columns; the gate is soft."""
    columns, angles = draw_columns(rng, n), 2 * np.pi * np.arange(3) / 3
    scores = 5 * np.outer(columns["x1"], np.cos(angles))
    scores += 5 * np.outer(columns["x2"], np.sin(angles))
    gate = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    return draw(rng, columns, gate, draw_rules(rng, 3))


def exclusive_or(n, rng, folder):
    """Two regimes with opposite rules, by the sign of the product of two columns."""
    columns, rule = draw_columns(rng, n), draw_rules(rng, 1)
    first = expit(12 * columns["x1"] * columns["x2"])
    gate = np.column_stack([first, 1 - first])
    return draw(rng, columns, gate, np.concatenate([rule, -rule]))


def thresholds(n, rng, folder):
    """Three regimes, by a threshold in each of two columns."""
    columns = draw_columns(rng, n)
    regime = np.where(columns["x1"] > 0.5, 0, np.where(columns["x2"] > -0.3, 1, 2))
    return draw(rng, columns, np.eye(3)[regime], draw_rules(rng, 3))


def clusters(n, rng, folder):
    """Four regimes, by the nearest of four centres in a plane."""
    columns = draw_columns(rng, n)
    centres = np.array([[0, 3], [2.6, -1.5], [-2.6, -1.5], [0, 0]])
    plane = 0.7 * rng.normal(size=(n, 2)) + centres[rng.integers(4, size=n)]
    columns["x1"], columns["x2"] = plane.T
    regime = ((plane[:, np.newaxis] - centres) ** 2).sum(axis=2).argmin(axis=1)
    return draw(rng, columns, np.eye(4)[regime], draw_rules(rng, 4))


def codes(n, rng, folder):
    """Three regimes, by a column with eight codes."""
    columns, code = draw_columns(rng, n), rng.integers(8, size=n)
    columns["x1"] = pd.Categorical(np.array(list("ABCDEFGH"))[code])
    regime = rng.permutation(np.arange(8) % 3)[code]
    return draw(rng, columns, np.eye(3)[regime], draw_rules(rng, 3))


def planted_by_number(n, rng, folder):
    return planted(n, rng, folder, lambda X: X["age"] >= 50)


def planted_by_category(n, rng, folder):
    alone = ["Divorced", "Separated", "Widowed"]
    return planted(n, rng, folder, lambda X: X["marital-status"].isin(alone))


def planted(n, rng, folder, subgroup):
    """Two regimes in a real table: the labels of a subgroup of a fifth are turned round."""
    X, y = tables(folder)["adult"]()
    rows = rng.permutation(len(X))[:n]
    X, y = X.iloc[rows].reset_index(drop=True), (y.iloc[rows] == ">50K").to_numpy()
    regime = subgroup(X).to_numpy().astype(int)
    train = slice(PLANTED_ROWS)
    truth = MoEClassifier(1, experts="linear", random_state=0).fit(X[train], y[train])
    proba = truth.predict_proba(X)[:, 1]
    return Sample(X, y ^ regime, regime, regime, np.where(regime, 1 - proba, proba))


class Problem(NamedTuple):
    """A kind of data, and what a mixture is told about it."""

    make: Callable
    n_experts: int
    gate_features: list
    gate: object = "softmax"
    n_train: int = 2000
    n_test: int = 4000


PLANTED_ROWS = 4000
HIDDEN = SoftmaxGate((16,))

MADE = {
    "sectors": Problem(sectors, 3, ["x1", "x2"]),
    "sectors, 600 rows": Problem(sectors, 3, ["x1", "x2"], n_train=600),
    "sectors, 300 rows": Problem(sectors, 3, ["x1", "x2"], n_train=300),
    "exclusive or": Problem(exclusive_or, 2, ["x1", "x2"], gate=HIDDEN),
    "thresholds": Problem(thresholds, 3, ["x1", "x2"]),
    "clusters": Problem(clusters, 4, ["x1", "x2"]),
    "codes": Problem(codes, 3, ["x1"]),
}
PLANTED = {
    "planted, by a number": Problem(
        planted_by_number, 2, ["age"], n_train=PLANTED_ROWS, n_test=10000
    ),
    "planted, by a category": Problem(
        planted_by_category, 2, ["marital-status"], n_train=PLANTED_ROWS, n_test=10000
    ),
}

# Models


def linear(problem, seed, **params):
    params = {"gate": problem.gate, "random_state": seed, **params}
    return MoEClassifier(problem.n_experts, experts="linear", **params)


def attentive(problem, seed):
    params = {"gate": "attentive", "regularization": "sample_similarity", "random_state": seed}
    return MoEClassifier(problem.n_experts, **params)


MIXTURES = {
    "linear": linear,
    "linear, gate columns given": lambda problem, seed: linear(
        problem, seed, gate_features=problem.gate_features
    ),
    "linear, columns of both given": lambda problem, seed: linear(
        problem,
        seed,
        gate_features=problem.gate_features,
        expert_features=lambda X: X.columns.difference(problem.gate_features),
    ),
    "linear, gate without layers": lambda problem, seed: linear(problem, seed, gate="softmax"),
    "linear, one start": lambda problem, seed: linear(problem, seed, n_init=1, annealing=None),
    "default": lambda problem, seed: MoEClassifier(problem.n_experts, random_state=seed),
    "attentive, sample similarity": attentive,
    "flexmix": lambda problem, seed: FlexMix(problem.n_experts, seed),
}
PEERS = {
    "MLPClassifier": lambda: with_numbers(MLPClassifier(random_state=0)),
    "gradient boosting": lambda: HistGradientBoostingClassifier(random_state=0),
}


class FlexMix:
    """R's flexmix, the best of ten starts; its gate and its rules read all columns."""

    SCRIPT = """
    suppressMessages(library(flexmix))
    at <- commandArgs(trailingOnly = TRUE)
    set.seed(as.integer(at[2]))
    train <- read.csv(file.path(at[1], "train.csv"), stringsAsFactors = TRUE)
    test <- read.csv(file.path(at[1], "test.csv"), stringsAsFactors = TRUE)
    names <- setdiff(colnames(train), "y")
    fit <- initFlexmix(
        reformulate(names, "cbind(y, 1 - y)"), data = train, k = as.integer(at[3]), nrep = 10,
        model = FLXMRglm(family = "binomial"), concomitant = FLXPmultinom(reformulate(names)),
        control = list(minprior = 0), verbose = FALSE
    )
    test$y <- 0
    rules <- sapply(predict(fit, newdata = test), as.vector)
    write.csv(cbind(prior(fit, newdata = test), rules), file.path(at[1], "found.csv"))
    """

    def __init__(self, n_experts, seed):
        self.n_experts, self.seed = n_experts, seed

    def fit(self, X, y):
        self.train = X.assign(y=y)
        return self

    def read(self, X):
        """Return gate probabilities and those of class 1; R fits and predicts at once."""
        with tempfile.TemporaryDirectory() as folder:
            self.train.to_csv(Path(folder, "train.csv"), index=False)
            X.to_csv(Path(folder, "test.csv"), index=False)
            arguments = [folder, str(self.seed), str(self.n_experts)]
            subprocess.run(["Rscript", "-e", self.SCRIPT, *arguments], check=True)
            found = pd.read_csv(Path(folder, "found.csv"), index_col=0).to_numpy()
        return np.split(found, 2, axis=1)

    def apply(self, X):
        self.gate, self.rules = self.read(X)
        return self.gate.argmax(axis=1)

    def predict_proba(self, X):
        proba = (self.gate * self.rules).sum(axis=1)
        return np.column_stack([1 - proba, proba])


# Fits


def timed_fit(clf, part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        clf.fit(part.X, part.y)
        return time.process_time() - start


def run(problem, sample, name, boosting):
    """Return the rows of results of one model on one data set."""
    train = sample.part(slice(problem.n_train))
    test = sample.part(slice(problem.n_train, None))
    truth_ari = adjusted_rand_score(test.regime, test.chosen)
    truth_loss = log_loss(test.y, test.proba)
    rows, choices = [], []
    for seed in (0, 1) if name in MIXTURES else (0,):
        clf = MIXTURES[name](problem, seed) if name in MIXTURES else PEERS[name]()
        row = {"model": name, "random_state": seed, "fit": timed_fit(clf, train)}
        if name in MIXTURES:
            choices.append(clf.apply(test.X))
            row["ari"] = adjusted_rand_score(test.regime, choices[-1])
            row["truth_ari"] = truth_ari
            row["init_agreement"] = getattr(clf, "init_agreement_", None)
        row["log_loss"] = log_loss(test.y, clf.predict_proba(test.X))
        rows.append(row | {"truth_log_loss": truth_loss, "boosting": boosting})
    for row in rows if choices else []:
        row["agreement"] = adjusted_rand_score(*choices)
    return rows


def report(results):
    """Print a table for each kind of data."""
    results["found"] = results.ari >= FOUND * results.truth_ari
    results["excess"] = results.log_loss - results.truth_log_loss
    results["time"] = results.fit / results.boosting
    for name, of_data in results.groupby("data", sort=False):
        by_model = of_data.groupby("model", sort=False)
        table = by_model[["ari", "truth_ari", "agreement", "found", "excess"]].mean().round(3)
        table["time"] = by_model["time"].median().round(1)
        table.loc[table["ari"].isna(), "found"] = np.nan
        columns = {"truth_ari": "ARI of the true gate", "agreement": "two searches"}
        columns |= {"ari": "ARI", "excess": "log loss above the truth's"}
        print(f"\n{name}\n\n{table.rename(columns=columns).to_markdown()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tables.json and adult.csv.gz")
    parser.add_argument("--problems", nargs="+", choices=[*MADE, *PLANTED])
    parser.add_argument("--models", nargs="+", choices=[*MIXTURES, *PEERS])
    parser.add_argument("--samples", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--report", action="store_true", help="only show the results")
    args = parser.parse_args()
    if not args.results.exists():
        args.results.write_text(",".join(COLUMNS) + "\n")
    done = pd.read_csv(args.results)
    seen = set(zip(done.data, done["sample"], done.model, strict=True))
    problems = MADE | PLANTED if args.data else MADE
    names = args.models or [*MIXTURES, *PEERS]
    if shutil.which("Rscript") is None and "flexmix" in names:
        names.remove("flexmix")
        print("flexmix: Rscript is missing")
    for data in [] if args.report else args.problems or problems:
        problem = problems[data]
        for number in args.samples:
            wanted = [
                name
                for name in names
                if (data, number, name) not in seen
                and (name != "linear, gate without layers" or problem.gate is HIDDEN)
            ]
            if not wanted:
                continue
            n_rows, rng = problem.n_train + problem.n_test, np.random.default_rng(number)
            sample = problem.make(n_rows, rng, args.data)
            boosting = timed_fit(PEERS["gradient boosting"](), sample.part(slice(problem.n_train)))
            for name in wanted:
                rows = run(problem, sample, name, boosting)
                with args.results.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writerows({"data": data, "sample": number} | row for row in rows)
                print(f"{data}, {number}, {name}: {rows[0].get('ari', np.nan):.3f}", flush=True)
    report(pd.read_csv(args.results))


if __name__ == "__main__":
    main()
