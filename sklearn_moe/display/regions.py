"""Which expert owns which region."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from sklearn.utils.validation import check_consistent_length

from sklearn_moe.decomposition import check_labels, cut, final_model
from sklearn_moe.display.layout import COLORS, as_table, expert_labels, inches, names_of, one_axes
from sklearn_moe.report import MOST_EXPERTS

# In points; smaller regions have no number.
SMALLEST = 5

# More samples would hide the regions.
MOST_POINTS = 300
# A marker for each class, if there are so few.
MARKERS = "os^DvPX*"


class ExpertRegionsDisplay:
    """Which expert owns which region of two features, or of a projection to two dimensions.

    Each region has the colour and the number of the expert that the gate chooses there. The colour
    is paler where the gate is less sure. Points are samples, at most 300 of them, in the colour of
    the expert that the gate chooses for the sample itself: it may be another than in the plane,
    where the other features have other values. The shapes of the points are the classes, if there
    are labels. It is recommended to use :meth:`from_estimator`.

    Parameters
    ----------
    xx0, xx1 : ndarray of shape (grid_resolution, grid_resolution)
        The points of the grid, as from ``numpy.meshgrid``.
    response : ndarray of shape (grid_resolution, grid_resolution, n_experts)
        Gate probabilities at these points.
    xlabel, ylabel : str, default=""
        Labels of the axes.
    points : ndarray of shape (n_points, 2), default=None
        Samples in the plane.
    chosen : ndarray of shape (n_points,), default=None
        The experts that the gate chooses for them.
    labels : ndarray of shape (n_points,), default=None
        Their classes.
    expert_names : sequence of str of shape (n_experts,) or object, default=None
        Short names of the experts, such as what each owns, or an object with such ``names``.

    Attributes
    ----------
    surface_ : matplotlib.collections.QuadMesh
        The regions.
    text_ : list of matplotlib.text.Text
        The number of the expert in each region that has room for it.
    points_ : list of matplotlib.collections.PathCollection
        The samples, class by class.
    colorbar_ : matplotlib.colorbar.Colorbar or None
        The scale of the paler colours; None for a single expert.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    sklearn.inspection.DecisionBoundaryDisplay : Which class is predicted where.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklearn_moe import ExpertRegionsDisplay, MoEClassifier
    >>> X, y = make_moons(noise=0.1, random_state=0)
    >>> clf = MoEClassifier(n_experts=3, regularization="importance", random_state=0).fit(X, y)
    >>> display = ExpertRegionsDisplay.from_estimator(clf, X, y)
    >>> len(display.points_)
    2
    """

    def __init__(
        self,
        *,
        xx0: Any,
        xx1: Any,
        response: Any,
        xlabel: str = "",
        ylabel: str = "",
        points: Any = None,
        chosen: Any = None,
        labels: Any = None,
        expert_names: Any = None,
    ):
        self.xx0 = xx0
        self.xx1 = xx1
        self.response = response
        self.xlabel = xlabel
        self.ylabel = ylabel
        self.points = points
        self.chosen = chosen
        self.labels = labels
        self.expert_names = expert_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        features: Any = None,
        projection: Any = None,
        grid_resolution: int = 100,
        eps: Any = None,
        xlabel: str | None = None,
        ylabel: str | None = None,
        expert_names: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ExpertRegionsDisplay:
        """Draw the regions of a fitted mixture's experts.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        X : array-like or DataFrame of shape (n_samples, n_features)
            Samples. Their range is the range of the picture.
        y : array-like of shape (n_samples,), default=None
            Labels, for the shapes of the points.
        features : pair of int or str, default=None
            The two features to draw, by column name or number, if ``X`` has more than two. The
            others stay at their median, or at their most frequent value if they are not numbers.
        projection : object, default=None
            In place of ``features``, a transformer to two dimensions that was fitted on ``X`` and
            has an ``inverse_transform``, such as ``PCA(2).fit(X)``.
        grid_resolution : int, default=100
            Number of points of the grid in each direction.
        eps : float, default=None
            How far the picture reaches beyond the samples; None means a twentieth of their range.
        xlabel, ylabel : str, default=None
            Labels of the axes; None takes the names of the features.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, such as what each owns, or an object with such ``names``.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        ExpertRegionsDisplay

        Raises
        ------
        ValueError
            If ``X`` has more than two features and neither ``features`` nor ``projection`` says
            what to draw, or if one of them is not valid.
        """
        validate_parameter_constraints(
            {
                "grid_resolution": [Interval(Integral, 2, None, closed="left")],
                "eps": [Interval(Real, 0, None, closed="left"), None],
            },
            {"grid_resolution": grid_resolution, "eps": eps},
            caller_name="ExpertRegionsDisplay.from_estimator",
        )
        if projection is not None and features is not None:
            raise ValueError("Pass features or projection, not both.")
        X = as_table(X)
        if np.ndim(X) != 2:
            raise ValueError(
                f"X must be a table of shape (n_samples, n_features), got {np.ndim(X)} dimensions."
            )
        plane = _Features(X, features) if projection is None else _Projection(X, projection)
        low, high = plane.points.min(axis=0), plane.points.max(axis=0)
        margin = (high - low) / 20 if eps is None else eps
        xx0, xx1 = np.meshgrid(*np.linspace(low - margin, high + margin, grid_resolution).T)
        samples = plane.samples(np.column_stack([xx0.ravel(), xx1.ravel()]))
        model, samples = final_model(estimator, samples)
        shown = np.linspace(0, len(plane.points) - 1, min(len(plane.points), MOST_POINTS))
        shown = shown.round().astype(int)
        rows = plane.rows[shown]
        if y is not None:
            y = check_labels(y)
            check_consistent_length(X, y)
            y = y[rows]
        _, own = final_model(estimator, _safe_indexing(X, rows))
        return cls(
            xx0=xx0,
            xx1=xx1,
            response=model.gate_proba(samples).reshape(*xx0.shape, -1),
            xlabel=plane.names[0] if xlabel is None else xlabel,
            ylabel=plane.names[1] if ylabel is None else ylabel,
            points=plane.points[shown],
            chosen=model.apply(own),
            labels=y,
            expert_names=names_of(estimator, expert_names),
        ).plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        xlabel: str | None = None,
        ylabel: str | None = None,
        **kwargs: Any,
    ) -> ExpertRegionsDisplay:
        """Draw the regions.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        xlabel, ylabel : str, default=None
            Labels of the axes in place of those of the display.
        **kwargs : dict
            Arguments of ``pcolormesh``.

        Returns
        -------
        ExpertRegionsDisplay
        """
        self.ax_ = ax = one_axes(self, ax, (7, 5.5))
        self.figure_ = ax.figure
        from matplotlib import patheffects
        from matplotlib.colors import to_rgb

        n_experts = self.response.shape[2]
        chosen = self.response.argmax(axis=2)
        # From 0 (all experts are equally probable) to 1 (one expert is certain).
        sure = (
            self.response.max(axis=2)
            if n_experts == 1
            else ((n_experts * self.response.max(axis=2) - 1) / (n_experts - 1))
        )
        colors = np.array([to_rgb(COLORS[expert % len(COLORS)]) for expert in range(n_experts)])
        image = _paler(colors[chosen], sure[..., np.newaxis])
        self.surface_ = ax.pcolormesh(
            self.xx0, self.xx1, image, **{"zorder": -1, "rasterized": True} | kwargs
        )
        cell = 72 * min(inches(ax)) / len(self.xx0)  # points
        self.text_ = []
        for expert in np.unique(chosen):
            own = chosen == expert
            if not own.all():
                ax.contour(
                    self.xx0, self.xx1, own, levels=[0.5], colors="white", linewidths=1, zorder=-1
                )
            depth = ndimage.distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1]
            parts, n_parts = ndimage.label(own)
            # The number goes to the middle of the widest place of each part of the region.
            for place in ndimage.maximum_position(depth, parts, range(1, n_parts + 1)):
                size = min(14.0, 1.2 * cell * depth[place])
                if size >= SMALLEST:
                    self.text_.append(
                        ax.text(
                            self.xx0[place],
                            self.xx1[place],
                            str(expert),
                            fontsize=size,
                            fontweight="bold",
                            ha="center",
                            va="center",
                            path_effects=[
                                patheffects.withStroke(linewidth=2.5, foreground="white")
                            ],
                        )
                    )
        ax.set_xlabel(self.xlabel if xlabel is None else xlabel)
        ax.set_ylabel(self.ylabel if ylabel is None else ylabel)
        handles = self._plot_points(colors)
        self._explain(colors, np.unique(chosen), handles)
        return self

    def _plot_points(self, colors):
        """Draw the samples, class by class, and return the entries of the legend."""
        from matplotlib.lines import Line2D

        self.points_ = []
        if self.points is None:
            return []
        labels, markers, size, edge = self.labels, MARKERS, 16, 0.4
        if labels is not None and len(np.unique(labels)) > len(MARKERS):
            # The classes themselves are the markers, if they are short.
            names = [str(label) for label in np.unique(labels)]
            is_short = all(len(name) <= 2 and name.isalnum() for name in names)
            labels = labels if is_short else None
            markers, size, edge = [f"${name}$" for name in names], 30, 0
        heading = "Mark of a point: its class"
        if labels is None:
            heading, labels = "Points: samples", np.full(len(self.points), "sample")
            markers, size, edge = "o", 16, 0.4
        handles = [Line2D([], [], linestyle="none", label=heading)]
        classes = np.unique(labels)
        for label, name, marker in zip(classes, cut(classes, 14), markers, strict=False):
            own = np.asarray(labels) == label
            points = self.ax_.scatter(
                *self.points[own].T,
                s=size,
                c=colors[self.chosen[own]],
                marker=marker,
                edgecolors="black",
                linewidths=edge,
            )
            self.points_.append(points)
            color = {"markerfacecolor": "white", "markeredgecolor": "black"}
            handles.append(Line2D([], [], linestyle="none", marker=marker, label=name, **color))
        return handles if markers in (MARKERS, "o") else handles[:1]

    def _explain(self, colors, experts, points):
        """Add legends for the colours and the points, and a scale for the paler colours."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize
        from matplotlib.patches import Patch
        from matplotlib.ticker import PercentFormatter

        if self.chosen is not None:
            experts = np.union1d(experts, self.chosen)
        names = expert_labels(self.expert_names, len(colors))
        patches = [
            Patch(color=_paler(colors[each], 1), label=names[each])
            for each in experts[:MOST_EXPERTS]
        ]
        self.ax_.legend(
            handles=[*patches, *points],
            loc="upper left",
            bbox_to_anchor=(1, 1),
            title="Colour of a region, and of a point:\nthe expert that the gate chooses",
            alignment="left",
            frameon=False,
            fontsize=8,
            title_fontsize=8,
        )
        self.colorbar_ = None
        if len(colors) > 1:
            ends = [_paler(np.zeros(3), sure) for sure in (0, 1)]
            scale = ScalarMappable(
                Normalize(100 / len(colors), 100), LinearSegmentedColormap.from_list("", ends)
            )
            self.colorbar_ = self.figure_.colorbar(
                scale,
                ax=self.ax_,
                location="bottom",
                shrink=0.7,
                aspect=40,
                format=PercentFormatter(decimals=0),
                label="colour: weight of the chosen expert (gate probability)",
            )


