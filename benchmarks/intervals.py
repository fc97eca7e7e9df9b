"""Do the intervals of the coefficients hold the truth? Those of expert_summary on known regimes.

    python benchmarks/intervals.py                     # 20 data sets of "sectors"
    python benchmarks/intervals.py --problems "exclusive or" --samples 4 --n-bootstrap 60
    python benchmarks/intervals.py --report            # only show the results

The data are those of regimes.py. The gate reads the columns that choose the regime, and the
experts those of the rules, or all columns. Each row of the results is a summary of a mixture of a
data set. It has the share of the experts' 95 % intervals that hold the true coefficient
(``coverage``), the median ratio of standard errors to those from the information (``ratio``),
CPU seconds, and the reason if there are no standard errors (``refused``).
"""

import argparse
import csv
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from regimes import MADE, MIXTURES, timed_fit

from sklearn_moe import expert_summary
from sklearn_moe.grouping import match_experts

COLUMNS = ["data", "sample", "model", "n_bootstrap", "method", "coverage", "ratio", "seconds"]
COLUMNS += ["refused"]
MODELS = ["linear", "linear, columns of both given"]


def truth_of(table, sample, choice):
    """Return the true coefficient of each row of a table of experts."""
    n_experts = len(sample.rules)
    regime_of = match_experts(np.eye(n_experts)[choice], np.eye(n_experts)[sample.regime])
    columns = ["x3", "x4", "x5", "x6"]  # the rules have neither others nor an intercept
    return np.array(
        [
            sample.rules[regime_of[expert], columns.index(name)] if name in columns else 0.0
            for expert, name in zip(table["expert"], table["feature"], strict=True)
        ]
    )


def summaries(clf, sample, n_bootstrap):
    """Yield a row of results for each method."""
    errors = {}
    for method in ("information", "bootstrap"):
        start = time.process_time()
        summary = expert_summary(
            clf,
            sample.X,
            sample.y,
            standard_errors=method,
            n_bootstrap=n_bootstrap,
            random_state=0,
        )
        row = {"method": method, "seconds": time.process_time() - start}
        table = summary.to_frame()
        table = table[table["part"] == "expert"]
        errors[method] = table["standard_error"].to_numpy()
        known = ~np.isnan(errors[method])
        if known.any():
            truth = truth_of(table, sample, clf.apply(sample.X))
            held = (table["lower"] <= truth) & (truth <= table["upper"])
            ratio = np.nanmedian(errors[method][known] / errors["information"][known])
            yield row | {"coverage": held[known].mean(), "ratio": ratio}
        else:
            yield row | {"refused": summary.notes[0].split("\n")[0]}


def report(results):
    """Print the mean of each kind of data."""
    by = results.groupby(["data", "model", "method"], sort=False)
    table = by[["coverage", "ratio", "seconds"]].mean()
    table["lowest"] = by["coverage"].min()
    table["data sets"] = by["coverage"].count()
    table["refused"] = by["refused"].count()
    print(table.round(3).reset_index().to_markdown(index=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", choices=MADE, default=["sectors"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--n-bootstrap", type=int, default=200)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--report", action="store_true", help="only show the results")
    args = parser.parse_args()
    if not args.results.exists():
        args.results.write_text(",".join(COLUMNS) + "\n")
    done = pd.read_csv(args.results)
    seen = set(zip(done["data"], done["sample"], done["model"], strict=True))
    warnings.simplefilter("ignore")
    for name in [] if args.report else args.problems:
        problem = MADE[name]
        for model in args.models:
            for number in range(args.samples):
                if (name, number, model) in seen:
                    continue
                sample = problem.make(problem.n_train, np.random.default_rng(number), None)
                clf = MIXTURES[model](problem, 0)
                timed_fit(clf, sample)
                rows = list(summaries(clf, sample, args.n_bootstrap))
                with args.results.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    of = {"data": name, "sample": number, "model": model}
                    of["n_bootstrap"] = args.n_bootstrap
                    writer.writerows(of | row for row in rows)
                print(name, number, model, rows, flush=True)
    report(pd.read_csv(args.results))


if __name__ == "__main__":
    main()
