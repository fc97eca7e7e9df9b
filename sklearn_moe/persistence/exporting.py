"""Write a fitted mixture to a file that other runtimes read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.estimator import MoEClassifier
from sklearn_moe.fitted import is_mixture
from sklearn_moe.persistence.files import replacing
from sklearn_moe.persistence.graphs import to_onnx, to_torch
from sklearn_moe.persistence.linear_python import to_python
from sklearn_moe.persistence.linear_sql import to_sql

FORMATS: dict[str, Callable] = {
    "onnx": to_onnx,
    "torch": to_torch,
    "python": to_python,
    "sql": to_sql,
}


def export(
    clf: MoEClassifier,
    path: str | os.PathLike,
    format: str = "onnx",
    *,
    table: str = "data",
    key: str | Sequence[str] = (),
) -> None:
    """Write a fitted mixture, with all that it does to its input, to a file for other runtimes.

    Every format gives the probabilities of the classes, as ``predict_proba``, those of the
    experts, as ``gate_proba``, and the most probable expert, as ``apply``. The guide's page "Ship
    a mixture" shows how to read the files without this package.

    Parameters
    ----------
    clf : MoEClassifier
        A fitted mixture.
    path : str or path-like
        The file to write. A former file stays if the export fails.
    format : {"onnx", "torch", "python", "sql"}, default="onnx"
        - "onnx": a graph for onnxruntime and other ONNX runtimes, which takes batches of any
          length. It has the outputs ``proba`` (n_rows, n_classes), ``gate_proba``
          (n_rows, n_experts) and ``expert`` (n_rows,). A table is given as ``numbers``, float64 of
          shape (n_rows, n_numbers) with NaN for missing values, and ``codes``, int64 of shape
          (n_rows, n_categorical); there is only one of them if the table has no columns of the
          other kind. Without encoder, ``numbers`` are float32. Images are given as ``images``,
          float32 of shape (n_rows, ...). The names of the columns, the codes of the categories and
          the classes are in the metadata, as JSON under the key ``sklearn_moe``.
        - "torch": the same as a program for ``torch.export.load``, whose ``module()`` takes the
          inputs and returns the outputs, in this order. The metadata are in the extra file
          ``sklearn_moe.json``.
        - "python": a file with the functions ``predict_proba(row)``, ``gate_proba(row)`` and
          ``apply(row)``, which imports nothing. A row is a dict or a sequence.
        - "sql": a query in standard SQL, with the functions EXP, SQRT and POWER. It returns the
          columns ``proba_<class>``, ``gate_proba_<expert>`` and ``expert``. NULL is a missing
          value. Columns without a name are called x0, x1, and so on.

        "python" and "sql" are for linear experts (``experts="linear"``) and gates with a short
        formula: a ``SoftmaxGate``, ``GumbelGate`` or ``CosineGate`` without hidden layers, a
        ``ConstantGate`` or a ``KMeansGate``.
    table : str, default="data"
        Name of the table that the query of ``format="sql"`` reads.
    key : str or sequence of str, default=()
        Columns of this table that the query returns, too, to tell the rows apart.

    Raises
    ------
    TypeError
        If ``clf`` is no mixture, but for example a pipeline. If ``key`` is not a list of names.
    NotFittedError
        If it is not fitted.
    ValueError
        If the format is unknown, or cannot hold this mixture.
    FileNotFoundError
        If the directory is not there.
    ImportError
        If ``format="onnx"`` lacks onnx and onnxscript: ``pip install "sklearn-moe[export]"``.

    See Also
    --------
    save : Keep the mixture itself, for :func:`load`.
    model_document : What the experts do, for readers.

    Notes
    -----
    Graphs run all experts for each row, also if the gate chooses a few of them. Results differ
    from those of ``clf`` by about 1e-7, or by 1e-5 if coefficients are near 100, for which single
    precision is not more exact. "python" and "sql" compute in double precision.

    A graph takes every code that is no category for an unknown one, and does not look for infinite
    numbers, about which ``clf`` complains.

    Examples
    --------
    >>> from pathlib import Path
    >>> from runpy import run_path
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, export
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(2, experts="linear", regularization=None, n_init=1, random_state=0)
    >>> with TemporaryDirectory() as folder:
    ...     export(clf.fit(X, y), Path(folder, "iris.py"), format="python")
    ...     iris = run_path(Path(folder, "iris.py"))
    >>> proba = iris["predict_proba"](X[0].tolist())
    >>> bool(abs(proba[0] - clf.predict_proba(X[:1])[0, 0]) < 1e-5)
    True
    """
    _check_mixture(clf)
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}, got {format!r}.")
    key = [key] if isinstance(key, str) else key
    if not isinstance(key, (list, tuple)) or not all(isinstance(name, str) for name in key):
        raise TypeError(f"key must be the name of a column, or a list of names, got {key!r}.")
    if format != "sql" and (table != "data" or key):
        raise ValueError(f"table and key are for format='sql', got format={format!r}.")
    options = {"table": table, "key": list(key)} if format == "sql" else {}
    with replacing(path) as new:
        new.write_bytes(FORMATS[format](clf, **options))


def _check_mixture(clf):
    """Raise an error unless a mixture is fitted, and answers without other classifiers."""
    if isinstance(clf, Pipeline):
        raise TypeError(
            "clf is a pipeline, and an export holds only a mixture, with its own encoding of "
            "tables. Export the last step: export(pipeline[-1], path)."
        )
    if hasattr(clf, "best_estimator_"):
        raise TypeError("clf is a search. Export the best that it found: clf.best_estimator_.")
    if hasattr(clf, "members_"):
        raise TypeError(
            f"clf is an ensemble of {len(clf.members_)} mixtures. Export each of clf.members_, "
            "and average their probabilities with clf.weights_."
        )
    if not is_mixture(clf):
        raise TypeError(f"clf must be a fitted MoEClassifier, got {clf!r}.")
    check_is_fitted(clf)
    if clf.named_experts_:
        raise ValueError(
            f"The experts {list(clf.named_experts_)} are classifiers that run outside of the "
            "mixture, which an export cannot hold. Fit a mixture without them, or pickle it."
        )
