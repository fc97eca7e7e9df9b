"""The coefficients of linear experts and their gate, in the units of the columns."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from threadpoolctl import threadpool_limits

from sklearn_moe.checks import check_weight, encode
from sklearn_moe.decomposition import check_labels, cut, final_model, signed
from sklearn_moe.interpretation.columns import names_of
from sklearn_moe.interpretation.linear_fit import LinearFit
from sklearn_moe.interpretation.standard_errors import FEWEST, Information, bootstrap
from sklearn_moe.interpretation.terms import Words
from sklearn_moe.interpretation.words import in_words
from sklearn_moe.stability import SAME, DecompositionStability

if TYPE_CHECKING:
    import pandas as pd

# The maximum of the likelihood without the penalties of the experts is another decomposition if
# fewer samples have the same most responsible expert.
SAME_EXPERTS = 0.9

# Differences with a smaller p-value are marked.
SIGNIFICANT = 0.05

# Characters of a column's name in the printed table, and lines of it.
NAME, LINES = 36, 40


@dataclass(frozen=True, eq=False, repr=False)
class ExpertSummary:
    """What :func:`expert_summary` says about linear experts and their gate; it prints tables.

    Attributes
    ----------
    coefficients : dict of list
        The columns of :meth:`to_frame`.
    differences : dict of list
        Wald tests of the hypothesis that a coefficient is the same in all experts: ``class``,
        ``feature``, ``statistic``, ``degrees_of_freedom`` and ``p_value``, corrected by Holm's
        method. Empty if there are no standard errors.
    alike : dict of tuple of int to float
        For each two experts, the BIC of the mixture with one expert in place of both, less the BIC
        of the mixture. A negative number means that the data do not tell the two apart. Empty if
        ``one_for_all`` is not positive, so that no two differ.
    one_for_all : float
        The BIC of a single logistic regression, less the BIC of the mixture.
    words : dict of Words by str
        For each ``feature``, the column and the values that are compared.
    units : dict of float by str
        For each ``feature``, one standard deviation of a column of numbers, and 1 for others.
    classes : ndarray of shape (n_classes,)
        Class labels. The first one is the one that others are compared with.
    usage : ndarray of shape (n_experts,)
        Mean gate probability of each expert.
    n_samples : float
        The number of samples or, with groups, of groups; if there are weights, their sum.
    log_likelihood : float
        The logarithm of the likelihood.
    confidence : float
        Probability that an interval covers the true coefficient.
    notes : list of str
        How standard errors were found, or why there are none, and other limits.
    """

    coefficients: dict[str, list]
    differences: dict[str, list]
    alike: dict[tuple[int, int], float]
    one_for_all: float
    words: dict[str, Words]
    units: dict[str, float]
    classes: NDArray
    usage: NDArray[np.float64]
    n_samples: float
    log_likelihood: float
    confidence: float
    notes: list[str]

    def to_frame(self) -> pd.DataFrame:
        """Return the coefficients as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One row for each coefficient: ``part`` is "gate" or "expert"; ``expert`` its number;
            ``class`` the class whose odds it changes (None for the gate); ``feature`` the column,
            with the values that are compared, or "intercept"; then ``coefficient``,
            ``odds_ratio``, ``standard_error``, ``lower``, ``upper`` and ``p_value``; ``method``
            is "information" or "bootstrap", and None without a standard error.
        """
        import pandas as pd

        return pd.DataFrame(self.coefficients)

    @property
    def sentences(self) -> list[str]:
        """Which experts differ, and in what."""
        n_experts = len(self.usage)
        if n_experts == 1:
            return ["There is one expert: this is a logistic regression."]
        if self.one_for_all <= 0:
            return [
                "The experts do not differ, as far as the BIC can tell: it is lower for a single",
                "logistic regression. Read them as different rules only if they predict new rows "
                "better.",
            ]
        sentences = [
            f"Experts {one} and {other} do not differ: with one in place of both, the BIC is "
            "lower."
            for (one, other), difference in self.alike.items()
            if difference <= 0
        ] or ["All experts differ: with one in place of any two, the BIC is higher."]
        differing = [feature for _, feature in self._differing() if feature != "intercept"]
        if differing:
            names = ", ".join(dict.fromkeys(differing))
            sentences.append(f"These coefficients differ between experts: {names}.")
        return sentences

    def __repr__(self) -> str:
        n_experts = len(self.usage)
        title = f"{n_experts} linear experts" if n_experts > 1 else "One linear expert"
        lines = [f"{title}, {self.n_samples:,.0f} samples", "", *self.sentences]
        first = self.classes[0]
        for label in self.classes[1:]:
            lines += ["", f"Experts: log odds of class {label} against {first}, per unit"]
            lines += self._table("expert", label, range(n_experts))
        if "gate" in self.coefficients["part"]:
            lines += ["", "Gate: log odds of the expert against expert 0, per unit"]
            lines += self._table("gate", None, range(1, n_experts))
        if not np.isnan(self.coefficients["standard_error"]).all():
            lines += ["", f"In brackets: {100 * self.confidence:.4g}% confidence interval."]
            if self._differing():
                lines[-1] += f" *: differs between experts (p < {SIGNIFICANT}, Wald test, Holm)."
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def _differing(self):
        """Return class and feature of the coefficients that differ between experts."""
        tests = self.differences
        return [
            (label, feature)
            for label, feature, value in zip(
                *(tests.get(name, []) for name in ("class", "feature", "p_value")), strict=True
            )
            if value < SIGNIFICANT
        ]

    def _table(self, part, label, experts):
        """Yield the lines of a table with a column for each expert."""
        rows: dict[str, dict[int, str]] = {}
        table = self.coefficients
        for i, feature in enumerate(table["feature"]):
            if table["part"][i] == part and table["class"][i] == label:
                cell = _number(table["coefficient"][i])
                low, high = table["lower"][i], table["upper"][i]
                if not np.isnan(low):
                    cell += f" ({_number(low)}, {_number(high)})"
                rows.setdefault(feature, {})[table["expert"][i]] = cell
        differing = set()
        if part == "expert":
            differing = {feature for of, feature in self._differing() if of == label}
        names, heads_of_rows, column = {}, {}, None
        for feature in rows:
            words = self.words[feature]
            names[feature] = words.column if words.value is None else f"  {words.value}"
            if words.value is not None and words.column != column:
                heads_of_rows[feature] = f"{words.column} (against {words.against})"
            column = words.column
        names = dict(zip(names, cut(names.values(), NAME), strict=True))
        width = max(map(len, names.values()))
        heads = [f"expert {expert} ({self.usage[expert]:.0%})" for expert in experts]
        cells = [[row.get(expert, "") for row in rows.values()] for expert in experts]
        widths = [max(len(head), *map(len, own)) for head, own in zip(heads, cells, strict=True)]
        yield " " * (width + 2) + "  ".join(
            f"{head:>{size}}" for head, size in zip(heads, widths, strict=True)
        )
        for i, (feature, row) in enumerate(rows.items()):
            if i == LINES:
                yield f"{len(rows) - LINES} more coefficients: see to_frame()"
                return
            if feature in heads_of_rows:
                yield heads_of_rows[feature]
            mark = "*" if feature in differing else " "
            yield f"{names[feature]:{width}}{mark} " + "  ".join(
                f"{row.get(expert, ''):>{size}}"
                for expert, size in zip(experts, widths, strict=True)
            )


def _number(value):
    return "-" if np.isnan(value) else in_words(signed(float(f"{value:.3g}"), 12))


@validate_params(
    {
        "confidence": [Interval(Real, 0, 1, closed="neither")],
        "stability": [DecompositionStability, None],
        "standard_errors": [StrOptions({"information", "bootstrap"})],
        "n_bootstrap": [Interval(Integral, FEWEST, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=False,
)
def expert_summary(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    stability: DecompositionStability | None = None,
    standard_errors: str = "information",
    n_bootstrap: int = 200,
    n_jobs: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> ExpertSummary:
    r"""Return the coefficients of linear experts and their gate, and how certain they are.

    Each expert is a logistic regression,

    .. math:: \log \frac{P(c \mid x, e)}{P(c_0 \mid x, e)}
              = \beta_{ec0} + \sum_d \beta_{ecd}\, x_d,

    and so is the gate, with expert 0 in place of the first class :math:`c_0`. The coefficients are
    in the units of the columns: :math:`\beta` is what one more unit adds to the log odds, and
    :math:`\exp \beta`, the odds ratio, is the factor of the odds. A category has a coefficient
    against the most frequent one. A column in which the gate bends (it has hat functions) has
    coefficients for some of its values against the lowest one. The intercept belongs to a sample
    with 0 in each other column of numbers, and with the values that others are compared with.

    Coefficients, standard errors and tests are those of the maximum likelihood. The penalties
    ``l2`` and ``l1`` of the experts are left out, so coefficients are a little larger than those
    of the fitted mixture, which are only shown where there is no standard error. The penalty of a
    sparse gate stays, because without it, a gate that bends would follow chance. It draws the
    gate's coefficients towards 0, so they have no standard errors; ``regularization=None`` fits a
    gate that has some. Columns that the gate has dropped have no coefficients; that they were
    chosen by the same data is not accounted for.

    Standard errors are from

    - *information*: the inverse of the observed information of all parameters, those of the gate
      included, is the covariance;
    - *bootstrap*: their spread in refits to samples that are drawn with replacement, whole groups
      if there are ``groups``. Each refit starts from the mixture, and ends at the nearest maximum.
      Its experts are matched with those of the mixture, as in :func:`decomposition_stability`. A
      standard error is half the width of the range that holds the middle 68 % of the refits, as
      few refits may be far out. This takes longer, but the intervals are nearer to their
      confidence, and a gate may have hidden layers.

    Both include the uncertainty about the expert of each sample, and hold within the decomposition
    that was found. There are no standard errors if the restarts of the fit, or the refits, find
    different ones, as it is then not known which rule a coefficient belongs to. Intervals are
    symmetric: maximum likelihood overstates large coefficients, and the refits do so once more, so
    that their quantiles hold the truth less often.

    Two experts *do not differ* if a mixture with one expert in place of both has the lower BIC,
    and no experts differ if a single logistic regression has.

    Parameters
    ----------
    estimator : MoEClassifier, Pipeline or search
        A fitted ``MoEClassifier`` with ``experts="linear"``, or a pipeline that ends in one, or a
        search for one. In a pipeline, columns and units are those that the last step gets.
    X : array-like of shape (n_samples, n_features)
        The training samples.
    y : array-like of shape (n_samples,)
        Their labels.
    sample_weight, groups : array-like of shape (n_samples,), default=None
        Weights and groups, if ``fit`` got them. Weights must count samples, as those of repeated
        rows do.
    confidence : float, default=0.95
        Probability that an interval covers the true coefficient.
    stability : DecompositionStability, default=None
        What :func:`decomposition_stability` has found for this mixture. There are only standard
        errors if at least 0.8 of the samples keep their expert. By default, ``init_agreement_``
        of the fit decides.
    standard_errors : {"information", "bootstrap"}, default="information"
        Where standard errors come from.
    n_bootstrap : int, default=200
        Number of refits of the bootstrap, at least 20. With 200, chance changes a standard error
        by about 7 %.
    n_jobs : int, default=None
        Number of refits that run in parallel, on the active backend of joblib.
    random_state : int, RandomState instance or None, default=None
        Seed of the bootstrap samples.

    Returns
    -------
    ExpertSummary
        It prints tables; ``to_frame()`` returns a data frame.

    Raises
    ------
    TypeError
        If the mixture has no linear experts that read the columns of a table.
    ValueError
        If X and y are not the samples of the fit, a parameter is not valid, or bootstrap samples
        lack a class again and again.

    See Also
    --------
    CoefficientDisplay : The same as a picture.
    decomposition_stability : Whether the decomposition comes back.

    References
    ----------
    G. J. McLachlan, D. Peel, Finite Mixture Models, 2000, section 2.15 (observed information).

    B. Grün, F. Leisch, Bootstrapping Finite Mixture Models, COMPSTAT 2004.

    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_moe import MoEClassifier, expert_summary
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(1000, 2))
    >>> slope = np.where(X[:, 0] > 0, 2, -2)
    >>> y = slope * X[:, 1] + rng.logistic(size=1000) > 0
    >>> clf = MoEClassifier(
    ...     2, experts="linear", gate_features=[0], expert_features=[1], n_init=2, random_state=0
    ... ).fit(X, y)
    >>> table = expert_summary(clf, X, y).to_frame()
    >>> slopes = table[(table["part"] == "expert") & (table["feature"] == "x1")]
    >>> np.sign(slopes["coefficient"]).sort_values().tolist()
    [-1.0, 1.0]
    >>> again = expert_summary(
    ...     clf, X, y, standard_errors="bootstrap", n_bootstrap=20, random_state=0
    ... )
    >>> again.to_frame()["method"].dropna().unique().tolist()
    ['bootstrap']
    """
    check_is_fitted(final_model(estimator)[0])
    model, samples = final_model(estimator, X)
    _check_kind(model)
    y = check_labels(y)
    check_consistent_length(samples, y, sample_weight, groups)
    weight = check_weight(sample_weight, y, "sample_weight")
    label = encode(y, model.classes_, "y")
    fit = LinearFit(model, samples, label, weight, groups, names_of(estimator, model))
    fit.check_samples()
    draws = None
    if standard_errors == "bootstrap":
        draws = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=n_bootstrap)
    with threadpool_limits(1):  # the matrices are small
        maximum = fit.likelihood.maximise(fit.parameters)
        errors, notes = _errors(fit, samples, maximum, stability, draws, n_jobs)
        return _summary(fit, maximum, errors, notes, confidence)


def _summary(fit, maximum, errors, notes, confidence):
    one_for_all = fit.one_for_all(maximum)
    return ExpertSummary(
        coefficients=fit.coefficients(errors, confidence),
        differences={} if errors is None else fit.differences(errors),
        alike=fit.alike(maximum) if one_for_all > 0 else {},
        one_for_all=one_for_all,
        words={each.feature: each for each, _ in fit.words()},
        units={each.feature: unit for each, unit in fit.words()},
        classes=fit.classes,
        usage=fit.usage,
        n_samples=fit.likelihood.n_samples,
        log_likelihood=maximum.log_likelihood,
        confidence=confidence,
        notes=notes,
    )


def _check_kind(model):
    module = model.module_
    if not module.experts.is_linear:
        names, kind = model.expert_names_, type(module.experts).__name__.removesuffix("Module")
        got = f"experts of the kind {kind!r}" if names is None else f"a list of experts, {names}"
        raise TypeError(
            "expert_summary needs experts='linear', as other experts have no coefficients; this "
            f"mixture has {got}. expert_importance and ExpertEffectDisplay "
            "show what experts of any kind do with the columns of a table."
        )
    table = model.encoder_
    is_direct = table is not None or model.net_.encoder is None
    if not is_direct or len(model.net_.input_shape) != 1:
        raise TypeError(
            "expert_summary needs experts that read the columns of a table, but encoder="
            f"{model.encoder!r}, and a sample has the shape {tuple(model.net_.input_shape)}. "
            "ExpertSamplesDisplay shows the samples of each expert, images, too."
        )
    if table is not None and table.squash:
        raise TypeError(
            "expert_summary needs experts that are linear in the columns, but the encoder "
            "squashes outliers. Pass encoder='auto' or TableEncoder(squash=False)."
        )
    if module.mixing != "probability" or module.gate.top_k is not None:
        raise TypeError(
            "expert_summary needs a mixture with a likelihood: mixing='probability' and a gate "
            f"with top_k=None, got mixing={module.mixing!r} and top_k={module.gate.top_k}."
        )
    if model.class_weight is not None:
        raise ValueError(
            f"expert_summary needs class_weight=None, got {model.class_weight!r}: weights of "
            "classes change the intercepts, and standard errors would be wrong."
        )


def _errors(fit, X, maximum, stability, draws, n_jobs):
    """Return how certain the coefficients are, or None if this is not known, and notes."""
    reason = _why_no_errors(fit, maximum, stability, by_bootstrap=draws is not None)
    if reason is not None:
        return None, [reason]
    if draws is None:
        errors = Information(fit.contrasts, maximum)
        return errors, fit.notes(errors)
    errors = bootstrap(fit, X, maximum, draws, n_jobs)
    if errors.agreement < SAME:
        return None, [
            "No standard errors: refits to bootstrap samples found other decompositions "
            f"(agreement {errors.agreement:.2f}, needed {SAME}),\nso intervals would mix up "
            "rules. Give the gate columns of its own (gate_features), take fewer\nexperts, or "
            "more samples."
        ]
    notes = fit.notes(errors)
    if errors.is_known.any():
        notes.append(
            f"Standard errors are from {len(draws)} bootstrap samples, in which "
            f"{errors.agreement:.0%} of the samples keep their expert."
        )
    return errors, notes


def _why_no_errors(fit, maximum, stability, by_bootstrap):
    """Return why there can be no standard errors; None if there can be."""
    if not (by_bootstrap or fit.has_linear_gate):
        return (
            "No standard errors: the gate is not linear in the columns, so its part of the "
            "information is not known.\nTake standard_errors='bootstrap', or gate='softmax' "
            "without hidden layers; it may bend along each column."
        )
    agreement = fit.model.init_agreement_
    if stability is not None:
        agreement = stability.agreement.mean()
    if agreement is not None and agreement < SAME:
        which = "the restarts of the fit" if stability is None else "the refits"
        return (
            f"No standard errors: {which} found other decompositions (agreement {agreement:.2f}, "
            f"needed {SAME}),\nso intervals would mix up rules. Raise n_init, give the gate "
            "columns of its own (gate_features), or\ntake fewer experts."
        )
    before = fit.likelihood.responsibilities(fit.parameters).argmax(axis=1)
    same = np.mean(maximum.responsibilities.argmax(axis=1) == before)
    if same < SAME_EXPERTS:
        return (
            f"No standard errors: without the penalties of the experts, only {same:.0%} of the "
            "samples keep their expert.\nSo the decomposition depends on the penalties; there may "
            "be too few samples for so many coefficients."
        )
    return None
