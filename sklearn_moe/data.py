"""Turn the data that a user passes into the arrays that a net reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

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
from sklearn_moe.committee import Committee, fit_committee, join
from sklearn_moe.containers import (
    SparseRows,
    Table,
    as_dense,
    as_eager,
    as_frame,
    as_objects,
    categorical_columns,
    check_numbers,
    has_single_precision,
    read_table,
    reading,
    select_columns,
)
from sklearn_moe.encoders import Encoder
from sklearn_moe.experts import EstimatorExperts
from sklearn_moe.groups import read_groups
from sklearn_moe.layers import check_layer_sizes
from sklearn_moe.tables import TableTransformer


class Reader:
    """Reads samples in the same way in training and in prediction.

    A table becomes an array with its numbers and, for each column of categories, the position of
    the category among all; the first layer of the mixture encodes this array. Everything else
    becomes an array of float32 or uint8. scikit-learn checks shapes and column names, and keeps
    ``n_features_in_`` and ``feature_names_in_`` in the estimator.

    Parameters
    ----------
    table : TableTransformer or None
        Encodes tables, once it is fitted; None if the samples are not encoded as a table.
    categorical_features : "from_dtype", array-like or None
        As in ``MoEClassifier``.
    input_shape : tuple of int or None
        Shape of the images, if the rows of X hold flat images.
    features : dict of array-like, callable or None by str, default=None
        The columns that a part of the mixture reads, by the name of the parameter.

    Attributes
    ----------
    selected : dict of ndarray of bool by str
        For each part that does not read all columns, which columns it reads.
    scale : {"bytes", "fractions"} or None
        Scale of the training images: bytes from 0 to 255, or fractions from 0 to 1, which masks of
        zeros and ones are, too. None if it is not known.
    image_shape : tuple of int or None
        Shape of the images that become flat, as what classifiers say follows them.
    committee : Committee or None
        The classifiers among the experts. What they say about a sample follows its columns.
    """

    def __init__(
        self,
        table: TableTransformer | None,
        categorical_features: ArrayLike | str | None = None,
        input_shape: tuple[int, ...] | None = None,
        features: dict[str, Any] | None = None,
    ):
        self.features = {
            name: value for name, value in (features or {}).items() if value is not None
        }
        self.selected: dict[str, NDArray[np.bool_]] = {}
        self.table = table
        self.categorical_features = categorical_features
        self.input_shape = input_shape
        self.scale: str | None = None
        self.image_shape: tuple[int, ...] | None = None
        self.committee: Committee | None = None

    def read(
        self, X: Any, estimator: BaseEstimator, choose: Callable | None = None
    ) -> NDArray | SparseRows:
        """Return samples in the form that the fitted mixture of an estimator reads.

        ``choose`` returns which classifiers must answer for samples, (n_samples, n_estimators);
        None means all.
        """
        X = as_eager(X)
        samples = self.take_in(X, estimator, reset=False)
        if self.table is not None:
            samples = self.table.arrange(samples)
        if self.committee is None:
            return samples
        if self.image_shape is not None:
            check_shape("X", samples, self.image_shape)
        asked = None
        if choose is not None:
            asked = choose(join(samples, np.zeros((len(samples), self.committee.n_columns))))
        return join(samples, self.committee.log_proba(X, asked))

    def read_with_precision(
        self, X: Any, estimator: BaseEstimator, choose: Callable | None = None
    ) -> tuple[NDArray | SparseRows, type]:
        """Return samples, and the type of predictions: double, unless all of X has less."""
        X = as_eager(X)
        precision = np.float32 if has_single_precision(X) else np.float64
        return self.read(X, estimator, choose), precision

    def keep(self, names: list[str] | None) -> None:
        """Forget the classifiers among the experts that have other names than these."""
        if self.committee is not None:
            self.committee = self.committee.keep(names)

    def take_in(self, X: Any, estimator: BaseEstimator, *, reset: bool) -> Table | NDArray:
        """Return a table as ``Table``, and everything else as an array.

        With ``reset``, as in a first training, the samples decide which shape, column names and
        types later samples must have.
        """
        X = as_objects(X)
        if sparse.issparse(X) and self.input_shape is None:
            # Wrap it in a new object: scipy caches properties, and a user's X must not change.
            X = sparse.csr_array(X)
        else:
            X = as_dense(X)
        if self.table is None:
            return self._array(X, estimator, reset)
        if as_frame(X) is not None:
            validate_data(estimator, X, reset=reset, skip_check_array=True)
            if 0 in X.shape:
                raise ValueError(
                    f"X is a data frame of shape {X.shape}. MoEClassifier needs at least one row "
                    "and one column."
                )
        else:
            checks = {"dtype": None, "ensure_all_finite": False, "accept_sparse": "csr"}
            X = _checked(X, estimator, reset=reset, **checks)
        if reset:
            self.is_categorical = categorical_columns(X, self.categorical_features)
            self._select(X)
        return read_table(X, self.is_categorical)

    def _select(self, X):
        """Find out which columns of a table a user has selected."""
        for name, features in self.features.items():
            self.selected[name] = select_columns(X, features, name)
            if not self.selected[name].any():
                raise ValueError(f"{name}={features!r} selects no column. None selects all.")

    def _array(self, X, estimator, reset):
        """Return tables that are not encoded, or images on the scale of the training."""
        if reset and self.features:
            shape = np.shape(X)
            if len(shape) != 2 or self.input_shape is not None:
                raise ValueError(f"{min(self.features)} needs a table, got images.")
            self._select(X)
        if sparse.issparse(X):
            checks = {"dtype": np.float32, "accept_sparse": "csr"}
            return SparseRows(_checked(X, estimator, reset=reset, **checks))
        with reading("X"):
            is_whole = np.asarray(X).dtype.kind in "iu"
        X = _checked(X, estimator, reset=reset, **_X_CHECKS)
        if self.input_shape is not None and X.ndim == 2:
            shape = check_layer_sizes("input_shape", self.input_shape)
            if X.shape[1] != math.prod(shape):
                raise ValueError(
                    f"X has {X.shape[1]} features, but input_shape={shape} needs "
                    f"{math.prod(shape)}."
                )
            X = X.reshape(len(X), *shape)
        if 0 in X.shape:
            raise ValueError(f"X has samples of shape {X.shape[1:]}, which hold no numbers.")
        if X.ndim == 2:
            return X.astype(np.float32, copy=False)
        if not reset:
            return self._on_scale(X, is_whole)
        if X.min() >= 0 and X.max() <= 1:
            self.scale = "fractions"
        elif X.dtype == np.uint8:
            self.scale = "bytes"
        return self._on_scale(X, is_whole)

    def _on_scale(self, X, is_whole):
        """Return images on the scale of the training images."""
        if self.scale == "bytes":
            if not is_whole and X.max() > 2:
                raise ValueError(
                    f"X holds floats up to {X.max():.4g}, but the mixture was fitted on bytes, "
                    "which it divides by 255. Pass whole numbers, or floats from 0 to 1."
                )
            return X / np.float32(255) if is_whole and X.dtype != np.uint8 else X
        if self.scale == "fractions" and is_whole and X.max() > 1:
            raise ValueError(
                f"X holds whole numbers up to {X.max():.4g}, but the mixture was fitted on "
                "numbers from 0 to 1. Divide X by 255."
            )
        return X.astype(np.float32, copy=False)


def _make_reader(
    X: Any,
    encoder: Encoder | None,
    given: Any,
    categorical_features: ArrayLike | str | None,
    input_shape: tuple[int, ...] | None,
    features: dict[str, Any],
) -> Reader:
    """Return a reader for samples, depending on whether they are a table or images.

    Parameters
    ----------
    X : array-like
        Samples.
    encoder : Encoder or None
        The encoder before gate and experts; the one for tables if a user left it open.
    given : str, object or None
        The ``encoder`` that a user passed.
    categorical_features, input_shape
        As in ``MoEClassifier``.
    features : dict
        The columns that a part of the mixture reads, by the name of the parameter.
    """
    reads_tables = encoder is not None and not encoder.needs_images
    if reads_tables:
        with reading("X"):
            n_axes = len(X.shape if hasattr(X, "shape") else np.asarray(X).shape)
        if n_axes <= 2 and input_shape is None:
            return Reader(encoder.make_transformer(), categorical_features, features=features)
        if encoder.needs_tables and not (isinstance(given, str) and given == "auto"):
            raise ValueError(
                f"encoder={given!r} is for tables, got images. Leave encoder='auto', or pass "
                "encoder='conv'."
            )
    if not (categorical_features is None or isinstance(categorical_features, str)):
        got = "images" if reads_tables else f"encoder={given!r}"
        raise ValueError(
            f"categorical_features needs a table and encoder='auto' or 'table', got {got}."
        )
    return Reader(None, input_shape=input_shape, features=features)


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
        reader = _make_reader(
            X,
            encoder,
            estimator.encoder,
            estimator.categorical_features,
            estimator.input_shape,
            {name: getattr(estimator, name) for name in ("gate_features", "expert_features")},
        )
    y = check_y(y)
    samples = reader.take_in(X, estimator, reset=not going_on)
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
    news = {}
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


# Images of bytes stay bytes, which take a quarter of the memory; the net scales each batch.
_X_CHECKS = {"dtype": [np.float32, np.uint8], "order": "C", "allow_nd": True}

_TEXT = "Leave encoder='auto', which encodes text and categories. Without it X must be numeric."

_ADVICE = {
    "could not convert string": _TEXT,
    "is not compatible with arrays of bytes/strings": _TEXT,
    "Complex data not supported": "Pass real and imaginary part as features of their own.",
    "contains NaN": "Leave encoder='auto', which fills in what is missing in a table.",
    "contains infinity": "X must be finite: clip or drop such values first.",
}


def _checked(X, estimator, *, reset, **checks):
    """Return an array that scikit-learn has checked, and say what to do if it complains."""
    try:
        with reading("X"):
            return validate_data(estimator, X, reset=reset, **checks)
    except (ValueError, TypeError) as error:
        check_numbers(X)
        for complaint, advice in _ADVICE.items():
            if complaint in str(error):
                what = str(error).splitlines()[0].rstrip(".")
                raise ValueError(f"{what}. {advice}") from error
        raise
