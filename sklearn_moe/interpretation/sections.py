"""The sections of a document about a fitted mixture."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics import log_loss

from sklearn_moe.decomposition import Decomposition, titled
from sklearn_moe.display import (
    DecompositionDisplay,
    ExpertSamplesDisplay,
    GateRulesDisplay,
)
from sklearn_moe.display.rules import tree_size
from sklearn_moe.interpretation.page import bullets, paragraph, picture, preformatted, table
from sklearn_moe.interpretation.rules import GateRules
from sklearn_moe.interpretation.words import MISSING, in_words
from sklearn_moe.model_selection.n_experts import NExpertsChoice
from sklearn_moe.stability import DecompositionStability

# Groups with fewer samples say little.
FEW = 50

# A column of numbers with more values makes groups of quarters; others show at most this many.
MOST_VALUES = 12

# So many columns of the table, and experts, are listed.
MOST_COLUMNS, MOST_EXPERTS = 100, 16

# Larger ratios of probabilities are not told.
MOST_TIMES = 100

# A mean probability is wrong if it is off by more than this, and by so many standard errors.
OFF, ERRORS = 0.02, 3


@dataclass(eq=False)
class Case:
    """A fitted mixture and its test samples.

    Attributes
    ----------
    estimator : MoEClassifier, Pipeline, search or NExpertsChoice
        What the user passed.
    model : MoEClassifier
        The mixture in it.
    X, y
        The test samples, as the user passed them, and their labels.
    columns : dict of ndarray by str
        The columns of a table by name; empty for images.
    proba : ndarray of shape (n_samples, n_classes)
        Predicted probabilities.
    chosen : ndarray of shape (n_samples,)
        The chosen experts.
    report : dict
        From :func:`decomposition_report`.
    decomposition : Decomposition
        The same as numbers.
    rules : GateRules or None
        The rules of the gate; None for images.
    single : ndarray of shape (n_samples, n_classes) or None
        Probabilities that a single logistic regression predicts; None if there is none.
    against, errors, limits : list of str
        What the sections found to speak against reading the experts as different rules, against
        the predictions, and against any other part of it.
    """

    estimator: BaseEstimator
    model: BaseEstimator
    X: ArrayLike
    y: NDArray
    columns: dict[str, NDArray]
    proba: NDArray[np.float64]
    chosen: NDArray[np.int64]
    report: dict[str, Any]
    decomposition: Decomposition
    rules: GateRules | None
    single: NDArray[np.float64] | None = None
    against: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What a sample is called."""
        return "images" if self.rules is None else "rows"

    @property
    def n_experts(self) -> int:
        """The number of experts."""
        return len(self.report["experts"])

    @property
    def experts(self) -> list[dict[str, Any]]:
        """What is known of the experts that have samples, the largest first."""
        experts = [each for each in self.report["experts"] if each["share"] > 0]
        return sorted(experts, key=lambda each: -each["share"])

    @property
    def names(self) -> list[str]:
        """The number of each expert, with its name and its rule, or its main one, if any."""
        notes = [[each["name"]] if each["name"] else [] for each in self.report["experts"]]
        if self.rules is not None and len(self.experts) > 1:
            for own, rule in zip(notes, self.rules.main_rules, strict=True):
                own += [rule] if rule else []
        return [
            titled(expert, "; ".join(own) if own else None) for expert, own in enumerate(notes)
        ]

    @property
    def target(self) -> object:
        """The class whose probability is shown: the second of two, or the most frequent."""
        classes = self.model.classes_.tolist()
        if len(classes) == 2:
            return classes[1]
        return classes[int(np.argmax([np.sum(self.y == label) for label in classes]))]


def about_data(case: Case) -> str:
    """Tell what the test samples are."""
    y, classes = case.y, case.model.classes_
    text = paragraph(
        f"{len(y):,} test {case.unit}, which the fit has not seen, if the author kept to it. All "
        "that follows is measured on them unless it says otherwise."
    )
    counts = [(label, np.sum(y == label)) for label in classes.tolist()]
    text += table(
        ["class", case.unit, "share"],
        [(label, f"{n:,}", f"{n / len(y):.1%}") for label, n in counts],
    )
    if not case.columns:
        return text + paragraph(f"Each has the shape {tuple(case.model.net_.own_shape)}.")
    rows = [(name, *_in_short(values)) for name, values in case.columns.items()]
    more = (
        f"There are {len(rows) - MOST_COLUMNS} more columns." if len(rows) > MOST_COLUMNS else ""
    )
    return (
        text
        + table(["column", "kind", "values", "missing"], rows[:MOST_COLUMNS])
        + paragraph(more)
    )


