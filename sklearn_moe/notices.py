"""Warnings about a training: what a user should know of a fitted mixture."""

from __future__ import annotations

import math
import warnings

from sklearn.base import BaseEstimator

from sklearn_moe.measures import usage_entropy

# Log-odds that change by more than this, per standard deviation of a column, say that the column
# separates the classes.
LARGEST_COEFFICIENT = 15


def warn_of_news(estimator: BaseEstimator, news: dict[int, str]) -> None:
    """Warn about columns with values that the encoding, which is kept, does not know."""
    told = getattr(estimator, "_told", [])
    for column in sorted(set(news) - set(told)):
        name = getattr(estimator, "feature_names_in_", range(estimator.n_features_in_))[column]
        warnings.warn(
            f"Column {name!r} {news[column]}. partial_fit and warm starts keep the encoding "
            "of the first training. Start with more of the data, or fit anew.",
            stacklevel=7,
        )
    estimator._told = sorted(set(told) | set(news))


def warn_of_collapse(estimator: BaseEstimator) -> None:
    """Warn if nearly all samples go to one expert."""
    usage = estimator.expert_usage_
    if estimator.expert_names_ is not None:
        return  # one model may well be the best for all
    if usage_entropy([usage]) < 0.1 * math.log2(len(usage)):
        warnings.warn(
            f"The gate has collapsed: expert {usage.argmax()} answers for {usage.max():.0%} "
            "of the training samples. Use a regularization that spreads the work, such as "
            "regularization='importance' or 'sample_similarity', or fewer experts.",
            stacklevel=6,  # at the user's call
        )


def warn_of_disagreement(estimator: BaseEstimator) -> None:
    """Warn if no other restart has found the same decomposition as the best."""
    if estimator.init_scores_ is None or estimator.n_experts == 1:
        return
    agreement, n_init = estimator.init_agreement_, len(estimator.init_scores_)
    if agreement is None or agreement < 0.8:
        found = "no other restart comes near its score"
        if agreement is not None:
            found = (
                "those with nearly its score divide the samples differently (adjusted Rand "
                f"index {agreement:.2f})"
            )
        warnings.warn(
            f"The best of {n_init} restarts may not be the best decomposition: {found}. Raise "
            "n_init, give the gate columns of its own (gate_features), or take fewer experts.",
            stacklevel=6,  # at the user's call
        )


def warn_of_separation(estimator: BaseEstimator) -> None:
    """Warn if a coefficient of linear experts without a penalty has grown without bound."""
    experts = estimator.module_.experts
    if not (experts.is_linear and experts.l2 == experts.l1 == 0):
        return
    weight = experts.weight.detach()
    size = weight.amax(dim=1) - weight.amin(dim=1)
    if size.max() > LARGEST_COEFFICIENT:
        expert, column = divmod(int(size.argmax()), size.shape[1])
        columns = estimator.module_.expert_columns
        column = column if columns is None else int(columns[column])
        if estimator.encoder_ is not None:
            names = getattr(estimator, "feature_names_in_", None)
            column = estimator.encoder_.get_feature_names_out(names)[column]
        warnings.warn(
            f"The coefficient of column {column!r} in expert {expert} has grown to "
            f"{size.max():.0f} per standard deviation: the column separates the classes "
            "there. Pass experts=LinearExperts(l2=1e-4), which keeps coefficients finite.",
            stacklevel=6,  # at the user's call
        )
