"""Read samples in the same way in training and in prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from sklearn_moe.checks import check_shape
from sklearn_moe.committee import join
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
from sklearn_moe.layers import check_layer_sizes
from sklearn_moe.tables import TableTransformer

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
        self.committee: Any = None

    def read(
        self, X: Any, estimator: BaseEstimator, choose: Callable | None = None
    ) -> NDArray | SparseRows:
        """Return samples in the form that the fitted mixture of an estimator reads.

        ``choose`` returns which classifiers must answer for samples, (n_samples, n_estimators);
        None means all.
        """
        X = as_eager(X)
        samples: Any = self.take_in(X, estimator, reset=False)
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

    def keep(self, names: Any) -> None:
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
            self._select(X if hasattr(X, "shape") else np.asarray(X))
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


def make_reader(
    X: Any,
    encoder: Any,
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
