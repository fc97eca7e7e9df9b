"""Criteria for the number of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_moe.display.layout import COLORS, several_axes


class NExpertsDisplay:
    """What speaks for each number of experts: the criteria and the cross-validated log loss.

    The first panel has AIC, BIC and ICL, if the mixtures have a likelihood. The second panel has
    the mean log loss of the folds with its standard error, if it was measured. A ring marks the
    lowest value of each curve, and a vertical line the number that was chosen. It is recommended
    to use :meth:`from_result`.

    Parameters
    ----------
    n_experts : array-like of shape (n_numbers,)
        The numbers of experts.
    criteria : dict of str to array-like of shape (n_numbers,), default=None
        Information criteria by their labels.
    log_loss : array-like of shape (n_numbers,), default=None
        Mean log loss in nats.
    log_loss_error : array-like of shape (n_numbers,), default=None
        Its standard error.
    chosen : int, default=None
        The number of experts that was chosen.

    Attributes
    ----------
    lines_ : dict of str to matplotlib.lines.Line2D
        The curves of the criteria, by their labels, and of the "log loss".
    axes_ : ndarray of matplotlib.axes.Axes
        The panels.
    figure_ : matplotlib.figure.Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, NExpertsDisplay, choose_n_experts
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(experts="linear", max_iter=5, n_init=2, random_state=0)
    >>> choice = choose_n_experts(clf, X, y, range(1, 3), verbose=0)
    >>> display = NExpertsDisplay.from_result(choice)
    >>> list(display.lines_)
    ['AIC', 'BIC', 'ICL']
    """

    def __init__(
        self,
        n_experts: ArrayLike,
        *,
        criteria: Mapping[str, ArrayLike] | None = None,
        log_loss: ArrayLike | None = None,
        log_loss_error: ArrayLike | None = None,
        chosen: int | None = None,
    ):
        self.n_experts = n_experts
        self.criteria = criteria
        self.log_loss = log_loss
        self.log_loss_error = log_loss_error
        self.chosen = chosen

    @classmethod
    def from_result(cls, result: Any, *, ax: Any = None) -> NExpertsDisplay:
        """Draw the result of :func:`choose_n_experts`.

        Parameters
        ----------
        result : NExpertsChoice
            The result.
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        NExpertsDisplay
        """
        known = {
            name: values for name, values in result.results.items() if not np.isnan(values).all()
        }
        return cls(
            known["n_experts"],
            criteria={
                name.upper(): known[name] for name in ("aic", "bic", "icl") if name in known
            },
            log_loss=known.get("log_loss"),
            log_loss_error=known.get("log_loss_error"),
            chosen=result.n_experts_,
        ).plot(ax=ax)

    def plot(self, ax: Any = None) -> NExpertsDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or one for each panel, default=None
            Where to draw. One axes is split into panels. None makes a new figure.

        Returns
        -------
        NExpertsDisplay

        Raises
        ------
        ValueError
            If there are neither criteria nor a log loss.
        """
        curves = {
            "misfit plus penalty for size, nats": dict(self.criteria or {}),
            "log loss of new samples, nats": (
                {} if self.log_loss is None else {"log loss": self.log_loss}
            ),
        }
        panels: dict[str, dict[str, Any]] = {label: each for label, each in curves.items() if each}
        if not panels:
            raise ValueError("There is nothing to draw: pass criteria or log_loss.")
        self.axes_ = several_axes(self, ax, len(panels), (4.2 * len(panels) + 0.5, 4))
        self.figure_ = self.axes_[0].figure
        self.lines_ = {}
        numbers = np.asarray(self.n_experts)
        for axes, (label, panel) in zip(self.axes_, panels.items(), strict=True):
            lowest = []
            styles = zip(panel.items(), COLORS, ("o-", "s--", "^-."), strict=False)
            for (name, values), color, style in styles:
                values = np.asarray(values)
                (self.lines_[name],) = axes.plot(
                    numbers, values, style, color=color, markersize=4, label=name
                )
                if name == "log loss" and self.log_loss_error is not None:
                    axes.errorbar(
                        numbers,
                        values,
                        self.log_loss_error,
                        fmt="none",
                        ecolor=color,
                        capsize=3,
                        label="± standard error",
                    )
                lowest.append(np.nanargmin(values))
            axes.plot(
                numbers[lowest],
                [values[at] for values, at in zip(panel.values(), lowest, strict=True)],
                "o",
                color="black",
                fillstyle="none",
                markersize=12,
                label="lowest",
            )
            if self.chosen is not None:
                axes.axvline(self.chosen, color="0.6", linestyle=":", label="chosen", zorder=1)
            axes.set(xlabel="number of experts", ylabel=f"{label}\n(lower is better)")
            axes.set_xticks(numbers)
            # Above the panel, where no curve can run through it.
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
        return self
