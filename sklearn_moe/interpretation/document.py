"""One file about a fitted mixture, for those who have to review it."""

from __future__ import annotations

import os
import platform
import re
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from sklearn.utils import _safe_indexing
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_moe.containers import as_dense, as_eager, as_frame
from sklearn_moe.decomposition import check_labels, final_model
from sklearn_moe.interpretation.conditions import as_table, column_names
from sklearn_moe.interpretation.importance import expert_importance
from sklearn_moe.interpretation.page import GLOSSARY, as_page, picture, preformatted, table
from sklearn_moe.interpretation.rules import gate_rules
from sklearn_moe.interpretation.summary import expert_summary
from sklearn_moe.parameters import has_linear_experts
from sklearn_moe.report import decomposition_report

# Groups with fewer rows say little.
FEW = 50

# A column of numbers with more values makes groups of quarters; others show at most this many.
MOST_VALUES = 12

# The effects of so many columns are drawn, and importance is measured on at most so many rows.
MOST_EFFECTS, MOST_ROWS = 4, 2000


def model_document(
    estimator: BaseEstimator,
    X_test: ArrayLike,
    y_test: ArrayLike,
    path: str | os.PathLike,
    *,
    X_train: ArrayLike | None = None,
    y_train: ArrayLike | None = None,
    group_by: int | str | None = None,
    choice: Any = None,
    stability: Any = None,
    title: str = "Mixture of experts",
    date: str | None = None,
) -> Path:
    """Write a document about a fitted mixture, which a reviewer can read, print and file.

    It is one HTML file that needs no network. It says what the data are, how the mixture was
    fitted, which samples each expert owns and what it does there, how often the mixture errs and
    how good its probabilities are (overall, for each expert and for groups), and when not to
    believe it. The same arguments write the same file.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
        ``best_estimator_``.
    X_test : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples that the fit has not seen. All errors are measured on them.
    y_test : array-like of shape (n_samples,)
        Their labels.
    path : str or path
        The file to write, in a folder that exists.
    X_train, y_train : array-like, default=None
        The training samples and their labels. They are needed for the coefficients of linear
        experts.
    group_by : int or str, default=None
        A column of the table, by name or position: the error is shown for each of its values too,
        or for four ranges of them.
    choice : NExpertsChoice, default=None
        What :func:`choose_n_experts` has returned.
    stability : DecompositionStability, default=None
        What :func:`decomposition_stability` has returned.
    title : str, default="Mixture of experts"
        The title.
    date : str, default=None
        A date to print below the title; None leaves it out.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    OSError
        If the folder of ``path`` does not exist.
    ValueError
        If labels are unknown, the table has no column ``group_by`` or other columns than those of
        the fit.
    NotFittedError
        If the mixture is not fitted.
    ImportError
        If matplotlib, which draws the pictures, is not installed.

    See Also
    --------
    decomposition_report : The division of work in short, as a text.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, model_document
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(2, max_iter=5, random_state=0).fit(X[::2], y[::2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model_document(clf, X[1::2], y[1::2], f"{folder}/iris.html").name
    'iris.html'
    """
    check_matplotlib_support("model_document")
    path = Path(path)
    if not path.parent.is_dir():
        raise OSError(f"The folder {str(path.parent)!r} of path does not exist. Make it first.")
    if (X_train is None) != (y_train is None):
        raise ValueError("X_train and y_train must be given together.")
    check_is_fitted(final_model(estimator)[0])
    X_test = as_eager(X_test)
    model, samples = final_model(estimator, X_test)
    y = check_labels(y_test, model.classes_)
    check_consistent_length(X_test, y)
    unknown = sorted(set(y.tolist()) - set(model.classes_.tolist()))
    if unknown:
        raise ValueError(
            f"y_test has the labels {unknown}, which are none of the classes "
            f"{model.classes_.tolist()} of the fit. Leave these samples out."
        )
    proba = model.predict_proba(samples).astype(np.float64)
    proba /= proba.sum(axis=1, keepdims=True)
    chosen = model.apply(samples)
    is_table = model.input_shape is None and len(model.net_.input_shape) == 1
    columns = _columns(X_test) if is_table else {}
    groups = None if group_by is None else _groups(columns, group_by)
    n_experts = len(model.expert_costs_)
    report = decomposition_report(estimator, X_test, y, stability=stability, output_dict=True)
    limits = _verdicts(report, stability)

    sections = {
        "The data": _data(columns, X_test, y, model.classes_),
        "The settings": _settings(model),
        "The number of experts": _number(model, n_experts, choice),
    }
    names = None
    if is_table:
        rules_from = X_test if X_train is None else X_train
        rules = gate_rules(
            estimator,
            rules_from,
            X_test=None if X_train is None else X_test,
            random_state=0,
        )
        names = rules if rules.is_usable else None
        if not rules.is_usable:
            limits.append(
                f"The rules describe the gate for only {rules.fidelity:.0%} of the samples. Do "
                "not describe the experts by them."
            )
        sections["Who owns what"] = preformatted(rules) + picture(
            _rules_display(rules), (2.5 * (_depth(rules) + 1.2), 0.62 * len(rules.rules) + 1)
        )
        sections["What the experts do"] = _experts(
            estimator, model, X_test, y, X_train, y_train, stability, limits
        )
    else:
        from sklearn_moe.display.samples import ExpertSamplesDisplay

        sections["Who owns what"] = picture(
            lambda ax: ExpertSamplesDisplay.from_estimator(estimator, X_test, y, ax=ax),
            (9, 1 + n_experts),
        )
    sections["How the work is divided"] = _division(estimator, X_test, y, names, stability)
    sections["Stability"] = (
        "<p>It was not measured whether another fit finds the same experts. Measure it with "
        "<code>decomposition_stability(estimator, X, y)</code>, and pass the result as "
        "<code>stability=</code>.</p>"
        if stability is None
        else preformatted(stability)
    )
    sections["Error and calibration"] = _errors(
        proba, y, model.classes_, chosen, n_experts, group_by, groups, limits
    )
    limits.append("All errors hold for samples like the test samples, and for no others.")
    sections["When not to believe it"] = _list(limits)
    sections["Words"] = table(["word", "meaning"], GLOSSARY.items())
    path.write_text(as_page(title, date, sections), encoding="utf-8")
    return path