def _in_short(values):
    """Return the kind of a column, its values, and the share of missing ones."""
    missing = is_missing(values)
    known, share = values[~missing], f"{missing.mean():.1%}"
    if values.dtype != object:
        what = f"{in_words(known.min())} to {in_words(known.max())}" if len(known) else ""
        return "numbers", what, share
    found = sorted({str(value) for value in known})
    more = f" and {len(found) - MOST_VALUES} more" if len(found) > MOST_VALUES else ""
    return "categories", ", ".join(found[:MOST_VALUES]) + more, share


def is_missing(values: NDArray) -> NDArray[np.bool_]:
    """Return which values of a column are missing."""
    return np.array([value is None or value != value for value in values], dtype=bool)


def about_owners(case: Case) -> str:
    """Tell which samples each expert owns."""
    text = paragraph(
        f"The gate gives each expert a weight for each of the {case.unit}, and the mixture "
        f"predicts the weighted mean of the experts. An expert owns the {case.unit} for which it "
        "has the largest weight."
    )
    if case.rules is None:
        return text + picture(
            lambda figure: ExpertSamplesDisplay.from_estimator(
                case.estimator, case.X, case.y, ax=figure.subplots()
            ),
            (9, 1 + case.n_experts),
            "Images that each expert owns, one row for each expert, with their true classes.",
        )
    rules, text = case.rules, text + paragraph(case.rules.sentence)
    if len(rules.rules) == 1:
        return text
    text += paragraph(
        "How to read it: of all rows, so many meet the condition; of these, the gate chooses the "
        "expert for so many."
    )
    rows = [
        (
            rule.title,
            rule.text,
            f"{rule.coverage:.1%}",
            "-" if np.isnan(rule.purity) else f"{rule.purity:.0%}",
        )
        for rule in rules.rules
    ]
    text += table(["expert", "condition", "rows that meet it", "of these, the expert's"], rows)
    width, height = tree_size(rules)
    return text + picture(
        lambda figure: GateRulesDisplay(rules).plot(ax=figure.subplots()),
        (1.2 * width, 1.2 * height),
        "The same as a tree: " + "; ".join(map(str, rules.rules)) + ".",
    )


def about_division(case: Case) -> str:
    """Tell how the work is divided."""
    report, experts = case.report, case.experts
    rows = [
        (
            case.names[each["expert"]],
            f"{each['share']:.1%}",
            f"{each['usage']:.1%}",
            f"{each['certainty']:.0%}",
            f"{each['accuracy']:.1%}",
            ", ".join(f"{label} ({part:.0%})" for label, part in each["main_classes"].items()),
        )
        for each in experts[:MOST_EXPERTS]
    ]
    head = ["expert", f"share of the {case.unit}", "mean weight", "weight where it owns"]
    head += ["right alone", "main classes"]
    text = table(head, rows)
    sentences = []
    if len(experts) > MOST_EXPERTS:
        sentences.append(f"{len(experts) - MOST_EXPERTS} more experts have fewer {case.unit}.")
    if len(experts) < case.n_experts:
        sentences.append(
            f"{case.n_experts - len(experts)} of the {case.n_experts} experts own nothing."
        )
    use, gate, experts_are = report["verdict"]
    ratio = 2 ** report["specialization"]
    ratio = f"{ratio:.2f}" if ratio < MOST_TIMES else f"more than {MOST_TIMES}"
    sentences += [
        f"By weight, the experts are used {use}ly, as if {2 ** report['usage_entropy']:.1f} of "
        f"{case.n_experts} had equal parts.",
        f"The gate is {gate}, as if {2 ** report['sample_entropy']:.1f} experts shared each of "
        f"the {case.unit} equally.",
        f"The true class is {ratio} times as probable by the expert that owns the "
        f"{case.unit[:-1]} as by the others, so the experts are {experts_are}.",
        f"The mixture is right for {report['accuracy']:.1%} of the {case.unit}, and the expert "
        f"that owns it alone for {report['chosen_expert_accuracy']:.1%}.",
    ]
    names = case.decomposition.expert_names
    if case.rules is not None and case.rules.is_usable:
        names = case.rules
    return (
        text
        + bullets(sentences)
        + picture(
            lambda figure: DecompositionDisplay(case.decomposition, expert_names=names).plot(
                ax=figure.subplots()
            ),
            (9, 5),
            f"Numbers of {case.unit} of each class that each expert owns: "
            + "; ".join(f"{each[0]}: {each[1]}, {each[5] or 'many classes'}" for each in rows)
            + ".",
        )
    )


