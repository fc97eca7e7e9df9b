"""Explain single samples: why an expert was chosen, and why it decides as it does."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
    validate_params,
)

from sklearn_moe.decomposition import cut, signed, titled
from sklearn_moe.interpretation.columns import read_columns
from sklearn_moe.interpretation.shapley import sampled_shapley
from sklearn_moe.interpretation.words import in_words
from sklearn_moe.mixture import MixtureOfExperts

# The printed text has this many samples, and columns of each.
MOST_SAMPLES, MOST_COLUMNS = 5, 4


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Why experts were chosen for samples, and why they decide as they do; printing it shows both.

    All contributions are in log odds (natural logarithms), and belong to the columns of the table.

    Attributes
    ----------
    expert : ndarray of shape (n_samples,)
        The expert that the gate chooses.
    runner_up : ndarray of shape (n_samples,)
        The expert with the next highest score of the gate; the same if there is only one expert.
    gate_proba : ndarray of shape (n_samples, n_experts)
        The gate's probabilities.
    gate_base : ndarray of shape (n_samples,)
        Mean over the background of the gate's log odds of the chosen expert against the runner-up.
    gate_contributions : ndarray of shape (n_samples, n_features)
        What each column adds to these log odds.
    base : ndarray of shape (n_samples,) or (n_samples, n_classes)
        Mean over the background of the chosen expert's logit. With two classes, this is the log
        odds of the second one, :math:`z_1 - z_0`. With more, there is one logit for each class,
        less the mean of all classes.
    contributions : ndarray of shape (n_samples, n_features) or (n_samples, n_features, n_classes)
        What each column adds to it.
    feature_names : ndarray of shape (n_features,)
        Names of the columns.
    data : ndarray of shape (n_samples, n_features)
        Values of the columns.
    classes : ndarray of shape (n_classes,)
        Class labels.
    gate_is_exact, is_exact : bool
        Whether the contributions to the gate and to the experts are exact, as for linear ones, or
        estimated by sampling. Their sums are exact in any case.
    expert_names : list of str or None
        Names of the experts, if ``experts`` was a list.
    """

    expert: NDArray[np.int64]
    runner_up: NDArray[np.int64]
    gate_proba: NDArray[np.float64]
    gate_base: NDArray[np.float64]
    gate_contributions: NDArray[np.float64]
    base: NDArray[np.float64]
    contributions: NDArray[np.float64]
    feature_names: NDArray
    data: NDArray
    classes: NDArray
    gate_is_exact: bool
    is_exact: bool
    expert_names: list[str] | None = None

    @property
    def gate_logit(self) -> NDArray[np.float64]:
        """The gate's log odds (n_samples,) of the chosen expert against the runner-up."""
        return self.gate_base + self.gate_contributions.sum(axis=1)

    @property
    def logit(self) -> NDArray[np.float64]:
        """The chosen expert's logits, of shape (n_samples,) or (n_samples, n_classes)."""
        return self.base + self.contributions.sum(axis=1)

    def to_shap(self, part: str = "expert") -> Any:
        """Return the contributions for the plots of the package shap.

        Parameters
        ----------
        part : {"expert", "gate"}, default="expert"
            Whose contributions to return.

        Returns
        -------
        shap.Explanation
            With ``values``, ``base_values``, ``data`` and ``feature_names``. For more than two
            classes, select one for most plots: ``explanation.to_shap()[..., 0]``.

        Raises
        ------
        ImportError
            If shap is not installed.
        """
        validate_parameter_constraints(
            {"part": [StrOptions({"expert", "gate"})]}, {"part": part}, "Explanation.to_shap"
        )
        try:
            import shap
        except ImportError as error:
            raise ImportError("Explanation.to_shap needs shap: pip install shap.") from error
        of_gate = part == "gate"
        values = self.gate_contributions if of_gate else self.contributions
        return shap.Explanation(
            values,
            base_values=self.gate_base if of_gate else self.base,
            data=self.data,
            feature_names=self.feature_names.tolist(),
            output_names=self.classes.tolist() if values.ndim == 3 else None,
        )

    def __repr__(self) -> str:
        n_samples = len(self.expert)
        lines = [
            f"{n_samples} sample{'s' * (n_samples != 1)}. Contributions in log odds, against the "
            "mean of the background; "
            + {
                (True, True): "exact.",
                (True, False): "exact for the gate, estimated for the experts.",
                (False, True): "estimated for the gate, exact for the experts.",
                (False, False): "estimated.",
            }[self.gate_is_exact, self.is_exact]
        ]
        for sample in range(min(n_samples, MOST_SAMPLES)):
            lines += ["", f"sample {sample}", *self._choice(sample), *self._decision(sample)]
        if n_samples > MOST_SAMPLES:
            lines += ["", f"{n_samples - MOST_SAMPLES} more samples"]
        return "\n".join(lines)

    def _choice(self, sample):
        """Say why the expert was chosen."""
        share, (expert, other) = (
            self.gate_proba[sample],
            (self.expert[sample], self.runner_up[sample]),
        )
        names = self.expert_names
        if expert == other:
            return [f"  {titled(expert, names and names[expert])}, the only one"]
        one, two = (
            f"{f'{names[each]}, ' if names else ''}{share[each]:.0%}" for each in (expert, other)
        )
        start = f"expert {expert} ({one}) rather than {other} ({two})"
        return self._sum(start, sample, self.gate_base[sample], self.gate_contributions[sample])

    def _decision(self, sample):
        """Say why the expert decides as it does."""
        logit, base, contributions = (
            values[sample] for values in (self.logit, self.base, self.contributions)
        )
        if len(self.classes) == 2:
            no, yes = self.classes
            start = f"{yes} against {no} ({expit(logit):.0%})"
        else:
            best = int(logit.argmax())
            start = f"{self.classes[best]} against the mean class ({softmax(logit)[best]:.0%})"
            base, contributions = base[best], contributions[:, best]
        return self._sum(start, sample, base, contributions)

    def _sum(self, start, sample, base, contributions):
        order = np.argsort(-np.abs(contributions), kind="stable")
        order = order[np.abs(contributions[order]) >= 0.005]
        names = cut(self.feature_names, 24)
        terms = [f"base {_signed(base)}"]
        for column in order[:MOST_COLUMNS]:
            value = cut([in_words(self.data[sample, column])], 16)[0]
            terms.append(f"{names[column]} = {value} ({_signed(contributions[column])})")
        if (rest := len(order) - MOST_COLUMNS) > 0:
            left = contributions[order[MOST_COLUMNS:]].sum()
            terms.append(f"{rest} other{'s' * (rest > 1)} ({_signed(left)})")
        text = f"{start}: {_signed(base + contributions.sum())} = " + ", ".join(terms)
        return textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="      ")


