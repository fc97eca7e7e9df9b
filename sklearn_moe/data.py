"""Turn the data that a user passes into the arrays that a net reads."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_consistent_length
from sklearn.utils.multiclass import check_classification_targets

from sklearn_moe.checks import (
    check_shape,
    check_weight,
    check_y,
    class_weights,
    encode,
    normalize,
    scaled,
    split,
    weighty,
)
from sklearn_moe.committee import fit_committee, join
from sklearn_moe.containers import SparseRows, as_eager, reading
from sklearn_moe.encoders import Encoder
from sklearn_moe.experts import EstimatorExperts
from sklearn_moe.groups import read_groups
from sklearn_moe.reader import Reader, make_reader


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data of a training.

    Attributes
    ----------
    reader : Reader
        Has read the samples, and reads later ones.
    X : ndarray or SparseRows of shape (n_samples, ...)
        Samples, as the net reads them.
    y : ndarray of shape (n_samples,)
        Indices of their classes.
    sample_weight : ndarray of shape (n_samples,)
        Their weights, class weights included, with a mean of 1.
    validation : tuple of X, y and sample_weight, or None
        The same for a validation set.
    given : array-like
        The samples that a user passed.
    rows : ndarray of shape (n_samples,)
        Positions of the samples ``X`` in ``given``.
    total_weight : float
        Sum of the weights of the samples before they were normalised: how many samples they are.
    mean_class_weight : float
        Mean of the class weights over these samples.
    group : ndarray of shape (n_samples,) or None
        Numbers of the groups of which all samples get one expert.
    classes : ndarray of shape (n_classes,)
        The class labels.
    news : dict of str by int
        For each column with values that the encoding, which is kept, does not know: what is new.
    """

    reader: Reader
    X: NDArray | SparseRows
    y: NDArray[np.int64]
    sample_weight: NDArray[np.float32]
    validation: tuple[NDArray, NDArray, NDArray] | None
    given: Any
    rows: NDArray[np.int64]
    total_weight: float
    mean_class_weight: float
    group: NDArray[np.int64] | None
    classes: NDArray
    news: dict[int, str]

    def task(self, sample_weight: ArrayLike | None) -> dict[str, Any]:
        """Return the data for scikit-learn's callbacks: the samples as a user passed them."""
        weight = None if sample_weight is None else _safe_indexing(sample_weight, self.rows)
        return {
            "X": _safe_indexing(self.given, self.rows),
            "y": self.classes[self.y],
            "metadata": None if weight is None else {"sample_weight": np.asarray(weight)},
        }


def read_training_data(
    estimator: BaseEstimator,
    X: Any,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    validation: tuple[Any, ArrayLike | None, ArrayLike | None],
    *,
    encoder: Encoder | None,
    experts: EstimatorExperts | None,
    classes: NDArray | None,
    going_on: bool,
    needs_validation: bool,
    random_state: np.random.RandomState,
    groups: ArrayLike | None = None,
) -> TrainingData:
    """Check and read the data that ``fit`` was given.

    Parameters
    ----------
    estimator : MoEClassifier
        The estimator for which scikit-learn checks the data. Its parameters decide how to read
        them.
    X, y, sample_weight
        As in ``MoEClassifier.fit``.
    validation : tuple of X_val, y_val and sample_weight_val
        Likewise; each may be None.
    encoder : Encoder or None
        The encoder before gate and experts; the one for tables if a user left it open.
    experts : EstimatorExperts or None
        The list of experts, whose classifiers are fitted here.
    classes : ndarray or None
        All classes that will ever occur; None takes those of ``y``.
    going_on : bool
        Whether to continue the training of the estimator, with its reader and classes.
    needs_validation : bool
        Whether to set aside a part of the samples as a validation set, if none was passed.
    random_state : RandomState
        Chooses this part.
    groups : array-like of shape (n_samples,), default=None
        As in ``MoEClassifier.fit``.
    """
    X = given = as_eager(X)
    incremental = classes is not None
    if going_on:
        reader = estimator.reader_
    else:
        reader = make_reader(
            X,
            encoder,
            estimator.encoder,
            estimator.categorical_features,
            estimator.input_shape,
            {name: getattr(estimator, name) for name in ("gate_features", "expert_features")},
        )
    y = check_y(y)
    samples: Any = reader.take_in(X, estimator, reset=not going_on)
    check_consistent_length(samples, y)
    y, classes = _indices(y, classes, estimator.classes_ if going_on else None)
    weight = check_weight(sample_weight, samples, "sample_weight")
    group, labels = (None, None) if groups is None else read_groups(groups, samples)
    held_out = _read_validation(reader, estimator, *validation, samples, classes)

    given_weight = weight
    weight = scaled(weight)
    of_class = class_weights(estimator.class_weight, y, weight, classes)
    weight = weight * of_class[y]
    rows = weighty(weight)  # samples without weight count as removed
    # Not scaled, as the penalties of some classifiers depend on the scale of the weights.
    of_all = {"y": y, "sample_weight": given_weight * of_class[y], "rows": rows, "group": group}
    val_rows = None
    if held_out is not None:
        X_val, y_val, weight_val = held_out
        weight_val = scaled(weight_val) * of_class[y_val]
        val_rows = weighty(weight_val)
        held_out = X_val[val_rows], y_val[val_rows], normalize(weight_val[val_rows])
    elif needs_validation and group is not None:
        raise ValueError("With groups, early stopping and restarts need X_val and y_val.")
    elif needs_validation:
        rows, val_rows = split(
            rows, y[rows], fraction=estimator.validation_fraction, random_state=random_state
        )
        held_out = samples[val_rows], y[val_rows], normalize(weight[val_rows])
    with np.errstate(over="ignore"):
        total_weight = float(given_weight[rows].sum())
        mean_class_weight = weight[rows].sum() / (weight[rows] / of_class[y[rows]]).sum()
    weight = normalize(weight[rows])
    if len(rows) < len(samples):
        samples, y = samples[rows], y[rows]
        group = None if group is None else np.unique(group[rows], return_inverse=True)[1]
    news: dict[int, str] = {}
    if reader.table is not None:
        if going_on:
            news = reader.table.news(samples)
        else:
            reader.table.fit(samples, is_categorical=reader.is_categorical, sample_weight=weight)
        samples = reader.table.arrange(samples)
        if held_out is not None:
            held_out = reader.table.arrange(held_out[0]), *held_out[1:]
    if group is not None:
        _select_constant(reader, estimator, samples, group, labels)
    if experts is not None and experts.n_outside:
        if experts.needs_tables and len(samples.shape) > 2 and reader.input_shape is None:
            raise ValueError(
                f"experts={estimator.experts!r} needs a table, got images. Flatten them, or pass "
                "a list with experts that read images."
            )
        if going_on and incremental:
            if reader.committee is None:
                raise ValueError(
                    f"partial_fit cannot change experts to {estimator.experts!r}. Call fit, with "
                    "warm_start=False."
                )
            log_proba = reader.committee.log_proba(given)
        else:
            numbers_only = np.zeros(math.prod(samples.shape[1:]), dtype=bool)
            experts = experts.for_table(getattr(reader, "is_categorical", numbers_only))
            reader = copy(reader)
            reader.image_shape = samples.shape[1:] if len(samples.shape) > 2 else None
            reader.committee, log_proba = fit_committee(
                experts, given, classes=classes, random_state=random_state, **of_all
            )
        samples = join(samples, log_proba[rows])
        if held_out is not None:
            X_val, *of_val = held_out
            if validation[0] is not None:
                log_proba = reader.committee.log_proba(as_eager(validation[0]))
            held_out = join(X_val, log_proba[val_rows]), *of_val
    sums = total_weight, float(mean_class_weight)
    return TrainingData(
        reader, samples, y, weight, held_out, given, rows, *sums, group, classes, news
    )