def _paler(colors, sure):
    """Return colours that are the paler, the less sure (0 to 1) the gate is."""
    return 1 - (0.15 + 0.6 * np.asarray(sure)) * (1 - colors)


class _Features:
    """The plane of two features; the others do not change in it."""

    def __init__(self, X: Any, features: Any):
        self.is_frame = hasattr(X, "iloc")
        self.X = X if self.is_frame else check_array(X, ensure_all_finite="allow-nan")
        columns = list(self.X.columns) if self.is_frame else list(range(self.X.shape[1]))
        if features is None:
            if len(columns) != 2:
                raise ValueError(
                    f"X has {len(columns)} features: say which two to draw, such as "
                    "features=(0, 1), or pass a fitted projection, such as "
                    "projection=PCA(2).fit(X)."
                )
            features = columns
        if np.shape(features) != (2,) or features[0] == features[1]:
            raise ValueError(f"features must be two different features, got {features!r}.")
        if not all(each in columns or each in range(len(columns)) for each in features):
            raise ValueError(f"features={features!r} must be two of {columns}, or their numbers.")
        self.columns = [columns.index(each) if each in columns else int(each) for each in features]
        self.names = [
            str(columns[column]) if self.is_frame else f"feature {column}"
            for column in self.columns
        ]
        values = self.X.iloc[:, self.columns] if self.is_frame else self.X[:, self.columns]
        try:
            points = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The features {self.names} must be numbers.") from error
        self.rows = np.flatnonzero(np.isfinite(points).all(axis=1))
        self.points = points[self.rows]

    def samples(self, points: NDArray) -> Any:
        if not self.is_frame:
            samples = np.tile(np.nanmedian(self.X, axis=0), (len(points), 1))
            samples[:, self.columns] = points
            return samples
        # Copies of one row keep the types of the columns.
        samples = self.X.iloc[np.zeros(len(points), dtype=int)].reset_index(drop=True)
        for number, name in enumerate(self.X.columns):
            column = self.X[name]
            if number in self.columns:
                samples[name] = points[:, self.columns.index(number)]
            elif column.dtype.kind in "iuf":
                samples[name] = column.median()
            elif column.notna().any():
                usual = np.flatnonzero(column == column.mode().iloc[0])[:1]
                samples[name] = column.iloc[usual.repeat(len(points))].reset_index(drop=True)
        return samples


class _Projection:
    """The plane that a fitted projection maps to."""

    names = ("component 0", "component 1")

    def __init__(self, X: Any, projection: Any):
        if not hasattr(projection, "inverse_transform"):
            raise ValueError(
                f"projection={projection!r} must have an inverse_transform, as PCA has, which "
                "turns the points of the picture into samples."
            )
        self.projection = projection
        self.columns = X.columns if hasattr(X, "iloc") else None
        self.points = np.asarray(projection.transform(X), dtype=np.float64)
        self.rows = np.arange(len(self.points))
        if self.points.ndim != 2 or self.points.shape[1] != 2:
            raise ValueError(
                f"projection={projection!r} must map to two dimensions; it gives an array of "
                f"shape {self.points.shape}."
            )

    def samples(self, points: NDArray) -> Any:
        samples = self.projection.inverse_transform(points)
        if self.columns is None or hasattr(samples, "iloc"):
            return samples
        import pandas as pd

        return pd.DataFrame(samples, columns=self.columns)
