"""The trials of a search with two scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.display.layout import COLORS, one_axes


class ParetoFrontDisplay:
    """Trials of a search with two scores, and their Pareto front.

    The front has the trials that no other trial beats in both scores. Scores whose names begin
    with ``neg_`` are drawn without the minus sign, and the axes say what is better. It is
    recommended to use :meth:`from_estimator`.

    Parameters
    ----------
    scores : array-like of shape (n_trials, 2)
        Mean scores of the complete trials, higher is better.
    names : sequence of str
        Names of the two scores.
    best : int, default=None
        Index of the trial that was refitted.

    Attributes
    ----------
    front_ : ndarray of shape (n_front,)
        Indices of the trials on the front, by falling first score.
    points_ : matplotlib.collections.PathCollection
        The trials.
    line_ : matplotlib.lines.Line2D
        The front.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, ParetoFrontDisplay, tune
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(max_iter=5, random_state=0)
    >>> search = tune(clf, X, y, n_trials=4, cv=2, random_state=0,
    ...               scoring=["neg_log_loss", "neg_sample_entropy"])
    >>> display = ParetoFrontDisplay.from_estimator(search)
    >>> len(display.front_) == len(search.pareto_front_)
    True
    """

    def __init__(self, scores: ArrayLike, *, names: Sequence[str], best: int | None = None):
        self.scores = scores
        self.names = names
        self.best = best

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, names: Sequence[str] | None = None, ax: Any = None
    ) -> ParetoFrontDisplay:
        """Draw the complete trials of a fitted search.

        Parameters
        ----------
        estimator : MoESearchCV
            A search with at least two scores.
        names : sequence of str, default=None
            Names of the two scores to draw; None takes the first two.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        ParetoFrontDisplay

        Raises
        ------
        ValueError
            If the search does not have these two scores.
        """
        check_is_fitted(estimator, "cv_results_")
        available = list(estimator.scorer_) if estimator.multimetric_ else ["score"]
        names = available[:2] if names is None else list(names)
        if len(names) != 2 or not set(names) <= set(available):
            raise ValueError(f"A front needs two of the scores {available}, got {names}.")
        scores = [estimator.cv_results_[f"mean_test_{name}"] for name in names]
        return cls(np.column_stack(scores), names=names, best=estimator.best_index_).plot(ax=ax)

    def plot(self, ax: Any = None) -> ParetoFrontDisplay:
        """Draw the trials and the front.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        ParetoFrontDisplay
        """
        self.ax_ = one_axes(self, ax, (5, 4.2))
        self.figure_ = self.ax_.figure
        scores = np.asarray(self.scores)
        beaten = [
            np.any(np.all(scores >= each, axis=1) & np.any(scores > each, axis=1))
            for each in scores
        ]
        front = np.flatnonzero(~np.array(beaten))
        self.front_ = front[np.lexsort(scores[front].T[::-1])][::-1]
        is_negative = [name.startswith("neg_") for name in self.names]
        shown = np.where(is_negative, -1, 1) * scores
        self.points_ = self.ax_.scatter(*shown.T, color="0.6", s=20, label="trial of the search")
        (self.line_,) = self.ax_.plot(
            *shown[self.front_].T,
            "o-",
            color=COLORS[0],
            markersize=5,
            label="not beaten in both (Pareto front)",
        )
        if self.best is not None:
            self.ax_.plot(
                *shown[self.best],
                "s",
                color=COLORS[1],
                markersize=8,
                zorder=3,
                linestyle="none",
                label="chosen, and fitted to all samples",
            )
        xlabel, ylabel = (
            f"{_WORDS.get(name, name.removeprefix('neg_').replace('_', ' '))}\n"
            f"({'lower' if negative else 'higher'} is better)"
            for name, negative in zip(self.names, is_negative, strict=True)
        )
        self.ax_.set(xlabel=xlabel, ylabel=ylabel)
        self.ax_.locator_params(axis="x", nbins=5)  # its labels are long
        self.ax_.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        return self


_WORDS = {
    "neg_log_loss": "log loss in nats",
    "neg_sample_entropy": "experts share a sample, $H_s$ in bits",
    "usage_entropy": "experts are used evenly, $H_u$ in bits",
    "expert_class_information": "expert tells the class, $I(E;Y)$ in bits",
    "specialization": "expert knows more than others, $S$ in bits",
    "chosen_expert_accuracy": "accuracy of the chosen expert alone",
}
