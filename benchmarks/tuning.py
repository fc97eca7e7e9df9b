"""What ``tune`` finds beside the default: log loss, and the front of accuracy and decomposition.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --n-trials 40 --satimage FOLDER    # with FOLDER/satimage.csv.gz

Each data set gets two searches of the default space: one for the cross-validated log loss, and one
for accuracy and H_s at once. Of the front of the second, the point is shown that has the least H_s
of those whose accuracy is within one standard error of the default's.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import StratifiedKFold

from sklearn_moe import MoEClassifier, cross_validate, tune


def load_satimage(folder):
    import pandas as pd

    table = pd.read_csv(folder / "satimage.csv.gz")
    return table.iloc[:, :-1].to_numpy(), table.iloc[:, -1].to_numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n-trials", type=int, default=40)
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--satimage", type=Path)
    args = parser.parse_args()
    data = {
        "breast_cancer": load_breast_cancer(return_X_y=True),
        "digits": load_digits(return_X_y=True),
    }
    if args.satimage:
        data["satimage"] = load_satimage(args.satimage)
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    clf = MoEClassifier(n_threads=1, random_state=0)
    print("| data | log loss: default | tuned | accuracy, H_s: default | front |")
    print("|---|---:|---:|---|---|")
    for name, (X, y) in data.items():
        default = cross_validate(clf, X, y, cv=cv, scoring=["accuracy", "neg_log_loss"])
        options = {"n_trials": args.n_trials, "n_jobs": args.n_jobs, "cv": cv, "random_state": 0}
        tuned = tune(clf, X, y, scoring="neg_log_loss", refit=False, **options)
        scores = ["accuracy", "neg_sample_entropy"]
        front = tune(clf, X, y, scoring=scores, refit=False, **options).pareto_front_
        accuracy, entropy = default["test_accuracy"], -default["test_neg_sample_entropy"].mean()
        error = accuracy.std(ddof=1) / np.sqrt(len(accuracy))
        equal = [row for row in front if row["accuracy"] >= accuracy.mean() - error]
        surest = max(equal, key=lambda row: row["neg_sample_entropy"], default=None)
        found = (
            "none"
            if surest is None
            else (f"{surest['accuracy']:.4f}, {abs(surest['neg_sample_entropy']):.3f}")
        )
        print(
            f"| {name} | {-default['test_neg_log_loss'].mean():.4f} | {-tuned.best_score_:.4f} "
            f"| {accuracy.mean():.4f} ± {error:.4f}, {entropy:.3f} | {found} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
