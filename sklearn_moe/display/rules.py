"""Which samples each expert owns, as a tree of questions."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_moe.display.layout import COLORS, inches, one_axes
from sklearn_moe.interpretation.questions import Branch
from sklearn_moe.interpretation.rules import WHOLE_WORDS, GateRules, gate_rules

# The characters of a line in a box.
WIDTH = 22

# Inches that a leaf, and a level of the tree, take.
HEIGHT, LEVEL = 0.62, 2.5


class GateRulesDisplay:
    """Which samples each expert owns, as a tree of questions.

    It is read from the left to the right. Each box asks a question, and the lines go on with "yes"
    and "no". At the right, there are the experts, in their colours: with the share of the new
    samples that come there, and the share of these for which the gate chooses this expert, too. It
    is recommended to use :meth:`from_estimator`.

    Parameters
    ----------
    rules : GateRules
        What :func:`gate_rules` has found.

    Attributes
    ----------
    questions_ : list of matplotlib.text.Text
        The questions, from the left to the right along the answers "yes" first.
    leaves_ : list of matplotlib.text.Text
        The experts, from the top to the bottom.
    lines_ : list of matplotlib.lines.Line2D
        The lines from the questions to what follows.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    gate_rules : The same as text.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_moe import GateRulesDisplay, MoEClassifier
    >>> X = np.random.default_rng(0).normal(size=(600, 2))
    >>> y = np.where(X[:, 0] > 0, X[:, 1] > 0, X[:, 1] < 0)
    >>> clf = MoEClassifier(2, experts="linear", gate_features=[0], expert_features=[1],
    ...                     random_state=0).fit(X, y)
    >>> display = GateRulesDisplay.from_estimator(clf, X, random_state=0)
    >>> [text.get_text() for text in display.questions_]
    ['x0 <= 0?']
    """

    def __init__(self, rules: GateRules):
        self.rules = rules

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, *, ax: Any = None, **kwargs: Any
    ) -> GateRulesDisplay:
        """Find the rules of a fitted mixture's gate, and draw them.

        Parameters
        ----------
        estimator : MoEClassifier, Pipeline or search
            A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
            ``best_estimator_``.
        X : array-like of shape (n_samples, n_features)
            A table, such as the training samples.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Arguments of :func:`gate_rules`.

        Returns
        -------
        GateRulesDisplay
        """
        return cls(gate_rules(estimator, X, **kwargs)).plot(ax=ax)

    def plot(self, ax: Any = None) -> GateRulesDisplay:
        """Draw the tree.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a new figure, which is large enough for the tree.

        Returns
        -------
        GateRulesDisplay
        """
        self._depth, self._n_leaves = _depth(self.rules.tree), len(self.rules.rules)
        size = tree_size(self.rules)
        self.ax_ = ax = one_axes(self, ax, size)
        self.figure_ = ax.figure
        self.questions_: list[Any] = []
        self.leaves_: list[Any] = []
        self.lines_: list[Any] = []
        width, height = inches(ax)
        # Smaller axes get smaller letters.
        self._size = 9 * min(1, width / size[0], height / (size[1] - 0.6))
        ax.set(xlim=(-0.5, self._depth + 0.5), ylim=(self._n_leaves - 0.4, -0.6))
        ax.set_axis_off()
        ax.set_title("\n".join(wrap(self.rules.sentence, int(14 * width))), fontsize=9, loc="left")
        self._draw(self.rules.tree, 0)
        return self

    def _draw(self, tree, level):
        """Draw a tree, and return the height of its root."""
        if not isinstance(tree, Branch):
            return self._draw_leaf(tree)
        place = len(self.questions_)
        self.questions_.append(None)  # the question comes before those that follow
        heights = {word: self._draw(getattr(tree, word), level + 1) for word in ("yes", "no")}
        y = float(np.mean(list(heights.values())))
        for word, end in heights.items():
            rest = getattr(tree, word)
            x = level + 1 if isinstance(rest, Branch) else self._depth
            self.lines_ += self.ax_.plot(
                [level, level + 0.5, x], [y, end, end], color="0.6", linewidth=1.2, zorder=1
            )
            self.ax_.text(
                level + 0.5,
                end,
                word,
                fontsize=self._size,
                color="0.3",
                ha="center",
                va="center",
                zorder=2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        self.questions_[place] = self._box(
            level, y, _in_lines(f"{tree.condition.text()}?"), "white", "0.4"
        )
        return y

    def _draw_leaf(self, rule):
        from matplotlib.colors import to_rgb

        y = len(self.leaves_)
        color = np.array(to_rgb(COLORS[rule.expert % len(COLORS)]))
        right = "-" if np.isnan(rule.purity) else f"{rule.purity:.0%}"
        text = f"{rule.title}\n{rule.coverage:.0%} of samples\n{right} are right"
        self.leaves_.append(self._box(self._depth, y, text, 1 - 0.35 * (1 - color), color))
        return y

    def _box(self, x, y, text, color, edge):
        return self.ax_.text(
            x,
            y,
            text,
            fontsize=self._size,
            ha="center",
            va="center",
            zorder=3,
            bbox={"facecolor": color, "edgecolor": edge, "boxstyle": "round,pad=0.4"},
        )


def tree_size(rules):
    """Return width and height of a picture of the rules in inches."""
    return LEVEL * (_depth(rules.tree) + 1.2), HEIGHT * len(rules.rules) + 1


def _depth(tree):
    return 1 + max(_depth(tree.yes), _depth(tree.no)) if isinstance(tree, Branch) else 0


def _in_lines(text):
    return "\n".join(wrap(text, WIDTH, **WHOLE_WORDS))
