"""How the training went."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.decomposition import final_model
from sklearn_moe.display.layout import COLORS, MEASURES, several_axes
from sklearn_moe.parameters import search_of


class TrainingDisplay:
    """Loss, accuracy and decomposition in each epoch.

    The first panel has the loss in nats: for the training (with regularization) and, if there was
    one, for the validation set. The second panel has the accuracy on the validation set, if there
    was one. The last panel has the measures of the decomposition, if they were recorded
    (``track_decomposition=True`` or ``verbose`` of :class:`MoEClassifier`), as shares of the most
    that is possible: one minus that of H_s, so that 100% is a certain gate, that of H_u, and that
    of I(E;Y). It is recommended to use :meth:`from_estimator`.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Training loss.
    validation_loss, validation_score : array-like of shape (n_epochs,), default=None
        Loss and accuracy on the validation set; nan in epochs without it.
    sample_entropy, usage_entropy, expert_class_information : array-like of shape (n_epochs,), \
            default=None
        H_s, H_u and I(E;Y) in bits; nan in epochs that did not record them.
    n_experts, n_classes : int, default=2
        Numbers of experts and classes, which say how many bits are possible.
    n_annealed : int, default=0
        Number of epochs in which annealing changes the training loss. They are shaded.

    Attributes
    ----------
    lines_ : dict of str to matplotlib.lines.Line2D
        The curves, by the names of the parameters; those of the decomposition are shares.
    axes_ : ndarray of matplotlib.axes.Axes
        The panels.
    figure_ : matplotlib.figure.Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, TrainingDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=3, regularization="importance", track_decomposition=True,
    ...                     random_state=0)
    >>> display = TrainingDisplay.from_estimator(clf.fit(X, y))
    >>> sorted(display.lines_)
    ['expert_class_information', 'loss', 'sample_entropy', 'usage_entropy']
    """

    def __init__(
        self,
        loss: ArrayLike,
        *,
        validation_loss: ArrayLike | None = None,
        validation_score: ArrayLike | None = None,
        sample_entropy: ArrayLike | None = None,
        usage_entropy: ArrayLike | None = None,
        expert_class_information: ArrayLike | None = None,
        n_experts: int = 2,
        n_classes: int = 2,
        n_annealed: int = 0,
    ):
        self.loss = loss
        self.validation_loss = validation_loss
        self.validation_score = validation_score
        self.sample_entropy = sample_entropy
        self.usage_entropy = usage_entropy
        self.expert_class_information = expert_class_information
        self.n_experts = n_experts
        self.n_classes = n_classes
        self.n_annealed = n_annealed

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> TrainingDisplay:
        """Draw the training of a fitted mixture.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        TrainingDisplay
        """
        model, _ = final_model(estimator)
        check_is_fitted(model)
        rows = [row for row in model.net_.history if "train_loss" in row]

        def curve(name):
            values = np.array([row.get(name, np.nan) for row in rows])
            return None if np.isnan(values).all() else values

        return cls(
            model.loss_curve_,
            validation_loss=curve("valid_loss"),
            validation_score=curve("valid_accuracy"),
            sample_entropy=curve("sample_entropy"),
            usage_entropy=curve("usage_entropy"),
            expert_class_information=curve("expert_class_information"),
            n_experts=len(model.expert_usage_),
            n_classes=len(model.classes_),
            n_annealed=0 if search_of(model)[1] is None else model.net_.max_epochs // 2,
        ).plot(ax=ax)

    def plot(self, ax: Any = None) -> TrainingDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw. One axes is split into panels. None makes a new figure.

        Returns
        -------
        TrainingDisplay
        """
        panels = {
            panel: curves
            for panel, curves in _PANELS.items()
            if any(getattr(self, name) is not None for name in curves)
        }
        self.axes_ = several_axes(self, ax, len(panels), (4.2 * len(panels) + 0.5, 4))
        self.figure_ = self.axes_[0].figure
        self.lines_ = {}
        for axes, (panel, curves) in zip(self.axes_, panels.items(), strict=True):
            if "loss" in curves and self.n_annealed:
                axes.axvspan(
                    0.5, self.n_annealed + 0.5, color="0.92", label="annealing: another loss"
                )
            for (name, label), color, style in zip(
                curves.items(), COLORS, ("-", "--", "-."), strict=False
            ):
                if getattr(self, name) is None:
                    continue
                values = self._shown(name)
                # A single epoch is drawn as a point.
                marker = "o" if len(values) == 1 else None
                (self.lines_[name],) = axes.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    style,
                    color=color,
                    marker=marker,
                    label=label,
                )
            axes.set(xlabel="epoch (pass through the training samples)", ylabel=panel)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if "loss" not in curves:
                axes.yaxis.set_major_formatter("{x:.4g}%")
            if "sample_entropy" in curves:
                axes.set_ylim(-3, 103)
            # Above the panel, where no curve can run through it.
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        return self

    def _shown(self, name):
        """Return a curve as it is drawn: shares in percent."""
        values = np.asarray(getattr(self, name), dtype=np.float64)
        if name not in MEASURES:
            return 100 * values if name == "validation_score" else values
        most = np.log2(self.n_experts)
        if name == "expert_class_information":
            most = min(most, np.log2(self.n_classes))
        share = values / most if most > 0 else np.zeros_like(values)
        return 100 * (1 - share if name == "sample_entropy" else share)


_PANELS = {
    "loss in nats (lower is better)": {
        "loss": "training samples, with penalties",
        "validation_loss": "validation samples",
    },
    "accuracy": {"validation_score": "validation samples"},
    "share of the most that is possible": {
        name: f"{words} $_{{{symbol}}}$" for name, (words, symbol) in MEASURES.items()
    },
}
