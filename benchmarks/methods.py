"""Every gate with every regularization and with all kinds of experts, side by side.

    python benchmarks/methods.py                       # digits and breast_cancer
    python benchmarks/methods.py --data FOLDER         # and satimage, from FOLDER/satimage.csv.gz
    python benchmarks/methods.py --report              # only show the results

Dense experts have all regularizations, the others the default, competence and what is made for
them. Each row of the results is the mean over data sets and seeds, each with a split of its own,
of the test error, the log loss, H_s, H_u and I(E;Y) in bits, the number of parameters, the cost of
a prediction in multiply-adds of the experts per sample; and the median time of a fit, as a
multiple of the plain mixture's, which has no regularization.
"""

import argparse
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_moe import EXPERTS, GATES, REGULARIZERS, MoEClassifier, decomposition_entropy

WHAT = ["gate", "experts", "regularization"]
# Without a gradient, penalties on the gate do nothing.
OF_EXPERTS = ["none", "auto", "competence", "orthogonality"]
OF_KIND = {
    "complexity": ["auto", "competence", "complexity"],
    "mpo": ["auto", "competence"],
    "orthogonal": ["auto"],  # a fit takes eight times as long
    "zero_computation": ["auto", "competence", "zero_computation"],
}


def combinations():
    """Yield gates, experts and regularizations that make sense together."""
    for gate in GATES:
        for experts in sorted(set(EXPERTS) - {"conv", "complexity_conv", "strong"}):
            names = OF_KIND.get(experts, ["none", "auto", *REGULARIZERS])
            for regularization in names:
                if gate != "kmeans" or regularization in OF_EXPERTS:
                    yield gate, experts, regularization


def load_satimage(folder):
    frame = pd.read_csv(folder / "satimage.csv.gz").sample(3000, random_state=0)
    return frame.iloc[:, :-1].to_numpy(), frame.iloc[:, -1].to_numpy()


def run(gate, experts, regularization, name, X, y, seed):
    """Return a row of results, or the reason why there is none."""
    row = {"gate": gate, "experts": experts, "regularization": regularization, "data": name}
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=seed)
    clf = MoEClassifier(
        gate=gate,
        experts=experts,
        regularization=None if regularization == "none" else regularization,
        n_threads=1,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()  # of one thread, whatever else runs
        try:
            clf.fit(X_train, y_train)
        except ValueError as error:
            return {**row, "refused": str(error)}
        seconds = time.process_time() - start
    found = decomposition_entropy(clf, X_test, y_test)
    return {
        **row,
        "error": np.mean(clf.predict(X_test) != y_test),
        "log loss": log_loss(y_test, clf.predict_proba(X_test)),
        "H_s": found.sample_entropy,
        "H_u": found.usage_entropy,
        "I(E;Y)": found.expert_class_information,
        "parameters": clf.n_parameters_,
        "cost": found.cost,
        "time": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        data = {
            "breast_cancer": load_breast_cancer(return_X_y=True),
            "digits": load_digits(return_X_y=True),
        }
        if args.data:
            data["satimage"] = load_satimage(args.data)
        grid = product(combinations(), data, range(args.seeds))
        rows = Parallel(args.n_jobs, verbose=5)(
            delayed(run)(*which, name, *data[name], seed) for which, name, seed in grid
        )
        rows = pd.DataFrame(rows)
        for reason, refused in rows.dropna(subset="refused").groupby("refused")[WHAT]:
            print(f"{reason}\n    {refused.drop_duplicates().agg(', '.join, axis=1).tolist()}")
        rows = rows[rows.refused.isna()].drop(columns="refused")
        plain = rows[(rows[WHAT] == ["softmax", "mlp", "none"]).all(axis=1)]
        rows["time"] /= rows.data.map(plain.groupby("data")["time"].mean())
        groups = rows.drop(columns="data").groupby(WHAT, sort=False)
        means = groups.mean().sort_values("log loss")
        means["time"] = groups["time"].median()
        digits = {"error": 4, "log loss": 3, "time": 2, "parameters": 0, "cost": 0}
        means = means.round({"H_s": 2, "H_u": 2, "I(E;Y)": 2, **digits})
        means.astype({"parameters": int, "cost": int}).to_csv(args.results)
    print(pd.read_csv(args.results).to_string(index=False))


if __name__ == "__main__":
    main()
