"""Time an exported mixture beside the fitted one, and beside classifiers of scikit-learn.

    python benchmarks/serving.py

All have the default settings, and predict for rows of one table, with one thread. Every figure is
a ratio of times within one process: the median over pairs that take turns. It needs onnx,
onnxscript and onnxruntime.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import markdown, ratios, threads

from sklearn_moe import MoEClassifier, export


def session(clf):
    """Return a session of onnxruntime for a mixture."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with TemporaryDirectory() as folder:
        export(clf, Path(folder, "mixture.onnx"))
        return onnxruntime.InferenceSession(Path(folder, "mixture.onnx"), options)


def table(options):
    """Yield the time of each, divided by that of MLPClassifier."""
    X, y = load_breast_cancer(return_X_y=True)
    clf = MoEClassifier(device="cpu", random_state=0).fit(X, y)
    mlp = MLPClassifier(random_state=0).fit(StandardScaler().fit_transform(X), y)
    scaled = make_pipeline(StandardScaler(), MLPClassifier(random_state=0)).fit(X, y)
    boosting = HistGradientBoostingClassifier(random_state=0).fit(X, y)
    graph = session(clf)
    for n_rows in (1, 1000):
        rows = np.resize(X, (n_rows, X.shape[1]))
        found = ratios(
            lambda rows=rows: mlp.predict_proba(rows),
            {
                "onnxruntime": lambda rows=rows: graph.run(None, {"numbers": rows}),
                "fitted": lambda rows=rows: clf.predict_proba(rows),
                "scaled": lambda rows=rows: scaled.predict_proba(rows),
                "boosting": lambda rows=rows: boosting.predict_proba(rows),
            },
            n_pairs=options.pairs,
            repeat=100 if n_rows == 1 else 1,
            choose=True,
        )
        yield ("1 row" if n_rows == 1 else "1,000 rows"), *(1 / ratio for ratio in found.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=21, help="number of pairs (default: 21)")
    warnings.simplefilter("ignore")  # that MLPClassifier has not converged
    with threads(1):
        header = ["onnxruntime", "MoEClassifier", "StandardScaler, MLPClassifier"]
        header += ["HistGradientBoostingClassifier"]
        markdown(["time / that of MLPClassifier", *header], table(parser.parse_args()))
