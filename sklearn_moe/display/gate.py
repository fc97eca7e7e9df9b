"""How sure the gate is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from sklearn_moe.decomposition import check_gate_proba, final_model
from sklearn_moe.display.layout import inches, label_ticks, several_axes

# The parts of each bar, the surest first: a name, and the bound that a value has to pass.
MAX_PROBA = (
    ("at least .99", 0.99),
    (".9 to .99", 0.9),
    (".75 to .9", 0.75),
    (".5 to .75", 0.5),
    ("below .5", 0.0),
)
ENTROPY = (
    ("at most 0.1", 0.1),
    ("0.1 to 0.5", 0.5),
    ("0.5 to 1", 1.0),
    ("1 to 1.5", 1.5),
    ("above 1.5", np.inf),
)
PANELS = {"probability of the chosen expert": MAX_PROBA, "entropy of the gate, bits": ENTROPY}


class GateDisplay:
    """How sure the gate is, for the samples of each expert and for all.

    Each expert has a bar for its samples, which are those for which the gate chooses it. The bar
    is divided by how sure the gate is: on the left by the probability of the chosen expert, on the
    right by the entropy of the gate in bits. It is recommended to use :meth:`from_estimator` or
    :meth:`from_predictions`.

    Parameters
    ----------
    gate_proba : array-like of shape (n_samples, n_experts)
        Gate probabilities; rows sum to 1.

    Attributes
    ----------
    bars_ : list of two lists of matplotlib.container.BarContainer
        For each panel the parts of the bars, the surest first.
    axes_ : ndarray of two matplotlib.axes.Axes
        The panels.
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
    >>> len(display.axes_)
    2
    """

    def __init__(self, gate_proba: ArrayLike):
        self.gate_proba = gate_proba

    @classmethod
    def from_estimator(cls, estimator, X, *, ax=None, **kwargs) -> GateDisplay:
        """Draw how sure the gate of a fitted mixture is.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        ax : matplotlib.axes.Axes or two of them, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        GateDisplay
        """
        model, X = final_model(estimator, X)
        return cls.from_predictions(model.gate_proba(X), ax=ax, **kwargs)

    @classmethod
    def from_predictions(cls, gate_proba: ArrayLike, *, ax=None, **kwargs) -> GateDisplay:
        """Draw how sure a gate is, from its probabilities.

        Parameters
        ----------
        gate_proba : array-like of shape (n_samples, n_experts)
            Gate probabilities; rows sum to 1.
        ax : matplotlib.axes.Axes or two of them, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        GateDisplay
        """
        return cls(gate_proba).plot(ax=ax, **kwargs)

    def plot(self, ax=None, *, cmap="cividis") -> GateDisplay:
        """Draw both panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or two of them, default=None
            Where to draw. One axes, about 8 inches wide, is split in two. None makes a new figure.
        cmap : str or matplotlib.colors.Colormap, default="cividis"
            Colours, from the surest (the beginning of the map) to the least sure.

        Returns
        -------
        GateDisplay
        """
        gate_proba = check_gate_proba(self.gate_proba)
        n_experts = gate_proba.shape[1]
        height = min(2.1 + 0.3 * n_experts, 13)
        self.axes_ = several_axes(self, ax, 2, (10, max(height, 3)))
        self.figure_ = self.axes_[0].figure

        most = gate_proba.max(axis=1)
        bits = entr(gate_proba).sum(axis=1) / np.log(2)
        groups = (
            # The first bound that is passed counts, and argmax finds it.
            np.argmax([most >= bound for _, bound in MAX_PROBA], axis=0),
            np.argmax([bits <= bound for _, bound in ENTROPY], axis=0),
        )
        chosen = gate_proba.argmax(axis=1)
        self.bars_ = [
            _draw(ax, _shares(group, chosen, n_experts), names, title, cmap)
            for ax, group, (title, names) in zip(self.axes_, groups, PANELS.items(), strict=True)
        ]
        counts = np.bincount(chosen, minlength=n_experts)
        labels = ["all", *(f"{e} ({n / len(chosen):.0%})" for e, n in enumerate(counts))]
        left, right = self.axes_
        label_ticks(left.yaxis, labels, inches(left)[1])
        left.set_ylabel("chosen expert (its share)")
        right.set_yticks([])
        return self


def _shares(group, chosen, n_experts):
    """Return the share of each group (columns) in all samples and in those of each expert."""
    counts = np.zeros((n_experts, len(MAX_PROBA)))
    np.add.at(counts, (chosen, group), 1)
    counts = np.vstack([counts.sum(axis=0), counts])
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _draw(ax, shares, names, title, cmap):
    """Draw one panel and return its bars."""
    import matplotlib as mpl

    colors = mpl.colormaps.get_cmap(cmap)(np.linspace(0.1, 1, len(names)))
    rows, left, bars = np.arange(len(shares)), np.zeros(len(shares)), []
    for (name, _), color, width in zip(names, colors, shares.T, strict=True):
        label = name if width.any() else "_" + name  # the legend leaves it out
        bars.append(ax.barh(rows, width, left=left, color=color, height=0.85, label=label))
        left = left + width
    ax.axhline(0.5, color="0.3", linewidth=0.8)  # between all samples and those of the experts
    ax.set(xlim=(0, 1), xlabel="part of the samples", ylim=(len(shares) - 0.5, -0.5))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, title=title, frameon=False)
    return bars
