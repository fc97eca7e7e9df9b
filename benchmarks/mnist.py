"""The paper's effect on MNIST as a table: attention and sample similarity order the decomposition.

    python benchmarks/mnist.py                       # downloads MNIST through scikit-learn
    python benchmarks/mnist.py --data FOLDER         # reads FOLDER/mnist.npz
    python benchmarks/mnist.py --epochs 2 --seeds 1  # a quick look
    python benchmarks/mnist.py --distill             # attentive mixtures and their students

Images are flattened, experts have the paper's bottleneck (5 and 32 hidden units), and the training
is the paper's: 5 experts, batches of 512, a constant learning rate of 1e-3, 20 epochs. I(E;Y) is
computed as there, with the classes that the chosen experts predict. Means over the seeds, on the
test set.

With --distill, each attentive row is distilled, from the labels and from the teacher's gate. The
student's error and I(E;Y), H_s, H_u are those of its soft mixture, as in the paper; beside them
stand the error with one expert per sample, and for how many samples one expert and the soft
mixture predict the same class.

Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of Experts,
2023, arXiv 2302.14703.
"""

import argparse
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.datasets import fetch_openml

from sklearn_moe import (
    AttentiveGate,
    MLPExperts,
    MoEClassifier,
    SampleSimilarity,
    SoftmaxGate,
    decomposition_entropy,
    distill,
)

MOE = MoEClassifier(
    n_experts=5,
    experts=MLPExperts((5, 32)),
    gate=SoftmaxGate((128, 32)),
    encoder=None,
    batch_size=512,
    learning_rate=1e-3,
    learning_rate_schedule="constant",
)
ATTENTIVE = clone(MOE).set_params(gate=AttentiveGate((128, 32)))
ALL_PAIRS = SampleSimilarity(max_samples=512)  # of a batch, as in the paper
ROWS = {
    "softmax": MOE,
    "softmax, importance": clone(MOE).set_params(regularization="importance"),
    "softmax, sample similarity": clone(MOE).set_params(regularization=ALL_PAIRS),
    "attentive": ATTENTIVE,
    "attentive, importance": clone(ATTENTIVE).set_params(regularization="importance"),
    "attentive, sample similarity": clone(ATTENTIVE).set_params(regularization=ALL_PAIRS),
}


def load(folder):
    if folder is None:
        X, y = fetch_openml("mnist_784", return_X_y=True, as_frame=False)
        parts = X[:60000], y[:60000].astype(int), X[60000:], y[60000:].astype(int)
    else:
        file = np.load(folder / "mnist.npz")
        parts = [file[name] for name in ("X_train", "y_train", "X_test", "y_test")]
    X_train, y_train, X_test, y_test = parts
    scaled = [(X.reshape(len(X), -1) / 255 - 0.1307) / 0.3081 for X in (X_train, X_test)]
    return scaled[0].astype(np.float32), y_train, scaled[1].astype(np.float32), y_test


def run(estimator, seed, epochs, data):
    X_train, y_train, X_test, y_test = data
    clf = clone(estimator).set_params(random_state=seed, max_iter=epochs).fit(X_train, y_train)
    measured = decomposition_entropy(clf, X_test)
    return (
        1 - clf.score(X_test, y_test),
        measured.expert_class_information,
        measured.sample_entropy,
        measured.usage_entropy,
    )


def run_distilled(estimator, seed, epochs, data):
    X_train, y_train, X_test, y_test = data
    clf = clone(estimator).set_params(random_state=seed, max_iter=epochs).fit(X_train, y_train)
    error, rows = 1 - clf.score(X_test, y_test), []
    for target in ("labels", "teacher"):
        soft, one = (
            distill(clf, X_train, y_train, target=target, top_k=top_k) for top_k in (None, 1)
        )
        measured = decomposition_entropy(soft, X_test)
        rows.append(
            (
                error,
                1 - soft.score(X_test, y_test),
                measured.expert_class_information,
                measured.sample_entropy,
                measured.usage_entropy,
                1 - one.score(X_test, y_test),
                np.mean(one.predict(X_test) == soft.predict(X_test)),
            )
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with mnist.npz")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="rows to run")
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--distill", action="store_true", help="distil the attentive rows")
    args = parser.parse_args()

    data = load(args.data)
    if args.distill:
        main_distilled(args, data)
        return
    print("model | test error | I(E;Y) | H_s | H_u | error of each seed")
    print("---|---|---|---|---|---")
    for row in args.only:
        results = np.array(
            Parallel(n_jobs=args.n_jobs)(
                delayed(run)(ROWS[row], seed, args.epochs, data) for seed in range(args.seeds)
            )
        )
        error, *bits = results.mean(axis=0)
        cells = [f"{error:.4f}", *(f"{value:.3f}" for value in bits)]
        errors = " ".join(f"{value:.3f}" for value in results[:, 0])
        print(f"{row} | " + " | ".join(cells) + f" | {errors}", flush=True)


def main_distilled(args, data):
    names = "teacher's error | student's error | I(E;Y) | H_s | H_u | with one expert | agreement"
    print(f"model | {names}")
    print("---|" + "---|" * 7)
    for row in args.only:
        if not row.startswith("attentive"):
            continue
        results = np.array(
            Parallel(n_jobs=args.n_jobs)(
                delayed(run_distilled)(ROWS[row], seed, args.epochs, data)
                for seed in range(args.seeds)
            )
        )
        for target, means in zip(("labels", "teacher"), results.mean(axis=0), strict=True):
            cells = " | ".join(f"{value:.4f}" for value in means)
            print(f"{row}, distilled from {target} | {cells}", flush=True)


if __name__ == "__main__":
    main()
