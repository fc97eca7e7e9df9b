"""Pruning: fewer experts for a mixture that has been trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from sklearn_moe.decomposition import with_last
from sklearn_moe.expert_scores import gate_weights, name_of_gate, scores_of
from sklearn_moe.grouping import cka, divergence, group_experts, shares_of
from sklearn_moe.hidden_pruning import check_hidden, group_similar, keep_highest
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.shrinking import (
    ShrinkingReport,
    check_labels_to_fine_tune,
    compared,
    describe,
    fitted_mixture,
    read_samples,
    train_on,
)
from sklearn_moe.training.batches import evenly
from sklearn_moe.training.callbacks import AnnealTopK

# Experts, and the units of experts, are compared on at most this many evenly spaced samples.
SAMPLES_TO_COMPARE = 8192
SAMPLES_TO_MATCH_UNITS = 2048


@validate_params(
    {
        "method": [StrOptions({"similarity", "router_norm", "heavy_hitters", "random"})],
        "n_experts": [Interval(Integral, 1, None, closed="left"), None],
        "n_hidden_experts": [Interval(Integral, 1, None, closed="left"), None],
        "similarity": [StrOptions({"outputs", "cka", "weights", "gate"})],
        "reduce": [StrOptions({"auto", "merge", "keep"})],
        "counting": [StrOptions({"soft", "hard"})],
        "stratified": ["boolean"],
        "fine_tune": ["boolean"],
        "top_k": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=False,
)
def prune_experts(
    estimator: BaseEstimator,
    *,
    method: str,
    n_experts: int | None = None,
    n_hidden_experts: int | None = None,
    X: ArrayLike | None = None,
    y: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    similarity: str = "outputs",
    reduce: str = "auto",
    counting: str = "soft",
    stratified: bool = False,
    fine_tune: bool = False,
    regularization: str | Callable | Sequence | None = "entropy",
    top_k: int | None = None,
    max_iter: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> BaseEstimator:
    r"""Prune a fitted mixture of experts to fewer experts.

    After training, some experts often do the same, or next to nothing. Without them the mixture is
    smaller and, if all experts run, faster. The method decides which experts are removed or
    merged:

    - *similarity* groups experts that are alike, without labels, and replaces each group by one
      expert. This expert gets all samples of the group, unless the gate is attentive, which scores
      hidden vectors. The distance of two experts is the mean divergence of their probabilities
      :math:`o` over the samples ``X`` that the gate gives them ("outputs"), 1 minus the linear
      centred kernel alignment of their logits :math:`F`, samples by classes ("cka"), the squared
      distance of their weights :math:`\theta`, with the hidden units in the order :math:`\pi` in
      which they match best ("weights"), or that of their weights in the gate ("gate"):

      .. math:: d_{ef}^\mathrm{outputs} &=
                \frac{\sum_n (p_{ne} + p_{nf})\, \mathrm{JS}(o_{ne}, o_{nf})}
                {\sum_n (p_{ne} + p_{nf})}, \qquad
                & d_{ef}^\mathrm{cka} &= 1 - \frac{\lVert F_e^T F_f \rVert^2}
                {\lVert F_e^T F_e \rVert\, \lVert F_f^T F_f \rVert}, \\
                d_{ef}^\mathrm{weights} &=
                \min_\pi \lVert \theta_e - \pi(\theta_f) \rVert^2, \qquad
                & d_{ef}^\mathrm{gate} &= \lVert w_e - w_f \rVert^2.

      The groups :math:`a, b`, with usages :math:`u`, are joined first if their mean distance times
      :math:`u_a u_b / (u_a + u_b)` is the smallest.
    - *router_norm* needs no data. It keeps the experts whose weights in the gate grew most in
      training, by :math:`\lVert w_e \rVert - \lVert w_e^\mathrm{start} \rVert`.
    - *heavy_hitters* keeps the experts to which the gate gives most of the samples ``X``.
      ``counting="soft"`` adds up the gate's probabilities :math:`q` before top-k masking; "hard"
      counts the samples for which an expert is among the top k.
    - *random* keeps a random choice: the baseline that a method has to beat.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
        ``best_estimator_``. It is not changed.
    method : {"similarity", "router_norm", "heavy_hitters", "random"}
        How the experts are chosen.
    n_experts : int, default=None
        How many experts to keep, at least as many as answer for a sample. None, or the present
        number, changes nothing.
    n_hidden_experts : int, default=None
        How many experts to keep in all hidden layers together (see ``MoELayers``). One ranking of
        the experts of all layers decides, or one sequence of joins that are relative to the mean
        distance in a layer; each layer keeps as many as answer for a sample, of zero-computation
        experts one ordinary expert. The outputs of hidden experts are vectors: "outputs" is their
        mean squared distance. None changes nothing.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...), default=None
        Samples, such as the training samples. All methods except "router_norm" and "random" need
        them, "similarity" only for ``similarity="outputs"`` and "cka". With samples, the report
        says how often the prediction stays the same.
    y : array-like of shape (n_samples,), default=None
        Labels, for the errors in the report, ``stratified`` and ``fine_tune``.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in the fine-tuning, at least 0.
    similarity : {"outputs", "cka", "weights", "gate"}, default="outputs"
        How experts are compared: "outputs" by their predictions for their own samples, "cka" by
        their logits for all samples, up to rotation, sign and scale. "weights" and "gate" need no
        samples: "weights" compares the weights of ``MLPExperts`` or ``LinearExperts``, "gate" the
        vectors with which the last layer of the gate scores the experts (not those of an attentive
        gate, which has none for each expert).
    reduce : {"auto", "merge", "keep"}, default="auto"
        What replaces a group of similar experts: "merge" takes the mean of their weights, weighted
        by usage, after matching their hidden units on ``X``; "keep" takes the most used expert.
        "auto" merges ``MLPExperts``, and keeps the most used of all others, which cannot be
        merged, and without ``X``.
    counting : {"soft", "hard"}, default="soft"
        How heavy hitters are counted.
    stratified : bool, default=False
        Whether to count heavy hitters within each class and to use only an expert's best class, so
        that the experts of rare classes are kept.
    fine_tune : bool, default=False
        Whether to train the pruned mixture, with ``regularization``, on samples of all classes.
        The number of experts that answer for a sample falls to ``top_k`` over the first half of
        the training, but not below two, because a gate that takes one would train all experts.
        With ``top_k=1``, it falls to one after the training.
    regularization : str, object, list of these or None, default="entropy"
        The penalties of the fine-tuning, as in ``MoEClassifier``.
    top_k : int, default=None
        How many experts answer for a sample after the fine-tuning; None means 1.
    max_iter : int, default=None
        Number of epochs of the fine-tuning; None takes that of the estimator. ``net_params``
        override it, as in ``fit``.
    random_state : int, RandomState instance or None, default=None
        Seed of the method "random".

    Returns
    -------
    MoEClassifier or Pipeline
        A new fitted ``MoEClassifier`` with fewer experts, or the pipeline with it as last step.
        Its ``report_`` is the :class:`PruningReport`. Its ``expert_usage_`` is measured on ``X``;
        without ``X``, it is the former usage of the remaining experts, scaled to sum to 1. After
        fine-tuning, its parameters are those of the fine-tuning: ``gate`` with the new ``top_k``,
        ``regularization``, ``max_iter``, and no early stopping.

    Raises
    ------
    ValueError
        If neither ``n_experts`` nor ``n_hidden_experts`` is given, if one of them is larger than
        the number of experts or smaller than the number of experts that answer for a sample,
        data that the method needs are missing or not valid, the method makes no sense for this
        gate or these experts, a parameter of the fine-tuning is given without it, or a parameter
        is not valid.

    Notes
    -----
    "similarity" follows the idea of the first reference, as its abstract and other papers describe
    it: experts with similar outputs are replaced, together with their part of the gate, by one
    expert. "outputs", the squared distances of "weights" and "gate", the way of joining groups and
    the weights of the mean are this package's. Experts with several hidden layers have their units
    matched in one layer after the other, so the distance of their weights need not be the smallest
    of all orders. A group gets the sum of its members' gate probabilities. So the gate keeps its
    size, and a k-means gate is no longer refitted; an attentive gate has nothing to sum. In the
    second reference, pruned experts still take their share of the softmax; here the probabilities
    of the remaining experts sum to 1.

    A pruned mixture that is fitted again, or cloned and fitted, is an ordinary mixture with
    ``n_experts`` experts, if the experts' own parameters allow so many.

    References
    ----------
    Z. Zhang, X. Liu, H. Cheng, C. Xu, J. Gao, Diversifying the Expert Knowledge for Task-Agnostic
    Pruning in Sparse Mixture-of-Experts, 2024, arXiv 2407.09590 (similarity).

    M. N. R. Chowdhury, M. Wang, K. El Maghraoui, N. Wang, P.-Y. Chen, C. Carothers, A Provably
    Effective Method for Pruning Experts in Fine-tuned Sparse Mixture-of-Experts, 2024, arXiv
    2405.16646 (router norm).

    A. Muzio, A. Sun, C. He, SEER-MoE: Sparse Expert Efficiency through Regularization for
    Mixture-of-Experts, 2024, arXiv 2404.05089 (heavy hitters and fine-tuning).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, prune_experts
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=6, regularization="importance", random_state=0).fit(X, y)
    >>> pruned = prune_experts(clf, method="similarity", n_experts=2, X=X, y=y)
    >>> pruned.n_experts, pruned.n_parameters_ < clf.n_parameters_
    (2, True)
    >>> print(pruned.report_)  # doctest: +ELLIPSIS
    Pruned from 6 to 2 experts by similarity.
    ...
    """
    model, samples, y = fitted_mixture(estimator, X, y)
    if n_experts is None and n_hidden_experts is None:
        raise ValueError("Pass n_experts, n_hidden_experts, or both.")
    present, only_hidden = model.net_.n_experts, n_experts is None
    n_experts = present if n_experts is None else n_experts
    if n_hidden_experts is not None:
        check_hidden(model, n_hidden_experts)
    _check(model, method, n_experts, y, stratified=stratified)
    if X is None:
        _check_without_samples(method, similarity, reduce)
    if fine_tune:
        _check_fine_tuning(model, n_experts, y, top_k)
    elif not all(each is None for each in (top_k, max_iter, sample_weight)):
        raise ValueError("top_k, max_iter and sample_weight belong to fine_tune=True.")

    encoded = None if X is None else read_samples(model, samples)
    random_state, labels = check_random_state(random_state), y if stratified else None
    if only_hidden:
        groups, scores = [[expert] for expert in range(present)], np.full(present, np.nan)
    elif method == "similarity":
        groups, scores = _similar(model, encoded, n_experts, similarity)
    else:
        scores = scores_of(model.net_, method, encoded, labels, counting, random_state)
        groups = [[int(e)] for e in np.sort(np.argsort(-scores, kind="stable")[:n_experts])]

    pruned = deepcopy(model)
    if n_experts < present:
        if pruned.expert_names_ is not None:  # a list for this table stays so without some
            numbers_only = np.zeros(model.n_features_in_, dtype=bool)
            is_categorical = getattr(model.reader_, "is_categorical", numbers_only)
            pruned.net_.experts = pruned.net_.experts.for_table(is_categorical)
        if method == "similarity":
            _reduce(pruned, groups, scores, encoded, reduce)
        else:
            pruned.net_.keep([expert for (expert,) in groups])
        pruned.n_experts = pruned.net_.n_experts = n_experts
        if pruned.expert_names_ is not None:
            pruned.reader_.keep(pruned.expert_names_)
            listed = pruned.net_.experts
            is_list = isinstance(pruned.experts, (list, tuple))
            pruned.experts = listed.estimators if is_list else listed
        usage = np.array([model.expert_usage_[group].sum() for group in groups])
        pruned.expert_usage_ = usage / usage.sum() if usage.any() else np.full(n_experts, np.nan)
    hidden_groups = None
    if n_hidden_experts is not None:
        if method == "similarity":
            hidden_groups = group_similar(
                pruned.net_, encoded, n_hidden_experts, similarity, reduce
            )
        else:
            of_layers = [
                scores_of(model.net_, method, encoded, labels, counting, random_state, layer)
                for layer in range(len(model.module_.layers))
            ]
            hidden_groups = keep_highest(pruned.net_, of_layers, n_hidden_experts)
    if n_experts < present or hidden_groups is not None:
        pruned.net_.initialize_optimizer()
        describe(pruned, samples)
    if fine_tune:
        _fine_tune(pruned, samples, y, sample_weight, regularization, top_k or 1, max_iter)
    pruned.report_ = PruningReport(
        **compared(model, pruned, samples, y),
        method=method,
        groups=groups,
        scores=scores,
        expert_names=model.expert_names_,
        hidden_groups=hidden_groups,
    )
    return with_last(estimator, pruned)


def _check(model, method, n_experts, y, *, stratified):
    """Check that the parameters fit together."""
    gate, present = model.module_.gate, model.net_.n_experts
    if n_experts > present:
        raise ValueError(
            f"n_experts={n_experts} must not be larger than {present}, the present number of "
            "experts."
        )
    if gate.top_k is not None and n_experts < gate.top_k:
        raise ValueError(
            f"n_experts={n_experts} must be at least {gate.top_k}, the number of experts that the "
            f"gate {model.net_.gate!r} takes for a sample."
        )
    if method == "heavy_hitters" and stratified and y is None:
        raise ValueError("stratified=True needs labels. Pass y.")


def _check_without_samples(method, similarity, reduce):
    if method == "heavy_hitters":
        raise ValueError("method='heavy_hitters' needs samples. Pass X.")
    if method == "similarity" and similarity in ("outputs", "cka"):
        raise ValueError(
            f"similarity={similarity!r} needs samples. Pass X, or similarity='weights' or 'gate'."
        )
    if method == "similarity" and reduce == "merge":
        raise ValueError("reduce='merge' needs samples. Pass X, or reduce='keep'.")


def _check_fine_tuning(model, n_experts, y, top_k):
    check_labels_to_fine_tune(model, y)
    if top_k is not None and top_k > n_experts:
        raise ValueError(f"top_k={top_k} must not be larger than n_experts={n_experts}.")
    gate = model.net_.gate
    if not (isinstance(gate, BaseEstimator) and "top_k" in gate.get_params()):
        raise ValueError(
            "fine_tune=True needs a gate with a parameter top_k that learns by gradients, got "
            f"gate={gate!r}."
        )


def _similar(model, X, n_experts, similarity):
    """Return groups of similar experts, the most used of each first, and the usage of all."""
    usage = np.nan_to_num(model.expert_usage_)
    if X is not None:
        X = X[evenly(len(X), SAMPLES_TO_COMPARE)]
        gate_proba = model.net_.evaluate(X, MixtureOfExperts.gate_proba).astype(np.float64)
        usage = gate_proba.mean(axis=0)
    if similarity == "weights":
        distance = model.module_.experts.distances().numpy()
    elif similarity == "gate":
        weights = gate_weights(model.module_.gate, name_of_gate(model.net_))
        distance = cdist(weights, weights, "sqeuclidean")
    else:
        logits = model.net_.evaluate(X, MixtureOfExperts.expert_logits).astype(np.float64)
        if similarity == "cka":
            # The softmax does not depend on the mean of a sample's logits; neither should CKA.
            distance = 1 - cka(logits - logits.mean(axis=2, keepdims=True))
        else:
            distance = divergence(softmax(logits, axis=2), gate_proba)
    groups = [
        sorted(group, key=lambda expert: -usage[expert])
        for group in group_experts(distance, usage, n_experts)
    ]
    return sorted(groups), usage


def _reduce(pruned, groups, usage, X, reduce):
    """Replace each group by one expert, to which all the samples of the group go."""
    net = pruned.net_
    can_merge = net.module_.experts.can_merge and X is not None
    if reduce == "keep" or (reduce == "auto" and not can_merge):
        net.merge(groups)
        return
    shares = shares_of(groups, usage)
    X = X[evenly(len(X), SAMPLES_TO_MATCH_UNITS)]
    x = net.evaluate(X, MixtureOfExperts.encode)
    net.merge(groups, shares, torch.from_numpy(x).to(net.device))


def _fine_tune(pruned, X, y, sample_weight, regularization, top_k, max_iter):
    """Train a pruned mixture, while fewer and fewer of its experts answer for a sample."""
    net = pruned.net_
    pruned.set_params(gate=clone(net.gate).set_params(top_k=top_k))
    net.gate, gate = pruned.gate, net.module_.gate
    # A gate that takes one expert was trained with all of them, so the fine-tuning starts there.
    first = net.n_experts if gate.top_k in (None, 1) else gate.top_k
    annealing = ("anneal_top_k", AnnealTopK(first, top_k))
    net.callbacks_.append(annealing)
    net.take(top_k)
    net.module_.experts.check_gate(gate)
    train_on(pruned, X, y, sample_weight, regularization, max_iter)
    callbacks = [each for each in pruned.net_.callbacks_ if each[0] != annealing[0]]
    pruned.net_.callbacks_ = callbacks


@dataclass(frozen=True, eq=False, repr=False)
class PruningReport(ShrinkingReport):
    """A mixture before and after :func:`prune_experts`; printing it shows a table.

    Attributes
    ----------
    error_before, error_after : float or None
        Share of the samples with a wrong prediction; None without labels.
    agreement : float or None
        Share of the samples for which both predict the same class; None without samples.
    n_parameters_before, n_parameters_after : int
        Number of parameters.
    cost_before, cost_after : float or None
        Mean multiply-adds of the experts that run for a sample, in hidden layers, too; None
        without samples, or if there are classifiers of scikit-learn among the experts.
    method : str
        The method that chose the experts.
    groups : list of list of int
        For each remaining expert, the former experts that it stands for. With
        ``method="similarity"``, each former expert is in one group, and the most used of each
        group comes first; otherwise a group is the former number of the expert alone.
    scores : ndarray of shape (n_experts,)
        For each former expert, the number that decided: its usage for similarity, the growth of
        its norm, its count, or a random number. NaN if only hidden layers were pruned.
    expert_names : list of str or None
        Names of the former experts, if ``experts`` was a list.
    hidden_groups : list of list of list of int, or None
        The groups of each hidden layer, if hidden layers were pruned.
    """

    method: str
    groups: list[list[int]]
    scores: NDArray[np.float64]
    expert_names: list[str] | None = None
    hidden_groups: list[list[list[int]]] | None = None

    def __repr__(self) -> str:
        n_before, n_after, names = len(self.scores), len(self.groups), self.expert_names
        n_hidden = sum(map(len, self.hidden_groups or ()))
        hidden = f", and to {n_hidden} in hidden layers," if n_hidden else ""
        method = self.method.replace("_", " ")
        lines = [
            f"Pruned from {n_before} to {n_after} experts{hidden} by {method}.",
            "",
            *self._table(),
            "",
            "expert  was",
        ]
        for expert, group in enumerate(self.groups):
            former = map(str, group if names is None else [names[each] for each in group])
            lines.append(f"{expert:6}  {', '.join(former)}")
        if names is not None:
            gone = sorted(set(range(n_before)) - {group[0] for group in self.groups})
            lines += ["", f"Gone: {', '.join(names[expert] for expert in gone) or 'none'}."]
        for number, groups in enumerate(self.hidden_groups or ()):
            kept = "; ".join(", ".join(map(str, group)) for group in groups)
            lines += ["", f"hidden layer {number} was  {kept}"]
        return "\n".join(lines)
