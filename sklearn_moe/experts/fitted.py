"""An expert of a fitted mixture, as an expert of another one."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags, get_tags
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.checks import check_no_booleans
from sklearn_moe.decomposition import final_model
from sklearn_moe.predicting import MostProbable


class FittedExpert(MostProbable, BaseEstimator):
    """One expert of a fitted mixture, as a classifier that stays as it is.

    In a list of experts it brings what an expert of a former mixture knows into a new one. As with
    scikit-learn's ``FrozenEstimator``, ``fit`` does nothing, and ``clone`` keeps the fit. Put the
    whole mixture into a ``FrozenEstimator`` to reuse all its experts and its gate as one expert.

    Parameters
    ----------
    mixture : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
        ``best_estimator_``. It is not copied: if it is fitted again, this expert changes.
    expert : int or str
        Position of the expert, from 0 on, or its name if the experts of the mixture are a list.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes of the mixture.

    See Also
    --------
    grow : New experts beside all those of a mixture, with a gate that goes on from its own.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import FittedExpert, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> old = MoEClassifier(3, random_state=0).fit(X[y < 2], y[y < 2])
    >>> experts = [("old", FittedExpert(old, 2)), ("new", "mlp")]
    >>> clf = MoEClassifier(experts=experts, random_state=0).fit(X, y)
    >>> clf.expert_names_
    ['old', 'new']
    >>> clf.score(X, y) > 0.9
    True
    """

    _parameter_constraints: dict = {
        "mixture": [HasMethods("predict_proba")],
        "expert": [Interval(Integral, 0, None, closed="left"), str],
    }

    def __init__(self, mixture: BaseEstimator, expert: int | str):
        self.mixture = mixture
        self.expert = expert

    def fit(self, X: Any = None, y: Any = None, **params: Any) -> FittedExpert:
        """Do nothing, as the expert is fitted.

        Parameters
        ----------
        X, y, **params
            Not used.

        Returns
        -------
        self : FittedExpert

        Raises
        ------
        NotFittedError
            If the mixture is not fitted.
        ValueError
            If it has no such expert.
        """
        self._find()
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Predict the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples, as the mixture takes them.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities in the order of ``classes_``; rows sum to 1.
        """
        _, position = self._find()
        model, X = final_model(self.mixture, X)
        return model.expert_proba(X)[:, position]

    @property
    def classes_(self) -> NDArray:
        """The classes of the mixture."""
        return self._find()[0].classes_

    def _find(self):
        """Return the mixture within pipelines and searches, and the position of the expert."""
        self._validate_params()
        check_no_booleans(self)
        model = final_model(self.mixture)[0]
        check_is_fitted(model)
        names, n_experts = model.expert_names_, len(model.expert_costs_)
        if isinstance(self.expert, str):
            if names is None:
                raise ValueError(
                    f"expert={self.expert!r} is a name, but the experts of the mixture have none. "
                    f"Pass a position from 0 to {n_experts - 1}."
                )
            if self.expert not in names:
                raise ValueError(f"expert={self.expert!r} must be one of the names {names}.")
            return model, names.index(self.expert)
        if self.expert >= n_experts:
            raise ValueError(
                f"expert={self.expert!r} must be from 0 to {n_experts - 1}, as the mixture has "
                f"{n_experts} experts."
            )
        return model, self.expert

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the mixture and the expert, without parameters of the mixture.

        Parameters
        ----------
        deep : bool, default=True
            Not used, as nothing fits the mixture again.

        Returns
        -------
        dict
            Values by name.
        """
        return super().get_params(deep=False)

    def __sklearn_clone__(self) -> FittedExpert:
        return type(self)(self.mixture, self.expert)

    def __sklearn_is_fitted__(self) -> bool:
        try:
            self._find()
        except NotFittedError:
            return False
        except (TypeError, ValueError):
            pass  # it is fitted, and says what is wrong when it is asked
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if hasattr(self.mixture, "__sklearn_tags__"):
            tags.input_tags = get_tags(self.mixture).input_tags
        return tags
