"""How many experts: fit a mixture with each number, and compare them by criteria."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import joblib
import numpy as np
from joblib import delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, check_cv
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params, _num_samples, check_memory, indexable

from sklearn_moe.containers import as_eager
from sklearn_moe.decomposition import final_model
from sklearn_moe.fitted import is_mixture
from sklearn_moe.groups import log_likelihood_of_groups, read_groups
from sklearn_moe.measures import usage_entropy
from sklearn_moe.model_selection.search import values_of
from sklearn_moe.model_selection.tune import fit_params
from sklearn_moe.parallel import run_all
from sklearn_moe.parameters import has_linear_experts, listed_experts

CRITERIA = {"aic": "AIC", "bic": "BIC", "icl": "ICL", "log_loss": "log loss"}
"""The criteria by their names; of each, lower is better."""

# What a mixture needs for a likelihood that can be compared.
LIKELIHOOD = "the likelihood of linear experts under a soft gate without a backbone"


@dataclass(frozen=True, eq=False, repr=False)
class NExpertsChoice:
    """The result of :func:`choose_n_experts`; it prints a table.

    It can take the place of a fitted estimator in :func:`decomposition_report`, the displays and
    all other functions that take a search.

    Attributes
    ----------
    results : dict of ndarray of shape (n_numbers,)
        A value for each number of experts, nan where there is none; ``pandas.DataFrame`` turns it
        into a table:

        - ``n_experts``, in rising order;
        - ``log_likelihood`` of the training samples in nats, ``n_parameters`` (the number of free
          parameters), ``aic``, ``bic`` and ``icl``, as ``MoEClassifier`` has them;
        - ``log_loss``, the mean over the folds in nats, and ``log_loss_error``, its standard
          error;
        - ``usage_entropy`` in bits, and ``smallest_usage``, the share of the least used expert;
        - ``n_init``, the number of restarts, and ``init_agreement``, which is nan if no other
          restart comes near the best, or if there is only one.
    chosen : dict of str to int
        The number of experts that each criterion chooses: that with the lowest value.
    criterion : str
        The criterion that decides.
    estimators : dict of int to estimator
        The mixtures, or pipelines, fitted on all samples, by their number of experts.
    """

    results: dict[str, NDArray]
    chosen: dict[str, int]
    criterion: str
    estimators: dict[int, BaseEstimator]

    @property
    def n_experts_(self) -> int:
        """The number of experts that the criterion chooses."""
        return self.chosen[self.criterion]

    @property
    def best_estimator_(self) -> BaseEstimator:
        """The estimator with this number of experts, fitted on all samples."""
        return self.estimators[self.n_experts_]

    def __repr__(self) -> str:
        numbers, columns = self.results["n_experts"], []
        for name, (label, digits) in _COLUMNS.items():
            values = self.results[name]
            if np.isnan(values).all() and not (name == "init_agreement" and _has_restarts(self)):
                continue
            texts = ["none" if np.isnan(value) else f"{value:{digits}}" for value in values]
            if name in CRITERIA:
                label += " "
                marks = ["*" if number == self.chosen[name] else " " for number in numbers]
                texts = [text + mark for text, mark in zip(texts, marks, strict=True)]
            width = max(map(len, [label, *texts])) + 2
            columns.append([f"{text:>{width}}" for text in [label, *texts]])
        lines = ["".join(row).rstrip() for row in zip(*columns, strict=True)]
        names = ", ".join(f"{CRITERIA[name]} {number}" for name, number in self.chosen.items())
        end = f"* lowest. {CRITERIA[self.criterion]} decides: {self.n_experts_} experts"
        return "\n".join([*lines, "", f"{end} ({names})."])


_COLUMNS = {
    "n_experts": ("experts", "d"),
    "log_likelihood": ("log-likelihood", ".1f"),
    "n_parameters": ("parameters", ".0f"),
    "aic": ("AIC", ".1f"),
    "bic": ("BIC", ".1f"),
    "icl": ("ICL", ".1f"),
    "log_loss": ("log loss", ".4f"),
    "log_loss_error": ("std. error", ".4f"),
    "usage_entropy": ("H_u", ".2f"),
    "smallest_usage": ("least used", ".1%"),
    "init_agreement": ("agreement", ".2f"),
}


def _has_restarts(choice):
    return (choice.results["n_init"] > 1).any()


def choose_n_experts(
    clf: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    n_experts: Iterable[int] = range(1, 9),
    *,
    criterion: str = "bic",
    cv: Any = None,
    sample_weight: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    storage: str | os.PathLike | joblib.Memory | None = None,
    n_jobs: int | None = None,
    verbose: int = 1,
) -> NExpertsChoice:
    r"""Choose the number of experts by an information criterion or by cross-validation.

    A copy of the mixture is fitted with each number of experts, with all its restarts. For linear
    experts, the mixture is a statistical model with a likelihood :math:`L`, :math:`k` free
    parameters and :math:`n` samples, and the criteria are

    .. math:: \mathrm{AIC} = 2 k - 2 \log L, \quad
              \mathrm{BIC} = k \log n - 2 \log L, \quad
              \mathrm{ICL} = \mathrm{BIC} + 2 \sum_n H(r_n)

    with the entropy :math:`H`, in nats, of a sample's probabilities :math:`r_n` of the experts,
    given its label. AIC asks for a good prediction, and often takes too many experts. BIC finds
    the true number if there are enough samples. ICL also wants experts that can be told
    apart once the label is known, and takes fewer, or one, where the rules of regimes often agree.
    The cross-validated log loss asks only how well the mixture predicts, and suits all mixtures.

    With ``groups``, all samples of a group get one expert, :math:`n` is the number of groups, and
    the sum goes over the groups, as in R's flexmix. The log loss is then that of whole groups,

    .. math:: -\frac{1}{N} \sum_g \log \sum_e p_{ge} \prod_{n \in g} o_{ne}(y_n)

    for the gate's probabilities :math:`p_{ge}`, the probabilities :math:`o_{ne}(y_n)` that the
    experts give the classes, and the :math:`N` samples of the test part. This is what the fit
    maximises, and it is not the log loss of ``predict_proba``, which sees each sample alone.

    Parameters
    ----------
    clf : MoEClassifier or Pipeline
        The mixture, or a pipeline that ends in one, with any ``n_experts``. It is not changed.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Class labels.
    n_experts : iterable of int, default=range(1, 9)
        The numbers to try. A single expert is one multinomial logistic regression, if experts are
        linear.
    criterion : {"bic", "aic", "icl", "log_loss"}, default="bic"
        What decides. All but "log_loss" need linear experts under a soft gate.
    cv : int, cross-validation generator, iterable or None, default=None
        How the folds for the log loss are made; all numbers get the same. Each fold is one more
        fit of each number. None leaves the log loss out; with ``criterion="log_loss"`` it is 5. An
        int is the number of stratified folds; with ``groups``, each group is in one of them.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all fits and in the log loss.
    groups : array-like of shape (n_samples,), default=None
        Groups for every ``fit``: all samples of a group get one expert. No fold may split a group.
        For fits without groups, make the folds yourself: ``cv=list(GroupKFold().split(X, y,
        groups))``.
    storage : str, path, joblib.Memory or None, default=None
        A folder that keeps each fit. If the call was interrupted, the same call continues it: it
        makes only those fits that the folder lacks. Fits of other data or settings are others, and
        may share the folder. joblib writes and reads it by pickle, so take only folders that you
        trust. None keeps nothing.
    n_jobs : int, default=None
        Number of fits that run at the same time, on the active backend of joblib.
    verbose : int, default=1
        1 shows a progress bar of the fits, 0 shows nothing.

    Returns
    -------
    NExpertsChoice
        The criteria for each number, which it prints as a table, ``n_experts_`` and
        ``best_estimator_``.

    Raises
    ------
    ValueError
        If a parameter or the data are not valid, the criterion does not suit the mixture, its
        experts are a list, the training part of a fold lacks a class, or a fold splits a group.
    TypeError
        If the estimator does not end in a mixture.

    Warns
    -----
    UserWarning
        What the fit of the chosen mixture warned of, such as restarts that disagree. The warnings
        of all other fits are not shown; the table has their agreement and usage.

    See Also
    --------
    likelihood_ratio_test : Tests one number against a larger one.

    Notes
    -----
    The hat functions of the gate give each expert many parameters. With few samples, all criteria
    then take too few experts; try ``TableEncoder(n_knots=None, squash=False)``, which has none.
    The likelihood is not quite the largest, as penalties lower it a little.

    References
    ----------
    H. Akaike, A New Look at the Statistical Model Identification, IEEE Transactions on Automatic
    Control 19, 1974 (AIC).

    G. Schwarz, Estimating the Dimension of a Model, Annals of Statistics 6, 1978 (BIC).

    C. Biernacki, G. Celeux, G. Govaert, Assessing a Mixture Model for Clustering with the
    Integrated Completed Likelihood, IEEE Transactions on Pattern Analysis and Machine Intelligence
    22, 2000 (ICL).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_moe import MoEClassifier, choose_n_experts
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MoEClassifier(experts="linear", max_iter=10, n_init=3, random_state=0)
    >>> choice = choose_n_experts(clf, X, y, range(1, 3), verbose=0)
    >>> choice.n_experts_, sorted(choice.chosen)
    (1, ['aic', 'bic', 'icl'])
    >>> choice.best_estimator_.score(X, y) > 0.9
    True
    """
    check_mixture("clf", clf)
    listed = listed_experts(final_model(clf)[0])
    if listed is not None:
        raise ValueError(
            f"choose_n_experts cannot change the number of experts of a list, which has "
            f"{len(listed.estimators)}. Compare mixtures with other lists by compare, or leave "
            "experts out of a fitted one by prune_experts."
        )
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {list(CRITERIA)}, got {criterion!r}.")
    if criterion != "log_loss" and not has_linear_experts(final_model(clf)[0]):
        raise _no_criterion(criterion)
    X, y = indexable(as_eager(X), as_eager(y))
    numbers = _check_numbers(n_experts, _num_samples(X))
    group, labels = (None, None) if groups is None else read_groups(groups, X)
    folds = _folds(5 if cv is None and criterion == "log_loss" else cv, X, y, group, labels)
    params = fit_params(clf, sample_weight=sample_weight, groups=group)
    memory = check_memory(os.fspath(storage) if isinstance(storage, os.PathLike) else storage)
    data = None if storage is None else _hash_of(X, y, params)
    weight = None if sample_weight is None else np.asarray(sample_weight)

    def tasks():
        fit = memory.cache(_fit, ignore=["candidate", "X", "y", "params"])
        arguments = ["candidate", "X", "y", "params", "weight", "group"]
        held_out = memory.cache(_held_out_loss, ignore=arguments)
        for number in numbers:
            candidate = with_n_experts(clf, number)
            key = None if data is None else joblib.hash([data, candidate])
            yield delayed(fit)(candidate, X, y, params, key)
            for fold in folds:
                yield delayed(held_out)(candidate, X, y, params, weight, group, fold, key)

    fits: dict[Any, Any] = {}
    losses = []
    n_tasks = len(numbers) * (1 + len(folds))
    name = "choose_n_experts"
    for result in run_all(tasks(), n_jobs, total=n_tasks if verbose else None, name=name):
        if isinstance(result, float):
            losses.append(result)
            continue
        fits[numbers[len(fits)]] = result
        if criterion != "log_loss" and _model(result).log_likelihood_ is None:
            raise _no_criterion(criterion)
    choice = _choose(fits, np.reshape(losses, (len(numbers), -1)), criterion)
    for message, category in fits[choice.n_experts_].warnings:
        warnings.warn(f"With {choice.n_experts_} experts: {message}", category, stacklevel=2)
    return choice


class Fit(NamedTuple):
    """A fitted estimator, and what its fit warned of: messages with their categories."""

    estimator: BaseEstimator
    warnings: list[tuple[str, type[Warning]]]


def check_mixture(name: str, estimator: Any) -> None:
    """Check that an estimator is a mixture or a pipeline that ends in one, fitted or not."""
    try:
        model, _ = final_model(clone(estimator))  # a clone, as fitted searches have a mixture
    except TypeError:
        model = None
    if not is_mixture(model):
        raise TypeError(
            f"{name} must be a MoEClassifier or a pipeline that ends in one, got {estimator!r}."
        )


def with_n_experts(estimator: BaseEstimator, number: int) -> BaseEstimator:
    """Return a clone of a mixture, or of a pipeline that ends in one, with a number of experts."""
    candidate = clone(estimator)
    final_model(candidate)[0].set_params(n_experts=number)
    return candidate


def _check_numbers(n_experts: Any, n_samples: Any) -> list[int]:
    """Return the numbers of experts in rising order."""
    if not isinstance(n_experts, Iterable) or isinstance(n_experts, str):
        raise ValueError(
            f"n_experts must be several integers, such as range(1, 9), got {n_experts!r}."
        )
    numbers = list(n_experts)
    if not numbers:
        raise ValueError(f"n_experts must have at least one number, got {n_experts!r}.")
    for number in numbers:
        is_integer = isinstance(number, Integral) and not isinstance(number, (bool, np.bool_))
        if not is_integer or not 1 <= number <= n_samples:
            raise ValueError(
                "n_experts must hold integers from 1 to the number of samples, which is "
                f"{n_samples}; got {number!r}."
            )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"n_experts must not repeat a number, got {numbers}.")
    return sorted(map(int, numbers))


def _folds(
    cv: Any, X: Any, y: ArrayLike, group: Any, group_labels: Any
) -> Sequence[tuple[NDArray, NDArray]]:
    """Return the folds; each training part has all the classes of its test part."""
    if cv is None:
        return []
    if group is not None and isinstance(cv, Integral):
        cv = StratifiedGroupKFold(cv)
    folds = list(check_cv(cv, y, classifier=True).split(X, y, group))
    labels = np.asarray(y)
    for number, (train, test) in enumerate(folds):
        split = [] if group is None else test[np.isin(group[test], group[train])]
        if len(split):
            raise ValueError(
                f"Fold {number} has the group {group_labels.tolist()[group[split[0]]]!r} in both "
                "its training and its test part. Take a splitter that keeps groups together, such "
                "as StratifiedGroupKFold, or an int."
            )
        missing = np.setdiff1d(labels[test], labels[train])
        if len(missing):
            raise ValueError(
                f"The training part of fold {number} has no sample of {missing.tolist()}, so that "
                "the log loss of its test part is infinite. Take fewer folds, or others."
            )
    return folds


def _hash_of(X, y, params):
    """Return a hash of the data; equal tables of two kinds may be encoded differently."""
    names = list(getattr(X, "columns", []))
    types = [str(each) for each in getattr(X, "dtypes", [])]
    return joblib.hash([values_of(X), names, types, np.asarray(y), params])


def _no_criterion(criterion):
    return ValueError(
        f"criterion={criterion!r} needs {LIKELIHOOD}. Take experts='linear', or "
        "criterion='log_loss'."
    )


def _fit(candidate, X, y, params, key):
    """Fit a mixture on all samples; the key stands for all arguments where fits are stored."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        candidate.fit(X, y, **params)
    return Fit(candidate, [(str(each.message), each.category) for each in caught])