def about_number(case: Case, choice: NExpertsChoice | None) -> str:
    """Tell how many experts there are, and why."""
    text = f"The mixture has {case.n_experts} expert{'s' * (case.n_experts > 1)}. "
    if choice is None:
        text = paragraph(
            text + "This document was not told why. choose_n_experts(estimator, X, y) compares "
            "numbers of experts; pass its result as choice=."
        )
    else:
        if choice.n_experts_ != case.n_experts:
            text += f"The comparison below chooses another number, {choice.n_experts_}. "
        text = paragraph(
            text + "AIC, BIC and ICL measure the fit to the training samples and count the "
            "parameters; the log loss measures the error on held-out folds. Of each, low is good. "
            "H_u, in bits, is higher if the experts are used more evenly; the agreement is 1 if "
            "several searches for the same number found the same experts."
        ) + preformatted(choice)
    criteria = [
        (name.rstrip("_").replace("_", "-"), f"{getattr(case.model, name):,.1f}")
        for name in ("log_likelihood_", "aic_", "bic_", "icl_")
        if getattr(case.model, name, None) is not None
    ]
    if criteria:
        text += table(["criterion, on the training samples", "value"], criteria)
    return text


def about_stability(stability: DecompositionStability | None) -> str:
    """Tell whether another fit finds the same experts."""
    if stability is None:
        return paragraph(
            "It was not measured whether another fit finds the same experts. Measure it with "
            "decomposition_stability(estimator, X, y), and pass the result as stability=."
        )
    return paragraph(
        "The mixture was fitted again and again. A sample stays if it keeps its expert. The "
        "adjusted Rand index (ARI) compares two divisions: 1 is the same, about 0 is unrelated."
    ) + preformatted(stability)


