"""One file about a fitted mixture, for those who have to review it."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_moe.containers import as_eager, as_frame
from sklearn_moe.decomposition import check_labels, final_model
from sklearn_moe.interpretation.behaviour import about_experts
from sklearn_moe.interpretation.conditions import as_table, column_names
from sklearn_moe.interpretation.page import GLOSSARY, as_page, bullets, table
from sklearn_moe.interpretation.rules import gate_rules
from sklearn_moe.interpretation.sections import (
    Case,
    about_data,
    about_division,
    about_errors,
    about_number,
    about_owners,
    about_settings,
    about_stability,
    groups_of,
)
from sklearn_moe.interpretation.summary import ExpertSummary
from sklearn_moe.model_selection.n_experts import NExpertsChoice
from sklearn_moe.parameters import has_linear_experts
from sklearn_moe.report import measured
from sklearn_moe.stability import DecompositionStability

# The first section names at most so many classes, and experts.
MOST_NAMED = 4


@validate_params(
    {
        "path": [str, os.PathLike],
        "group_by": [Integral, str, None],
        "choice": [NExpertsChoice, None],
        "stability": [DecompositionStability, None],
        "summary": [ExpertSummary, None],
        "title": [str],
        "date": [str, None],
    },
    prefer_skip_nested_validation=True,
)
def model_document(
    estimator: BaseEstimator | NExpertsChoice,
    X_test: ArrayLike,
    y_test: ArrayLike,
    path: str | os.PathLike,
    *,
    X_train: ArrayLike | None = None,
    y_train: ArrayLike | None = None,
    group_by: int | str | None = None,
    choice: NExpertsChoice | None = None,
    stability: DecompositionStability | None = None,
    summary: ExpertSummary | None = None,
    title: str = "Mixture of experts",
    date: str | None = None,
) -> Path:
    """Write a document about a fitted mixture, which a reviewer can read, print and file.

    It is one HTML file that needs no network. It begins with a few plain sentences, and says what
    the data are, which samples each expert owns and what it does there, how often the mixture errs
    and how good its probabilities are (overall, for each expert and for groups), whether the
    experts come back, when not to believe it, and how the mixture was fitted. Its reader need not
    know what a mixture of experts is. The same arguments write the same file.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline, search or NExpertsChoice
        A fitted ``MoEClassifier``, a pipeline that ends in one, a search with such a
        ``best_estimator_``, or what :func:`choose_n_experts` has returned.
    X_test : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples that the fit has not seen. All errors are measured on them.
    y_test : array-like of shape (n_samples,)
        Their labels. The name of a pandas Series is what the document says that they are.
    path : str or path
        The file to write, in a folder that exists.
    X_train, y_train : array-like, default=None
        The training samples and their labels. They are needed for the coefficients of linear
        experts.
    group_by : int or str, default=None
        A column of the table, by name or position: the error is shown for each of its values too
        (the 12 most frequent), or for four ranges of a column of numbers.
    choice : NExpertsChoice, default=None
        What :func:`choose_n_experts` has returned; by default the ``estimator``, if it is one.
    stability : DecompositionStability, default=None
        What :func:`decomposition_stability` has returned.
    summary : ExpertSummary, default=None
        What :func:`expert_summary` has returned, such as one with weights, groups or standard
        errors by bootstrap. By default, it is made from ``X_train`` and ``y_train``.
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
        If a parameter is not valid, labels are unknown, the table has no column ``group_by`` or
        other columns than those of the fit, or ``stability`` is that of another number of experts.
    TypeError
        If the estimator has no mixture.
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
    if choice is None and isinstance(estimator, NExpertsChoice):
        choice = estimator
    case = _read(estimator, X_test, y_test, X_train, stability)
    groups = {}
    if group_by is not None:
        group_by = _find_column(case.columns, group_by)
        groups = groups_of(case.columns[group_by])
    if case.rules is not None and not case.rules.is_usable:
        case.limits.append(
            f"The rules describe the gate for only {case.rules.fidelity:.0%} of the rows. Do not "
            "describe the experts by them."
        )
    sections = {"The data": about_data(case)}
    is_divided = case.n_experts > 1
    if is_divided:
        sections["Who owns what"] = about_owners(case)
    if case.rules is not None:
        sections["What the experts do"] = about_experts(case, X_train, y_train, stability, summary)
    if is_divided:
        sections["How the work is divided"] = about_division(case)
    sections["The number of experts"] = about_number(case, choice)
    if is_divided:
        sections["Stability"] = about_stability(stability)
    sections["Error and calibration"] = about_errors(case, group_by, groups)
    _judge(case, stability)
    sections |= {
        "When not to believe it": bullets(case.against + case.errors + case.limits),
        "Settings": about_settings(case.model),
        "Words": table(["word", "meaning"], GLOSSARY.items()),
    }
    name = getattr(y_test, "name", None)
    in_short = {"In short": bullets(_in_short(case, name, stability))}
    path.write_text(as_page(title, date, in_short | sections), encoding="utf-8")
    return path


