"""The columns of a table as a fitted mixture reads them, under the names that users know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.committee import join
from sklearn_moe.containers import SparseRows, as_dense, as_eager, as_frame, as_objects
from sklearn_moe.decomposition import final_model
from sklearn_moe.interpretation.rebuilding import Template
from sklearn_moe.interpretation.terms import column_names
from sklearn_moe.interpretation.words import in_words


@dataclass(frozen=True, eq=False)
class Columns:
    """A table as a fitted mixture reads it.

    Attributes
    ----------
    model : MoEClassifier
        The fitted mixture within pipelines and searches.
    X : array-like
        The table that this mixture gets.
    read : ndarray of shape (n_samples, n_features + n_given)
        The same as the net reads it: ``samples``, then what classifiers among the experts say.
    names : ndarray of shape (n_features,)
        Names of the columns; ``x0``, ``x1``, ... if they have none.
    places : ndarray of shape (n_features,)
        For each column, its position in ``samples``.
    """

    model: BaseEstimator
    X: Any
    read: NDArray
    names: NDArray
    places: NDArray[np.int64]

    @property
    def samples(self) -> NDArray:
        """The columns (n_samples, n_features): numbers, then positions of categories."""
        return self.read[:, : len(self.names)]

    @cached_property
    def template(self) -> Template:
        """Makes tables of changed samples."""
        return Template(self.X, self.model.encoder_)

    def evaluate(
        self,
        function: Callable,
        samples: NDArray | None = None,
        *,
        experts: Sequence[int] | None = None,
        dtype: type | None = None,
    ) -> NDArray:
        """Return a function of the mixture, also for samples with other values in the columns.

        Parameters
        ----------
        function : callable
            Gets the module and a batch.
        samples : ndarray of shape (n, n_features), default=None
            The samples, such as a copy of :attr:`samples` with a changed column. Classifiers
            among the experts answer for the table that these make. None means the table as it is.
        experts : sequence of int, default=None
            The experts that must answer, if the function needs no others.
        dtype : type, default=None
            The type of the result; None means that of the net.
        """
        net, committee = self.model.net_, self.model.reader_.committee
        if samples is None:
            samples = self.read
        elif committee is not None:
            answers = np.zeros((len(samples), net.n_experts), dtype=bool)
            answers[:, slice(None) if experts is None else list(experts)] = True
            asked = self.model.module_.experts.asked(answers)
            X = self.template.fill(samples[:, self.places]) if asked.any() else samples
            samples = join(samples, committee.log_proba(X, asked))
        return net.evaluate(samples, function, dtype)

    def expert_log_proba(self, samples: NDArray, expert: int) -> NDArray[np.float64]:
        """Return the log-probabilities (n, n_classes) of one expert, without the others."""

        def predict(module, x):
            x, experts = module.encode(x), module.experts
            if experts.independent:
                logits = experts.run_some([module.for_experts(x)], [expert])[0]
            else:
                logits = module.run_experts(x)[0][:, expert]
            return logits.log_softmax(dim=1)

        return self.evaluate(predict, samples, experts=[expert], dtype=np.float64)

    def categories(self, column: int) -> list[str] | None:
        """Return the names of a column's categories by their positions; None for numbers."""
        table = self.model.encoder_
        if table is None or not table.is_categorical_[column]:
            return None
        position = int(table.is_categorical_[:column].sum())
        names = [in_words(each, exact=True) for each in table.categories_[position]]
        return names + ["infrequent"] * table.has_infrequent_[position]

    def values(self) -> NDArray:
        """Return the table as an array: float64 if it holds numbers only, or objects."""
        X = as_dense(as_eager(self.X))
        frame = as_frame(X)
        if frame is None:
            values = np.asarray(as_objects(X))
        else:
            values = np.empty(frame.shape, dtype=object)
            for position, column in enumerate(frame.iter_columns()):
                values[:, position] = column.to_list()
        try:
            return values.astype(np.float64)
        except (TypeError, ValueError):
            return values


def read_columns(estimator: BaseEstimator, X: ArrayLike, caller: str) -> Columns:
    """Read a table for a fitted mixture, a pipeline that ends in one, or a search for one.

    Raises
    ------
    NotFittedError
        If the mixture is not fitted.
    ValueError
        If the mixture reads images, or ``X`` does not have the columns of the fit.
    """
    model = final_model(estimator)[0]
    check_is_fitted(model)
    X = final_model(estimator, X)[1]
    X = as_eager(X)
    if len(model.net_.own_shape) != 1:
        raise ValueError(
            f"{caller} needs a table, but the mixture reads images. See what its experts own with "
            "ExpertSamplesDisplay."
        )
    samples = model.reader_.read(X, model)
    n_features, table = model.n_features_in_, model.encoder_
    order = np.arange(n_features)
    if table is not None:
        order = np.r_[
            np.flatnonzero(~table.is_categorical_), np.flatnonzero(table.is_categorical_)
        ]
    return Columns(
        model,
        X,
        samples[:] if isinstance(samples, SparseRows) else samples,
        names_of(estimator, model),
        np.argsort(order),
    )


def names_of(estimator: BaseEstimator, model: BaseEstimator) -> NDArray:
    """Return names of the columns that the mixture gets, if need be from a pipeline's steps."""
    if hasattr(model, "feature_names_in_"):
        return model.feature_names_in_
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    if isinstance(estimator, Pipeline) and len(estimator) > 1:
        try:
            names = estimator[:-1].get_feature_names_out(
                getattr(estimator, "feature_names_in_", None)
            )
            if len(names) == model.n_features_in_:
                return names
        except (AttributeError, ValueError):
            pass  # a step that does not name its columns
    return column_names(model)


def find_column(names: NDArray, feature: Any) -> int:
    """Return the position of a column that is given by name or position."""
    known = names.tolist()
    if isinstance(feature, str) and feature in known:
        return known.index(feature)
    is_position = isinstance(feature, (int, np.integer)) and not isinstance(feature, bool)
    if is_position and 0 <= feature < len(known):
        return int(feature)
    raise ValueError(
        f"features has {feature!r}, which must be one of the columns {known} or a position from "
        f"0 to {len(known) - 1}."
    )