def about_errors(case: Case, group_by: str | None, groups: dict[str, NDArray[np.bool_]]) -> str:
    """Tell the error, overall and in parts, with the calibration curve."""
    classes, y, proba = case.model.classes_, case.y, case.proba
    is_binary = len(classes) == 2
    hot = y[:, np.newaxis] == classes
    target = classes.tolist()[-1]
    head = ["part", case.unit, "right", "log loss", "Brier score"]
    if is_binary:
        head += [f"predicted share of {target}", f"observed share of {target}"]
    few, off = [], []

    def row(name, part, p=proba):
        n, p = int(part.sum()), p[part]
        if n == 0:
            return [name, 0] + ["-"] * (len(head) - 2)
        brier = ((p - hot[part]) ** 2).sum(axis=1).mean() / (2 if is_binary else 1)
        cells = [
            f"{(classes[p.argmax(axis=1)] == y[part]).mean():.1%}",
            f"{log_loss(y[part], p, labels=classes):.3f}",
            f"{brier:.3f}",
        ]
        if is_binary:
            predicted, observed = p[:, 1].mean(), hot[part, 1].mean()
            cells += [f"{predicted:.1%}", f"{observed:.1%}"]
            error = np.sqrt(np.mean(p[:, 1] * (1 - p[:, 1])) / n)
            if abs(predicted - observed) > max(OFF, ERRORS * error):
                off.append(
                    f"The probabilities are off for {name}: {predicted:.1%} {target} predicted, "
                    f"{observed:.1%} observed."
                )
        if n < FEW:
            few.append(f"{name} ({n})")
        return [name, f"{n:,}", *cells]

    everyone = np.ones(len(y), dtype=bool)
    rows = [row("all rows" if case.columns else "all images", everyone)]
    shares = np.tile(hot.mean(axis=0), (len(y), 1))
    rows.append(row("for comparison: always the shares of the classes", everyone, shares))
    loss, of_shares = (float(each[3]) for each in rows)
    if loss >= of_shares:
        case.errors.append(
            "Its probabilities are no better than always the shares of the classes (log loss "
            f"{loss:.3f} against {of_shares:.3f})."
        )
    if case.single is not None:
        rows.append(row("for comparison: one logistic regression", everyone, case.single))
    if case.n_experts > 1:
        rows += [row(name, case.chosen == expert) for expert, name in enumerate(case.names)]
    rows += [row(f"{group_by}: {name}", part) for name, part in groups.items()]
    if few:
        case.limits.append(
            f"The error is hardly known for parts of fewer than {FEW} test {case.unit}: "
            f"{', '.join(few[:MOST_EXPERTS])}."
        )
    if is_binary:
        truth, p, label = hot[:, 1], proba[:, 1], f"probability of {target}"
        found = f"are {target}"
    else:
        truth = classes[proba.argmax(axis=1)] == y
        p, label = proba.max(axis=1), "probability of the predicted class"
        found = "are of this class"
    from sklearn.calibration import calibration_curve  # here, as it takes long

    observed, predicted = calibration_curve(truth, p.clip(0, 1), strategy="quantile", n_bins=10)
    error = np.sqrt(predicted * (1 - predicted) * len(predicted) / len(y))
    beyond = np.abs(observed - predicted) - np.maximum(OFF, ERRORS * error)
    worst = int(beyond.argmax())
    if beyond[worst] > 0:
        case.errors.append(
            f"The probabilities are off: where the {label} is {predicted[worst]:.0%}, "
            f"{observed[worst]:.0%} {found}."
        )
    case.errors += off

    def draw(figure):
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        ax.plot(predicted, observed, "o-", color="#0072B2")
        ax.set(xlabel=f"predicted {label}", ylabel="observed share", aspect="equal")

    return (
        paragraph(
            f"The {case.unit} of an expert are what it owns; the whole mixture predicts them. The "
            "log loss is the mean of -log(p) for the probability p of the true class, and the "
            "Brier score the mean squared difference of the probabilities and what happened; of "
            "both, low is good, and 0 is perfect."
        )
        + table(head, rows)
        + paragraph(
            f"Calibration: the points lie on the grey line if probabilities are right. Each is a "
            f"tenth of the test {case.unit}."
        )
        + picture(
            draw,
            (4.5, 4.5),
            "Predicted and observed share: "
            + ", ".join(f"{a:.0%} and {b:.0%}" for a, b in zip(predicted, observed, strict=True))
            + ".",
        )
    )


def groups_of(values: NDArray) -> dict[str, NDArray[np.bool_]]:
    """Return by its name which samples belong to each group that the values of a column make."""
    missing = is_missing(values)
    known = values[~missing]
    if values.dtype != object and len(np.unique(known)) > MOST_VALUES:
        bounds = np.unique(np.quantile(known, [0.25, 0.5, 0.75, 1]))
        ends = dict.fromkeys(in_words(end) for end in (known.min(), bounds[0]))
        groups = {" to ".join(ends): values <= bounds[0]}
        for low, high in pairwise(bounds.tolist()):
            groups[f"over {in_words(low)} to {in_words(high)}"] = (values > low) & (values <= high)
    else:
        words = np.array([in_words(value, exact=True) for value in values], dtype=object)
        _, first, counts = np.unique(words[~missing], return_index=True, return_counts=True)
        often = known[first[np.argsort(-counts, kind="stable")[:MOST_VALUES]]]
        names = [in_words(value, exact=True) for value in sorted(often)]
        groups = {name: words == name for name in names}
        groups["other values"] = ~np.isin(words, names) & ~missing
    groups[MISSING] = missing
    return {name: rows for name, rows in groups.items() if rows.any()}


def about_settings(model: BaseEstimator) -> str:
    """Tell how the mixture was fitted, and by which software."""
    from sklearn_moe import __version__

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
    software = [("python", platform.python_version()), ("sklearn_moe", __version__)]
    software += [
        (name, version(name)) for name in ("scikit-learn", "torch", "numpy", "matplotlib")
    ]
    return (
        paragraph("Parameters that differ from the defaults:")
        + table(["parameter", "value"], changed)
        + paragraph("What the fit made of them:")
        + table(["part", "value"], found)
        + table(["software", "version"], software)
    )
