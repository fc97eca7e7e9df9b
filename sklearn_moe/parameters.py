"""Turn the parameters of a ``MoEClassifier`` into objects: resolve names, functions and "auto"."""

from __future__ import annotations

import re
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import get_scorer_names
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from sklearn_moe.checks import (
    check_device,
    check_net_params,
    check_no_booleans,
    check_signature,
    check_sizes,
    resolve,
    same_parameters,
)
from sklearn_moe.data import TrainingData
from sklearn_moe.encoders import ENCODERS, Encoder, TableEncoder, as_encoder
from sklearn_moe.experts import EXPERTS, EstimatorExperts, as_experts
from sklearn_moe.gates import GATES
from sklearn_moe.images import AUGMENTATIONS
from sklearn_moe.recipes import (
    RECIPES,
    automatic_batch_size,
    automatic_epochs,
    automatic_weight_decay,
)
from sklearn_moe.regularizers import REGULARIZERS
from sklearn_moe.training.net import MoENet
from sklearn_moe.training.stopping import REFINED

_ROOMS = {
    "experts": EXPERTS,
    "gate": GATES,
    "encoder": ENCODERS,
    "augmentation": AUGMENTATIONS,
    "regularization": REGULARIZERS,
}

CONSTRAINTS: dict[str, list] = {
    # Making more experts than this one by one would take hours.
    "n_experts": [Interval(Integral, 1, 2**16, closed="both")],
    "experts": [StrOptions({"auto", *EXPERTS}), HasMethods("build"), callable, list, tuple],
    "gate": [StrOptions(set(GATES)), HasMethods("build")],
    "regularization": [StrOptions({"auto", *REGULARIZERS}), callable, list, tuple, None],
    "encoder": [StrOptions({"auto", *ENCODERS}), HasMethods("build"), callable, None],
    "categorical_features": ["array-like", StrOptions({"from_dtype"}), None],
    "augmentation": [StrOptions(set(AUGMENTATIONS)), callable, None],
    "gate_features": ["array-like", callable, str, None],
    "expert_features": ["array-like", callable, str, None],
    "mixing": [StrOptions({"probability", "logit"})],
    "learning_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
    "learning_rate_schedule": [StrOptions({"one_cycle", "constant"})],
    "weight_decay": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "max_iter": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "n_init": [StrOptions({"auto"}), Interval(Integral, 1, 2**16, closed="both")],
    "annealing": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="right"), None],
    "class_weight": [StrOptions({"balanced"}), dict, None],
    "early_stopping": ["boolean", StrOptions({REFINED, *get_scorer_names()}), callable],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "calibrate": ["boolean"],
    "warm_start": ["boolean"],
    "device": [str],
    # With a million threads, OpenMP ends the process.
    "n_threads": [StrOptions({"auto"}), Interval(Integral, 1, 1024, closed="both")],
    "net_params": [dict, None],
    "input_shape": ["array-like", None],
    "track_decomposition": ["boolean"],
    "verbose": ["verbose"],
    "random_state": ["random_state"],
}
"""What scikit-learn checks of the parameters of a ``MoEClassifier``."""


def check_parameters(estimator: BaseEstimator) -> None:
    """Check what scikit-learn's table of constraints cannot check."""
    listed_experts(estimator)
    check_device(estimator.device)
    check_no_booleans(estimator)
    check_sizes(estimator.get_params())
    check_net_params(estimator.net_params or {})


def check_enough_samples(estimator: BaseEstimator, data: TrainingData) -> None:
    """Raise an error, or warn, if there are too few samples for several regressions."""
    if not has_linear_experts(estimator):
        return
    n_experts, n_samples = number_of_experts(estimator), len(data.X)
    if n_experts > n_samples:
        raise ValueError(
            f"Linear experts need at least one sample each, got n_samples={n_samples} and "
            f"n_experts={n_experts}. Take fewer experts."
        )
    counts = np.bincount(data.y, minlength=len(data.classes))
    rarest = counts.argmin()
    if counts[rarest] < n_experts:
        warnings.warn(
            f"Class {data.classes.tolist()[rarest]!r} has fewer training samples "
            f"({counts[rarest]}) than there are experts ({n_experts}), and most of them can't "
            "learn it. Take fewer experts, or join rare classes.",
            stacklevel=7,  # at the user's call
        )


def encoder_of(estimator: BaseEstimator) -> Encoder | None:
    """Return the encoder of an estimator as an object; "auto" means the one for tables here."""
    encoder = estimator.encoder
    if not _is_auto(encoder):
        return as_encoder(encoder)
    return TableEncoder(squash=not has_linear_experts(estimator))