def _held_out_loss(candidate, X, y, params, weight, group, fold, key):
    """Return the log loss of the test part of a fold."""
    train, test = fold
    X_train, y_train = _safe_split(candidate, X, y, train)
    X_test, y_test = _safe_split(candidate, X, y, test, train)
    fitted, _ = _fit(
        clone(candidate), X_train, y_train, _check_method_params(X, params, train), key
    )
    weight = None if weight is None else weight[test]
    if group is not None:
        of_groups = log_likelihood_of_groups(fitted, X_test, y_test, group[test], weight)
        return -of_groups / len(y_test)
    proba = fitted.predict_proba(X_test)
    return float(log_loss(y_test, proba, sample_weight=weight, labels=fitted.classes_))


def _model(fit):
    return final_model(fit.estimator)[0]


def _choose(fits: Any, losses: Any, criterion: Any) -> NExpertsChoice:
    """Return the table of all numbers, and what the criteria choose."""
    models = [_model(fit) for fit in fits.values()]

    def column(name):
        return np.array([getattr(model, name) for model in models], dtype=float)

    n_folds = losses.shape[1]
    nan = np.full(len(fits), np.nan)
    results = {
        "n_experts": np.array(list(fits)),
        "log_likelihood": column("log_likelihood_"),
        "n_parameters": column("n_identifiable_parameters_"),
        **{name: column(f"{name}_") for name in ("aic", "bic", "icl")},
        "log_loss": losses.mean(axis=1) if n_folds else nan,
        "log_loss_error": losses.std(axis=1, ddof=1) / n_folds**0.5 if n_folds > 1 else nan,
        "usage_entropy": np.array([usage_entropy([model.expert_usage_]) for model in models]),
        "smallest_usage": np.array([model.expert_usage_.min() for model in models]),
        "n_init": np.array([np.size(model.init_scores_) for model in models]),
        "init_agreement": column("init_agreement_"),
    }
    chosen = {
        name: int(results["n_experts"][np.nanargmin(results[name])])
        for name in CRITERIA
        if not np.isnan(results[name]).all()
    }
    estimators = {number: fit.estimator for number, fit in fits.items()}
    return NExpertsChoice(results, chosen, criterion, estimators)