def _columns(X):
    """Return the columns of a table by name: numbers, or objects."""
    X = as_table(as_dense(X))
    frame = as_frame(X)
    if frame is None:
        values = np.asarray(X).T
    else:
        values = [np.array(column.to_list(), dtype=object) for column in frame.iter_columns()]
    return dict(zip(column_names(X), map(_as_numbers, values), strict=True))


def _as_numbers(values):
    if any(isinstance(value, str) for value in values):
        return values.astype(object)
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError):
        return values


def _missing(values):
    return np.array([value is None or value != value for value in values], dtype=bool)


def _groups(columns, group_by):
    """Return a name of its group for each sample."""
    names = list(columns)
    if isinstance(group_by, int) and 0 <= group_by < len(names):
        group_by = names[group_by]
    if group_by not in columns:
        raise ValueError(
            f"group_by={group_by!r} is no column of X_test; it must be one of {names}."
        )
    values, missing = columns[group_by], _missing(columns[group_by])
    known = values[~missing]
    if values.dtype == object or len(np.unique(known)) <= MOST_VALUES:
        texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    else:
        bounds = np.quantile(known, [0, 0.25, 0.5, 0.75, 1])
        place = np.searchsorted(bounds[1:-1], values)
        texts = [f"{bounds[i]:.4g} to {bounds[i + 1]:.4g}" for i in np.minimum(place, 3)]
    return np.where(missing, "missing", texts)


