"""Compression: trained experts that share most of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral

import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, validate_params

from sklearn_moe.decomposition import with_last
from sklearn_moe.experts.mpo import compress_mlp
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
from sklearn_moe.training.defaults import usual_defaults

# The inputs of the layers are measured on at most this many evenly spaced samples.
SAMPLES_TO_MEASURE_INPUTS = 2048


@validate_params(
    {
        "bond": [Interval(Integral, 1, None, closed="left"), None],
        "n_tensors": [Interval(Integral, 2, None, closed="left")],
        "fine_tune": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
    },
    prefer_skip_nested_validation=False,
)
def compress_experts(
    estimator: BaseEstimator,
    X: ArrayLike | None = None,
    y: ArrayLike | None = None,
    *,
    bond: int | None,
    n_tensors: int = 3,
    sample_weight: ArrayLike | None = None,
    fine_tune: bool = False,
    regularization: str | Callable | Sequence | None = "auto",
    max_iter: int | None = None,
) -> BaseEstimator:
    r"""Compress the trained experts of a mixture: they share most of each hidden layer.

    Fully connected experts become :class:`MPOExperts`. The matrix :math:`W_e` of each hidden layer
    becomes a chain of small tensors, of which the experts share the central one, :math:`C`. First
    the hidden units of each expert are brought into an order in which its weights are most like
    those of the first expert. Successive SVDs of the mean matrix of the experts, truncated to
    ``bond``, are where all experts start from. Then the tensors of all experts are fitted jointly,
    by L-BFGS:

    .. math:: \min_{C,\, T_{e1}, \ldots, T_{en}} \; \sum_e
              \lVert (W_e - T_{e1} \cdots C \cdots T_{en})\, S_e^{1/2} \rVert^2, \qquad
              S_e = \frac{1}{N} \sum_n p_{ne}\, h_{ne} h_{ne}^T

    With samples, :math:`h_{ne}` is what the layer of expert :math:`e` reads for sample :math:`n`,
    and :math:`p_{ne}` are the gate probabilities: the outputs of the layers are kept where the
    experts are used. Without samples, :math:`S_e` is the identity, and the weights are kept. The
    biases and the last layer stay as they are.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier`` with ``MLPExperts``, a pipeline that ends in one, or a search
        with such a ``best_estimator_``. It is not changed.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...), default=None
        Samples, such as the training samples. They need no labels. With a small ``bond``, much
        less accuracy is lost with them.
    y : array-like of shape (n_samples,), default=None
        Labels, for the errors in the report and for ``fine_tune``.
    bond : int or None
        Largest rank between two neighbouring tensors; a smaller rank means fewer parameters. None
        keeps all ranks.
    n_tensors : int, default=3
        Number of tensors of a layer, at least 2.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in the fine-tuning, at least 0.
    fine_tune : bool, default=False
        Whether to train the compressed mixture on samples of all classes.
    regularization : str, object, list of these or None, default="auto"
        The penalties of the fine-tuning, as in ``MoEClassifier``.
    max_iter : int, default=None
        Number of epochs of the fine-tuning; None takes that of the estimator. ``net_params``
        override it, as in ``fit``.

    Returns
    -------
    MoEClassifier or Pipeline
        A new fitted ``MoEClassifier`` with :class:`MPOExperts` as its ``experts``, or the pipeline
        with it as last step. Its ``report_`` is the :class:`CompressionReport`. With ``X``, its
        ``expert_usage_`` and ``feature_importances_`` are measured there. After fine-tuning, its
        parameters are those of the fine-tuning: ``regularization``, ``max_iter``, and no early
        stopping.

    Raises
    ------
    ValueError
        If the experts are not ``MLPExperts`` with a hidden layer, the data or a parameter are not
        valid, labels for the fine-tuning are missing, or a parameter of the fine-tuning is given
        without it.

    Notes
    -----
    The reference decomposes one matrix, of which all experts start as copies, and then trains
    them. Here the experts are different already. Means over the experts of the central tensors of
    separate decompositions would be of no use, because each expert has its tensors in a basis of
    its own; hence the joint fit. It is exact for a single expert with all ranks, and for experts
    that are equal up to the order of their units. Otherwise something is lost even with
    ``bond=None``, because a shared tensor cannot hold all differences.

    A gate that reads the experts' hidden vectors needs them in their order; there the units keep
    it. The compressed mixture computes its outputs with full matrices, so this saves parameters,
    not time. A compressed mixture that is fitted again, or cloned and fitted, is an ordinary
    mixture of :class:`MPOExperts`.

    See Also
    --------
    MPOExperts : Experts that are trained in this form from the start.
    prune_experts : Leaves fewer experts.

    References
    ----------
    Z.-F. Gao, P. Liu, W. X. Zhao, Z.-Y. Lu, J.-R. Wen, Parameter-Efficient Mixture-of-Experts
    Architecture for Pre-trained Language Models, 2022, arXiv 2203.01104.

    S. K. Ainsworth, J. Hayase, S. Srinivasa, Git Re-Basin: Merging Models modulo Permutation
    Symmetries, 2022, arXiv 2209.04836 (the order of the units).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, compress_experts
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(n_experts=6, random_state=0).fit(X, y)
    >>> compressed = compress_experts(clf, X, y, bond=16)
    >>> compressed.experts
    MPOExperts(bond=16)
    >>> compressed.n_parameters_ < clf.n_parameters_
    True
    >>> print(compressed.report_)  # doctest: +ELLIPSIS
    Compressed 6 experts to tensors of which they share the largest.
    ...
    """
    model, samples, y = fitted_mixture(estimator, X, y)
    if fine_tune:
        check_labels_to_fine_tune(model, y)
    elif max_iter is not None or sample_weight is not None:
        raise ValueError("max_iter and sample_weight belong to fine_tune=True.")
    compressed = deepcopy(model)
    net, module = compressed.net_, compressed.module_
    inputs = None if X is None else _inputs(net, read_samples(model, samples))
    with usual_defaults():
        compressed.experts, module.experts, errors = compress_mlp(
            module.experts,
            n_tensors=n_tensors,
            bond=bond,
            inputs=inputs,
            align=not module.gate.needs_hidden,
        )
    module.to(net.device).eval()
    net.experts = compressed.experts
    net.steps_["experts"] = [("build", (net.n_experts, net.n_classes))]
    net.initialize_optimizer()
    net._work = None
    describe(compressed, samples)
    if fine_tune:
        train_on(compressed, samples, y, sample_weight, regularization, max_iter)
    compressed.report_ = CompressionReport(
        **compared(model, compressed, samples, y), n_experts=net.n_experts, layer_errors=errors
    )
    return with_last(estimator, compressed)


def _inputs(net, X):
    """Return samples as the experts read them, and the probabilities of the gate."""
    X = X[evenly(len(X), SAMPLES_TO_MEASURE_INPUTS)]
    x = net.evaluate(X, lambda module, x: module.for_experts(module.encode(x)))
    return torch.from_numpy(x), torch.from_numpy(net.evaluate(X, MixtureOfExperts.gate_proba))


@dataclass(frozen=True, eq=False, repr=False)
class CompressionReport(ShrinkingReport):
    """A mixture before and after :func:`compress_experts`; printing it shows a table.

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
        without samples.
    n_experts : int
        Number of experts.
    layer_errors : list of float
        For each hidden layer, the error of the decomposition, before the fine-tuning: its root
        mean square, relative to that of the layer's outputs without biases. Without samples, it is
        the error of the weights, relative to the weights.
    """

    n_experts: int
    layer_errors: list[float]

    def __repr__(self) -> str:
        errors = ", ".join(f"{error:.2f}" for error in self.layer_errors)
        of_what = "weights" if self.agreement is None else "outputs"
        return "\n".join(
            [
                f"Compressed {self.n_experts} experts to tensors of which they share the largest.",
                "",
                *self._table(),
                f"Relative error of the {of_what} of each hidden layer: {errors}.",
            ]
        )
