"""The coefficients of linear experts, side by side with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_moe.decomposition import cut
from sklearn_moe.display.layout import COLORS, expert_labels, several_axes
from sklearn_moe.interpretation.summary import ExpertSummary, expert_summary

# Characters of a label.
LONGEST = 34


class CoefficientDisplay:
    """How the experts' coefficients differ: a row for each, with a point for each expert.

    A point is the coefficient of an expert, and a line its confidence interval, if it has one. To
    make columns of numbers comparable, theirs is the effect of one standard deviation, which the
    label gives in the units of the column. A category is compared with the one in brackets. Points
    right of zero make the class more likely. With more than two classes, there is a panel for each
    but the first. It is recommended to use :meth:`from_estimator`.

    Parameters
    ----------
    summary : ExpertSummary
        What :func:`expert_summary` has found.
    expert_names : sequence of str, GateRules or None, default=None
        A name for each expert, such as the result of :func:`gate_rules`.

    Attributes
    ----------
    points_ : list of matplotlib.container.ErrorbarContainer
        The points and intervals of each expert, panel by panel.
    axes_ : ndarray of matplotlib.axes.Axes
        The panels.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    expert_summary : The same as numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_moe import CoefficientDisplay, MoEClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(1000, 2))
    >>> slope = np.where(X[:, 0] > 0, 2, -2)
    >>> y = slope * X[:, 1] + rng.logistic(size=1000) > 0
    >>> clf = MoEClassifier(2, experts="linear", n_init=1, random_state=0).fit(X, y)
    >>> display = CoefficientDisplay.from_estimator(clf, X, y)
    >>> len(display.points_)
    2
    """

    def __init__(self, summary: ExpertSummary, *, expert_names: Any = None):
        self.summary = summary
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
        n_features: int = 15,
        **kwargs: Any,
    ) -> CoefficientDisplay:
        """Draw the coefficients of a fitted mixture with linear experts.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted mixture with ``experts="linear"``.
        X : array-like of shape (n_samples, n_features)
            The training samples.
        y : array-like of shape (n_samples,)
            Their labels.
        expert_names : sequence of str, GateRules or None, default=None
            A name for each expert.
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw; None makes a new figure.
        n_features : int, default=15
            Number of coefficients that are shown: those with the largest effects.
        **kwargs : dict
            Arguments of :func:`expert_summary`.

        Returns
        -------
        CoefficientDisplay
        """
        summary = expert_summary(estimator, X, y, **kwargs)
        return cls(summary, expert_names=expert_names).plot(ax, n_features=n_features)

    def plot(self, ax: Any = None, *, n_features: int = 15) -> CoefficientDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw. One axes is split into panels. None makes a new figure.
        n_features : int, default=15
            Number of coefficients that are shown: those with the largest effects.

        Returns
        -------
        CoefficientDisplay
        """
        summary = self.summary
        n_experts, labels = len(summary.usage), summary.classes[1:]
        panels = [self._effects(label, n_experts) for label in labels.tolist()]
        largest = np.nanmax([np.abs(panel[0]) for panel in panels], axis=(0, 1), initial=0)
        shown = np.sort(np.argsort(-largest, kind="stable")[:n_features])
        size = (5.5 * len(labels) + 1.5, 1.8 + len(shown) * (0.18 + 0.12 * n_experts))
        self.axes_ = several_axes(self, ax, len(labels), size)
        self.figure_ = self.axes_[0].figure
        self.points_ = []
        names = expert_labels(self.expert_names, n_experts)
        rows = cut([self._label(list(self._features())[i]) for i in shown], LONGEST)
        is_scaled = any(unit != 1 for unit in summary.units.values())
        standard = "\n+: for one standard deviation more" if is_scaled else ""
        offsets = np.linspace(-0.3, 0.3, n_experts) if n_experts > 1 else np.zeros(1)
        for axes, label, (effects, errors) in zip(self.axes_, labels, panels, strict=True):
            axes.axvline(0, color="0.6", linewidth=1, zorder=0)
            for row in range(1, len(shown), 2):
                axes.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=-1)
            for expert in range(n_experts):
                self.points_.append(
                    axes.errorbar(
                        effects[expert, shown],
                        np.arange(len(shown)) + offsets[expert],
                        xerr=np.nan_to_num(errors[expert, shown]),
                        fmt="osD^vP"[expert % 6],
                        markersize=4,
                        color=COLORS[expert % len(COLORS)],
                        label=f"{names[expert]} ({summary.usage[expert]:.0%} of samples)",
                    )
                )
            axes.set_yticks(np.arange(len(shown)), rows)
            axes.set_ylim(len(shown) - 0.5, -0.5)
            axes.set_xlabel(
                f"log odds of {label} against {summary.classes[0]}\n"
                f"← {label} less likely     {label} more likely →{standard}"
            )
            axes.spines[["top", "right"]].set_visible(False)
        n_all = len(self._features())
        more = f" (the {len(shown)} largest of {n_all})" if len(shown) < n_all else ""
        has_errors = not np.isnan(self.summary.coefficients["standard_error"]).all()
        interval = f"{100 * summary.confidence:.4g}% intervals" if has_errors else "no intervals"
        self.axes_[0].legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            frameon=False,
            title=f"what changes the odds in each expert{more}; {interval}",
            alignment="left",
        )
        return self

    def _features(self):
        """Return the places of the experts' coefficients, but the intercepts."""
        table = self.summary.coefficients
        return {
            feature: None
            for part, feature in zip(table["part"], table["feature"], strict=True)
            if part == "expert" and feature != "intercept"
        }

    def _effects(self, label, n_experts):
        """Return effects and half the widths of their intervals, (n_experts, n_features)."""
        table, features = self.summary.coefficients, list(self._features())
        place = {feature: i for i, feature in enumerate(features)}
        effects, errors = np.full((2, n_experts, len(features)), np.nan)
        for i, feature in enumerate(table["feature"]):
            if table["part"][i] == "expert" and table["class"][i] == label and feature in place:
                at = table["expert"][i], place[feature]
                unit = self.summary.units[feature]
                effects[at] = unit * table["coefficient"][i]
                errors[at] = unit * (table["upper"][i] - table["lower"][i]) / 2
        return effects, errors

    def _label(self, feature):
        words, unit = self.summary.words[feature], self.summary.units[feature]
        if words.value is not None:
            return f"{words.column} = {words.value} ({words.against})"
        return words.column if unit == 1 else f"{words.column}, +{unit:.3g}"