def _data(columns, X, y, classes):
    shares = [(label, (y == label).sum(), f"{(y == label).mean():.1%}") for label in classes]
    text = (
        f"<p>{len(y):,} test rows. They were not used for the fit, if the author kept to it.</p>"
    )
    text += table(["class", "rows", "share"], shares)
    if not columns:
        return text + f"<p>Each is an image of shape {escape(str(np.shape(X)[1:]))}.</p>"
    rows = []
    for name, values in columns.items():
        missing = _missing(values)
        known = values[~missing]
        if values.dtype != object:
            kind = "numbers"
            what = f"{known.min():.6g} to {known.max():.6g}" if len(known) else ""
        else:
            kind = "categories"
            found = sorted({str(value) for value in known})
            what = ", ".join(found[:MOST_VALUES])
            what += f" and {len(found) - MOST_VALUES} more" if len(found) > MOST_VALUES else ""
        rows.append((name, kind, what, f"{missing.mean():.1%}"))
    return text + table(["column", "kind", "values", "missing"], rows)


def _settings(model):
    defaults = type(model)().get_params(deep=False)
    changed = [
        (name, re.sub(r" at 0x[0-9a-f]+", "", repr(value)))
        for name, value in sorted(model.get_params(deep=False).items())
        if name not in defaults or repr(value) != repr(defaults[name])
    ]
    net = model.module_
    found = [
        ("gate", type(net.gate).__name__),
        ("experts", type(net.experts).__name__),
        ("mixing", net.mixing),
        ("parameters of the net", f"{model.n_parameters_:,}"),
    ]
    versions = [("python", platform.python_version())]
    versions += [
        (name, version(name)) for name in ("scikit-learn", "torch", "numpy", "matplotlib")
    ]
    from sklearn_moe import __version__

    versions.insert(1, ("sklearn_moe", __version__))
    return (
        "<p>Parameters that differ from the defaults:</p>"
        + table(["parameter", "value"], changed)
        + "<p>What the fit made of them:</p>"
        + table(["part", "value"], found)
        + table(["software", "version"], versions)
    )


def _number(model, n_experts, choice):
    text = f"<p>The mixture has {n_experts} experts.</p>"
    criteria = [
        (name.rstrip("_"), f"{getattr(model, name):,.1f}")
        for name in ("log_likelihood_", "aic_", "bic_", "icl_")
        if getattr(model, name, None) is not None
    ]
    if criteria:
        text += table(["criterion, on the training samples", "value"], criteria)
    if choice is None:
        return text + (
            "<p>This document does not know why. <code>choose_n_experts(estimator, X, y)</code> "
            "compares numbers of experts; pass its result as <code>choice=</code>.</p>"
        )
    return text + preformatted(choice)


def _rules_display(rules):
    from sklearn_moe.display.rules import GateRulesDisplay

    return lambda ax: GateRulesDisplay(rules).plot(ax=ax)


def _depth(rules):
    return max(len(rule.conditions) for rule in rules.rules)


def _experts(estimator, model, X, y, X_train, y_train, stability, limits):
    """Coefficients of linear experts, what each expert needs, and the effects of columns."""
    from sklearn_moe.display.effects import ExpertEffectDisplay

    text = ""
    if has_linear_experts(model) and X_train is not None:
        try:
            summary = expert_summary(estimator, X_train, y_train, stability=stability)
        except (TypeError, ValueError) as error:
            text += f"<p>There are no coefficients: {escape(str(error))}</p>"
        else:
            text += preformatted(summary)
            says = " ".join(summary.sentences)
            if "do not differ" in says:
                limits.append(says)
    elif has_linear_experts(model):
        text += "<p>Pass <code>X_train</code> and <code>y_train</code> for the coefficients.</p>"
    rows = np.sort(np.random.RandomState(0).permutation(len(y))[:MOST_ROWS])
    importance = expert_importance(
        estimator, _safe_indexing(X, rows), y[rows], n_repeats=2, random_state=0
    )
    text += preformatted(importance)
    share = importance.n_samples / importance.n_samples.sum()
    needed = share @ np.nan_to_num(importance.importance)
    order = np.argsort(-needed, kind="stable")[:MOST_EFFECTS].tolist()
    target = None
    if len(model.classes_) > 2:  # the most frequent one
        labels, counts = np.unique(y, return_counts=True)
        target = labels.tolist()[int(counts.argmax())]
    return text + picture(
        lambda ax: ExpertEffectDisplay.from_estimator(
            estimator, X, order, target=target, random_state=0, ax=ax
        ),
        (3.6 * len(order) + 2, 4),
    )


