"""Which expert gets which classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints

from sklearn_moe.decomposition import Decomposition, cut, decomposition_entropy, signed
from sklearn_moe.display.layout import (
    COLORS,
    MEASURES,
    expert_labels,
    inches,
    label_ticks,
    longest,
    names_of,
    one_axes,
)

# In points; smaller cells have no numbers.
SMALLEST = 5


class DecompositionDisplay:
    r"""Which expert gets which classes: a heat map of experts by classes.

    Each cell is the number of samples of a class for which the gate chooses an expert. Its colour
    goes from none to all samples of the largest class, so that the colours of pictures of the same
    samples can be compared. At the side, bars are the share of all samples for which the gate
    chooses each expert, as in the cells, and marks are the usage, the mean gate probability: an
    expert may have a part in samples for which others are chosen. The title has the measures in
    words, as shares of the most that is possible: H_s (100% if the gate is certain), H_u (100% if
    all experts have equal usage), I(E;Y), and, if there are labels, 2 to the power of the
    specialization S. It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    decomposition : Decomposition
        The decomposition to draw.
    display_labels : array-like of shape (n_classes,), default=None
        Names of the classes; None takes the classes themselves.
    expert_names : sequence of str of shape (n_experts,) or object, default=None
        Short names of the experts, such as what each owns, or an object with such ``names``.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The heat map.
    text_ : ndarray of shape (n_experts, n_classes) of matplotlib.text.Text, or None
        The numbers in the cells; None without them.
    bars_ : matplotlib.container.BarContainer
        The shares of the samples for which the experts are chosen.
    usage_ : matplotlib.lines.Line2D
        The usage of the experts.
    colorbar_ : matplotlib.colorbar.Colorbar or None
        The scale of the heat map.
    ax_ : matplotlib.axes.Axes
        Axes of the heat map.
    usage_ax_ : matplotlib.axes.Axes
        Axes of the bars.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    decomposition_report : The same in words.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_moe import DecompositionDisplay, MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), MoEClassifier(n_experts=3, random_state=0))
    >>> display = DecompositionDisplay.from_estimator(clf.fit(X, y), X, y)
    >>> display.text_.shape
    (3, 3)
    """

    def __init__(
        self,
        decomposition: Decomposition,
        *,
        display_labels: ArrayLike | None = None,
        expert_names: Any = None,
    ):
        self.decomposition = decomposition
        self.display_labels = display_labels
        self.expert_names = expert_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        display_labels: ArrayLike | None = None,
        expert_names: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> DecompositionDisplay:
        """Draw how a fitted mixture divides some samples.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Samples.
        y : array-like of shape (n_samples,), default=None
            Labels; None takes the class that the chosen expert predicts.
        display_labels : array-like of shape (n_classes,), default=None
            Names of the classes.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, such as what each owns, or an object with such ``names``.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        DecompositionDisplay
        """
        decomposition = decomposition_entropy(estimator, X, y)
        names = names_of(estimator, expert_names)
        display = cls(decomposition, display_labels=display_labels, expert_names=names)
        return display.plot(ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        gate_proba: ArrayLike,
        y: ArrayLike,
        *,
        display_labels: ArrayLike | None = None,
        expert_names: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> DecompositionDisplay:
        """Draw the decomposition from gate probabilities.

        Parameters
        ----------
        gate_proba : array-like of shape (n_samples, n_experts)
            Gate probabilities; rows sum to 1.
        y : array-like of shape (n_samples,)
            Labels.
        display_labels : array-like of shape (n_classes,), default=None
            Names of the classes.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, such as what each owns, or an object with such ``names``.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        DecompositionDisplay
        """
        decomposition = Decomposition.from_predictions(gate_proba, y)
        display = cls(decomposition, display_labels=display_labels, expert_names=expert_names)
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        normalize: str | None = None,
        include_values: bool | None = None,
        values_format: str | None = None,
        cmap: str = "Blues",
        colorbar: bool | None = None,
        im_kw: dict | None = None,
        text_kw: dict | None = None,
    ) -> DecompositionDisplay:
        """Draw the heat map and the bars.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        normalize : {"expert", "class", "all"} or None, default=None
            Whether the cells of each expert, the cells of each class, or all cells sum to 1. None
            shows numbers of samples.
        include_values : bool, default=None
            Whether to write numbers into the cells; None does so if there is room for them.
        values_format : str, default=None
            Format of the numbers; None means "d" for counts and ".2f" for fractions.
        cmap : str or matplotlib.colors.Colormap, default="Blues"
            Colours of the heat map.
        colorbar : bool, default=None
            Whether to draw the scale; None does so if the cells have no numbers.
        im_kw : dict, default=None
            Arguments of ``imshow``.
        text_kw : dict, default=None
            Arguments of the texts in the cells.

        Returns
        -------
        DecompositionDisplay
        """
        validate_parameter_constraints(
            {"normalize": [StrOptions({"expert", "class", "all"}), None]},
            {"normalize": normalize},
            caller_name="DecompositionDisplay.plot",
        )
        decomposition = self.decomposition
        n_experts, n_classes = decomposition.table.shape
        labels = decomposition.classes if self.display_labels is None else self.display_labels
        labels = cut(labels, 14)
        if len(labels) != n_classes:
            raise ValueError(f"display_labels must have {n_classes} names, got {len(labels)}.")
        experts = [str(expert) for expert in range(n_experts)]
        if self.expert_names is not None:
            experts = expert_labels(self.expert_names, n_experts)
        n_lines = 1 + any("\n" in expert for expert in experts)
        size = (
            min(max(3 + 0.42 * n_classes, 6) + 0.08 * longest(experts), 16),
            min(max(2.6 + 0.32 * n_lines * n_experts, 3.5), 12),
        )
        self.ax_ = ax = one_axes(self, ax, size)
        self.figure_ = ax.figure
        width, height = inches(ax)

        values = _normalized(decomposition.table, normalize)
        im_kw = im_kw or {}
        if "norm" not in im_kw:
            largest = _normalized(decomposition.table.sum(axis=0, keepdims=True), normalize).max()
            im_kw = {"vmin": 0, "vmax": 1 if normalize == "expert" else largest} | im_kw
        im_kw = {"cmap": cmap, "aspect": "auto", "interpolation": "nearest"} | im_kw
        self.im_ = ax.imshow(values, **im_kw)
        # Room for a number of three digits, in points.
        room = 72 * min(0.9 * height / n_experts, 0.4 * width / n_classes)
        if include_values is None:
            include_values = room >= SMALLEST
        self.text_ = None
        if include_values:
            size = min(10, max(SMALLEST, room))
            self.text_ = self._write(values, values_format, size, text_kw or {})
        length = longest(labels)
        label_ticks(ax.xaxis, labels, 0.8 * width)
        crowded = length * n_classes > 9 * width and length > 2
        ax.tick_params(axis="x", rotation=90 if crowded else 0)
        label_ticks(ax.yaxis, experts, height)
        meaning = _MEANINGS[normalize]
        ax.set(
            xlabel=f"class\n(number in a cell: {meaning})" if include_values else "class",
            ylabel="expert that the gate chooses",
        )
        self._plot_usage(height)
        if colorbar is None:
            colorbar = not include_values
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = self.figure_.colorbar(self.im_, ax=ax, label=meaning)
        ax.set_title("\n".join(self._measures()), fontsize=9)
        return self

    def _measures(self):
        """Return a line for each measure."""
        found = self.decomposition
        if len(found.usage) == 1:
            return ["one expert has all samples"]
        shares = {
            "sample_entropy": 1 - found.normalized_sample_entropy,
            "usage_entropy": found.normalized_usage_entropy,
            "expert_class_information": found.normalized_expert_class_information,
        }
        lines = [
            f"{words}: {shares[name]:.0%}  $_{{{symbol}={getattr(found, name):.2f}}}$"
            for name, (words, symbol) in MEASURES.items()
        ]
        if found.specialization is not None:
            times = 2**found.specialization
            lines.append(
                f"true class {times:,.{2 if times < 10 else 0}f} times as probable for the chosen "
                f"expert as for others  $_{{S={signed(found.specialization, 2):.2f}}}$"
            )
        return lines

    def _plot_usage(self, height):
        """Draw the bars at the side of the heat map; the height is in inches."""
        usage, table = self.decomposition.usage, self.decomposition.table
        chosen = table.sum(axis=1) / max(table.sum(), 1)
        n_experts = len(usage)
        places = np.arange(n_experts)
        self.usage_ax_ = side = self.ax_.inset_axes((1, 0, 0.2, 1), sharey=self.ax_)
        side.set_axes_locator(self._at_the_side)
        self.bars_ = side.barh(
            places, chosen, color=COLORS[0], alpha=0.5, label="share of samples"
        )
        room = 72 * height / n_experts  # points
        (self.usage_,) = side.plot(
            usage,
            places,
            "|",
            color="black",
            markersize=min(16, 0.6 * room),
            markeredgewidth=2,
            label="mean gate weight",
        )
        side.axvline(1 / n_experts, color="0.3", linestyle=":", linewidth=1)
        side.tick_params(axis="y", left=False, labelleft=False)
        percent = "{:.0%}" if n_experts <= 16 else "{:.1%}"
        for expert, share in enumerate(chosen):
            side.text(
                0.99,
                expert,
                percent.format(share) if share else "",
                transform=side.get_yaxis_transform(),
                ha="right",
                va="center",
                fontsize=min(9, max(4, 0.7 * room)),
            )
        # The numbers are at the right edge, which nothing else reaches.
        most = max(chosen.max(), usage.max(), 1 / n_experts)
        side.set(xlim=(0, 1.7 * most), xticks=[1 / n_experts], xticklabels=["equal\nshares"])
        side.spines[["top", "right"]].set_visible(False)
        side.legend(
            handles=[self.bars_, self.usage_],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            frameon=False,
            fontsize=8,
            handlelength=1,
            borderpad=0,
        )

    def _at_the_side(self, ax, renderer):
        """Return the place of the bars, whose width is fixed, so that the layout finds it."""
        from matplotlib.transforms import Bbox

        place = self.ax_.get_position()
        inch = self.figure_.dpi / self.figure_.bbox.width
        return Bbox.from_bounds(place.x1 + 0.1 * inch, place.y0, 0.9 * inch, place.height)

    def _write(self, values, values_format, size, text_kw):
        if values_format is None:
            values_format = "d" if values.dtype.kind == "i" else ".2f"
        light, dark = self.im_.cmap(0.0), self.im_.cmap(1.0)
        texts = np.empty(values.shape, dtype=object)
        for expert, label in np.ndindex(values.shape):
            value = values[expert, label]
            texts[expert, label] = self.ax_.text(
                label,
                expert,
                format(value, values_format) if value else "",
                **{
                    "ha": "center",
                    "va": "center",
                    "fontsize": size,
                    "color": light if self.im_.norm(value) > 0.5 else dark,
                }
                | text_kw,
            )
        return texts


_MEANINGS = {
    None: "samples",
    "expert": "share of the expert's samples",
    "class": "share of the class",
    "all": "share of all samples",
}


def _normalized(table, normalize):
    if normalize is None:
        return table
    totals = {
        "expert": table.sum(axis=1, keepdims=True),
        "class": table.sum(axis=0, keepdims=True),
        "all": table.sum(),
    }[normalize]
    return table / np.maximum(totals, 1)
