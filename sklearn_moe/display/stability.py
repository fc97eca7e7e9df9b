"""How far a decomposition comes back when the mixture is fitted again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_moe.display.layout import COLORS, expert_labels, inches, label_ticks, several_axes
from sklearn_moe.measures import mean_of_known
from sklearn_moe.report import MOST_EXPERTS
from sklearn_moe.stability import HOW, SAME, DecompositionStability, decomposition_stability

# In points; smaller cells have no numbers.
SMALLEST = 5


class DecompositionStabilityDisplay:
    """Which experts come back in other fits, and which fits find the same parts.

    The left panel has a row for each expert, the most used one first: a dot for each refit at the
    share of the expert's samples that stay with it, and a bar for the share that stays in all
    refits. It shows at most 16 experts. The right panel is a matrix of the adjusted Rand index of
    each two fits: 1 for the same parts, about 0 for unrelated ones. It is recommended to use
    :meth:`from_estimator`.

    Parameters
    ----------
    stability : DecompositionStability
        What :func:`decomposition_stability` has measured.
    expert_names : sequence of str of shape (n_experts,) or object, default=None
        Short names of the experts, such as what each owns, or an object with such ``names``.

    Attributes
    ----------
    bars_ : matplotlib.container.BarContainer
        The shares of samples that stay in all refits.
    points_ : matplotlib.collections.PathCollection
        The shares of samples that stay in each refit.
    im_ : matplotlib.image.AxesImage
        The matrix.
    text_ : ndarray of shape (1 + n_refits, 1 + n_refits) of matplotlib.text.Text, or None
        The numbers in the cells; None if there is no room for them.
    axes_ : ndarray of matplotlib.axes.Axes
        The two panels.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    decomposition_stability : The same as numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import DecompositionStabilityDisplay, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(3, gate="kmeans", max_iter=5, random_state=0).fit(X, y)
    >>> display = DecompositionStabilityDisplay.from_estimator(
    ...     clf, X, y, n_refits=2, random_state=0
    ... )
    >>> display.text_.shape
    (3, 3)
    """

    def __init__(self, stability: DecompositionStability, *, expert_names: Any = None):
        self.stability = stability
        self.expert_names = expert_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        expert_names: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> DecompositionStabilityDisplay:
        """Fit a mixture again and again, and draw what comes back.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A ``MoEClassifier``, a pipeline that ends in one, or a search for one, fitted or not.
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The training samples.
        y : array-like of shape (n_samples,)
            Their labels.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, or an object with such ``names``. None takes those that a
            list of experts has.
        ax : matplotlib.axes.Axes or two of them, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :func:`decomposition_stability`.

        Returns
        -------
        DecompositionStabilityDisplay
        """
        stability = decomposition_stability(estimator, X, y, **kwargs)
        return cls(stability, expert_names=expert_names).plot(ax=ax)

    def plot(self, ax: Any = None, *, cmap: str = "Blues") -> DecompositionStabilityDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or two of them, default=None
            Where to draw. One axes is split into panels. None makes a new figure.
        cmap : str or matplotlib.colors.Colormap, default="Blues"
            Colours of the matrix.

        Returns
        -------
        DecompositionStabilityDisplay
        """
        stability = self.stability
        n_shown = min(stability.usage.shape[1], MOST_EXPERTS)
        size = (11, max(4.8, 2 + 0.36 * n_shown))
        self.axes_ = several_axes(self, ax, 2, size)
        self.figure_ = self.axes_[0].figure
        self._plot_experts(self.axes_[0], n_shown)
        self._plot_fits(self.axes_[1], cmap)
        return self

    def _plot_experts(self, ax, n_shown):
        stability = self.stability
        usage = stability.usage[0]
        experts = np.argsort(-usage, kind="stable")[:n_shown]
        places = np.arange(n_shown)
        self.bars_ = ax.barh(
            places,
            np.nan_to_num(stability.expert_always[experts]),
            height=0.6,
            color="0.85",
            label="stay in all refits",
        )
        stays = stability.expert_stays[:, experts]
        # The dots of a row lie one below the other, in the order of the refits.
        offsets = np.linspace(-0.22, 0.22, len(stays)) if len(stays) > 1 else np.zeros(1)
        self.points_ = ax.scatter(
            stays.ravel(),
            np.add.outer(offsets, places).ravel(),
            s=22,
            color=COLORS[0],
            alpha=0.7,
            linewidth=0,
            zorder=3,
            label="stay in one refit",
        )
        line = ax.axvline(
            SAME, color="0.3", linestyle=":", linewidth=1, label=f"{SAME:.0%}: comes back"
        )
        given = stability.expert_names if self.expert_names is None else self.expert_names
        names = expert_labels(given, len(usage))
        label_ticks(ax.yaxis, [names[expert] for expert in experts], inches(ax)[1])
        size = min(9, max(4, 50 * inches(ax)[1] / n_shown))
        for place, expert in enumerate(experts):
            stay = mean_of_known(stability.expert_stays[:, expert])
            mean = "-" if np.isnan(stay) else f"{stay:.0%}"
            ax.text(
                1.02,
                place,
                mean,
                transform=ax.get_yaxis_transform(),
                va="center",
                fontsize=size,
            )
        ax.annotate(
            "mean of\nrefits",
            (1.02, 1),
            (0, 2),
            "axes fraction",
            textcoords="offset points",
            fontsize=9,
        )
        ax.set(xlim=(-0.02, 1.02), ylim=(n_shown - 0.5, -0.5))
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.set_xlabel("share of the expert's samples that stay with it")
        ax.set_ylabel("experts, the most used first")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(
            handles=[self.points_, self.bars_, line],
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            borderaxespad=2.5,  # above "mean of refits"
            ncols=3,
            title=f"the decomposition {stability.verdict}",
            frameon=False,
        )

    def _plot_fits(self, ax, cmap):
        index, n_refits = self.stability.adjusted_rand_index, self.stability.n_refits
        # A fit agrees with itself, which says nothing.
        others = np.ma.masked_array(index, np.eye(len(index), dtype=bool))
        self.im_ = ax.imshow(others, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
        width, height = inches(ax)
        names = ["first fit", *map(str, range(1, n_refits + 1))]
        label_ticks(ax.xaxis, ["first", *names[1:]], 0.8 * width)
        label_ticks(ax.yaxis, names, 0.8 * height)
        # Room for a number of four characters, in points; the cells are squares.
        room = 0.35 * 72 * 0.85 * min(width, height) / len(index)
        self.text_ = None
        if room >= SMALLEST:
            self.text_ = np.empty(index.shape, dtype=object)
            light, dark = self.im_.cmap(0.0), self.im_.cmap(1.0)
            for one, other in np.ndindex(index.shape):
                value = index[one, other]
                self.text_[one, other] = ax.text(
                    other,
                    one,
                    "" if one == other else f"{value + 0.0:.2f}",
                    ha="center",
                    va="center",
                    fontsize=min(10, room),
                    color=light if value > 0.5 and one != other else dark,
                )
        else:
            self.figure_.colorbar(self.im_, ax=ax, shrink=0.6)
        ax.set_xlabel(f"numbers: {HOW[self.stability.resample]}")
        ax.set_title(
            "Do two fits divide the samples alike?\n"
            "adjusted Rand index: 1 if they do, 0 as by chance",
            fontsize=10,
        )