def _division(estimator, X, y, names, stability):
    from sklearn_moe.display.decomposition import DecompositionDisplay

    return preformatted(decomposition_report(estimator, X, y, stability=stability)) + picture(
        lambda ax: DecompositionDisplay.from_estimator(estimator, X, y, expert_names=names, ax=ax),
        (9, 5),
    )


def _errors(proba, y, classes, chosen, n_experts, group_by, groups, limits):
    """Tables of the error, overall and in parts, and the calibration curve."""
    is_binary = len(classes) == 2
    hot = y[:, np.newaxis] == classes
    head = ["part", "rows", "accuracy", "log loss", "Brier score"]
    if is_binary:
        head += [f"predicted share of {classes[1]}", f"observed share of {classes[1]}"]

    def row(name, part):
        n, p = int(part.sum()), proba[part]
        if n == 0:
            return [name, 0] + ["-"] * (len(head) - 2)
        brier = ((p - hot[part]) ** 2).sum(axis=1).mean() / (2 if is_binary else 1)
        cells = [
            f"{(classes[p.argmax(axis=1)] == y[part]).mean():.3f}",
            f"{log_loss(y[part], p, labels=classes):.3f}",
            f"{brier:.3f}",
        ]
        if is_binary:
            cells += [f"{p[:, 1].mean():.1%}", f"{hot[part, 1].mean():.1%}"]
        if n < FEW:
            limits.append(f"{name} has only {n} test rows, so its error is hardly known.")
        return [name, f"{n:,}", *cells]

    rows = [row("all", np.ones(len(y), dtype=bool))]
    rows += [row(f"expert {expert}", chosen == expert) for expert in range(n_experts)]
    if groups is not None:
        rows += [row(f"{group_by}: {name}", groups == name) for name in np.unique(groups)]

    if is_binary:
        truth, p, label = hot[:, 1], proba[:, 1], f"probability of {classes[1]}"
    else:
        truth = classes[proba.argmax(axis=1)] == y
        p, label = proba.max(axis=1), "probability of the predicted class"

    def draw(ax):
        observed, predicted = calibration_curve(
            truth, p.clip(0, 1), strategy="quantile", n_bins=10
        )
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        ax.plot(predicted, observed, "o-", color="#0072B2")
        ax.set(xlabel=f"predicted {label}", ylabel="observed share", aspect="equal")

    return (
        "<p>The rows of an expert are those for which the gate chooses it; the whole mixture "
        "predicts them.</p>"
        + table(head, rows)
        + "<p>Calibration: the points lie on the grey line if probabilities are right. Each "
        "point is a tenth of the test rows.</p>" + picture(draw, (4.5, 4.5))
    )


def _verdicts(report, stability):
    """What the measures say against an interpretation."""
    limits, verdict = [], report["verdict"]
    if "interchangeable" in verdict:
        limits.append("The experts are interchangeable: do not read them as different rules.")
    if "unsure" in verdict:
        limits.append("The gate is unsure: several experts share a sample.")
    if "uneven" in verdict:
        limits.append("The experts are used unevenly: some have few samples, or none.")
    if stability is None:
        limits.append("It is not known whether another fit finds the same experts.")
    elif stability.verdict != "comes back":
        limits.append(stability.sentence)
    return limits


def _list(items):
    return "<ul>" + "".join(f"<li>{escape(each)}</li>" for each in items) + "</ul>"