def has_linear_experts(estimator: BaseEstimator) -> bool:
    """Whether each expert of an estimator is a logistic regression."""
    experts = estimator.experts
    experts = EXPERTS.get(experts) if isinstance(experts, str) else experts
    return getattr(experts, "is_linear", False)


def listed_experts(estimator: BaseEstimator) -> EstimatorExperts | None:
    """Return the list of named experts of an estimator, checked; None if it has another kind."""
    experts: Any = None if _is_auto(estimator.experts) else as_experts(estimator.experts)
    if not getattr(experts, "is_list", False):
        return None
    experts.check()
    return experts


def classifiers_among(experts: Any) -> list[BaseEstimator]:
    """Return the classifiers in a list of experts that a user passed; none if it is another."""
    if isinstance(experts, (list, tuple)):
        experts = EstimatorExperts(experts)
    if not getattr(experts, "is_list", False):
        return []
    try:
        return [classifier for _, classifier in experts.outside]
    except (TypeError, ValueError):  # fit will raise the error
        return []


def number_of_experts(estimator: BaseEstimator) -> int:
    """Return the number of experts, which a list of them decides."""
    experts = listed_experts(estimator)
    return estimator.n_experts if experts is None else len(experts.estimators)


def encodes_tables(estimator: BaseEstimator) -> bool:
    """Whether tables are encoded, either by the encoder itself or before it."""
    try:
        encoder = encoder_of(estimator)
    except (TypeError, ValueError):  # fit will raise the error
        return False
    return encoder is not None and not encoder.needs_images


def net_for(
    estimator: BaseEstimator,
    data: TrainingData,
    seed: int,
    *,
    going_on: bool,
    incremental: bool,
) -> MoENet:
    """Return a new net for a training, or a copy of the fitted one with the current settings."""
    table, net_params = data.reader.table, estimator.net_params or {}
    architecture = architecture_of(estimator, table is not None)
    settings = settings_of(
        estimator,
        is_flat=len(data.X.shape) == 2 and data.reader.image_shape is None,
        n_samples=len(data.X),
        n_classes=len(data.classes),
        incremental=incremental,
    )
    if not going_on:
        arguments = {
            **architecture,
            **settings,
            **_columns(estimator, data),
            "table": table,
            "input_shape": data.X.shape[1:],
            "image_shape": data.reader.image_shape,
            "n_classes": len(data.classes),
            "seed": seed,
            "device": estimator.device,
            **({} if "optimizer" in net_params else _OPTIMIZER),
            **net_params,
        }
        arguments["device"] = check_device(arguments["device"], len(data.X.shape) - 1)
        return MoENet(**arguments).initialize()
    columns = {name: getattr(estimator, name) for name in ("gate_features", "expert_features")}
    for name, value in {**architecture, **columns}.items():
        before = (
            data.reader.features.get(name) if name in columns else getattr(estimator.net_, name)
        )
        if not same_parameters(value, before):
            raise ValueError(
                f"warm_start=True and partial_fit cannot change {name} from {before!r} to "
                f"{value!r}. Fit with warm_start=False."
            )
    return estimator.net_.copy_to_train().set_params(**settings)


def _columns(estimator, data):
    """Return which of the encoded columns of a table gate and experts read; None means all."""
    selected, table = data.reader.selected, data.reader.table
    encoder = encoder_of(estimator)
    mixes = encoder is not None and not (encoder.needs_tables and table is not None)
    if selected and mixes:
        given = [name for name in sorted(selected) if getattr(estimator, name) is not None]
        raise ValueError(
            f"{given[0] if given else 'groups'} needs gate and experts that read the columns of a "
            f"table, but encoder={estimator.encoder!r} mixes them. Leave encoder='auto'."
        )
    columns = {}
    for part in ("gate", "expert"):
        mask = selected.get(f"{part}_features")
        if table is not None:
            read = np.ones(len(table.sources_), bool) if mask is None else mask[table.sources_]
            if part == "expert" and has_linear_experts(estimator) and not mixes:
                read = read & ~table.is_hat_
            mask = None if read.all() else read
        columns[f"{part}_columns"] = None if mask is None else np.flatnonzero(mask)
    return columns


_OPTIMIZER = {"optimizer": torch.optim.AdamW, "optimizer__fused": True}


def architecture_of(estimator: BaseEstimator, is_table: bool) -> dict[str, Any]:
    """Return the arguments that stay the same for the life of a net."""
    encoder, experts = estimator.encoder, estimator.experts
    return {
        # Which experts "auto" means depends on what the encoder makes of the samples.
        "experts": "auto" if _is_auto(experts) else as_experts(experts),
        "encoder": None if _is_auto(encoder) and not is_table else encoder_of(estimator),
        "gate": resolve("gate", estimator.gate, GATES),
        "n_experts": number_of_experts(estimator),
        "mixing": estimator.mixing,
    }


