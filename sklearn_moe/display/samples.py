"""What the experts' samples look like."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from sklearn.utils.validation import check_consistent_length

from sklearn_moe.containers import as_eager
from sklearn_moe.decomposition import check_gate_proba, check_labels, cut, final_model
from sklearn_moe.display.layout import COLORS, as_table, expert_labels, longest, names_of, one_axes
from sklearn_moe.measures import mean_differences

# A column that does not hold numbers gives this many features: its most frequent values.
MOST_CATEGORIES = 20


class ExpertSamplesDisplay:
    """What the experts' samples look like: images, or the features that set them apart.

    The samples of an expert are those for which the gate chooses it. For images, there is a row
    for each expert, from the image for which the gate is surest to the one for which it is least
    sure, with equal numbers of the expert's images between each two. The classes are below them if
    there are labels. For tables, there are the features whose mean over an expert's samples
    differs most from the mean over all others, in standard deviations of the feature (standardised
    mean differences), and both means. It is recommended to use :meth:`from_estimator` or
    :meth:`from_predictions`.

    Parameters
    ----------
    shares : array-like of shape (n_experts,)
        Fraction of the samples for which each expert is chosen.
    images : list of n_experts arrays of shape (n_images, height, width) or \
            (n_images, height, width, n_channels), default=None
        Images of each expert, that for which the gate is surest first.
    labels : list of n_experts arrays of shape (n_images,), default=None
        Their classes.
    differences : array-like of shape (n_experts, n_features), default=None
        Standardised mean differences, in place of ``images``; nan for an expert without samples.
    means : array-like of shape (2, n_experts, n_features), default=None
        The means of each expert's samples, and those of all others.
    feature_names : array-like of shape (n_features,), default=None
        Names of the features of ``differences``.
    expert_names : sequence of str of shape (n_experts,) or object, default=None
        Short names of the experts, such as what each owns, or an object with such ``names``.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage or None
        All images, drawn as one; None for tables.
    bars_ : matplotlib.container.BarContainer or None
        The differences, expert by expert; None for images.
    text_ : list of matplotlib.text.Text
        The texts.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_moe import ExpertSamplesDisplay, MoEClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=5, gate="attentive", regularization="importance",
    ...                     max_iter=5, random_state=0).fit(X / 16, y)
    >>> display = ExpertSamplesDisplay.from_estimator(clf, X / 16, y, image_shape=(8, 8))
    >>> len(display.images)
    5
    """

    def __init__(
        self,
        shares: Any,
        *,
        images: Any = None,
        labels: Any = None,
        differences: Any = None,
        means: Any = None,
        feature_names: ArrayLike | None = None,
        expert_names: Any = None,
    ):
        self.shares = shares
        self.images = images
        self.labels = labels
        self.differences = differences
        self.means = means
        self.feature_names = feature_names
        self.expert_names = expert_names

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: ArrayLike | None = None, *, ax: Any = None, **kwargs: Any
    ) -> ExpertSamplesDisplay:
        """Draw the samples of a fitted mixture's experts.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        X : array-like or DataFrame of shape (n_samples, n_features) or (n_samples, ...)
            Samples, as the estimator takes them.
        y : array-like of shape (n_samples,), default=None
            Labels, to write below images.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`from_predictions`. If the columns of a table are pixels,
            ``image_shape`` is the mixture's ``input_shape`` unless you pass another.

        Returns
        -------
        ExpertSamplesDisplay
        """
        X = as_eager(X)
        model, samples = final_model(estimator, X)
        shape = model.input_shape
        if shape is not None and np.ndim(X) == 2 and np.shape(X)[1] == np.prod(shape):
            kwargs.setdefault("image_shape", shape)
        kwargs["expert_names"] = names_of(model, kwargs.get("expert_names"))
        return cls.from_predictions(model.gate_proba(samples), X, y, ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        gate_proba: ArrayLike,
        X: Any,
        y: ArrayLike | None = None,
        *,
        image_shape: tuple[int, ...] | None = None,
        n_images: int = 8,
        feature_names: ArrayLike | None = None,
        expert_names: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ExpertSamplesDisplay:
        """Draw the samples that gate probabilities give to each expert.

        Parameters
        ----------
        gate_proba : array-like of shape (n_samples, n_experts)
            Gate probabilities; rows sum to 1.
        X : array-like or DataFrame of shape (n_samples, n_features) or (n_samples, ...)
            Samples: images of shape (height, width), (height, width, n_channels) or (n_channels,
            height, width), or rows of a table. If a column does not hold numbers, its 20 most
            frequent values are features; times are left out.
        y : array-like of shape (n_samples,), default=None
            Labels, to write below images.
        image_shape : tuple of int, default=None
            Shape of the images, (height, width) or (height, width, n_channels), if the rows of
            ``X`` are flattened images.
        n_images : int, default=8
            Number of images to draw for each expert.
        feature_names : array-like of shape (n_features,), default=None
            Names of the features of a table; None takes the columns of a DataFrame.
        expert_names : sequence of str of shape (n_experts,) or object, default=None
            Short names of the experts, such as what each owns, or an object with such ``names``.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        ExpertSamplesDisplay
        """
        validate_parameter_constraints(
            {"n_images": [Interval(Integral, 1, None, closed="left")]},
            {"n_images": n_images},
            caller_name="ExpertSamplesDisplay.from_predictions",
        )
        gate_proba = check_gate_proba(gate_proba)
        n_samples, n_experts = gate_proba.shape
        X = as_table(X)
        check_consistent_length(gate_proba, X)
        chosen = gate_proba.argmax(axis=1)
        shares = np.bincount(chosen, minlength=n_experts) / n_samples
        if image_shape is None and np.ndim(X) < 3:
            table, names = _numbers(X, feature_names)
            differences, means = mean_differences(table, chosen, n_experts)
            data = {"differences": differences, "means": means, "feature_names": names}
        else:
            images, data = _images(X, image_shape), {"images": [], "labels": None}
            if y is not None:
                y, data["labels"] = check_labels(y), []
                check_consistent_length(gate_proba, y)
            for expert in range(n_experts):
                own = np.flatnonzero(chosen == expert)
                own = own[np.argsort(-gate_proba[own, expert], kind="stable")]
                places = np.linspace(0, len(own) - 1, min(n_images, len(own)))
                own = own[places.round().astype(int)]
                data["images"].append(images[own])
                if y is not None:
                    data["labels"].append(y[own])
        return cls(shares, expert_names=expert_names, **data).plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        n_features: int = 3,
        cmap: str = "gray_r",
        im_kw: dict | None = None,
    ) -> ExpertSamplesDisplay:
        """Draw the images or the features.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        n_features : int, default=3
            For a table, the number of features to draw for each expert.
        cmap : str or matplotlib.colors.Colormap, default="gray_r"
            Colours of images with one channel.
        im_kw : dict, default=None
            Arguments of ``imshow``.

        Returns
        -------
        ExpertSamplesDisplay
        """
        validate_parameter_constraints(
            {"n_features": [Interval(Integral, 1, None, closed="left")]},
            {"n_features": n_features},
            caller_name="ExpertSamplesDisplay.plot",
        )
        self.im_ = self.bars_ = None
        if self.images is None:
            self._plot_table(ax, n_features)
        else:
            self._plot_images(ax, {"cmap": cmap, "interpolation": "nearest"} | (im_kw or {}))
        return self

    def _titles(self):
        names = expert_labels(self.expert_names, len(self.shares))
        return [f"{name} ({share:.0%})" for name, share in zip(names, self.shares, strict=True)]

    def _plot_images(self, ax, im_kw):
        n_experts, n_images = len(self.images), max(map(len, self.images))
        height, width, *channels = self.images[0].shape[1:]
        gap = max(2, height // 2)  # between rows; labels have room in it
        titles = self._titles()
        # Many experts are drawn in several columns. A letter is about a seventh of an image.
        n_columns = -(-n_experts // 16)
        n_rows = -(-n_experts // n_columns)
        margin = round((0.4 + 0.14 * longest(titles)) * height)
        column = margin + n_images * (width + gap // 2)
        canvas = np.full((n_rows * (height + gap), n_columns * column, *channels), np.nan)
        size = (0.45 * canvas.shape[1] / height, 0.45 * canvas.shape[0] / height)
        self.ax_ = ax = one_axes(self, ax, (min(size[0], 20) + 0.3, min(size[1], 20) + 0.6))
        self.figure_ = ax.figure
        self.text_ = []

        def write(x, y, text, **style):
            self.text_.append(ax.text(x, y, text, **{"va": "center", "fontsize": 8} | style))

        for expert, images in enumerate(self.images):
            at, row = divmod(expert, n_rows)
            top, left = row * (height + gap), at * column + margin
            write(left - gap / 2, top + height / 2, titles[expert], ha="right")
            for number, image in enumerate(images):
                start = left + number * (width + gap // 2)
                canvas[top : top + height, start : start + width] = image
                if self.labels is not None:
                    (label,) = cut([self.labels[expert][number]], 6)
                    place = {"ha": "center", "va": "top", "fontsize": 7}
                    write(start + width / 2, top + height, label, **place)
            if len(images) == 0:
                write(left, top + height / 2, "never chosen", color="0.4")
        if channels in ([3], [4]):
            canvas = np.nan_to_num(_as_colors(canvas, self.images[0].dtype), nan=1.0)
        self.im_ = ax.imshow(canvas.squeeze(), **im_kw)
        ax.set_axis_off()
        title = (
            "samples of each expert (share of all samples)\n"
            "from where the gate is surest (left) to where it is least sure"
        )
        if self.labels is not None:
            title += "\nbelow an image: its true class"
        ax.set_title(title, fontsize=9)

    def _plot_table(self, ax, n_features):
        differences = np.asarray(self.differences)
        n_experts = len(differences)
        n_features = min(n_features, differences.shape[1])
        n_columns = -(-int(np.sqrt(n_experts)) // 2)
        n_rows = -(-n_experts // n_columns)
        lines = n_features + 1.8  # for an expert, its title and the gap below
        height = 0.19 * lines * n_rows + 1.5
        self.ax_ = ax = one_axes(self, ax, (5.2 * n_columns + 0.4, height))
        self.figure_ = ax.figure
        names, titles = cut(self.feature_names, 24), self._titles()
        most = np.nanmax(np.abs(differences)) or 1.0
        self.text_ = []
        y, start, length, colors = [], [], [], []
        # Where the columns end: those of the two means, and of the bars.
        own_end, other_end, middle, half = 0.53, 0.67, 0.84, 0.14
        for at in range(n_columns):
            for end, title in ((own_end, "own\nmean"), (other_end, "others'\nmean")):
                self.text_.append(ax.text(at + end, -0.6, title, ha="right", fontsize=8))
        for expert, own in enumerate(differences):
            at, row = divmod(expert, n_rows)
            top = row * lines

            def write(x, line, text, at=at, top=top, **style):
                self.text_.append(
                    ax.text(at + x, top + line, text, va="center", fontsize=8, **style)
                )

            title = titles[expert].replace("\n", " ")
            write(0, 0, title, fontweight="bold")
            if not own.any() or np.isnan(own).all():
                what = "never chosen" if np.isnan(own).all() else "nothing to compare it with"
                write(0.02, 1, what, color="0.4")
                continue
            for line, feature in enumerate(
                np.argsort(-np.abs(own), kind="stable")[:n_features], 1
            ):
                write(0.02, line, names[feature])
                if self.means is not None:
                    for end, means in zip((own_end, other_end), self.means, strict=True):
                        write(end, line, _short(means[expert, feature]), ha="right")
                y.append(top + line)
                start.append(at + middle)
                length.append(half * own[feature] / most)
                colors.append(COLORS[0] if own[feature] > 0 else COLORS[1])
        self.bars_ = ax.barh(y, length, left=start, color=colors, height=0.7)
        bottom = n_rows * lines - 1.3
        for x in np.unique(start):
            ax.vlines(x, -0.5, bottom, color="0.6", linewidth=0.8)
            for side, ha in ((-half, "center"), (0, "center"), (half, "center")):
                text = f"{np.sign(side) * most:+.1f}" if side else "0"
                self.text_.append(ax.text(x + side, bottom + 0.5, text, ha=ha, fontsize=7))
        ax.set(xlim=(-0.02, n_columns), ylim=(n_rows * lines - 0.5, -2.2))
        ax.set_axis_off()
        ax.set_title(
            "Where each expert's samples (share of all) differ most from all others\n"
            "bars: difference of the means in standard deviations (blue: higher)",
            fontsize=9,
        )


def _short(number):
    return f"{number:,.0f}" if abs(number) >= 100 else f"{round(number, 9) + 0.0:.3g}"


def _as_colors(canvas, dtype):
    """Return colours from 0 to 1; numbers on other scales are rescaled."""
    if dtype.kind in "iu":
        return canvas / np.iinfo(np.uint8).max
    low, high = min(np.nanmin(canvas), 0), max(np.nanmax(canvas), 1)
    return (canvas - low) / (high - low)


def _images(X, image_shape):
    """Return images whose channels, if they have any, are the last axis."""
    images = np.asarray(X)
    if image_shape is not None:
        if np.ndim(image_shape) != 1 or np.prod(image_shape) != images[0].size:
            raise ValueError(
                f"image_shape={image_shape!r} must be a shape of the {images[0].size} values of a "
                "sample, such as (height, width)."
            )
        images = images.reshape(len(images), *image_shape)
    channels = (1, 3, 4)
    if images.ndim == 4 and images.shape[3] not in channels and images.shape[1] in channels:
        images = np.moveaxis(images, 1, 3)  # channels first, as torch has them
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in channels):
        raise ValueError(
            "Images must have the shape (n_samples, height, width), (n_samples, height, width, "
            "n_channels) or (n_samples, n_channels, height, width), with 1, 3 or 4 channels; got "
            f"{images.shape}."
        )
    return images


def _numbers(X, feature_names):
    """Return a table as numbers, and the names of its columns."""
    if hasattr(X, "iloc"):
        names, columns = [], []
        for name, column in X.items():
            if column.dtype.kind in "biuf":
                names.append(str(name))
                columns.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
            elif column.dtype.kind not in "mM":  # times say little about samples
                values = column.value_counts().index[:MOST_CATEGORIES]
                names += [f"{name} = {value}" for value in values]
                columns += [np.asarray(column == value, dtype=np.float64) for value in values]
        if not columns:
            raise ValueError("X has no columns of numbers or categories to describe experts by.")
        table = np.column_stack(columns)
    else:
        table = check_array(X, dtype=np.float64, ensure_all_finite="allow-nan")
        names = [f"feature {number}" for number in range(table.shape[1])]
    names = names if feature_names is None else feature_names
    if len(names) != table.shape[1]:
        raise ValueError(f"feature_names must have {table.shape[1]} names, got {len(names)}.")
    return table, names
