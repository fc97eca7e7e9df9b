"""Predictions of classifiers that only know how to give probabilities."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin


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
