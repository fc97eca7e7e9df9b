"""Growing: new experts for new data or a new task, beside those that a mixture has."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, logsumexp
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import nn

from sklearn_moe.checks import (
    check_shape,
    check_weight,
    check_y,
    class_weights,
    encode,
    normalize,
    scaled,
    weighty,
)
from sklearn_moe.containers import stacked
from sklearn_moe.decomposition import final_model, with_last
from sklearn_moe.encoders import output_shape
from sklearn_moe.experts import ExpertsModule
from sklearn_moe.importances import column_importances
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.parameters import settings_of
from sklearn_moe.summaries import (
    InputSummary,
    counts_of,
    gate_input,
    joined,
    rows_to_read,
    summarize,
    summary_of,
)
from sklearn_moe.training.batches import evenly
from sklearn_moe.training.building import add_experts, add_stage, samples_shape
from sklearn_moe.training.callbacks import usual_callbacks
from sklearn_moe.training.defaults import usual_defaults
from sklearn_moe.training.session import Session, fitted_attributes, likelihood

# Samples on which the probabilities of the stages are calibrated.
SAMPLES_TO_CALIBRATE = 4096

# Bounds of the logarithm of the power of the densities, and the penalty on changed weights.
LOG_SHARPNESS = np.log(1e-3), 0.0
RIDGE = 0.1


@validate_params(
    {
        "n_new": [Interval(Integral, 0, None, closed="left")],
        "freeze": ["boolean"],
        "memory": [tuple, list, None],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def grow(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    n_new: int = 1,
    freeze: bool = True,
    memory: tuple[ArrayLike, ArrayLike] | None = None,
    max_iter: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> BaseEstimator:
    r"""Add experts to a fitted mixture, for new data or a new task, without forgetting.

    A network that goes on with new data alone forgets what it knew. Here the experts stay as they
    are, and new ones learn from the new samples. The gate is extended by them: a copy of it with
    more rows learns, too, so that old experts may answer for new samples. The copy decides for
    samples that are like the new ones, the gate as it was for those like the former ones:

    .. math:: p_e(x) = p(\mathrm{old} \mid x)\, p_{e,\mathrm{old}}(x)
                     + p(\mathrm{new} \mid x)\, p_{e,\mathrm{new}}(x), \qquad
              p(\mathrm{new} \mid x) \propto
              \sum_{k\, \in\, \mathrm{new}} w_k\, \mathcal{N}(x; \mu_k, \Sigma_k)^\beta

    The normal distributions are those of the classes :math:`k` of the old and of the new samples,
    as the gate reads them. No old sample is needed: the mixture has their means, variances and up
    to 32 main directions. The power :math:`\beta` is chosen so that the new samples are most
    probably called new, on halves of them that did not give the distributions.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier`` with probability mixing and a gate that chooses before the
        experts run, a pipeline that ends in one, or a search with such a ``best_estimator_``. It
        is not changed, and may have grown before.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        New samples, with the columns or the shape of the former ones.
    y : array-like of shape (n_samples,)
        Their labels, which may be new classes. The former experts give a new class a probability
        of 1e-7.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the new samples, at least 0; a weight of zero removes the sample. They are
        scaled to a mean of 1, and those of ``memory`` are 1. The ``class_weight`` of the mixture
        multiplies them, as in ``fit``; "balanced" gives all classes, also the former ones, the
        same weight.
    n_new : int, default=1
        Number of new experts. With 0, only the gate learns, and there can be no new classes.
    freeze : bool, default=True
        Whether the former experts stay exactly as they are. If False, they and their gate learn
        from the new samples and from ``memory``; without ``memory`` they forget. The encoder
        always stays.
    memory : tuple of X and y, default=None
        Some former samples and their labels. With them, :math:`\beta` and the weights :math:`w_k`
        maximise the likelihood of former and new samples; without them, a weight is the number of
        samples of the class, or the sum of their weights.
    max_iter : int, default=None
        Number of epochs; None takes that of the mixture.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights and batches; None takes the ``random_state`` of the mixture.

    Returns
    -------
    MoEClassifier or Pipeline
        A new fitted mixture, or the pipeline with it as last step. The new experts are the last
        ones, and ``classes_`` holds all classes. It has no regularization, no early stopping and
        no ``callbacks`` or ``train_split`` in ``net_params``; all other parameters are as before.

    Raises
    ------
    ValueError
        If the data or a parameter are not valid, the mixture cannot grow, or it has no summary of
        its former samples, as after ``partial_fit``, and there is no ``memory``.

    Notes
    -----
    Where samples like the old ones come with other labels, former and new experts both answer. If
    new labels shall replace old ones, go on with ``partial_fit`` instead.

    ``partial_fit`` of a mixture that has grown trains all experts and gates, but not the normal
    distributions. A mixture that is fitted again, or cloned and fitted, becomes an ordinary one.

    References
    ----------
    R. Aljundi, P. Chakravarty, T. Tuytelaars, Expert Gate: Lifelong Learning with a Network of
    Experts, 2017, arXiv 1611.06194.

    M. E. Tipping, C. M. Bishop, Probabilistic Principal Component Analysis, Journal of the Royal
    Statistical Society B 61, 1999.

    G. M. van de Ven, H. T. Siegelmann, A. S. Tolias, Three types of incremental learning, Nature
    Machine Intelligence 4, 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_moe import MoEClassifier, grow
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> first = y < 2
    >>> clf = MoEClassifier(2, random_state=0).fit(X[first], y[first])
    >>> grown = grow(clf, X[~first], y[~first])
    >>> grown.n_experts, grown.classes_.tolist()
    (3, [0, 1, 2, 3])
    >>> grown.score(X[first], y[first]) > 0.9
    True
    """
    model, samples = final_model(estimator, X)
    _check(model)
    y = check_y(y)
    X = _read(model, samples, y, "X")
    classes = _classes(model.classes_, y)
    if n_new == 0 and len(classes) > len(model.classes_):
        new = sorted(set(classes.tolist()) - set(model.classes_.tolist()))
        raise ValueError(f"The new classes {new} need new experts: n_new must be at least 1.")
    y = encode(y, classes, "y")
    former = np.searchsorted(classes, model.classes_).tolist()
    weight = check_weight(sample_weight, X, "sample_weight")
    if memory is not None:
        memory = _read_memory(estimator, model, memory, classes)
    (X, y, weight), memory = _weighted(model.class_weight, X, y, weight, memory, classes)
    seed = model.random_state if random_state is None else random_state
    build_seed, train_seed = check_random_state(seed).randint(np.iinfo(np.int32).max, size=2)

    net_params = {
        name: value
        for name, value in (model.net_params or {}).items()
        if name not in ("callbacks", "max_epochs", "train_split")
    }
    grown = deepcopy(model).set_params(
        regularization=None,
        early_stopping=False,
        max_iter=model.max_iter if max_iter is None else max_iter,
        net_params=net_params or None,
    )
    net = grown.net_
    old = _summary_of_former(model, memory, len(y) / len(np.unique(y)))
    rows = rows_to_read(y, old.means.shape[1])
    sample = gate_input(net, X[rows]), y[rows], weight[rows]
    counts = counts_of(y, weight)
    if isinstance(model.class_weight, str):  # balanced with the former classes
        counts = np.full_like(counts, old.counts.mean())
    new = summary_of(*sample, counts, old.directions.shape[1], old.remaining)
    stages = _stages(model, old, new)
    _add(net, n_new, former, classes, stages, old, int(build_seed))
    grown.n_experts = net.n_experts
    _tell(net.module_.gate, joined(old, new), _sharpness(*sample, old))
    data: Any = (X, y, weight)
    if memory is not None:
        data = stacked(X, memory[0]), *map(np.concatenate, zip(data[1:], memory[1:], strict=True))
    settings = settings_of(
        grown, is_flat=len(X.shape) == 2, n_samples=len(X), n_classes=len(classes)
    )
    X_all, y_all, weight_all = (X, y, weight) if freeze else data
    _train(grown, settings, X_all, y_all, weight_all, freeze, int(train_seed))
    if memory is not None:
        _calibrate(net, data, np.arange(len(data[1])) < len(y))
    grown.classes_ = classes
    weight = normalize(data[2])
    vars(grown).update(fitted_attributes(net, data[0], weight))
    grown._importances = column_importances(net, data[0], weight)
    grown.input_summary_ = joined(old, new)
    return with_last(estimator, grown)


def _check(model):
    """Raise an error if a mixture cannot grow."""
    check_is_fitted(model)
    net, gate, experts = model.net_, model.module_.gate, model.module_.experts
    if net.mixing != "probability":
        raise ValueError(
            f"grow needs a mixture with mixing='probability', got {net.mixing!r}: with logits the "
            "experts do not stand on their own."
        )
    if experts.names is not None:
        raise ValueError(
            f"grow needs experts of one kind, got the list {experts.names}. Fit a mixture with "
            "the fitted classifiers and new ones in its list instead."
        )
    if gate.needs_hidden:
        raise ValueError(
            f"grow needs a gate that chooses before the experts run, got gate={net.gate!r}, which "
            "reads them. Distil the mixture first: grow(distill(clf, X, y), ...)."
        )
    if gate.refits:
        raise ValueError(
            f"grow needs a gate that learns by gradients, got gate={net.gate!r}. Fit the mixture "
            "with gate='softmax' or 'hard'."
        )
    if type(experts).limit is not ExpertsModule.limit:
        raise ValueError(
            f"grow cannot keep what the experts {net.experts!r} do in the gate. Fit the mixture "
            "with experts='mlp'."
        )


def _read(model, X, y, name):
    """Return samples as the net reads them."""
    X = model.reader_.read(X, model)
    check_shape(name, X, model.net_.input_shape)
    check_consistent_length(X, y)
    return X


def _read_memory(estimator, model, memory, classes):
    """Return former samples as the net reads them, and their classes."""
    if len(memory) != 2 or any(part is None for part in memory):
        raise ValueError(
            "memory must be a tuple (X, y) of former samples and their labels, got "
            f"{len(memory)} parts{' of which one is None' if len(memory) == 2 else ''}."
        )
    y = check_y(memory[1], "the labels of memory")
    X = _read(model, final_model(estimator, memory[0])[1], y, "memory")
    return X, np.searchsorted(classes, model.classes_)[
        encode(y, model.classes_, "the labels of memory")
    ]


def _weighted(class_weight, X, y, weight, memory, classes):
    """Return new and former samples, labels and weights, without samples of weight zero."""
    weight = scaled(weight)
    weight /= weight[weighty(weight)].mean()
    all_y, all_weights = y, weight
    if memory is not None:
        all_y = np.concatenate([y, memory[1]])
        all_weights = np.concatenate([weight, np.ones(len(memory[1]))])
    of_class = class_weights(class_weight, all_y, all_weights, classes)

    def without_zeros(X, y, weight):
        weight = weight * of_class[y]
        rows = weighty(weight)
        return (X, y, weight) if len(rows) == len(y) else (X[rows], y[rows], weight[rows])

    if memory is not None:
        memory = without_zeros(*memory, np.ones(len(memory[1])))
    return without_zeros(X, y, weight), memory


def _classes(former, y):
    """Return the sorted classes of a mixture and of new labels."""

    def is_text(labels):
        return labels.dtype.kind in "OSU"

    if is_text(former) != is_text(y):
        raise ValueError(
            f"The labels must be of the type of the former classes {former.tolist()}, got "
            f"{y[0]!r}."
        )
    return np.unique(np.concatenate([former, y]))


def _summary_of_former(model, memory, n_of_class):
    """Return a summary of the former samples; without one, memory stands for so many per class."""
    summary, gate = model.input_summary_, model.module_.gate
    if gate.stages is not None:
        names = "means", "directions", "variances", "log_weights"
        *arrays, log_weights = (getattr(gate, name).cpu().numpy() for name in names)
        return InputSummary(*arrays, np.exp(log_weights), float(gate.remaining))
    if summary is None and memory is not None:
        summary = summarize(model.net_, *memory)
        if summary is not None:
            share = summary.counts / np.unique(memory[1], return_counts=True)[1]
            summary = replace(summary, counts=share * np.float32(n_of_class))
    if summary is None:
        raise ValueError(
            "The mixture has no summary of its former samples, as after partial_fit or if samples "
            "have very many numbers. Pass some of them: memory=(X_old, y_old)."
        )
    return summary


def _stages(model, old, new):
    """Return the stage of each normal distribution."""
    gate = model.module_.gate
    former = [0] * len(old.counts)
    if gate.stages is not None:
        former = gate.stages.tolist()
    return [*former, *[max(former) + 1] * len(new.counts)]


def _add(net, n_new, former, classes, stages, summary, seed):
    """Add experts and a stage of the gate to a net."""
    module, generator = net.module_, torch.Generator().manual_seed(seed)
    net.classes, net.n_classes = list(range(len(classes))), len(classes)
    with usual_defaults():
        shape = output_shape(module.encoder, output_shape(module.table, samples_shape(net)))
        if n_new > 0:
            change = {"n_new": n_new, "former": former, "n_classes": len(classes)}
            module.experts = add_experts(net, shape, module.experts, generator, **change)
            net.steps_["experts"].append(("grow", change))
        change = {
            "n_experts": net.n_experts,
            "n_new": n_new,
            "stages": stages,
            "n_inputs": summary.means.shape[1],
            "n_directions": summary.directions.shape[1],
        }
        size = module.experts.hidden_size
        module.gate = add_stage(net, shape, module.gate, size, generator, **change)
        net.steps_["gate"].append(("grow", change))
    module.to(net.device).eval()
    net.n_experts += n_new
    net._work = None


def _tell(gate, summary, sharpness):
    """Give a gate the normal distributions of all stages."""
    for name in ("means", "directions", "variances"):
        getattr(gate, name).copy_(torch.from_numpy(getattr(summary, name)))
    gate.log_weights.copy_(torch.from_numpy(np.log(summary.counts)))
    gate.remaining.fill_(summary.remaining)
    gate.sharpness.fill_(sharpness)


def _sharpness(x, y, weight, old):
    """Return the power of the densities with which new samples are most probably called new.

    Each half of the samples is compared with the distributions of the other half.
    """
    halves = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        halves[np.flatnonzero(y == label)[::2]] = True
    if halves.all():  # one sample of each class
        return np.exp(LOG_SHARPNESS[0])
    former, present, weights = [], [], []
    for half in (halves, ~halves):
        own = x[half], y[half], weight[half]
        new = summary_of(*own, counts_of(*own[1:]), old.directions.shape[1], old.remaining)
        rows = np.flatnonzero(~half)
        rows = rows[evenly(len(rows), SAMPLES_TO_CALIBRATE)]
        former.append(old.log_density(x[rows]))
        present.append(new.log_density(x[rows]))
        weights.append(weight[rows])
    pairs = list(zip(former, present, strict=True))

    def loss(log_sharpness):
        power = np.exp(log_sharpness)
        margins = [logsumexp(power * b, axis=1) - logsumexp(power * a, axis=1) for a, b in pairs]
        losses = np.logaddexp(0, -np.concatenate(margins))
        return np.average(losses, weights=np.concatenate(weights))

    best = minimize_scalar(loss, bounds=LOG_SHARPNESS, method="bounded").x
    return float(np.exp(best))


def _objective(net, x, sample_weight, y):
    """The likelihood, by another name: with its own, all weights would learn in closed form."""
    return likelihood(net, x, sample_weight, y)


def _train(grown, settings, X, y, weight, freeze, seed):
    """Train the new experts and the last stage of the gate, or all experts and stages."""
    net, module = grown.net_, grown.module_
    gate, table, encoder = module.gate, module.table, module.encoder
    trainable = [each for each in module.parameters() if each.requires_grad]
    fixed = [table, encoder]
    if freeze:
        gate.only_last = True
        n_new = net.steps_["gate"][-1][1]["n_new"]
        fixed += list(module.experts.parts)[:-1] if n_new else [module.experts]
        fixed += list(gate.gates)[:-1]
    for part in fixed:
        part.requires_grad_(False)
    inputs = X
    if settings["augmentation"] is None:
        inputs = net.evaluate(X, MixtureOfExperts.encode)
        module.table = module.encoder = nn.Identity()
    net.callbacks, net.train_split = [], None
    net.initialize_callbacks().initialize_history()
    net.set_params(**settings)
    net.initialize_optimizer()
    session = Session(
        net,
        inputs,
        y,
        normalize(weight),
        seed=seed,
        callbacks=usual_callbacks(grown, net.max_epochs),
        objective=_objective,
    )
    if session.run():
        raise KeyboardInterrupt("The training was interrupted; the mixture is as it was.")
    module.table, module.encoder, gate.only_last = table, encoder, False
    for parameter in trainable:
        parameter.requires_grad_(True)
    net.initialize_optimizer()
    net._work = None


def _calibrate(net, data, is_new):
    """Choose power and weights of the distributions by the likelihood of old and new samples."""
    X, y, weight = data
    gate = net.module_.gate
    groups = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    rows = np.concatenate([own[evenly(len(own), SAMPLES_TO_CALIBRATE)] for own in groups])
    X, y, weight, is_new = X[rows], y[rows], weight[rows], is_new[rows]

    def stages_and_densities(module, x):
        x = module.encode(x)
        log_proba = module.run_experts(x)[0].log_softmax(dim=2)
        read = module.for_gate(x)
        of_stages = torch.stack(module.gate.mix_stages(read)[0], dim=1)
        of_classes = (of_stages.unsqueeze(3) + log_proba.unsqueeze(1)).logsumexp(dim=2)
        density = module.gate.log_density(read.flatten(1)).unsqueeze(2)
        return torch.cat([of_classes, density.expand(-1, -1, of_classes.shape[2])], dim=1)

    n_stages = len(gate.gates)
    values = net.evaluate(X, stages_and_densities).astype(np.float64)
    of_label = values[np.arange(len(y)), :n_stages, y]
    density = values[:, n_stages:, 0]
    stages = gate.stages.cpu().numpy()
    start = gate.log_weights.cpu().numpy().astype(np.float64)
    of_new = stages == n_stages - 1
    share = np.exp(start - logsumexp(start)) @ of_new
    weight = weight * np.where(
        is_new, share / weight[is_new].sum(), (1 - share) / weight[~is_new].sum()
    )

    def loss(params):
        log_proba = log_softmax(np.exp(params[0]) * density + start + params[1:], axis=1)
        joint = logsumexp(log_proba + of_label[:, stages], axis=1)
        return -weight @ joint + RIDGE * np.square(params[1:]).sum()

    first = np.r_[np.log(gate.sharpness.item()), np.zeros(len(start))]
    bounds = [LOG_SHARPNESS, *[(None, None)] * len(start)]
    best = minimize(loss, first, method="L-BFGS-B", bounds=bounds).x
    gate.sharpness.fill_(float(np.exp(best[0])))
    gate.log_weights.copy_(torch.from_numpy(start + best[1:]))