def settings_of(
    estimator: BaseEstimator,
    *,
    is_flat: bool,
    n_samples: int,
    n_classes: int,
    incremental: bool = False,
) -> dict[str, Any]:
    """Return the arguments that a net gets anew in each training.

    Parameters
    ----------
    estimator : MoEClassifier
        Has the parameters.
    is_flat : bool
        Whether samples are rows of numbers, not images.
    n_samples, n_classes : int
        Number of training samples and of classes.
    incremental : bool, default=False
        Whether the training is a call of ``partial_fit``.
    """
    net_params = estimator.net_params or {}
    recipe = recipe_of(estimator, is_flat=is_flat)
    learning_rate = estimator.learning_rate
    if _is_auto(learning_rate):
        schedule = "constant" if incremental else estimator.learning_rate_schedule
        learning_rate = recipe["learning_rate"][schedule]
    settings = {
        "regularizations": _penalties(estimator.regularization, recipe["regularization"]),
        "augmentation": _augmentation(estimator.augmentation),
        "n_threads": estimator.n_threads,
        "track_decomposition": bool(estimator.track_decomposition or estimator.verbose),
        "lr": learning_rate,
        "optimizer__weight_decay": estimator.weight_decay,
        "max_epochs": estimator.max_iter,
        "batch_size": estimator.batch_size,
        "verbose": int(estimator.verbose >= 2),
    }
    if "optimizer" in net_params:  # a user's optimizer keeps its own default
        del settings["optimizer__weight_decay"]
    settings = {name: net_params.get(name, value) for name, value in settings.items()}
    if _is_auto(settings["max_epochs"]):
        settings["max_epochs"] = automatic_epochs(recipe, n_samples)
    if _is_auto(settings["batch_size"]):
        settings["batch_size"] = automatic_batch_size(recipe, n_samples)
    if _is_auto(settings.get("optimizer__weight_decay")):
        settings["optimizer__weight_decay"] = automatic_weight_decay(
            recipe,
            n_classes=n_classes,
            n_samples=n_samples,
            batch_size=settings["batch_size"],
            epochs=None if incremental else settings["max_epochs"],
        )
    return settings


def search_of(estimator: BaseEstimator) -> tuple[int, float | None]:
    """Return the number of restarts, and the inverse temperature at which annealing begins."""
    recipe = recipe_of(estimator, is_flat=True)
    n_init, annealing = estimator.n_init, estimator.annealing
    gate = resolve("gate", estimator.gate, GATES)
    is_soft = getattr(gate, "top_k", None) is None and estimator.mixing == "probability"
    if _is_auto(annealing):
        annealing = recipe["annealing"] if is_soft else None
    elif annealing is not None and not is_soft:
        raise ValueError(
            f"annealing={annealing!r} needs a gate that mixes all experts (top_k=None) and "
            f"mixing='probability', got gate={estimator.gate!r} and mixing={estimator.mixing!r}. "
            "Set annealing=None."
        )
    if annealing == 1:
        annealing = None
    if annealing is not None and "criterion" in (estimator.net_params or {}):
        raise ValueError(
            f"annealing={annealing!r} changes the likelihood, and net_params has another "
            "criterion. Set annealing=None, or leave out the criterion."
        )
    if _is_auto(n_init):
        n_init = recipe["n_init"] if number_of_experts(estimator) > 1 else 1
    return n_init, annealing


def recipe_of(estimator: BaseEstimator, *, is_flat: bool) -> dict[str, Any]:
    """Return what "auto" means for samples that are rows of numbers, or images."""
    encoder = encoder_of(estimator)
    has_backbone = encoder is not None and not encoder.needs_tables
    gate = resolve("gate", estimator.gate, GATES)
    if has_linear_experts(estimator) and not has_backbone:
        if not (is_flat and _can_be_sparse(gate)):
            return RECIPES["linear, no columns"]
        has_layers = np.size(getattr(gate, "hidden_layer_sizes", ())) > 0
        return RECIPES["linear, gate with layers" if has_layers else "linear"]
    experts = listed_experts(estimator)
    if experts is not None and experts.has_networks:
        return RECIPES["other"]
    if experts is not None and experts.n_outside and is_flat:
        only_classifiers = experts.n_outside == len(experts.estimators)
        can_be_sparse = only_classifiers and not has_backbone and _can_be_sparse(gate)
        if not can_be_sparse:
            return RECIPES["classifiers and others"]
        return RECIPES["classifiers" if gate.top_k is None else "classifiers, top k"]
    if not is_flat or has_backbone or _is_function(estimator.experts):
        return RECIPES["other"]
    # A gate without ``needs_hidden`` counts as reading the experts, as its module does.
    return RECIPES["attentive" if getattr(gate, "needs_hidden", True) else "table"]


