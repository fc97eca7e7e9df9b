"""How the training went."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.decomposition import final_model
from sklearn_moe.display.layout import COLORS, several_axes


class TrainingDisplay:
    """Loss, accuracy and decomposition in each epoch.

    The first panel has the loss in nats: for the training (with regularization) and, if there was
    one, for the validation set. The second panel has the accuracy on the validation set, if there
    was one. The last panel has H_s, H_u and I(E;Y) in bits, if they were recorded
    (``track_decomposition=True`` or ``verbose`` of :class:`MoEClassifier`). It is recommended to
    use :meth:`from_estimator`.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Training loss.
    validation_loss, validation_score : array-like of shape (n_epochs,), default=None
        Loss and accuracy on the validation set; nan in epochs without it.
    sample_entropy, usage_entropy, expert_class_information : array-like of shape (n_epochs,), \
            default=None
        H_s, H_u and I(E;Y); nan in epochs that did not record them.
    n_experts : int, default=None
        Number of experts, for a line at the largest possible entropy.

    Attributes
    ----------
    lines_ : dict of str to matplotlib.lines.Line2D
        The curves, by the names of the parameters.
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
        n_experts: int | None = None,
    ):
        self.loss = loss
        self.validation_loss = validation_loss
        self.validation_score = validation_score
        self.sample_entropy = sample_entropy
        self.usage_entropy = usage_entropy
        self.expert_class_information = expert_class_information
        self.n_experts = n_experts

    @classmethod
    def from_estimator(cls, estimator, *, ax=None) -> TrainingDisplay:
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
        ).plot(ax=ax)

    def plot(self, ax=None) -> TrainingDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw. One axes is split into panels. None makes a new figure.

        Returns
        -------
        TrainingDisplay
        """
        panels = [
            [panel, curves]
            for panel, curves in _PANELS.items()
            if any(getattr(self, name) is not None for name in curves)
        ]
        self.axes_ = several_axes(self, ax, len(panels), (4.2 * len(panels) + 0.5, 3.6))
        self.figure_ = self.axes_[0].figure
        self.lines_ = {}
        for axes, (panel, curves) in zip(self.axes_, panels, strict=True):
            for (name, label), color, style in zip(
                curves.items(), COLORS, ("-", "--", "-."), strict=False
            ):
                values = getattr(self, name)
                if values is not None:
                    epochs = np.arange(1, len(values) + 1)
                    # A single epoch is drawn as a point.
                    marker = "o" if len(values) == 1 else None
                    (self.lines_[name],) = axes.plot(
                        epochs, values, style, color=color, marker=marker, label=label
                    )
            if panel == "decomposition, bits" and self.n_experts is not None:
                most = np.log2(self.n_experts)
                axes.axhline(most, color="0.5", linestyle=":", linewidth=1, label="most")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            # Above the panel, where no curve can run through it.
            axes.legend(
                loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, title=panel, frameon=False
            )
        return self


_PANELS = {
    "loss, nats": {"loss": "training", "validation_loss": "validation"},
    "accuracy": {"validation_score": "validation"},
    "decomposition, bits": {
        "sample_entropy": "$H_s$",
        "usage_entropy": "$H_u$",
        "expert_class_information": "$I(E;Y)$",
    },
}
