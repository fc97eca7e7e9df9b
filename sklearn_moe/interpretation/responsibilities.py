"""Which expert a sample comes from, given its class, too."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sklearn_moe.checks import check_y, encode
from sklearn_moe.containers import as_eager
from sklearn_moe.decomposition import final_model
from sklearn_moe.groups import posterior, read_groups

# Gate probabilities within a group that differ by more than this are not the same.
ROUNDING = 1e-4


def responsibilities(
    estimator: BaseEstimator, X: ArrayLike, y: ArrayLike, *, groups: ArrayLike | None = None
) -> NDArray[np.float64]:
    r"""Return how probable each expert is for a sample whose class is known.

    The gate says which expert answers for a sample before its class is known. The responsibilities
    are the probabilities of the experts afterwards, by Bayes' rule:

    .. math:: r_{ne} = P(e \mid x_n, y_n)
              = \frac{p_{ne}\, o_{ne}(y_n)}{\sum_f p_{nf}\, o_{nf}(y_n)}

    with the gate's probabilities :math:`p_{ne}` and the probabilities :math:`o_{ne}(y_n)` that the
    experts give the class. They are computed with logarithms, so that nothing is rounded to 0 on
    the way. With ``groups``, all samples of a group come from one expert, as in
    :meth:`MoEClassifier.fit`, and the probabilities of their classes are multiplied:

    .. math:: r_{ge} \propto p_{ge} \prod_{n \in g} o_{ne}(y_n)

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier``, a pipeline that ends in one, or a search with such a
        ``best_estimator_``.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Their labels.
    groups : array-like of shape (n_samples,), default=None
        Labels of groups, all samples of which come from one expert, such as the visits of a
        patient. The gate must give all samples of a group the same probabilities.

    Returns
    -------
    ndarray of shape (n_samples, n_experts)
        Probabilities; rows sum to 1. The rows of a group are equal.

    Raises
    ------
    ValueError
        If ``y`` has labels that the estimator does not know, the gate's probabilities vary within
        a group, or the mixture has ``mixing="logit"``: its experts are not the alternatives of a
        probability, and have no responsibilities.

    See Also
    --------
    sample_entropy : Their mean entropy says how far the class reveals the expert.
    MoEClassifier.gate_proba : The probabilities before the class is known.

    References
    ----------
    R. A. Jacobs, M. I. Jordan, S. J. Nowlan, G. E. Hinton, Adaptive Mixtures of Local Experts,
    Neural Computation 3, 1991.

    Examples
    --------
    How unsure the expert is, in bits, before and after the class is known:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, responsibilities, sample_entropy
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(3, max_iter=5, random_state=0).fit(X, y)
    >>> before = sample_entropy(clf.gate_proba(X))
    >>> after = sample_entropy(responsibilities(clf, X, y))
    >>> bool(after < before)
    True
    """
    X = as_eager(X)
    model, samples = final_model(estimator, X)
    check_is_fitted(model)
    if model.net_.mixing == "logit":
        raise ValueError(
            "responsibilities needs mixing='probability'. With mixing='logit' the logits of the "
            "experts are averaged, so that no expert is the origin of a class."
        )
    y = check_y(y)
    encode(y, model.classes_, "y")  # raises an error for unknown labels
    log_likelihood = model.expert_log_likelihood(samples, y).astype(np.float64)
    rows = model.reader_.read(samples, model)
    gate_log_proba = model.net_.evaluate(
        rows, lambda module, x: module.route(x).log_proba, np.float64
    )
    if groups is None:
        return posterior(gate_log_proba, log_likelihood)
    group, labels = read_groups(groups, rows)
    _check_same(np.exp(gate_log_proba), group, labels)
    return posterior(gate_log_proba, log_likelihood, group)


def _check_same(gate_proba, group, labels):
    """Raise an error if the gate's probabilities vary within a group."""
    low, high = np.full((2, len(labels), gate_proba.shape[1]), np.nan)
    np.fmin.at(low, group, gate_proba)
    np.fmax.at(high, group, gate_proba)
    varies = (high - low > ROUNDING).any(axis=1)
    if varies.any():
        raise ValueError(
            f"The gate gives the samples of the group {labels.tolist()[varies.argmax()]!r} "
            "different probabilities, so no expert owns the whole group. Fit the mixture with "
            "groups, or with gate_features that are constant within each group."
        )
