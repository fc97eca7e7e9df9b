"""Search spaces: from a trial of Optuna to parameters of an estimator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from sklearn_moe.experts import MLPExperts
from sklearn_moe.fitted import is_mixture
from sklearn_moe.gates import AttentiveGate
from sklearn_moe.parameters import listed_experts, settings_of
from sklearn_moe.recipes import RECIPES
from sklearn_moe.regularizers import Competence, Importance, SampleSimilarity

if TYPE_CHECKING:
    import optuna


def suggest_parameters(trial: optuna.Trial) -> dict[str, Any]:
    """Suggest parameters of a ``MoEClassifier`` for tables: the default space of :func:`tune`.

    The space has the number, width and dropout of the experts, the gate, the regularization, the
    learning rate and the weight decay. The width of the attentive gate and the strength of a
    regularization are only suggested where they are used.

    Parameters
    ----------
    trial : optuna.Trial
        The trial.

    Returns
    -------
    dict
        Parameters for ``set_params``.
    """
    gate = trial.suggest_categorical("gate", ["softmax", "top_k", "hard", "attentive"])
    if gate == "attentive":
        gate = AttentiveGate((trial.suggest_int("gate_width", 16, 128, log=True),))
    regularization = trial.suggest_categorical(
        "regularization", ["competence", "none", "importance", "sample_similarity"]
    )
    penalty = None
    if regularization == "competence":
        strength = trial.suggest_float("competence_strength", 0.05, 5.0, log=True)
        penalty = [Importance(), Competence(strength)]
    elif regularization == "importance":
        penalty = Importance(trial.suggest_float("importance_strength", 0.02, 2.0, log=True))
    elif regularization == "sample_similarity":
        penalty = SampleSimilarity(
            trial.suggest_float("sample_similarity_strength", 0.03, 1.0, log=True)
        )
    return {
        "n_experts": trial.suggest_int("n_experts", 2, 16, log=True),
        "experts": MLPExperts(
            (trial.suggest_int("width", 16, 256, log=True),),
            dropout=trial.suggest_float("dropout", 0.0, 0.5),
        ),
        "gate": gate,
        "regularization": penalty,
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 0.1, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 8.0, log=True),
    }


def first_suggestion(mixture: BaseEstimator, X, y) -> dict[str, Any]:
    """Return the suggestion of the default space that is nearest to the mixture's parameters."""
    settings = settings_of(
        mixture,
        is_flat=np.ndim(X) == 2 and mixture.input_shape is None,
        n_samples=len(y),
        n_classes=len(np.unique(y)),
    )
    rate, decay = settings["lr"], settings.get("optimizer__weight_decay", 0.0)
    competence = RECIPES["table"]["regularization"][-1]
    has_usual_gate = isinstance(mixture.gate, str) and mixture.gate in ("top_k", "hard")
    return {
        "gate": mixture.gate if has_usual_gate else "softmax",
        "regularization": "competence",
        "competence_strength": competence.strength,
        "n_experts": int(np.clip(mixture.n_experts, 2, 16)),
        "width": MLPExperts().hidden_layer_sizes[0],
        "dropout": 0.0,
        "learning_rate": float(np.clip(rate, 3e-4, 0.1)),
        "weight_decay": float(np.clip(decay, 1e-3, 8.0)),
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
    """

    def __init__(self, space, estimator, X, y):
        self.space, self.estimator = space, estimator
        self.prefix = self.left_alone = self.first = None
        if space is None:
            self.prefix, mixture = _mixture_of(estimator)
            self.first = first_suggestion(mixture, X, y)
            is_table = np.ndim(X) == 2 and mixture.input_shape is None
            has_own_experts = not (is_table and mixture.experts in ("auto", "mlp"))
            self.left_alone = {"experts"} if has_own_experts else set()
            if listed_experts(mixture) is not None:  # whose number the list decides
                self.left_alone.add("n_experts")
        elif isinstance(space, dict):
            for name, distribution in space.items():
                _suggest_method(name, distribution)

    def __call__(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
        trial.suggest_categorical = partial(_suggest_any, trial.suggest_categorical)
        if callable(self.space):
            return self.space(trial)
        if self.space is not None:
            return {
                name: _suggest(trial, name, distribution)
                for name, distribution in self.space.items()
            }
        suggested = {
            self.prefix + name: value
            for name, value in suggest_parameters(trial).items()
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
