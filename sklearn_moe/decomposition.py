"""Measure how a fitted mixture divides the work among its experts, also with scorers."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sklearn_moe.measures import (
    bits_lost,
    check_gate_proba,
    entropy,
    expert_class_information,
    mean_of_known,
    mutual_information,
    running_cost,
    sample_entropy,
    specialization,
    usage_entropy,
)


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition:
    """How a mixture of experts divides a set of samples; printing it shows a table.

    Attributes
    ----------
    sample_entropy : float
        H_s in bits, 0 to log2(n_experts): how many experts share a sample. Low is good.
    usage_entropy : float
        H_u in bits, 0 to log2(n_experts): how evenly the experts are used. High is good.
    expert_class_information : float
        I(E;Y) in bits: how much the choice of the expert says about the class.
    normalized_sample_entropy, normalized_usage_entropy : float
        The same divided by log2(n_experts), 0 to 1.
    normalized_expert_class_information : float
        The same divided by its largest possible value, 0 to 1. This is the smaller of
        log2(n_experts) and the entropy of the classes.
    usage : ndarray of shape (n_experts,)
        Mean gate probability of each expert.
    table : ndarray of shape (n_experts, n_classes)
        Number of samples of each class for which each expert was chosen.
    classes : ndarray of shape (n_classes,)
        The classes of the table's columns.
    chosen_expert_accuracy : float or None
        Accuracy of the chosen expert alone, without the others; None without labels.
    expert_accuracy : ndarray of shape (n_experts,) or None
        Accuracy of each expert on the samples for which it was chosen, nan for an expert that was
        never chosen; None without labels.
    expert_certainty : ndarray of shape (n_experts,)
        Mean gate probability of each expert over the samples for which it was chosen, nan for an
        expert that was never chosen.
    cost : float or None
        Mean multiply-adds of the experts that run for a sample; None if the costs of the experts
        were not given.
    relative_cost : float or None
        The same divided by the cost of all experts, 0 to 1.
    skipping_share : float or None
        Share of the samples for which none of the costliest experts runs, 0 to 1.
    specialization : float or None
        S in bits: how much log-likelihood a sample loses if the mean of the other experts replaces
        its chosen expert (see :func:`specialization`). About 0 if the experts are interchangeable.
        None without labels, or without the log-likelihoods of the experts.
    specialization_to_best : float or None
        The same if the best other expert replaces it.
    expert_specialization, expert_specialization_to_best : ndarray of shape (n_experts,) or None
        The same of each expert on the samples for which it was chosen, nan for an expert that was
        never chosen.
    expert_names : list of str or None
        Names of the experts, if ``experts`` was a list.
    layers : tuple of Decomposition
        The same of each hidden layer of experts (see ``MoELayers``), without what needs the
        predictions of single experts.
    """

    sample_entropy: float
    usage_entropy: float
    expert_class_information: float
    normalized_sample_entropy: float
    normalized_usage_entropy: float
    normalized_expert_class_information: float
    usage: NDArray[np.float64]
    table: NDArray[np.int64]
    classes: NDArray
    chosen_expert_accuracy: float | None
    expert_accuracy: NDArray[np.float64] | None
    expert_certainty: NDArray[np.float64]
    cost: float | None = None
    relative_cost: float | None = None
    skipping_share: float | None = None
    specialization: float | None = None
    specialization_to_best: float | None = None
    expert_specialization: NDArray[np.float64] | None = None
    expert_specialization_to_best: NDArray[np.float64] | None = None
    expert_names: list[str] | None = None
    layers: tuple[Decomposition, ...] = ()

    @classmethod
    def from_predictions(
        cls,
        gate_proba: ArrayLike,
        y: ArrayLike,
        *,
        chosen_expert_prediction: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        expert_costs: ArrayLike | None = None,
        all_run: bool = False,
        expert_log_likelihood: ArrayLike | None = None,
    ) -> Decomposition:
        """Measure a decomposition from the predictions of a mixture.

        Parameters
        ----------
        gate_proba : array-like of shape (n_samples, n_experts)
            Gate probabilities; rows sum to 1.
        y : array-like of shape (n_samples,)
            Classes of the samples.
        chosen_expert_prediction : array-like of shape (n_samples,), default=None
            The class that the chosen (most probable) expert predicts; None leaves the accuracies
            out.
        classes : array-like of shape (n_classes,), default=None
            Classes of the table, in addition to those in ``y``.
        expert_costs : array-like of shape (n_experts,), default=None
            Multiply-adds that each expert takes for a sample; None leaves the costs out.
        all_run : bool, default=False
            Whether all experts run for a sample, also those with a gate probability of 0.
        expert_log_likelihood : array-like of shape (n_samples, n_experts), default=None
            Natural logarithm of the probability that each expert gives the class of the sample; a
            row of nan leaves the sample out of the specialization. None leaves the specialization
            out.

        Returns
        -------
        Decomposition

        Examples
        --------
        >>> decomposition = Decomposition.from_predictions([[1, 0], [0.2, 0.8]], ["cat", "dog"])
        >>> decomposition.table
        array([[1, 0],
               [0, 1]])
        """
        gate_proba = check_gate_proba(gate_proba)
        y = column_or_1d(y)
        check_consistent_length(gate_proba, y)
        n_samples, n_experts = gate_proba.shape
        chosen = gate_proba.argmax(axis=1)
        classes = np.unique(y) if classes is None else np.union1d(classes, y)
        table = np.zeros((n_experts, len(classes)), dtype=np.int64)
        np.add.at(table, (chosen, np.searchsorted(classes, y)), 1)

        def mean_by_expert(values):
            return np.array([mean_of_known(values[chosen == each]) for each in range(n_experts)])

        correct = None
        if chosen_expert_prediction is not None:
            prediction = column_or_1d(chosen_expert_prediction)
            check_consistent_length(prediction, y)
            correct = prediction == y
        knowledge: dict[str, Any] = {}
        if expert_log_likelihood is not None:
            for name, to_best in (("specialization", False), ("specialization_to_best", True)):
                lost = bits_lost(gate_proba, expert_log_likelihood, to_best=to_best)
                knowledge[name] = mean_of_known(lost)
                knowledge[f"expert_{name}"] = mean_by_expert(lost)
        most = np.log2(n_experts)
        h_s, h_u = sample_entropy(gate_proba), usage_entropy(gate_proba)
        information = mutual_information(table)
        return cls(
            sample_entropy=h_s,
            usage_entropy=h_u,
            expert_class_information=information,
            normalized_sample_entropy=_share(h_s, most),
            normalized_usage_entropy=_share(h_u, most),
            normalized_expert_class_information=_share(
                information, min(most, entropy(table.sum(axis=0) / n_samples))
            ),
            usage=gate_proba.mean(axis=0),
            table=table,
            classes=classes,
            chosen_expert_accuracy=None if correct is None else float(correct.mean()),
            expert_accuracy=None if correct is None else mean_by_expert(correct),
            expert_certainty=mean_by_expert(gate_proba.max(axis=1)),
            **({} if expert_costs is None else _costs(gate_proba, expert_costs, all_run)),
            **knowledge,
        )

    def __repr__(self) -> str:
        lines = [
            f"{label:34}{value:6.3f} bits  ({share:4.0%} of {of})"
            for label, value, share, of in (
                (
                    "H_s     sample entropy",
                    self.sample_entropy,
                    self.normalized_sample_entropy,
                    "log2(n_experts)",
                ),
                (
                    "H_u     usage entropy",
                    self.usage_entropy,
                    self.normalized_usage_entropy,
                    "log2(n_experts)",
                ),
                (
                    "I(E;Y)  expert-class information",
                    self.expert_class_information,
                    self.normalized_expert_class_information,
                    "the possible",
                ),
            )
        ]
        if self.specialization is not None:
            lines.append(
                f"{'S       specialization':34}{signed(self.specialization, 3):6.3f} bits  "
                f"({signed(self.specialization_to_best, 3):.3f} to the best other expert)"
            )
        if self.chosen_expert_accuracy is not None:
            lines.append(f"{'accuracy of the chosen expert':34}{self.chosen_expert_accuracy:6.3f}")
        if self.cost is not None:
            lines.append(
                f"{'multiply-adds of the experts':34}{self.cost:6,.0f} per sample  "
                f"({self.relative_cost:4.0%} of all)"
            )
        names = cut(self.classes, 12)
        width = max(5, *map(len, names), len(str(self.table.max(initial=0)))) + 1
        lines.append("")
        experts = self.expert_names or range(len(self.usage))
        first = max(6, *(len(str(each)) for each in experts))
        lines.append(f"{'expert':{first}}  usage" + "".join(f"{name:>{width}}" for name in names))
        for expert, share, counts in zip(experts, self.usage, self.table, strict=True):
            row = "".join(f"{count:>{width}}" for count in counts)
            lines.append(f"{expert:>{first}} {share:6.1%}{row}")
        lines += [""] if self.layers else []
        for number, layer in enumerate(self.layers):
            lines.append(f"hidden layer {number}  {in_short(layer)}")
        return "\n".join(lines)


def decomposition_entropy(estimator: Any, X: Any, y: ArrayLike | None = None) -> Decomposition:
    """Measure how a fitted mixture of experts divides the samples among its experts.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search (such as
        ``GridSearchCV``) whose ``best_estimator_`` is one of these.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,), default=None
        Labels; those that the mixture does not know count as errors, and are left out of the
        specialization. Without labels, the classes that the chosen experts predict take their
        place, as in the reference, and there is no specialization.

    Returns
    -------
    Decomposition
        H_s, H_u and I(E;Y) in bits and normalised, the specialization in bits, the usage and the
        costs of the experts, and the table of experts by classes.

    References
    ----------
    Y. Krishnamurthy, C. Watkins, T. Gaertner, Improving Expert Specialization in Mixture of
    Experts, 2023, arXiv 2302.14703.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_moe import MoEClassifier, decomposition_entropy
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), MoEClassifier(n_experts=3, random_state=0))
    >>> decomposition = decomposition_entropy(clf.fit(X, y), X, y)
    >>> decomposition.table.shape
    (3, 3)
    >>> 0 <= decomposition.sample_entropy <= decomposition.usage_entropy
    True
    """
    model, X = final_model(estimator, X)
    gate_proba = model.gate_proba(X)
    predicted = model.classes_[model.expert_proba(X, chosen_only=True).argmax(axis=1)]
    names = getattr(model, "expert_names_", None)
    known = {
        "classes": model.classes_,
        # Nobody knows the costs of classifiers among the experts.
        "expert_costs": None if getattr(model, "named_experts_", None) else model.expert_costs_,
        "all_run": not model.module_.is_conditional,
    }
    labels = predicted
    if y is not None:
        labels = check_labels(y, model.classes_)
        known["chosen_expert_prediction"] = predicted
        known["expert_log_likelihood"] = model.expert_log_likelihood(X, labels)
    decomposition = Decomposition.from_predictions(gate_proba, labels, **known)
    layers = tuple(
        Decomposition.from_predictions(
            model.gate_proba(X, layer=number),
            labels,
            classes=model.classes_,
            expert_costs=layer.experts.costs,
            all_run=not layer.is_conditional,
        )
        for number, layer in enumerate(model.module_.layers)
    )
    return replace(decomposition, expert_names=names, layers=layers)


def in_short(layer: Decomposition) -> str:
    """Return the measures of a hidden layer of experts in one line."""
    return (
        f"H_s {layer.sample_entropy:.2f}  H_u {layer.usage_entropy:.2f}  "
        f"I(E;Y) {layer.expert_class_information:.2f} bits  "
        f"usage {' '.join(f'{share:.0%}' for share in layer.usage)}"
    )


def _costs(gate_proba, expert_costs, all_run):
    costs = np.asarray(expert_costs)
    cost, runs = running_cost(gate_proba, costs, all_run)
    return {
        "cost": cost,
        "relative_cost": _share(cost, costs.sum()),
        "skipping_share": float(1 - runs[:, costs == costs.max()].any(axis=1).mean()),
    }


def _share(value, most):
    """Return a value as a share of the most that is possible; 0 if that is 0."""
    return float(min(value / most, 1.0)) if most > 0 else 0.0


def signed(value, digits):
    """Return a rounded number that is never shown as -0."""
    return round(value, digits) + 0.0


def check_labels(y, classes=None):
    """Return labels as an array; raise an error if some are missing, or if none is known."""
    y = column_or_1d(check_array(y, ensure_2d=False, dtype=None, input_name="y"))
    if classes is not None and not np.isin(y, classes).any():
        raise ValueError(
            f"y has none of the classes {classes.tolist()} of the estimator; its first label is "
            f"{y.tolist()[0]!r}."
        )
    return y


def cut(names, length):
    """Return names as strings of at most ``length`` characters.

    The ends are cut off, or the middles if names would otherwise become equal.
    """
    names = [str(name) for name in names]
    ends = [name if len(name) <= length else name[: length - 1] + "…" for name in names]
    if len(set(ends)) == len(set(names)):
        return ends
    head = (length - 1) // 2
    tail = length - 1 - head
    return [name if len(name) <= length else f"{name[:head]}…{name[-tail:]}" for name in names]


def titled(expert, name=None):
    """Return "expert 2", or "expert 2 (forest)" if it has a name."""
    return f"expert {expert}" if name is None else f"expert {expert} ({name})"


def final_model(estimator, X=None):
    """Return the mixture within searches and pipelines, and X as transformed for the mixture."""
    while not hasattr(estimator, "gate_proba"):
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, Pipeline):
            if X is not None and len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif hasattr(estimator, "members_"):
            raise TypeError(
                f"A MixtureEnsemble has {len(estimator.members_)} mixtures, each with a "
                "decomposition of its own. Pass one of its members_, such as "
                "search.best_estimator_.members_[0]."
            )
        else:
            raise TypeError(
                "Expected a fitted MoEClassifier, a pipeline that ends in one, or a fitted search "
                f"for one (with refit); got {estimator!r}, which has no gate_proba."
            )
    return estimator, X


def with_last(estimator, model):
    """Return a mixture, at the end of a copy of the estimator's pipeline if there is one."""
    if hasattr(estimator, "best_estimator_"):
        return with_last(estimator.best_estimator_, model)
    if not isinstance(estimator, Pipeline):
        return model
    pipeline = copy(estimator)
    *transformers, (name, last) = estimator.steps
    pipeline.steps = [*deepcopy(transformers), (name, with_last(last, model))]
    return pipeline


