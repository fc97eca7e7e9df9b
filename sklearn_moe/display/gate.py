"""How sure the gate is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_moe.decomposition import check_gate_proba, final_model
from sklearn_moe.display.layout import (
    COLORS,
    expert_labels,
    inches,
    label_ticks,
    longest,
    names_of,
    one_axes,
)

# Quantiles: the ends of the lines, the ends of the bars, and the points.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class GateDisplay:
    """How sure the gate is, for the samples of each expert and for all.

    The samples of an expert are those for which the gate chooses it. The picture shows how their
    gate probabilities of it are distributed: a bar for the middle half, a line for the middle 90%,
    and a point at the median. On the dotted line, all experts are equally probable. It is
    recommended to use :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    gate_proba : array-like of shape (n_samples, n_experts)
        Gate probabilities; rows sum to 1.
    expert_names : sequence of str of shape (n_experts,) or object, default=None
        Short names of the experts, such as what each owns, or an object with such ``names``.

    Attributes
    ----------
    bars_ : matplotlib.container.BarContainer
        The middle halves: first of all samples, then of those of each expert that has any.
    points_ : matplotlib.lines.Line2D
        The medians.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_moe import GateDisplay, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), MoEClassifier(n_experts=3, random_state=0))
    >>> display = GateDisplay.from_estimator(clf.fit(X, y), X)
    >>> len(display.bars_)
    4
    """

    def __init__(self, gate_proba: ArrayLike, *, expert_names: Any = None):
        self.gate_proba = gate_proba
        self.expert_names = expert_names

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, expert_names: Any = None, ax: Any = None
    ) -> GateDisplay:
        """Draw how sure the gate of a fitted mixture is.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, such as what each owns, or an object with such ``names``.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        GateDisplay
        """
        model, X = final_model(estimator, X)
        proba, names = model.gate_proba(X), names_of(model, expert_names)
        return cls.from_predictions(proba, expert_names=names, ax=ax)

    @classmethod
    def from_predictions(
        cls, gate_proba: ArrayLike, *, expert_names: Any = None, ax: Any = None
    ) -> GateDisplay:
        """Draw how sure a gate is, from its probabilities.

        Parameters
        ----------
        gate_proba : array-like of shape (n_samples, n_experts)
            Gate probabilities; rows sum to 1.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, such as what each owns, or an object with such ``names``.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        GateDisplay
        """
        return cls(gate_proba, expert_names=expert_names).plot(ax=ax)

    def plot(self, ax: Any = None) -> GateDisplay:
        """Draw the picture.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        GateDisplay
        """
        gate_proba = check_gate_proba(self.gate_proba)
        n_experts = gate_proba.shape[1]
        names = expert_labels(self.expert_names, n_experts)
        n_lines = 1 + any("\n" in name for name in names)
        size = (5 + 0.08 * longest(names), min(max(2 + 0.3 * n_lines * n_experts, 3), 13))
        self.ax_ = ax = one_axes(self, ax, size)
        self.figure_ = ax.figure

        chosen, most = gate_proba.argmax(axis=1), gate_proba.max(axis=1)
        parts = [most, *(most[chosen == expert] for expert in range(n_experts))]
        rows = np.array([row for row, part in enumerate(parts) if len(part)])
        ends = np.array([np.quantile(parts[row], QUANTILES) for row in rows])
        ax.hlines(rows, ends[:, 0], ends[:, 4], color=COLORS[0], label="middle 90% of the samples")
        self.bars_ = ax.barh(
            rows,
            ends[:, 3] - ends[:, 1],
            left=ends[:, 1],
            height=0.5,
            color=COLORS[0],
            alpha=0.5,
            label="middle half of the samples",
        )
        (self.points_,) = ax.plot(
            ends[:, 2], rows, "o", color="black", markersize=5, label="median sample"
        )
        ax.axvline(
            1 / n_experts, color="0.3", linestyle=":", linewidth=1, label="all experts equal"
        )
        ax.axhline(0.5, color="0.7", linewidth=0.8)  # between all samples and those of the experts
        labels = ["all samples"]
        labels += [
            f"{name} ({len(part) / len(most):.0%})"
            for name, part in zip(names, parts[1:], strict=True)
        ]
        label_ticks(ax.yaxis, labels, inches(ax)[1])
        ax.set(
            xlim=(0, 1.02),
            ylim=(n_experts + 0.5, -0.5),
            xlabel="weight of the chosen expert (gate probability)",
            ylabel="chosen expert\n(share of the samples)",
        )
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.4, 0),
            borderaxespad=5,
            ncols=2,
            frameon=False,
            fontsize=9,
        )
        return self