def _can_be_sparse(gate):
    return getattr(gate, "has_input_weight", False) and gate.encoder is None


def _is_auto(value):
    return isinstance(value, str) and value == "auto"


def _is_function(value):
    return callable(value) and not hasattr(value, "build")


def _penalties(given, auto):
    """Return the regularizations, where "auto" stands for those of the recipe."""
    if given is None:
        return []
    penalties = []
    for each in given if isinstance(given, (list, tuple)) else [given]:
        penalties += map(_penalty, auto if _is_auto(each) else [each])
    return [each for each in penalties if getattr(each, "strength", 1) != 0]


def _penalty(given):
    """Return the penalty that a name stands for, or the one that a user passed."""
    penalty = resolve("regularization", given, REGULARIZERS)
    if not callable(penalty):
        raise ValueError(
            f"regularization={penalty!r} must be a name, a regularization such as Importance(), "
            "or a function."
        )
    check_signature("regularization", penalty, "mixture_output", "x", "y", "sample_weight")
    return _checked(penalty)


def _augmentation(given):
    if given is None:
        return None
    augmentation = resolve("augmentation", given, AUGMENTATIONS)
    check_signature("augmentation", augmentation, "x", "generator")
    return _checked(augmentation)


def _checked(given):
    """Return an object whose parameters are valid, or a function."""
    if isinstance(given, BaseEstimator):
        given._validate_params()
    return given


# Nested parameters, such as gate__top_k and regularization__0__strength.


def parameters_in_lists(estimator: BaseEstimator) -> dict[str, Any]:
    """Return the parameters of regularizations and experts in lists, by position and by name."""
    found = {}
    if isinstance(estimator.regularization, (list, tuple)):
        found = {
            f"regularization__{place}__{name}": value
            for place, each in enumerate(estimator.regularization)
            if hasattr(each, "get_params")
            for name, value in each.get_params().items()
        }
    if isinstance(estimator.experts, (list, tuple)):
        experts = EstimatorExperts(estimator.experts)
        own = experts.get_params(deep=False)
        of_experts = experts.get_params()
        found |= {f"experts__{key}": of_experts[key] for key in of_experts if key not in own}
    return found


def set_parameters_in_lists(estimator: BaseEstimator, params: dict[str, Any]) -> dict[str, Any]:
    """Set parameters in lists, after all others; return those that are still to set."""
    lists = {
        name
        for name in ("regularization", "experts")
        if isinstance(params.get(name, getattr(estimator, name)), (list, tuple))
    }
    in_list = [key for key in params if "__" in key and key.split("__")[0] in lists]
    in_list = [key for key in in_list if re.match(r"experts__|regularization__\d+__", key)]
    if not in_list:
        return params
    estimator.set_params(**{key: each for key, each in params.items() if key not in in_list})
    known = estimator.get_params()
    kinds = {
        "regularization": "objects, for example [Importance()]",
        "experts": "(name, estimator) tuples, and use these names",
    }
    for key in in_list:
        room, _, rest = key.partition("__")
        if key not in known:
            raise ValueError(
                f"Cannot set {key}: {room}={getattr(estimator, room)!r} has no such parameter. "
                f"Pass a list of {kinds[room]}."
            )
        if room == "experts":
            experts = EstimatorExperts(estimator.experts).set_params(**{rest: params[key]})
            estimator.experts = experts.estimators
        else:
            place, _, name = rest.partition("__")
            estimator.regularization[int(place)].set_params(**{name: params[key]})
    return {}


def check_nested(estimator: BaseEstimator, params: dict[str, Any]) -> None:
    """Raise for a nested parameter of a part given by name, as only objects have parameters."""
    for key in params:
        name, _, nested = key.partition("__")
        value = params.get(name, getattr(estimator, name, None))
        if nested and name in _ROOMS and not hasattr(value, "set_params"):
            example = _example(_ROOMS[name], value, nested, params[key])
            raise ValueError(
                f"Cannot set {key}: {name}={value!r} has no parameters of its own. Pass one "
                f"object in its place, for example {name}={example!r}."
            )


def _example(room, name, nested, value):
    """Return an object to suggest in an error message, with the nested parameter set."""
    named = room.get(name) if isinstance(name, str) else None
    options = [named] if named is not None else list(room.values())
    for option in options:
        if nested in option.get_params():
            return clone(option).set_params(**{nested: value})
    return options[0]
