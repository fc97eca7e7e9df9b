"""Every gate, regularization and kind of experts, side by side.

    python benchmarks/methods.py                       # digits and regimes
    python benchmarks/methods.py --data FOLDER         # and satimage, from FOLDER/satimage.csv.gz
    python benchmarks/methods.py --report              # only show the results

All gates have dense experts and the usual regularizations. The soft gate, the top-k gate and the
attentive one also have all other regularizations, and all other kinds of experts with what is made
for them. All mixtures have eight experts.

Each row of the results is the mean over the tables and seeds, each with a split of its own, of the
test error, the log loss, H_s, H_u and I(E;Y) in bits, the number of parameters, the cost of a
prediction in multiply-adds of the experts per sample; and the median time of a fit, as a multiple
of the plain mixture's, which has no regularization. "sd" is the standard deviation over the seeds.

"ARI" is how well the chosen experts agree with known regimes that have a rule each, in the data
"sectors" and "clusters" of ``regimes.py``, with as many experts as regimes.
"""

import argparse
import time
import warnings
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from regimes import MADE
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, log_loss
from sklearn.model_selection import train_test_split

from sklearn_moe import GATES, REGULARIZERS, MoEClassifier, decomposition_entropy

WHAT = ["gate", "experts", "regularization"]
USUAL = ["none", "auto", "importance", "competence", "sample_similarity", "score_variance"]
MAIN_GATES = ["softmax", "top_k", "attentive"]
OF_KIND = {  # beside "auto"
    "complexity": ["complexity"],
    "linear": ["importance"],
    "mpo": [],
    "orthogonal": [],
    "zero_computation": ["zero_computation"],
}
REGIMES = ["sectors", "clusters"]


def combinations():
    """Yield gates, experts and regularizations that make sense together."""
    for gate in GATES:
        for regularization in USUAL:
            # Without a gradient, penalties on the gate do nothing.
            if gate != "kmeans" or regularization in ("none", "auto", "competence"):
                yield gate, "mlp", regularization
    usual = {*USUAL, *chain.from_iterable(OF_KIND.values())}
    others = [name for name in REGULARIZERS if name not in usual]
    for gate in MAIN_GATES:
        for regularization in others:
            if regularization != "load":
                yield gate, "mlp", regularization
        for experts, own in OF_KIND.items():
            for regularization in ["auto", *own]:
                yield gate, experts, regularization
    yield "noisy_top_k", "mlp", "load"


def load_satimage(folder):
    frame = pd.read_csv(folder / "satimage.csv.gz").sample(2000, random_state=0)
    return frame.iloc[:, :-1].to_numpy(), frame.iloc[:, -1].to_numpy()


def run(gate, experts, regularization, name, X, y, seed):
    """Return a row of results, or the reason why there is none."""
    row = {"gate": gate, "experts": experts, "regularization": regularization, "data": name}
    clf = MoEClassifier(
        gate=gate,
        experts=experts,
        regularization=None if regularization == "none" else regularization,
        n_threads=1,
        random_state=seed,
    )
    if name in REGIMES:
        problem = MADE[name]
        n_rows = problem.n_train + problem.n_test
        sample = problem.make(n_rows, np.random.default_rng(seed), None)
        clf.set_params(n_experts=problem.n_experts)
        parts = np.split(np.arange(n_rows), [problem.n_train])
        (X_train, X_test), (y_train, y_test) = (
            [values[rows] for rows in parts] for values in (sample.X.to_numpy(), sample.y)
        )
    else:
        X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()  # of one thread, whatever else runs
        try:
            clf.fit(X_train, y_train)
        except ValueError as error:
            return {**row, "refused": str(error)}
        seconds = time.process_time() - start
    row["seed"] = seed
    if name in REGIMES:
        return {**row, "ARI": adjusted_rand_score(sample.regime[parts[1]], clf.apply(X_test))}
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


def summarize(rows):
    """Return the means of each combination, with the spread over the seeds."""
    plain = rows[(rows[WHAT] == ["softmax", "mlp", "none"]).all(axis=1)]
    rows["time"] /= rows.data.map(plain.groupby("data")["time"].mean())
    of_seeds = rows.drop(columns=["data", "ARI"]).groupby([*WHAT, "seed"], sort=False).mean()
    means = of_seeds.groupby(WHAT, sort=False).mean()
    spread = of_seeds.groupby(WHAT, sort=False).std(ddof=0)
    means["time"] = rows.groupby(WHAT, sort=False)["time"].median()
    for place, name in ((1, "error"), (3, "log loss")):
        means.insert(place, f"sd of {name}", spread[name])
    ari = rows.pivot_table("ARI", WHAT, "data")
    for name in REGIMES:
        means.insert(means.columns.get_loc("parameters"), f"ARI, {name}", ari[name])
    digits = {"parameters": 0, "cost": 0, "time": 2, "error": 4, "sd of error": 4}
    two = ["H_s", "H_u", "I(E;Y)", *(f"ARI, {name}" for name in REGIMES)]
    means = means.sort_values("log loss").round({**dict.fromkeys(means.columns, 3), **digits})
    return means.round(dict.fromkeys(two, 2)).astype({"parameters": int, "cost": int})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        data = dict.fromkeys(REGIMES, (None, None))
        data["digits"] = load_digits(return_X_y=True)
        if args.data:
            data["satimage"] = load_satimage(args.data)
        grid = product(range(args.seeds), combinations(), data)
        rows = Parallel(args.n_jobs, verbose=5)(
            delayed(run)(*which, name, *data[name], seed) for seed, which, name in grid
        )
        rows = pd.DataFrame(rows)
        if "refused" in rows:
            for reason, refused in rows.dropna(subset="refused").groupby("refused")[WHAT]:
                print(f"{reason}\n    {refused.drop_duplicates().agg(', '.join, axis=1).tolist()}")
            rows = rows[rows.refused.isna()].drop(columns="refused")
        summarize(rows).to_csv(args.results)
    print(pd.read_csv(args.results).to_string(index=False))


if __name__ == "__main__":
    main()
