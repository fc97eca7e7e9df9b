"""How the experts' predictions change with a column."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from sklearn_moe.decomposition import cut
from sklearn_moe.display.layout import (
    COLORS,
    expert_labels,
    inches,
    label_ticks,
    names_of,
    several_axes,
)
from sklearn_moe.interpretation.columns import find_column, read_columns
from sklearn_moe.mixture import MixtureOfExperts

# A curve is dashed where the expert has no sample within this part of the panel's width.
NEARBY = 0.05

# The part of a column of numbers that is drawn, as in scikit-learn's partial dependence.
PERCENTILES = (1, 99)

# A column of categories shows so many of them, those of most samples.
MOST_CATEGORIES = 12

# If there are more experts than colours, their dots differ as well.
MARKERS = "os^D"

# The area of the dot of a category that all samples of an expert have, in square points.
LARGEST_AREA = 160

MEDIAN = {"marker": "o", "color": "black", "mfc": "white", "ms": 4}

# Panels side by side.
PANELS_IN_ROW = 3


class ColumnEffect(NamedTuple):
    """How the predictions of the experts change with one column.

    Attributes
    ----------
    name : str
        Name of the column.
    categories : list of str or None
        Names of the categories in ``grid``; None for numbers.
    grid : ndarray of shape (n_points,)
        Values of the column; positions from 0 on for categories.
    response : ndarray of shape (n_experts, n_points)
        Mean probability of the class over the expert's samples with the column set to this value;
        nan for an expert without samples.
    samples : list of n_experts ndarray
        Values of the column for the expert's samples, without missing ones; positions in ``grid``
        for categories.
    """

    name: str
    categories: list[str] | None
    grid: NDArray[np.floating]
    response: NDArray[np.float64]
    samples: list[NDArray[np.float64]]

    def is_nearby(self, expert: int) -> NDArray[np.bool_]:
        """Return for each point of the grid whether the expert has samples like it."""
        own = np.sort(self.samples[expert])
        if len(own) == 0:
            return np.zeros(len(self.grid), dtype=bool)
        reach = 0.0 if self.categories else NEARBY * np.ptp(self.grid)
        last = np.searchsorted(own, self.grid + reach, side="right")
        return last > np.searchsorted(own, self.grid - reach, side="left")


class ExpertEffectDisplay:
    """How the predictions of each expert change with a column, and which values its samples have.

    There is a panel for each column. Each curve is one expert: the probability that it gives a
    class, without the other experts, in the mean over its own samples, with the column set to each
    value in turn. This is the partial dependence of the expert. Where the expert has no samples of
    its own, the curve is dashed. Below, there is a row for each expert with the values of its own
    samples. Its samples are those for which the gate chooses it. It is recommended to use
    :meth:`from_estimator`.

    Parameters
    ----------
    effects : list of ColumnEffect
        For each column: ``name``, ``categories``, ``grid``, ``response`` (n_experts, n_points) and
        ``samples``.
    shares : ndarray of shape (n_experts,)
        The share of the samples for which each expert is chosen.
    target : object
        The class whose probability is drawn.
    expert_names : sequence of str of shape (n_experts,) or object, default=None
        Short names of the experts, such as what each owns, or an object with such ``names``.

    Attributes
    ----------
    lines_ : list of list of matplotlib.lines.Line2D
        For each column the curves of the experts that have samples.
    axes_ : ndarray of shape (n_columns, 2) of matplotlib.axes.Axes
        For each column the axes of the curves and of the samples.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    expert_importance : Which columns to look at.
    sklearn.inspection.PartialDependenceDisplay : The same for the mixture as a whole.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import ExpertEffectDisplay, MoEClassifier
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> clf = MoEClassifier(3, random_state=0).fit(X, y)
    >>> display = ExpertEffectDisplay.from_estimator(
    ...     clf, X, ["petal length (cm)", "petal width (cm)"], target=1
    ... )
    >>> display.axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        effects: list[ColumnEffect],
        *,
        shares: NDArray,
        target: object,
        expert_names: Any = None,
    ):
        self.effects = effects
        self.shares = shares
        self.target = target
        self.expert_names = expert_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        features: Any,
        *,
        target: Any = None,
        grid_resolution: int = 50,
        subsample: int = 500,
        random_state: int | np.random.RandomState | None = None,
        expert_names: Any = None,
        ax: Any = None,
    ) -> ExpertEffectDisplay:
        """Draw how the predictions of a fitted mixture's experts change with columns.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier`` for tables, a pipeline that ends in one, or a search with
            such a ``best_estimator_``. In a pipeline, the columns are those that the mixture in
            its last step gets.
        X : array-like of shape (n_samples, n_features)
            Samples.
        features : str, int or list of these
            The columns to draw, by name or position.
        target : object, default=None
            The class whose probability is drawn. None takes the second of two classes; with more
            classes, it must be given.
        grid_resolution : int, default=50
            Number of values of a column of numbers, from its 1 % to its 99 % quantile. If it has
            fewer different values, all of them are taken. Of a column of categories, the 12 most
            frequent are.
        subsample : int, default=500
            The curve of an expert is the mean over so many of its samples at most.
        random_state : int, RandomState instance or None, default=None
            Draws these samples.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, or an object with such ``names``. None takes those that a
            list of experts has.
        ax : matplotlib.axes.Axes or one for each column, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        ExpertEffectDisplay

        Raises
        ------
        ValueError
            If the mixture reads images, ``X`` does not have the columns of the fit, a column or
            the class does not exist, or a column has no value.
        """
        validate_parameter_constraints(
            {
                "grid_resolution": [Interval(Integral, 2, None, closed="left")],
                "subsample": [Interval(Integral, 1, None, closed="left")],
                "random_state": ["random_state"],
            },
            {
                "grid_resolution": grid_resolution,
                "subsample": subsample,
                "random_state": random_state,
            },
            caller_name="ExpertEffectDisplay.from_estimator",
        )
        table = read_columns(estimator, X, "ExpertEffectDisplay")
        if isinstance(features, (str, Integral)):
            features = [features]
        columns = [find_column(table.names, feature) for feature in features]
        if not columns:
            raise ValueError("features is empty. Name at least one column.")
        target, label = _find_class(table.model.classes_.tolist(), target)
        gate_proba = table.evaluate(MixtureOfExperts.gate_proba)
        chosen = gate_proba.argmax(axis=1)
        random_state = check_random_state(random_state)
        parts = []
        for expert in range(gate_proba.shape[1]):
            rows = np.flatnonzero(chosen == expert)
            if len(rows) > subsample:
                rows = np.sort(random_state.choice(rows, subsample, replace=False))
            parts.append(rows)
        return cls(
            [_effect(table, column, label, grid_resolution, chosen, parts) for column in columns],
            shares=np.bincount(chosen, minlength=len(parts)) / len(chosen),
            target=target,
            expert_names=names_of(estimator, expert_names),
        ).plot(ax=ax)

    def plot(self, ax: Any = None) -> ExpertEffectDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or one for each column, default=None
            Where to draw. One axes is split into panels side by side. The legend is on the right
            of the last one, for which a constrained layout makes room. None makes a new figure.

        Returns
        -------
        ExpertEffectDisplay
        """
        n_panels, n_experts = len(self.effects), len(self.shares)
        n_columns, height = n_panels, 3.2 + 0.16 * n_experts
        if ax is None and n_panels > PANELS_IN_ROW:
            check_matplotlib_support("ExpertEffectDisplay.plot")
            import matplotlib.pyplot as plt

            n_columns, n_rows = PANELS_IN_ROW, -(-n_panels // PANELS_IN_ROW)
            size = (4 * n_columns + 2, height * n_rows)
            _, ax = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained")
            for unused in ax.ravel()[n_panels:]:
                unused.set_axis_off()
            ax = ax.ravel()[:n_panels]
        panels = several_axes(self, ax, n_panels, (4 * n_panels + 2, height))
        self.figure_ = panels[0].figure
        self.axes_, self.lines_ = np.empty((n_panels, 2), dtype=object), []
        low, limits = min(0.045 * n_experts, 0.45), self._limits()
        for number, (panel, effect) in enumerate(zip(panels, self.effects, strict=True)):
            width, height = inches(panel)
            panel.set_axis_off()
            upper = panel.inset_axes([0, low + 0.03, 1, 0.97 - low])
            lower = panel.inset_axes([0, 0, 1, low], sharex=upper)
            self.axes_[number] = upper, lower
            self.lines_.append(self._plot_curves(upper, effect))
            self._plot_samples(lower, effect)
            upper.set_ylim(limits)
            upper.tick_params(labelbottom=False, bottom=False)
            lower.set(ylim=(n_experts - 0.5, -0.5), xlabel=effect.name)
            label_ticks(lower.yaxis, [str(expert) for expert in range(n_experts)], low * height)
            if effect.categories:
                label_ticks(lower.xaxis, cut(effect.categories, 16), width)
                # About ten characters fit into an inch.
                is_long = sum(len(name) + 2 for name in cut(effect.categories, 16)) > 10 * width
                lower.tick_params(axis="x", rotation=90 if is_long else 0)
            else:
                is_whole = np.array_equal(effect.grid, effect.grid.round())
                lower.locator_params(axis="x", nbins=5, integer=is_whole)
        for upper, lower in self.axes_[::n_columns]:
            upper.set_ylabel(f"probability of {self.target}\nby each expert alone")
            lower.set_ylabel("expert", rotation=0, ha="right", va="center")
        self._add_legend(self.axes_[min(n_columns, n_panels) - 1, 0])
        return self

    @property
    def _chosen(self):
        """The experts that have samples."""
        return np.flatnonzero(self.shares)

    def _limits(self):
        """Return the range of probabilities that all panels show."""
        values = np.concatenate([effect.response.ravel() for effect in self.effects])
        low, high = np.nanmin(values), np.nanmax(values)
        margin = max(0.06 * (high - low), 0.03)
        return max(low - margin, -0.03), min(high + margin, 1.03)

    def _plot_curves(self, ax, effect):
        """Draw the curves of one column and return them."""
        from matplotlib import patheffects

        lines, chosen = [], self._chosen
        for place, expert in enumerate(chosen):
            color, marker = _style(expert)
            response, near = effect.response[expert], effect.is_nearby(expert)
            own = np.where(near, response, np.nan)
            if effect.categories:
                x = effect.grid + 0.7 * ((place + 0.5) / len(chosen) - 0.5)
                lines += ax.plot(x, own, marker, color=color)
                ax.plot(x, np.where(near, np.nan, response), marker, color=color, mfc="none")
                continue
            ax.plot(effect.grid, response, "--", color=color, linewidth=1, alpha=0.7)
            is_coarse = len(effect.grid) <= 12
            lines += ax.plot(effect.grid, own, "o-" if is_coarse else "-", color=color, lw=2)
            solid = np.flatnonzero(near) if near.any() else np.arange(len(near))
            at = solid[int(len(solid) * (place + 0.5) / len(chosen))]
            ax.text(
                effect.grid[at],
                response[at],
                str(expert),
                fontweight="bold",
                ha="center",
                va="center",
                path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
            )
        if effect.categories:
            for edge in effect.grid[1:]:
                ax.axvline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
        return lines

    def _plot_samples(self, ax, effect):
        """Draw a row for each expert with the values of its samples."""
        for expert in self._chosen:
            own, (color, _) = effect.samples[expert], _style(expert)
            if len(own) == 0:
                continue
            if effect.categories:
                shares = np.bincount(own.astype(int), minlength=len(effect.grid)) / len(own)
                row = np.full(len(shares), expert)
                ax.scatter(effect.grid, row, s=LARGEST_AREA * shares, color=color)
                continue
            low, first, median, third, high = np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95])
            ax.hlines(expert, low, high, color=color, linewidth=1.2)
            ax.hlines(expert, first, third, color=color, linewidth=5)
            ax.plot(median, expert, **MEDIAN)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)

    def _add_legend(self, ax):
        """Say what is drawn, on the right of the axes."""
        from matplotlib.lines import Line2D

        is_category = [effect.categories is not None for effect in self.effects]
        handles = []
        labels = expert_labels(self.expert_names, len(self.shares))
        for expert, share in enumerate(self.shares):
            color, marker = _style(expert)
            label = f"{labels[expert]} ({f'{share:.0%}' if share else 'never chosen'})"
            marker = marker if any(is_category) else ""
            handles.append(Line2D([], [], color=color, lw=2, marker=marker, label=label))
        grey, dot = {"color": "0.4"}, {"ls": "", "marker": "o"}
        if not all(is_category):
            handles += [
                Line2D([], [], ls="--", lw=1, label="no samples of its own nearby", **grey),
                Line2D([], [], ls="", label="samples: median", **MEDIAN),
                Line2D([], [], lw=5, label="samples: middle half", **grey),
                Line2D([], [], lw=1.2, label="samples: 5% to 95%", **grey),
            ]
        if any(is_category):
            handles += [
                Line2D([], [], label="no samples of its own", mfc="none", **dot, **grey),
                Line2D([], [], label="samples: their share, as area", **dot, **grey),
            ]
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _style(expert):
    """Return colour and marker of an expert."""
    return COLORS[expert % len(COLORS)], MARKERS[expert // len(COLORS) % len(MARKERS)]


def _find_class(classes, target):
    """Return a class and its position."""
    if target is None and len(classes) == 2:
        target = classes[1]
    if target not in classes:
        raise ValueError(
            f"target={target!r} must be one of the classes {classes}, whose probability is drawn."
        )
    return target, classes.index(target)


def _effect(table, column, label, grid_resolution, chosen, parts):
    """Return how the experts' predictions change with a column."""
    name, place = str(table.names[column]), table.places[column]
    values, categories = table.samples[:, place], table.categories(column)
    known = values[values >= 0] if categories else values[~np.isnan(values)]
    if len(known) == 0:
        raise ValueError(f"Column {name!r} has no known value in X, and cannot be drawn.")
    grid, counts = np.unique(known.astype(np.float64), return_counts=True)
    if categories:
        grid = np.sort(grid[np.argsort(-counts, kind="stable")[:MOST_CATEGORIES]])
    elif len(grid) > grid_resolution:
        first, last = np.percentile(known, PERCENTILES)
        grid = np.linspace(first, last, grid_resolution)
    response = np.full((len(parts), len(grid)), np.nan)
    for expert, rows in enumerate(parts):
        if len(rows) == 0:
            continue
        samples = table.samples[rows].astype(np.float64)
        for point, value in enumerate(grid):
            samples[:, place] = value
            log_proba = table.expert_log_proba(samples, expert)
            response[expert, point] = np.exp(log_proba[:, label]).mean()
    samples = [values[chosen == expert].astype(np.float64) for expert in range(len(parts))]
    if categories:
        samples = [np.searchsorted(grid, own[np.isin(own, grid)]) * 1.0 for own in samples]
        names = [categories[int(position)] for position in grid]
        return ColumnEffect(name, names, np.arange(len(grid)) * 1.0, response, samples)
    samples = [own[~np.isnan(own)] for own in samples]
    return ColumnEffect(name, None, grid, response, samples)
