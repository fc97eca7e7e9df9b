"""Report a decomposition on one screen: the experts, the measures, and what to try."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_moe.decomposition import (
    Decomposition,
    check_labels,
    cut,
    decomposition_entropy,
    final_model,
    in_short,
    signed,
)

if TYPE_CHECKING:
    from sklearn_moe.stability import DecompositionStability

# Largest number of experts in the report, which shows those that are chosen most often.
MOST_EXPERTS = 16

# Largest number of columns of the gate in the report.
MOST_COLUMNS = 5

# Words for how much the expert says about the class, below these shares of the possible maximum.
SAYS = (
    (0.1, "almost nothing"),
    (0.4, "little"),
    (0.9, "much"),
    (math.inf, "almost all that it can"),
)

# What experts are, below these bits that a sample loses if others replace its expert: 3 % and 29 %
# of its likelihood.
EXPERTS_ARE = (
    (0.05, "interchangeable"),
    (0.5, "partly specialized"),
    (math.inf, "specialized"),
)


class Report(str):
    """A text that a notebook or the prompt shows as it is, as ``print`` would."""

    def __repr__(self) -> str:
        return str(self)


def decomposition_report(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    stability: DecompositionStability | None = None,
    output_dict: bool = False,
) -> str | dict[str, Any]:
    """Report what the experts do, how well they divide the work, and what to try.

    For each expert: its share of the samples (those for which the gate chooses it), its usage
    (mean gate probability over all samples), its accuracy on its own samples without the other
    experts, its certainty (mean gate probability over its own samples), the bits that it knows
    (its :func:`specialization`) and its main classes. Then what the mixture costs, the four
    measures with a sentence each, and a verdict on three things:

    - how the experts are used: *unevenly*, as if fewer than :math:`(E + 1) / 2` of them were used
      equally, :math:`2^{H_u} < (E + 1) / 2`, or *evenly*;
    - how the gate chooses: *unsurely*, as if more than 1.5 experts shared each sample equally,
      :math:`2^{H_s} > 1.5`, or *surely*;
    - what the experts know: they are *interchangeable* if a sample loses less than 0.05 bits (3 %
      of its likelihood) when the mean of the others, or the best other, replaces its expert,
      *partly specialized* below 0.5 bits (29 %), and otherwise *specialized*. The smaller of the
      two losses counts.

    The report cannot tell whether this division is the right one. A soft gate that has found the
    structure of the data may be unsure, and an even and sure division may be wrong. Nor does it
    know whether another fit would find it again, unless it gets the ``stability``.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
        ``best_estimator_``.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples, preferably those of a test set.
    y : array-like of shape (n_samples,)
        Labels.
    stability : DecompositionStability, default=None
        The result of :func:`decomposition_stability` for this mixture, for a line about it.
    output_dict : bool, default=False
        Whether to return a dict instead of the text.

    Returns
    -------
    str or dict
        The text, which a notebook shows as ``print`` would. It lists at most 16 experts, those
        that are chosen most often.

        The dict has ``experts``, a list of one dict per expert, with "expert", "name" (None
        unless ``experts`` was a list with names), "share", "usage", "accuracy", "certainty",
        "specialization", "specialization_to_best" and "main_classes".
        "main_classes" has the three largest classes of the expert's samples, without those below
        a tenth, and their shares of its samples. Accuracy, certainty and specialization are nan
        for an expert that is never chosen.

        The dict also has ``accuracy`` of the mixture, ``chosen_expert_accuracy``,
        ``n_parameters``, ``gate_columns`` (those that the gate uses; None for all), ``cost``,
        ``relative_cost`` and ``skipping_share`` (see :class:`Decomposition`; None if there are
        classifiers of scikit-learn among the experts),
        ``sample_entropy``, ``usage_entropy``,
        ``expert_class_information``, ``specialization`` and ``specialization_to_best`` in bits,
        the first three also as ``normalized_*``, ``verdict`` (three str: "even" or "uneven",
        "sure" or "unsure", and "interchangeable", "partly specialized" or "specialized"),
        ``advice`` (list of str, empty for "even" and "sure") and ``stability``. This is None, or a
        dict of the "verdict" of :class:`DecompositionStability`, the mean "agreement" and
        "adjusted_rand_index" with the reference, "n_refits" and "resample".

    Raises
    ------
    ValueError
        If the labels are not valid, or ``stability`` is that of a mixture with another number of
        experts.

    See Also
    --------
    decomposition_entropy : The same measures as numbers.
    decomposition_stability : Whether another fit finds the same parts.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_moe import MoEClassifier, decomposition_report
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), MoEClassifier(n_experts=3, random_state=0))
    >>> print(decomposition_report(clf.fit(X, y), X, y))  # doctest: +ELLIPSIS
    expert   share   usage  accuracy  certainty  knows  main classes
    ...
    >>> report = decomposition_report(clf, X, y, output_dict=True)
    >>> len(report["experts"])
    3
    """
    report, decomposition = measured(estimator, X, y, stability)
    return report if output_dict else Report(_text(report, decomposition, stability))


def measured(
    estimator: Any, X: Any, y: ArrayLike, stability: DecompositionStability | None
) -> tuple[dict[str, Any], Decomposition]:
    """Return the dict of :func:`decomposition_report`, and the decomposition."""
    y = check_labels(y)
    model, X = final_model(estimator, X)
    decomposition = decomposition_entropy(model, X, y)
    accuracy = float(np.mean(model.predict(X) == y))
    verdict, advice = _judge(decomposition, model.net_)
    if stability is not None and stability.usage.shape[1] != len(decomposition.usage):
        raise ValueError(
            f"stability is that of a mixture with {stability.usage.shape[1]} experts, but the "
            f"estimator has {len(decomposition.usage)}."
        )
    report = {
        "experts": _experts(decomposition),
        "accuracy": accuracy,
        "n_parameters": model.n_parameters_,
        "gate_columns": _gate_columns(model),
        **{name: getattr(decomposition, name) for name in _MEASURES},
        "verdict": verdict,
        "advice": advice,
        "stability": None if stability is None else _in_short(stability),
    }
    return report, decomposition


_MEASURES = (
    "chosen_expert_accuracy",
    "cost",
    "relative_cost",
    "skipping_share",
    "sample_entropy",
    "usage_entropy",
    "expert_class_information",
    "specialization",
    "specialization_to_best",
    "normalized_sample_entropy",
    "normalized_usage_entropy",
    "normalized_expert_class_information",
)


def _experts(decomposition: Decomposition) -> list[dict[str, Any]]:
    names = decomposition.expert_names
    shares = decomposition.table.sum(axis=1) / decomposition.table.sum()
    classes = decomposition.classes.tolist()
    known: Any = decomposition  # with labels, so nothing of it is None
    experts = []
    for expert, counts in enumerate(decomposition.table):
        parts = counts / max(counts.sum(), 1)
        main = [index for index in np.argsort(-parts, kind="stable")[:3] if parts[index] >= 0.1]
        experts.append(
            {
                "expert": expert,
                "name": None if names is None else names[expert],
                "share": float(shares[expert]),
                "usage": float(decomposition.usage[expert]),
                "accuracy": float(known.expert_accuracy[expert]),
                "certainty": float(decomposition.expert_certainty[expert]),
                "specialization": float(known.expert_specialization[expert]),
                "specialization_to_best": float(known.expert_specialization_to_best[expert]),
                "main_classes": {classes[index]: float(parts[index]) for index in main},
            }
        )
    return experts


def _gate_columns(model):
    """Return the columns that the gate uses, or None if it uses all or reads no columns."""
    columns = getattr(model, "gate_columns_", None)
    return None if columns is None or len(columns) == model.n_features_in_ else columns


def _in_short(stability):
    return {
        "verdict": stability.verdict,
        "agreement": float(stability.agreement.mean()),
        "adjusted_rand_index": float(stability.adjusted_rand_index[0, 1:].mean()),
        "n_refits": stability.n_refits,
        "resample": stability.resample,
    }


def _judge(decomposition: Decomposition, net: Any) -> tuple[list[str], list[str]]:
    """Return the verdict, and the hyperparameters to try beside those that were fitted."""
    n_experts = len(decomposition.usage)
    used = 2**decomposition.usage_entropy
    # One other expert may know as much as the chosen one, or all others together.
    known: Any = decomposition  # with labels, so nothing of it is None
    knows = min(known.specialization, known.specialization_to_best)
    verdict, advice = ["even", "sure", _word(EXPERTS_ARE, knows)], []
    if used < (n_experts + 1) / 2:
        verdict[0] = "uneven"
        if any(getattr(each, "balances", False) for each in net.regularizations):
            advice.append("a higher strength of the regularization, for more experts")
        elif net.regularizations:
            advice.append("'importance' or 'sample_similarity' beside the present regularization")
        else:
            advice.append("regularization='importance' or 'sample_similarity', for more experts")
        if (enough := math.ceil(used)) < n_experts:
            is_list = decomposition.expert_names is not None
            how = f"prune_experts(..., n_experts={enough})" if is_list else f"n_experts={enough}"
            advice.append(f"{how}, if that many are enough")
    if 2**decomposition.sample_entropy > 1.5:
        verdict[1] = "unsure"
        if net.mixing == "logit":
            advice.append("mixing='probability', which lets experts stand on their own")
        if not net.module_.gate.needs_hidden:
            advice.append("gate='attentive', which is surer")
        if any(getattr(each, "sharpens", False) for each in net.regularizations):
            advice.append("a higher strength of the entropy regularization")
        elif net.regularizations:
            advice.append("Entropy(0.1) beside the present regularization")
        else:
            advice.append("regularization=Entropy(0.1), which makes the gate surer")
        advice.append("a gate with a temperature below 1")
    return verdict, advice


def _word(words, value):
    return next(word for bound, word in words if value < bound)


def _text(
    report: dict[str, Any],
    decomposition: Decomposition,
    stability: DecompositionStability | None,
) -> str:
    n_experts = len(decomposition.usage)
    experts = sorted(
        (row for row in report["experts"] if row["share"] > 0), key=lambda row: -row["share"]
    )
    names = dict(zip(decomposition.classes.tolist(), cut(decomposition.classes, 8), strict=True))
    shown = experts[:MOST_EXPERTS]
    width = max([len("expert"), *(len(row["name"]) for row in shown if row["name"])])
    lines = [f"{'expert':{width}}   share   usage  accuracy  certainty  knows  main classes"]
    for row in shown:
        classes = ", ".join(
            f"{names[label]} ({part:.0%})" for label, part in row["main_classes"].items()
        )
        lines.append(
            f"{row['name'] or row['expert']:>{width}}  {row['share']:6.1%}  {row['usage']:6.1%}  "
            f"{row['accuracy']:8.3f}  {row['certainty']:9.2f}  "
            f"{signed(row['specialization'], 2):5.2f}  {classes or 'many'}"
        )
    others = experts[MOST_EXPERTS:]
    if others:
        lines.append(f"{len(others):2} more {sum(row['share'] for row in others):7.1%}")
    if len(experts) < n_experts:
        lines.append(f"{n_experts - len(experts)} of {n_experts} experts are never chosen")
    lines += [
        "",
        f"accuracy  {report['accuracy']:.3f} of the mixture, "
        f"{report['chosen_expert_accuracy']:.3f} of the chosen expert alone",
        f"size      {report['n_parameters']:,} parameters",
    ]
    if report["cost"] is None:
        lines[-1] += " of the net, without the classifiers among the experts"
    else:
        lines[-1] += (
            f"; {report['cost']:,.0f} multiply-adds of the experts per sample, "
            f"{report['relative_cost']:.0%} of all"
        )
    columns = report["gate_columns"]
    if columns is not None:
        names = ", ".join(cut(columns[:MOST_COLUMNS], 12)) or "none"
        others = f" and {len(columns) - MOST_COLUMNS} more" if len(columns) > MOST_COLUMNS else ""
        lines.append(f"gate      chooses by the columns: {names}{others}")
    for number, layer in enumerate(decomposition.layers):
        lines.append(f"layer {number}   {in_short(layer)}")
    if report["skipping_share"]:
        lines.append(
            f"skipping  {report['skipping_share']:.1%} of the samples run none of the costliest "
            "experts"
        )

    shared, used = 2 ** report["sample_entropy"], 2 ** report["usage_entropy"]
    says = _word(SAYS, report["normalized_expert_class_information"])
    for symbol, name, sentence in (
        ("H_s", "sample_entropy", f"as if {shared:.2f} experts shared each sample equally"),
        ("H_u", "usage_entropy", f"as if {used:.1f} of {n_experts} experts were used equally"),
        (
            "I(E;Y)",
            "expert_class_information",
            f"which expert is chosen says {says} about the class",
        ),
    ):
        share = report[f"normalized_{name}"]
        lines.append(f"{symbol:8}{report[name]:6.2f} bits, {share:4.0%} of the most: {sentence}")
    to_mean, to_best = (
        signed(report[name], 2) for name in ("specialization", "specialization_to_best")
    )
    lines.append(
        f"{'S':8}{to_mean:6.2f} bits are lost if the others replace the chosen expert, "
        f"{to_best:.2f} if the best other does"
    )

    lines.append("")
    if n_experts == 1:
        lines.append("One expert has nothing to divide.")
    else:
        use, choice, experts_are = report["verdict"]
        lines += [
            f"The experts are used {use}ly, and the gate is {choice}. The experts are "
            f"{experts_are}.",
        ]
        if stability is None:
            unknown = "Whether these are the right parts, and whether another fit finds them,"
        else:
            lines.append(stability.sentence)
            unknown = "Whether these are the right parts,"
        lines.append(f"{unknown} this report does not know.")
        if report["advice"]:
            lines.append("For a division that is even and sure, try:")
            lines += [f"  - {each}" for each in report["advice"]]
    return "\n".join(lines)
