"""Search spaces: from a trial of Optuna to parameters of an estimator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator

from sklearn_moe.experts import MLPExperts
from sklearn_moe.fitted import is_mixture
from sklearn_moe.gates import AttentiveGate
from sklearn_moe.parameters import listed_experts, settings_of
from sklearn_moe.recipes import RECIPES
from sklearn_moe.regularizers import Competence, Importance, SampleSimilarity

if TYPE_CHECKING:
    import optuna


def suggest_parameters(
    trial: optuna.Trial | optuna.trial.FrozenTrial,
    *,
    learning_rate: float = 0.03,
    weight_decay: float = 1.0,
    wide: bool = False,
) -> dict[str, Any]:
    """Suggest parameters of a ``MoEClassifier`` for tables: the default space of :func:`tune`.

    The space surrounds what predicts tables well (``recipes.py``): the number, width and dropout
    of the experts, a soft or a top-k gate, the strength of the competence, the learning rate and
    the weight decay.

    Parameters
    ----------
    trial : optuna.Trial
        The trial.
    learning_rate : float, default=0.03
        The learning rate that is usual here; between a fifth and twice of it is suggested.
    weight_decay : float, default=1.0
        The weight decay that is usual here; between a tenth and four times of it is suggested, and
        between 0.001 and 1 if it is 0.
    wide : bool, default=False
        Whether the space also has other gates and regularizations, which divide the work more
        clearly, and on tables seldom predict better. The width of the attentive gate and the
        strength of a regularization are only suggested where they are used.

    Returns
    -------
    dict
        Parameters for ``set_params``.
    """
    gates, regularizations = ["softmax", "top_k"], ["competence"]
    if wide:
        gates += ["hard", "attentive"]
        regularizations += ["none", "importance", "sample_similarity"]
    gate = trial.suggest_categorical("gate", gates)
    if gate == "attentive":
        gate = AttentiveGate((trial.suggest_int("gate_width", 16, 128, log=True),))
    regularization = trial.suggest_categorical("regularization", regularizations)
    penalty = None
    if regularization == "competence":
        strength = trial.suggest_float("competence_strength", 0.1, 3.0, log=True)
        penalty = [Importance(), Competence(strength)]
    elif regularization == "importance":
        penalty = Importance(trial.suggest_float("importance_strength", 0.02, 2.0, log=True))
    elif regularization == "sample_similarity":
        penalty = SampleSimilarity(
            trial.suggest_float("sample_similarity_strength", 0.03, 1.0, log=True)
        )
    return {
        "n_experts": trial.suggest_int("n_experts", *_N_EXPERTS, log=True),
        "experts": MLPExperts(
            (trial.suggest_int("width", 64, 512, log=True),),
            dropout=trial.suggest_float("dropout", 0.0, 0.4),
        ),
        "gate": gate,
        "regularization": penalty,
        "learning_rate": trial.suggest_float(
            "learning_rate", learning_rate / 5, learning_rate * 2, log=True
        ),
        "weight_decay": trial.suggest_float(
            "weight_decay", weight_decay / 10 or 1e-3, weight_decay * 4 or 1.0, log=True
        ),
    }


_N_EXPERTS = 3, 16


def first_suggestion(mixture: BaseEstimator, around: dict[str, Any]) -> dict[str, Any]:
    """Return the suggestion that is nearest to the mixture's parameters.

    ``around`` has the arguments of :func:`suggest_parameters`.
    """
    gates = ("softmax", "top_k", "hard") if around["wide"] else ("softmax", "top_k")
    is_one_of_them = isinstance(mixture.gate, str) and mixture.gate in gates
    return {
        "gate": mixture.gate if is_one_of_them else "softmax",
        "regularization": "competence",
        "competence_strength": RECIPES["table"]["regularization"][-1].strength,
        "n_experts": int(np.clip(mixture.n_experts, *_N_EXPERTS)),
        "width": MLPExperts().hidden_layer_sizes[0],
        "dropout": 0.0,
        "learning_rate": around["learning_rate"],
        "weight_decay": around["weight_decay"] or 1e-3,
    }


_STORABLE = (type(None), bool, int, float, str)


class Space:
    """The space of a search: a function of a trial, distributions by name, or the default.

    Parameters
    ----------
    space : callable, dict of optuna distributions or None
        The space as the user gave it.
    estimator : estimator
        The estimator to tune. For the default, it must contain exactly one ``MoEClassifier``.
    X : array-like
        Samples. If they are not a table, the default space does not change the experts.
    y : array-like
        Class labels.
    wide : bool
        Whether the default space is wide. Without a table or with experts of your own, it always
        is.

    Attributes
    ----------
    strong : dict or None
        Parameters that give the mixture the experts that predict tables best, which an ensemble
        tries, too. None: not a table, not the default space, or experts of the user's own.
    """

    def __init__(self, space, estimator, X, y, *, wide):
        self.space, self.estimator = space, estimator
        self.prefix = self.left_alone = self.first = self.strong = None
        if space is None:
            self.prefix, mixture = _mixture_of(estimator)
            is_table = np.ndim(X) == 2 and mixture.input_shape is None
            has_own_experts = not (is_table and mixture.experts in ("auto", "mlp"))
            usual = settings_of(
                mixture, is_flat=is_table, n_samples=len(y), n_classes=len(np.unique(y))
            )
            self.around = {
                "learning_rate": float(usual["lr"]),
                "weight_decay": float(usual.get("optimizer__weight_decay", 0.0)),
                "wide": wide or has_own_experts,
            }
            self.first = first_suggestion(mixture, self.around)
            self.left_alone = {"experts"} if has_own_experts else set()
            if not (has_own_experts or sparse.issparse(X)):  # which would become dense
                self.strong = {
                    f"{self.prefix}experts": "strong",
                    f"{self.prefix}gate": "softmax",
                    f"{self.prefix}regularization": "auto",
                }
            if listed_experts(mixture) is not None:  # whose number the list decides
                self.left_alone.add("n_experts")
        elif isinstance(space, dict):
            for name, distribution in space.items():
                _suggest_method(name, distribution)

    def __call__(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
        suggest = partial(_suggest_any, trial.suggest_categorical)
        trial.suggest_categorical = suggest  # type: ignore[method-assign]
        if callable(self.space):
            return self.space(trial)
        if self.space is not None:
            return {
                name: _suggest(trial, name, distribution)
                for name, distribution in self.space.items()
            }
        suggested = {
            self.prefix + name: value
            for name, value in suggest_parameters(trial, **self.around).items()
            if name not in self.left_alone
        }
        if trial.user_attrs.get("begins"):
            own = self.estimator.get_params()  # of which the study keeps the nearest suggestion
            return {name: own[name] for name in suggested}
        return suggested


def _storable(name, choices):
    """Return choices as a study stores them: numbers and text as they are, all others as text."""
    stored = [each if isinstance(each, _STORABLE) else repr(each) for each in choices]
    for place, each in enumerate(stored):
        if each is not choices[place] and (" at 0x" in each or stored.count(each) > 1):
            raise ValueError(
                f"{name!r} has the choice {each}, which a study cannot tell from others. Take a "
                "function of the trial that asks for a name and returns the object."
            )
    return stored


def _suggest_any(suggest, name, choices):
    """Suggest one of the choices, which may be any objects."""
    stored = _storable(name, choices)
    return choices[stored.index(suggest(name, stored))]


def _suggest_method(name, distribution):
    """Return the name of the trial's method for a distribution, and its arguments."""
    from optuna import distributions

    if isinstance(distribution, distributions.CategoricalDistribution):
        _storable(name, distribution.choices)
        return "suggest_categorical", {"choices": distribution.choices}
    if isinstance(distribution, distributions.IntDistribution):
        kind = "suggest_int"
    elif isinstance(distribution, distributions.FloatDistribution):
        kind = "suggest_float"
    else:
        raise ValueError(
            f"space[{name!r}] must be one of optuna.distributions, got {distribution!r}."
        )
    arguments = {key: getattr(distribution, key) for key in ("low", "high", "step", "log")}
    return kind, arguments


def _suggest(trial, name, distribution):
    method, arguments = _suggest_method(name, distribution)
    return getattr(trial, method)(name, **arguments)


def _mixture_of(estimator):
    """Return the only mixture in an estimator, after the prefix of its parameters."""
    parts = {"": estimator, **estimator.get_params(deep=True)}
    mixtures = [
        (f"{name}__" if name else "", part) for name, part in parts.items() if is_mixture(part)
    ]
    if len(mixtures) != 1:
        raise ValueError(
            f"The default search space needs exactly one MoEClassifier; {estimator!r} has "
            f"{len(mixtures)}. Pass space=."
        )
    return mixtures[0]