def _read(estimator, X, y, X_train, stability):
    """Check the test samples, and return all that is computed of them once."""
    check_is_fitted(final_model(estimator)[0])
    X = as_eager(X)
    model, samples = final_model(estimator, X)
    y = check_labels(y, model.classes_)
    check_consistent_length(X, y)
    unknown = sorted(set(y.tolist()) - set(model.classes_.tolist()))
    if unknown:
        raise ValueError(
            f"y_test has the labels {unknown}, which are none of the classes "
            f"{model.classes_.tolist()} of the fit. Leave these samples out."
        )
    proba = model.predict_proba(samples).astype(np.float64)
    report, decomposition = measured(model, samples, y, stability)
    rules = None
    is_table = model.input_shape is None and len(model.net_.own_shape) == 1
    if is_table and X_train is None:
        rules = gate_rules(estimator, X, random_state=0)
    elif is_table:
        rules = gate_rules(estimator, X_train, X_test=X, random_state=0)
    return Case(
        estimator=estimator,
        model=model,
        X=X,
        y=y,
        columns=_columns(X) if is_table else {},
        proba=proba / proba.sum(axis=1, keepdims=True),
        chosen=model.apply(samples),
        report=report,
        decomposition=decomposition,
        rules=rules,
    )


def _columns(X: Any) -> dict[str, NDArray]:
    """Return the columns of a table by name: numbers, or objects."""
    X = as_table(X)
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


def _find_column(columns, group_by):
    """Return the name of the column that makes groups."""
    names = list(columns)
    if not names:
        raise ValueError(f"group_by={group_by!r} needs a table, but X_test holds images.")
    if isinstance(group_by, Integral) and 0 <= group_by < len(names):
        return names[group_by]
    if group_by not in columns:
        raise ValueError(
            f"group_by={group_by!r} is no column of X_test; it must be one of {names}."
        )
    return group_by


def _judge(case, stability):
    """Collect what the measures say against an interpretation."""
    use, gate, experts = case.report["verdict"]
    base = max(np.mean(case.y == label) for label in case.model.classes_)
    if case.report["accuracy"] <= base:
        case.errors.insert(
            0,
            "The mixture is right no more often than one that always names the most frequent "
            "class.",
        )
    if case.n_experts > 1:
        if experts == "interchangeable":
            case.against.append(
                "The experts are interchangeable: others predict the rows of an expert about as "
                "well as it does."
            )
        if stability is None:
            case.limits.append("It is not known whether another fit finds the same experts.")
        elif stability.verdict != "comes back":
            case.against.append(stability.sentence)
        if gate == "unsure":
            case.limits.append(
                "The gate is unsure: several experts share a sample, so that none of them alone "
                "says what the mixture predicts."
            )
        if use == "uneven":
            case.limits.append("The experts are used unevenly: some own few samples, or none.")
    case.limits.append("All errors hold for samples like the test samples, and for no others.")


def _in_short(case, name, stability):
    """Return some plain sentences that say it all."""
    classes, counts = np.unique(case.y, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = counts[order] / len(case.y)
    listed = [
        f"{label} ({share:.0%})"
        for label, share in zip(classes[order].tolist(), shares, strict=True)
    ]
    what = f"{len(case.columns)} columns" if case.columns else "pixels"
    of = f'"{name}", which is' if isinstance(name, str) and name else "the class,"
    sentences = [
        f"The data: {len(case.y):,} test {case.unit}. From {what}, the model predicts {of} "
        f"{_joined(listed, 'or', MOST_NAMED)}.",
        _kind(case),
    ]
    if case.n_experts > 1:
        sentences.append(_owners(case))
    sentences.append(
        f"It names the right class for {case.report['accuracy']:.1%} of the test {case.unit}. "
        f"Always naming {classes[order[0]]} would be right for {shares[0]:.1%}."
    )
    if len(case.model.classes_) == 2:
        label = case.target
        sentences[-1] += (
            f" It predicts {case.proba[:, 1].mean():.1%} {label}, and "
            f"{np.mean(case.y == label):.1%} are."
        )
    sentences[-1] = " ".join([sentences[-1], *case.errors[:1]])
    if case.n_experts > 1:
        sentences.append(_belief(case, stability))
    return sentences


def _joined(items, word, most):
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1} more"]
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last


def _kind(case):
    names = case.decomposition.expert_names
    if case.n_experts == 1:
        what = "a logistic regression" if has_linear_experts(case.model) else "one network"
        what = what if names is None else names[0]
        return f"The model: a mixture of experts with a single expert, that is, {what}."
    one = "logistic regressions" if has_linear_experts(case.model) else "networks"
    one = one if names is None else _joined(names, "and", MOST_NAMED)
    return (
        f"The model: a mixture of experts. {case.n_experts} smaller models, the experts, here "
        f"{one}, share the work. A part called the gate decides for each of the {case.unit} how "
        "much each expert counts; the expert that counts most owns it."
    )


def _owners(case):
    experts = [
        f"{case.names[each['expert']]} owns {each['share']:.0%}{_classes(case, each)}"
        for each in case.experts[:MOST_NAMED]
    ]
    if len(case.experts) > MOST_NAMED:
        experts.append(f"{len(case.experts) - MOST_NAMED} more own the rest")
    text = f"Who owns what: {'; '.join(experts)}."
    if len(case.experts) == 1:
        text += " So nothing is divided."
    elif case.rules is not None and not case.rules.is_usable:
        text += " No short rules say which rows these are."
    return text


def _classes(case, expert):
    labels = list(expert["main_classes"])
    if case.rules is not None or not labels:
        return ""
    return f", mostly {_joined(list(map(str, labels)), 'and', MOST_NAMED)}"


def _belief(case, stability):
    if len(case.experts) == 1:
        return "Believe it? Read it as one model: one expert owns everything."
    if case.against:
        return "Believe it? Do not read the experts as different rules. " + " ".join(case.against)
    if stability is None:
        return (
            "Believe it? Nothing here speaks against different experts, but it was not measured "
            "whether another fit finds the same ones. Do not rely on them before it is."
        )
    return f"Believe it? Nothing here speaks against it. {stability.sentence}"