def _score_neg_sample_entropy(estimator, X, y=None):
    return 0.0 - _measure_gate(estimator, X, sample_entropy)  # never -0.0


def _score_usage_entropy(estimator, X, y=None):
    return _measure_gate(estimator, X, usage_entropy)


def _score_expert_class_information(estimator, X, y):
    return _measure_gate(estimator, X, expert_class_information, y)


def _score_chosen_expert_accuracy(estimator, X, y):
    model, X = final_model(estimator, X)
    predicted = model.expert_proba(X, chosen_only=True).argmax(axis=1)
    return float(np.mean(model.classes_[predicted] == np.asarray(y)))


def _score_specialization(estimator, X, y):
    model, X = final_model(estimator, X)
    return specialization(model.gate_proba(X), model.expert_log_likelihood(X, y))


def _measure_gate(estimator, X, measure, *args):
    model, X = final_model(estimator, X)
    return measure(model.gate_proba(X), *args)


SCORERS = {
    "neg_sample_entropy": _score_neg_sample_entropy,
    "usage_entropy": _score_usage_entropy,
    "expert_class_information": _score_expert_class_information,
    "specialization": _score_specialization,
    "chosen_expert_accuracy": _score_chosen_expert_accuracy,
}
"""Scorers of the decomposition by name: -H_s, H_u, I(E;Y) and the specialization in bits, and the
accuracy of the chosen expert without the others. Higher is better.

Each is called as ``scorer(estimator, X, y)`` with a fitted ``MoEClassifier``, a pipeline that
ends in one or a search for one, and returns a float. ``cross_validate`` and ``tune`` know the
names; for ``scoring=`` of scikit-learn's searches pass ``SCORERS["usage_entropy"]``, or all of
them in a dict.
"""
