"""Predictions of classifiers that only know how to give probabilities."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin


class MostProbable(ClassifierMixin):
    """A classifier with ``predict_proba`` that predicts the most probable class."""

    def predict(self, X: ArrayLike) -> NDArray:
        """Predict the most probable class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        chosen = self.predict_proba(X).argmax(axis=1)  # says first if it is not fitted
        return self.classes_[chosen]


class GivenProba(MostProbable, BaseEstimator):
    """A classifier whose probabilities are known already, for scorers.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The class labels.

    Attributes
    ----------
    proba : ndarray of shape (n_samples, n_classes)
        The probabilities of the samples that a scorer passes.
    """

    proba: NDArray

    def __init__(self, classes: NDArray):
        self.classes = classes
        self.classes_ = classes

    def fit(self, X: ArrayLike, y: ArrayLike) -> GivenProba:
        """Do nothing; scikit-learn takes only what has this method for a classifier."""
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Return the known probabilities."""
        return self.proba
