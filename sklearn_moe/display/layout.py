"""What the pictures share: axes, colours, and labels that do not overlap."""

from __future__ import annotations

import textwrap

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from sklearn_moe.containers import as_dense, as_eager
from sklearn_moe.decomposition import final_model

# The colours of Okabe and Ito, which colour-blind people can tell apart, and then darker ones of
# Tol. Black and the second blue are left out, because paler colours mean a less sure gate. If
# there are more experts than colours, their numbers tell them apart.
COLORS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442"),
    *("#332288", "#999933", "#117733", "#AA4499", "#882255", "#666666"),
)

# The measures of a decomposition in words, each a share of the most that is possible, and their
# symbols.
MEASURES = {
    "sample_entropy": ("one expert per sample", "H_s"),
    "usage_entropy": ("experts used evenly", "H_u"),
    "expert_class_information": ("expert tells the class", "I(E;Y)"),
}


def one_axes(display, ax, figsize):
    """Return ax, or the axes of a new figure of this size in inches."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be one matplotlib axes, got {ax!r}.")
    return ax


def several_axes(display, ax, n_axes, figsize):
    """Return axes side by side: those given, parts of the one given, or a new figure's."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    if ax is None:
        _, axes = plt.subplots(1, n_axes, figsize=figsize, layout="constrained", squeeze=False)
        return axes.ravel()
    if not isinstance(ax, Axes):
        axes = np.ravel(ax)
        if len(axes) != n_axes:
            raise ValueError(
                f"ax must be one axes or {n_axes} of them, one per panel; got {len(axes)}."
            )
        return axes
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            f"ax cannot be split into {n_axes} panels, as it is not part of a grid: make it with "
            f"plt.subplots, or pass {n_axes} axes."
        )
    ax.set_axis_off()
    return np.array([ax.figure.add_subplot(cell) for cell in place.subgridspec(1, n_axes)])


def inches(ax):
    """Return width and height of the axes, roughly, as the layout is not yet known."""
    return (ax.get_window_extent().size / ax.figure.dpi).tolist()


def names_of(estimator, names):
    """Return names of the experts: those that are passed, or those that a list of experts has."""
    return final_model(estimator)[0].expert_names_ if names is None else names


def expert_labels(names, n_experts, *, width=26):
    """Return labels of the experts: their numbers and, if there are any, their names.

    Parameters
    ----------
    names : sequence of str, object with an attribute ``names``, or None
        One name per expert, such as the rule that says what it owns; an empty one leaves the
        number alone.
    n_experts : int
        The number of experts.
    width : int
        Characters in a line; longer labels get a second line, and the rest is cut off.

    Returns
    -------
    list of str
    """
    if names is None:
        return [f"expert {expert}" for expert in range(n_experts)]
    names = names if hasattr(names, "__array__") else getattr(names, "names", names)
    if isinstance(names, str) or len(names) != n_experts:
        raise ValueError(
            f"expert_names must be {n_experts} names, one per expert, or have them as the "
            f"attribute names; got {names!r}."
        )
    return [
        textwrap.fill(
            f"{expert}: {name}", width, max_lines=2, placeholder="…", break_on_hyphens=False
        )
        if name
        else f"expert {expert}"
        for expert, name in enumerate(names)
    ]


def longest(labels):
    """Return the number of characters of the longest line."""
    return max(len(line) for label in labels for line in label.split("\n"))


def label_ticks(axis, labels, length):
    """Put labels at 0, 1, 2, ..., smaller or fewer of them where they have too little room.

    Parameters
    ----------
    axis : matplotlib.axis.Axis
        The axis.
    labels : list of str
        One label per position.
    length : float
        Length of the axis in inches.
    """
    n_lines = max((label.count("\n") + 1 for label in labels), default=1)
    room = 72 * length / max(len(labels), 1) / n_lines  # points for each line
    size = min(10.0, max(5.0, 0.8 * room))
    step = max(1, int(np.ceil(1.1 * size / room)))
    axis.set_ticks(np.arange(len(labels))[::step], labels[::step], fontsize=size)


def as_table(X):
    """Return lazy, sparse and polars containers as arrays or pandas frames, others as they are."""
    X = as_dense(as_eager(X))
    return X.to_pandas() if hasattr(X, "to_pandas") else X
