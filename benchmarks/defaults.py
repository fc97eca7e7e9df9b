"""What each parameter does: cross-validation beside MLPClassifier, with and without scaling.

    python benchmarks/defaults.py                      # digits and breast_cancer
    python benchmarks/defaults.py --data FOLDER        # and satimage, from FOLDER/satimage.csv.gz
    python benchmarks/defaults.py --only default       # one row

Each row below "plain" changes one parameter of a mixture without what the default adds for tables.
Each figure is the mean accuracy of five repetitions of three-fold cross-validation, each with its
own folds and random_state; the same for all rows.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_moe import AttentiveGate, MLPExperts, MoEClassifier, SoftmaxGate


def plain(**changes):
    """Return a mixture without what the default adds for tables."""
    params = {"encoder": None, "regularization": None, "learning_rate": 3e-3, "weight_decay": 0.0}
    params |= {"experts": MLPExperts((64,)), "max_iter": 100}
    return MoEClassifier(**{**params, **changes})


ROWS = {
    "MLPClassifier": MLPClassifier(),
    "default": MoEClassifier(),
    "plain": plain(),
    "learning rate 1e-3, constant": plain(learning_rate=1e-3, learning_rate_schedule="constant"),
    "learning rate 1e-2": plain(learning_rate=1e-2),
    "batches of 256": plain(batch_size=256),
    "50 epochs": plain(max_iter=50),
    "200 epochs": plain(max_iter=200),
    "weight decay 0.1": plain(weight_decay=0.1),
    "4 experts": plain(n_experts=4),
    "16 experts": plain(n_experts=16),
    "experts of 32 units": plain(experts=MLPExperts((32,))),
    "experts with dropout 0.1": plain(experts=MLPExperts((64,), dropout=0.1)),
    "gate with 64 hidden units": plain(gate=SoftmaxGate((64,))),
    "early stopping": plain(early_stopping=True),
    "logit mixing": plain(mixing="logit"),
    "top_k gate": plain(gate="top_k"),
    "hard gate": plain(gate="hard"),
    "attentive gate": plain(gate="attentive"),
    "attentive gate without hidden layer": plain(gate=AttentiveGate(())),
    "attentive gate, keys of 8": plain(gate=AttentiveGate(key_size=8)),
    "importance": plain(regularization="importance"),
    "sample similarity": plain(regularization="sample_similarity"),
}


def load_sets(folder):
    sets = {
        "digits": load_digits(return_X_y=True),
        "breast_cancer": load_breast_cancer(return_X_y=True),
    }
    if folder is not None:
        import pandas as pd

        frame = pd.read_csv(folder / "satimage.csv.gz").sample(3000, random_state=0)
        y = frame.pop(frame.columns[-1]).to_numpy()
        sets["satimage"] = frame.to_numpy(float), y
    return sets


def evaluate(estimator, X, y, scaler, seed):
    """Return accuracy and log loss of one repetition of cross-validation."""
    scores = []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=seed).split(X, y):
        model = make_pipeline(scaler, clone(estimator).set_params(random_state=seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLPClassifier's ConvergenceWarning
            model.fit(X[train], y[train])
        proba = model.predict_proba(X[test])
        predicted = model.classes_[proba.argmax(axis=1)]
        scores.append((accuracy_score(y[test], predicted), log_loss(y[test], proba)))
    return np.mean(scores, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with satimage.csv.gz")
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="rows to run")
    parser.add_argument("--n-jobs", type=int, default=1)
    args = parser.parse_args()

    sets = load_sets(args.data)
    columns = [f"{name}, {kind}" for name in sets for kind in ("scaled", "raw")]
    print("accuracy (log loss) | " + " | ".join(columns))
    print("|".join(["---"] * (len(columns) + 1)))
    for row in args.only:
        cells = []
        for X, y in sets.values():
            for scaler in (StandardScaler(), FunctionTransformer()):
                scores = Parallel(n_jobs=args.n_jobs)(
                    delayed(evaluate)(ROWS[row], X, y, scaler, seed) for seed in range(5)
                )
                accuracy, loss = np.mean(scores, axis=0)
                cells.append(f".{round(1000 * accuracy):03d} ({loss:.3f})")
        print(f"{row} | " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