def _signed(value):
    return f"{signed(float(value), 2):+.2f}"


@validate_params(
    {
        "n_permutations": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def explain(
    estimator: BaseEstimator,
    X: ArrayLike,
    *,
    background: ArrayLike | None = None,
    n_permutations: int = 50,
    random_state: int | np.random.RandomState | None = None,
) -> Explanation:
    r"""Explain single samples: which columns chose the expert, and which made its decision.

    The gate's log odds of the chosen expert against the runner-up, and the logit of the chosen
    expert, are divided among the columns of the table. Each column contributes what its value
    changes against the background: base value and contributions sum to the logit.

    For linear experts, and for a gate without hidden layers, the contribution of a column
    :math:`j` is exact:

    .. math:: \phi_j = \sum_{i \in j} w_i \bigl(h_i(x) - \bar h_i\bigr)

    with the weights :math:`w_i`, the encoded columns :math:`h_i` that come from the column
    :math:`j` (itself, its hat functions or its categories), and their means :math:`\bar h_i` over
    the background. For all others it is an estimate of the Shapley value: the mean of what the
    column changes on walks from rows of the background to the sample, column by column, in random
    orders. The sum is exact here, too. It takes ``2 * n_permutations * (n_features + 1)``
    predictions for a sample, so explain some samples, not a whole table.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier`` for tables, a pipeline that ends in one, or a search with such a
        ``best_estimator_``. In a pipeline, the columns are those that the mixture in its last step
        gets, with the names that the other steps give them.
    X : array-like of shape (n_samples, n_features)
        Samples to explain.
    background : array-like of shape (n_rows, n_features), default=None
        Samples to compare with, such as the training samples. None compares with the mean of ``X``
        itself.
    n_permutations : int, default=50
        Number of random orders of the columns for experts and gates that are not linear. Each is
        walked forward and backward, from one row of the background.
    random_state : int, RandomState instance or None, default=None
        Seed of these orders and rows.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        If the mixture reads images, ``X`` or ``background`` does not have the columns of the fit,
        or ``X`` is one sample without a background.

    See Also
    --------
    expert_importance : Which columns an expert needs for all of its samples.
    ExpertEffectDisplay : How the experts' predictions change with a column.

    Notes
    -----
    The other experts contribute to the prediction of the mixture as well: see ``gate_proba``.

    Contributions describe the mixture, not the world. If columns depend on each other, the walks
    pass samples that do not occur.

    References
    ----------
    S. Lundberg, S. Lee, A Unified Approach to Interpreting Model Predictions, 2017, arXiv
    1705.07874.

    E. Strumbelj, I. Kononenko, Explaining prediction models and individual predictions with
    feature contributions, Knowledge and Information Systems 41, 2014.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_moe import MoEClassifier, explain
    >>> X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    >>> clf = MoEClassifier(2, experts="linear", n_init=1, random_state=0).fit(X, y)
    >>> explanation = explain(clf, X[:3], background=X)
    >>> explanation.contributions.shape
    (3, 30)
    >>> print(explanation)  # doctest: +ELLIPSIS
    3 samples. Contributions in log odds, against the mean of the background; exact.
    ...
    """
    table = others = read_columns(estimator, X, "explain")
    if background is not None:
        try:
            others = read_columns(estimator, background, "explain")
        except ValueError as error:
            raise ValueError(f"background is not valid: {error}") from error
    elif len(table.samples) == 1:
        raise ValueError(
            "X has one sample, which would be compared with itself. Pass background=, such as the "
            "training samples."
        )
    model, module = table.model, table.model.module_
    proba = table.evaluate(MixtureOfExperts.gate_proba, dtype=np.float64)
    expert = proba.argmax(axis=1)
    scores = table.evaluate(_answer, dtype=np.float64)[:, :, 0]
    if proba.shape[1] > 1:
        scores[np.arange(len(expert)), expert] = -np.inf
    runner_up = scores.argmax(axis=1)

    is_direct = isinstance(module.encoder, torch.nn.Identity)
    is_exact = is_direct and module.experts.is_linear
    gate_is_exact = is_direct and module.gate.is_linear
    exact: Any = None
    estimate: Any = None
    if is_exact or gate_is_exact:
        exact = _linear(table, others, expert, runner_up)
    if not (is_exact and gate_is_exact):
        asked = None if module.gate.needs_hidden else np.unique(expert)

        def answers_of(path, sample):
            answers = table.evaluate(_answer, path, experts=asked, dtype=np.float64)
            return _pick(answers, expert[sample], runner_up[sample])

        contributions, base = sampled_shapley(
            answers_of,
            table.samples,
            others.samples,
            n_permutations,
            check_random_state(random_state),
        )
        estimate = contributions[:, table.places], base
    gate_contributions, gate_base = exact if gate_is_exact else estimate
    contributions, base = exact if is_exact else estimate
    of_logit = 1 if len(model.classes_) == 2 else slice(1, None)
    return Explanation(
        expert=expert,
        runner_up=runner_up,
        gate_proba=proba / proba.sum(axis=1, keepdims=True),
        gate_base=gate_base[:, 0],
        gate_contributions=gate_contributions[:, :, 0],
        base=base[:, of_logit],
        contributions=contributions[:, :, of_logit],
        feature_names=table.names,
        data=table.values(),
        classes=model.classes_,
        gate_is_exact=gate_is_exact,
        is_exact=is_exact,
        expert_names=model.expert_names_,
    )


def _answer(module, x):
    """Return the gate's score and the logits of each expert, (n_samples, n_experts, 1 + C)."""
    output = module(x)
    return torch.cat([output.gate_logits.unsqueeze(2), output.expert_logits], dim=2)


def _pick(answers, expert, runner_up):
    """Return the gate's log odds and the logits of the chosen expert, (n_samples, 1 + K)."""
    rows = np.arange(len(answers))
    own = answers[rows, expert]
    gate = own[:, :1] - answers[rows, runner_up, :1]
    logits = own[:, 1:]
    if logits.shape[1] == 2:
        logits = logits[:, 1:] - logits[:, :1]
    else:
        logits = logits - logits.mean(axis=1, keepdims=True)
    return np.concatenate([gate, logits], axis=1)


def _linear(table, others, expert, runner_up):
    """Return contributions and base values of what is linear in the encoded columns."""
    model, module, n_features = table.model, table.model.module_, len(table.names)
    sources = np.arange(n_features) if model.encoder_ is None else model.encoder_.sources_
    n_encoded = len(sources)
    encoded, background = (
        each.evaluate(MixtureOfExperts.encode, dtype=np.float64)[:, :n_encoded]
        for each in (table, others)
    )
    deviation = encoded - background.mean(axis=0)
    weight = np.zeros((n_encoded, len(model.expert_costs_), 1 + len(model.classes_)))
    # What is not linear keeps zeros here, which the estimate replaces.
    if module.gate.is_linear:
        own = module.gate.input_weight[0].mT / module.gate.temperature
        weight[_positions(module.gate_columns), :, 0] = own.detach().cpu()
    if module.experts.is_linear:
        own = module.experts.weight.permute(2, 0, 1)
        weight[_positions(module.expert_columns), :, 1:] = own.detach().cpu()

    mean = others.evaluate(_answer, dtype=np.float64).mean(axis=0, keepdims=True)
    base = _pick(mean.repeat(len(expert), axis=0), expert, runner_up)
    comes_from = sparse.csr_array(
        (np.ones(n_encoded), (np.arange(n_encoded), sources)), shape=(n_encoded, n_features)
    )
    contributions = np.empty((len(expert), n_features, base.shape[1]))
    for pair in np.unique(np.stack([expert, runner_up]), axis=1).T:
        own = np.flatnonzero((expert == pair[0]) & (runner_up == pair[1]))
        coefficients = _pick(weight, *(np.full(n_encoded, each) for each in pair))
        for value, coefficient in enumerate(coefficients.T):
            contributions[own, :, value] = (deviation[own] * coefficient) @ comes_from
    return contributions, base


def _positions(columns):
    return slice(None) if columns is None else columns.cpu().numpy()
