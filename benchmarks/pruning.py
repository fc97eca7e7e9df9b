"""What pruning saves in a search on the digits: epochs and best score with and without.

    python benchmarks/pruning.py
    python benchmarks/pruning.py --n-trials 40 --seeds 0 1 2

The trials of both searches have the same seeds. Pruned trials teach the sampler less, so that the
candidates differ after the first pruned one.
"""

import argparse
import time

from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from sklearn_moe import MoEClassifier, tune


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n-trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--pruners", nargs="+", default=["none", "median", "hyperband"])
    args = parser.parse_args()
    X, y = load_digits(return_X_y=True)
    clf = MoEClassifier(max_iter=args.epochs, n_threads=1, random_state=0)
    print("| seed | pruner | epochs | of all | best log loss | pruned | seconds |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for seed in args.seeds:
        for pruner in args.pruners:
            start = time.perf_counter()
            search = tune(
                clf,
                X / 16,
                y,
                n_trials=args.n_trials,
                cv=StratifiedKFold(3, shuffle=True, random_state=0),
                scoring="neg_log_loss",
                pruner=None if pruner == "none" else pruner,
                refit=False,
                random_state=seed,
                n_jobs=args.n_jobs,
            )
            trials = search.study_.trials
            epochs = sum(trial.user_attrs["n_epochs"] for trial in trials)
            n_pruned = sum(trial.state.name == "PRUNED" for trial in trials)
            part = epochs / (args.n_trials * 3 * args.epochs)
            print(
                f"| {seed} | {pruner} | {epochs} | {part:.0%} "
                f"| {-search.best_score_:.4f} | {n_pruned} | {time.perf_counter() - start:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
