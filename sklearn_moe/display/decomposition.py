"""Which expert gets which classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints

from sklearn_moe.decomposition import Decomposition, cut, decomposition_entropy, signed
from sklearn_moe.display.layout import COLORS, inches, label_ticks, one_axes

# In points; smaller cells have no numbers.
SMALLEST = 5


class DecompositionDisplay:
    r"""Which expert gets which classes: a heat map of experts by classes.

    Each cell is the number of samples of a class for which the gate chooses an expert. Bars at the
    side show the usage of the experts (their mean gate probability), and a line marks equal
    shares. The title has H_s, H_u and I(E;Y), and the specialization S if there are labels. It is
    recommended to use :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    decomposition : Decomposition
        The decomposition to draw.
    display_labels : array-like of shape (n_classes,), default=None
        Names of the classes; None takes the classes themselves.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The heat map.
    text_ : ndarray of shape (n_experts, n_classes) of matplotlib.text.Text, or None
        The numbers in the cells; None without them.
    bars_ : matplotlib.container.BarContainer
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

    def __init__(self, decomposition: Decomposition, *, display_labels: ArrayLike | None = None):
        self.decomposition = decomposition
        self.display_labels = display_labels

    @classmethod
    def from_estimator(
        cls, estimator, X, y: ArrayLike | None = None, *, display_labels=None, ax=None, **kwargs
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
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        DecompositionDisplay
        """
        decomposition = decomposition_entropy(estimator, X, y)
        return cls(decomposition, display_labels=display_labels).plot(ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls, gate_proba: ArrayLike, y: ArrayLike, *, display_labels=None, ax=None, **kwargs
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
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        DecompositionDisplay
        """
        decomposition = Decomposition.from_predictions(gate_proba, y)
        return cls(decomposition, display_labels=display_labels).plot(ax=ax, **kwargs)

    def plot(
        self,
        ax=None,
        *,
        normalize: str | None = None,
        include_values: bool | None = None,
        values_format: str | None = None,
        cmap="Blues",
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
        size = (min(2.5 + 0.42 * n_classes, 16), min(1.9 + 0.32 * n_experts, 12))
        self.ax_ = ax = one_axes(self, ax, (max(size[0], 5), max(size[1], 3)))
        self.figure_ = ax.figure
        width, height = inches(ax)

        values = _normalized(decomposition.table, normalize)
        im_kw = im_kw or {}
        if "norm" not in im_kw:
            im_kw = {"vmin": 0} | im_kw
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
        longest = max(map(len, labels))
        crowded = longest * n_classes > 9 * width
        label_ticks(ax.xaxis, labels, 0.8 * width)
        ax.tick_params(axis="x", rotation=90 if crowded and longest > 2 else 0)
        label_ticks(ax.yaxis, [str(expert) for expert in range(n_experts)], height)
        ax.set(xlabel="class", ylabel="chosen expert")

        self._plot_usage(height)
        if colorbar is None:
            colorbar = not include_values
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = self.figure_.colorbar(self.im_, ax=ax, label=_MEANINGS[normalize])
        measures = {
            "$H_s$": decomposition.sample_entropy,
            "$H_u$": decomposition.usage_entropy,
            "$I(E;Y)$": decomposition.expert_class_information,
        }
        if decomposition.specialization is not None:
            measures["$S$"] = signed(decomposition.specialization, 2)
        title = ",  ".join(f"{name} {value:.2f}" for name, value in measures.items())
        ax.set_title(f"{title} bits")
        return self

    def _plot_usage(self, height):
        """Draw the bars at the side of the heat map; the height is in inches."""
        usage = self.decomposition.usage
        n_experts = len(usage)
        self.usage_ax_ = side = self.ax_.inset_axes((1.03, 0, 0.18, 1), sharey=self.ax_)
        self.bars_ = side.barh(np.arange(n_experts), usage, color=COLORS[0])
        side.axvline(1 / n_experts, color="0.3", linestyle=":", linewidth=1)
        side.tick_params(axis="y", left=False, labelleft=False)
        percent = "{:.0%}" if n_experts <= 16 else "{:.1%}"
        shares = [percent.format(share) for share in usage]
        # At the right edge, which neither the bars nor the line for equal shares reach.
        for expert, share in enumerate(shares):
            side.text(
                0.99,
                expert,
                share if share.strip("0.%") else "",
                transform=side.get_yaxis_transform(),
                ha="right",
                va="center",
                fontsize=min(9, max(4, 0.7 * 72 * height / n_experts)),
            )
        most = max(usage.max(), 1 / n_experts)
        side.set(xlim=(0, 1.9 * most), xticks=[1 / n_experts], xticklabels=["equal"])
        side.set_xlabel("usage (mean\ngate probability)")
        side.spines[["top", "right"]].set_visible(False)

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
    "expert": "part of the expert's samples",
    "class": "part of the class",
    "all": "part of all samples",
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