def _select_constant(reader, estimator, samples, group, labels):
    """Let the gate read columns that are constant within the groups."""
    if not isinstance(samples, np.ndarray) or samples.ndim != 2:
        raise ValueError("groups needs a dense table, got images or a sparse matrix.")
    order = np.argsort(group, kind="stable")
    values, group = samples[order], group[order]
    same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    varies = ~same & (group[1:] == group[:-1])[:, np.newaxis]
    places = np.arange(samples.shape[1])
    if reader.table is not None:
        is_categorical = reader.table.is_categorical_
        places = np.r_[np.flatnonzero(~is_categorical), np.flatnonzero(is_categorical)]
    is_constant = np.zeros(len(places), dtype=bool)
    is_constant[places] = ~varies.any(axis=0)
    chosen = reader.selected.get("gate_features")
    if chosen is None:
        if not is_constant.any():
            raise ValueError(
                "groups needs a column for the gate that is constant within each group, and X has "
                "none. Add columns that describe the groups."
            )
        reader.selected["gate_features"] = is_constant
    elif (chosen & ~is_constant).any():
        column = np.flatnonzero(chosen & ~is_constant)[0]
        name = getattr(estimator, "feature_names_in_", np.arange(len(places))).tolist()[column]
        label = labels.tolist()[group[varies[:, places == column].argmax()]]
        raise ValueError(
            f"The gate chooses one expert for a group, but its column {name!r} varies within the "
            f"group {label!r}. Leave it out of gate_features."
        )


def _indices(y, classes, former_classes):
    """Return labels as indices of the sorted classes, and the classes."""
    with reading("y"):
        check_classification_targets(y)
    classes = np.unique(y) if classes is None else classes
    if len(classes) < 2:
        raise ValueError(
            f"MoEClassifier needs at least 2 classes, got one class: {classes.tolist()}."
        )
    if former_classes is not None and not np.array_equal(classes, former_classes):
        raise ValueError(
            f"The classes {classes.tolist()} differ from {former_classes.tolist()}, those of "
            "the training that warm_start or partial_fit goes on with."
        )
    return encode(y, classes, "y"), classes


def _read_validation(reader, estimator, X_val, y_val, weight_val, samples, classes):
    if X_val is None and y_val is None and weight_val is None:
        return None
    if X_val is None or y_val is None:
        raise ValueError(
            "X_val and y_val must be passed together, and sample_weight_val only with them."
        )
    try:
        y_val = check_y(y_val)
        X_val = reader.take_in(as_eager(X_val), estimator, reset=False)
        check_consistent_length(X_val, y_val)
        weight_val = check_weight(weight_val, X_val, "sample_weight_val")
    except ValueError as error:
        raise ValueError(f"The validation set X_val, y_val is not valid: {error}") from error
    if reader.table is None:
        check_shape("X_val", X_val, samples.shape[1:])
    return X_val, encode(y_val, classes, "y_val"), weight_val
