"""What pruning and compression have in common: a fitted mixture becomes smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_moe.checks import check_shape
from sklearn_moe.decomposition import check_labels, final_model
from sklearn_moe.importances import column_importances
from sklearn_moe.measures import running_cost
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.session import NO_SEARCH


def fitted_mixture(
    estimator: BaseEstimator, X: ArrayLike | None, y: ArrayLike | None
) -> tuple[Any, Any, NDArray | None]:
    """Return the fitted mixture within an estimator, the samples that it gets, and the labels."""
    model, samples = final_model(estimator, X)
    check_is_fitted(model)
    if y is not None:
        if X is None:
            raise ValueError("y was passed without X. Pass both.")
        y = check_labels(y, model.classes_)
        check_consistent_length(samples, y)
    return model, samples, y


def read_samples(model: Any, X: ArrayLike) -> Any:
    """Return samples as the net reads them."""
    X = model.reader_.read(X, model)
    check_shape("X", X, model.net_.input_shape)
    return X


def check_labels_to_fine_tune(model: Any, y: NDArray | None) -> None:
    """Raise an error if there are no labels, or not all classes are among them."""
    if y is None:
        raise ValueError("fine_tune=True needs samples and labels. Pass X and y.")
    if not np.array_equal(np.unique(y), model.classes_):
        raise ValueError(
            f"fine_tune=True needs samples of all classes {model.classes_.tolist()} and of no "
            f"others, got {np.unique(y).tolist()}."
        )


def describe(model: Any, X: ArrayLike | None) -> None:
    """Give a mixture that has become smaller the attributes that depend on samples."""
    vars(model).update(NO_SEARCH)
    model._importances = None
    if X is None:
        return
    read = read_samples(model, X)
    gate_proba = model.net_.evaluate(read, MixtureOfExperts.gate_proba)
    usage = gate_proba.mean(axis=0, dtype=np.float64)
    model.expert_usage_ = usage / usage.sum()
    model._importances = column_importances(model.net_, read, np.ones(len(read), np.float32))


def train_on(
    model: Any,
    X: Any,
    y: Any,
    sample_weight: ArrayLike | None,
    regularization: str | Callable | Sequence | None,
    max_iter: int | None,
) -> None:
    """Train a mixture that has become smaller."""
    warm_start = model.warm_start
    model.set_params(
        regularization=regularization,
        early_stopping=False,
        max_iter=model.max_iter if max_iter is None else max_iter,
        warm_start=True,
    )
    model.fit(X, y, sample_weight)
    model.warm_start = warm_start


@dataclass(frozen=True, eq=False, repr=False)
class ShrinkingReport:
    """A mixture before and after it has become smaller."""

    error_before: float | None
    error_after: float | None
    agreement: float | None
    n_parameters_before: int
    n_parameters_after: int
    cost_before: float | None
    cost_after: float | None

    def _table(self) -> list[str]:
        """Return the lines of a table."""
        rows: list[tuple[str, Any, Any, str]] = [
            ("parameters", self.n_parameters_before, self.n_parameters_after, ",")
        ]
        if self.error_before is not None:
            rows.insert(0, ("error", self.error_before, self.error_after, ".4f"))
        if self.cost_before is not None and self.cost_after is not None:
            rows.append(("multiply-adds per sample", self.cost_before, self.cost_after, ",.0f"))
        lines = [
            f"{'':26}{'before':>12}{'after':>12}",
            *(f"{name:26}{one:12{form}}{other:12{form}}" for name, one, other, form in rows),
        ]
        if self.agreement is not None:
            lines.append(f"They predict the same class for {self.agreement:.1%} of the samples.")
        return lines


def compared(before: Any, after: Any, X: ArrayLike | None, y: NDArray | None) -> dict[str, Any]:
    """Return what a :class:`ShrinkingReport` says about two mixtures."""
    models = before, after
    errors, costs, agreement = (None, None), (None, None), None
    if X is not None:
        predicted = [model.predict(X) for model in models]
        agreement = float(np.mean(predicted[0] == predicted[1]))
        costs = tuple(_cost(model, X) for model in models)
        if y is not None:
            errors = tuple(float(np.mean(classes != y)) for classes in predicted)
    return {
        "error_before": errors[0],
        "error_after": errors[1],
        "agreement": agreement,
        "n_parameters_before": before.n_parameters_,
        "n_parameters_after": after.n_parameters_,
        "cost_before": costs[0],
        "cost_after": costs[1],
    }


def _cost(model, X):
    """Return the mean multiply-adds of the experts that run for a sample, hidden ones, too.

    None if not known.
    """
    if model.named_experts_:
        return None
    module = model.module_
    return sum(
        running_cost(
            model.gate_proba(X, layer=layer), part.experts.costs, not part.is_conditional
        )[0]
        for layer, part in [(None, module), *enumerate(module.layers)]
    )
