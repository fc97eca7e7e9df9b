"""The section of a document that tells what the experts do."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing

from sklearn_moe.decomposition import final_model, with_last
from sklearn_moe.display import ExpertEffectDisplay
from sklearn_moe.display.effects import ColumnEffect
from sklearn_moe.interpretation.importance import expert_importance
from sklearn_moe.interpretation.page import paragraph, picture, preformatted, table
from sklearn_moe.interpretation.sections import ERRORS, MOST_EXPERTS, Case
from sklearn_moe.interpretation.summary import ExpertSummary, expert_summary
from sklearn_moe.interpretation.words import in_words
from sklearn_moe.model_selection.n_experts import with_n_experts
from sklearn_moe.parameters import has_linear_experts
from sklearn_moe.stability import DecompositionStability

# The effects of so many columns are drawn, and importance is measured on at most so many samples.
MOST_EFFECTS, MOST_ROWS = 4, 2000

# An effect below this does not count.
NO_EFFECT = 0.02

# A curve rises or falls if this share of its range is between its ends.
MAINLY = 0.8

# Smallest probability in a log loss.
TINY = np.finfo(float).eps


def about_experts(
    case: Case,
    X_train: ArrayLike | None,
    y_train: ArrayLike | None,
    stability: DecompositionStability | None,
    summary: ExpertSummary | None,
) -> str:
    """Tell what the experts do: effects of columns, what each needs, and coefficients."""
    rows = np.sort(np.random.RandomState(0).permutation(len(case.y))[:MOST_ROWS])
    importance = expert_importance(
        case.estimator, _safe_indexing(case.X, rows), case.y[rows], n_repeats=2, random_state=0
    )
    share = importance.n_samples / importance.n_samples.sum()
    needed = share @ np.nan_to_num(importance.importance)
    is_known = np.isfinite([importance.own, importance.others]).any(axis=(0, 1))
    order = np.argsort(np.where(is_known, -needed, np.inf), kind="stable")
    order = order[: min(MOST_EFFECTS, is_known.sum())].tolist()
    text = ""
    if final_model(case.estimator, case.X)[1] is not case.X:
        text = paragraph("The columns, and their units, are those after the first steps.")
    text += _effects(case, order) if order else ""
    text += paragraph(
        "What each expert needs most, and how its rows differ from all others. A need is how much "
        "worse the expert predicts its own rows if the values of the column are shuffled, in "
        "bits: a row that loses one bit gets half of the probability for its true class. Around "
        "0 is chance. A difference is that of the means, in standard deviations of the column."
    ) + preformatted(importance)
    if not has_linear_experts(case.model):
        return text
    if summary is None and X_train is None:
        return text + paragraph(
            "The experts are logistic regressions. Pass X_train and y_train for the coefficients."
        )
    if summary is None:
        try:
            summary = expert_summary(case.estimator, X_train, y_train, stability=stability)
        except (TypeError, ValueError) as error:
            return text + paragraph(f"There are no coefficients: {error}")
    says = _compare_with_one(case, X_train, y_train, summary)
    return (
        text
        + paragraph(
            "The coefficients, from the training rows. Each expert is a logistic regression, and "
            "so is the gate. A coefficient is what one more unit of a column adds to the log odds "
            "of a class, log(p / (1 - p)): above 0, the class becomes more probable, and 0.7 "
            "doubles its odds. A category is compared with the one that its heading names. The "
            "BIC measures the fit and counts the parameters; low is good."
        )
        + preformatted(summary)
        + paragraph(*says)
    )


def _compare_with_one(case, X_train, y_train, summary):
    """Return what to say of a single logistic regression, by its BIC and on the test rows."""
    if case.n_experts == 1 or X_train is None:
        return []
    single = with_n_experts(with_last(case.estimator, case.model), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.single = single.fit(X_train, y_train).predict_proba(case.X).astype(np.float64)
    case.single /= case.single.sum(axis=1, keepdims=True)
    label = np.searchsorted(case.model.classes_, case.y)
    loss, of_single = (
        -np.log(p[np.arange(len(label)), label].clip(TINY)) for p in (case.proba, case.single)
    )
    gain = of_single - loss
    margin = ERRORS * gain.std() / np.sqrt(len(gain))
    is_better = gain.mean() > margin
    well = "better" if gain.mean() < -margin else "about as well"
    losses = f"(log loss {of_single.mean():.3f} against {loss.mean():.3f})"
    says = []
    if summary.one_for_all <= 0 and not is_better:
        case.against.append(
            "The experts do not differ: one logistic regression has the lower BIC, and predicts "
            f"the test rows {well} {losses}."
        )
    elif summary.one_for_all <= 0:
        says = [
            "By the BIC, one logistic regression would do, as it has fewer coefficients, but it "
            f"predicts the test rows worse {losses}. So the experts differ, though the data do "
            "not tell each of their coefficients."
        ]
    elif not is_better:
        says = [f"One logistic regression predicts the test rows {well} {losses}."]
    says += [each for each in summary.sentences if "in place of both" in each]
    case.limits += says
    return says


def _effects(case, columns):
    """Tell and draw how the experts' predictions change with columns."""
    found = []

    def draw(figure):
        panels = figure.subplots(-(-len(columns) // 2), 2, squeeze=False).ravel()
        for unused in panels[len(columns) :]:
            unused.set_axis_off()
        display = ExpertEffectDisplay.from_estimator(
            case.estimator,
            case.X,
            columns,
            target=case.target,
            grid_resolution=20,
            subsample=200,
            random_state=0,
            ax=panels[: len(columns)],
        )
        found.extend(display.effects)

    drawn = picture(
        draw,
        (10, 3.6 * -(-len(columns) // 2)),
        f"Curves of the probability of {case.target} by each expert, for the columns of the table "
        "above.",
    )
    experts = [each["expert"] for each in case.experts[:MOST_EXPERTS]]
    rows = [
        (case.names[expert], *(effect_in_words(effect, expert) for effect in found))
        for expert in experts
    ]
    return (
        paragraph(
            f"The probability of {case.target} that each expert gives its own rows, if one column "
            "is set to one value after the other and all else stays. These are the columns that "
            "the experts need most."
        )
        + table(["expert", *(effect.name for effect in found)], rows)
        + drawn
    )


def effect_in_words(effect: ColumnEffect, expert: int) -> str:
    """Say how the prediction of an expert changes with a column, where it has samples."""
    near = effect.is_nearby(expert)
    response = effect.response[expert][near]
    if len(response) == 0:
        return "-"
    if effect.categories:
        places = [effect.categories[i] for i in np.flatnonzero(near)]
    else:
        places = [in_words(value) for value in effect.grid[near]]
    low, high = int(response.argmin()), int(response.argmax())

    def at(i):
        return f"{response[i]:.0%} {'for' if effect.categories else 'at'} {places[i]}"

    if response[high] - response[low] < NO_EFFECT:
        return f"about {response.mean():.0%} everywhere"
    if effect.categories:
        return f"from {at(low)} to {at(high)}"
    last = len(response) - 1
    change = response[last] - response[0]
    if abs(change) >= MAINLY * (response[high] - response[low]):
        return f"{'rises' if change > 0 else 'falls'} from {at(0)} to {at(last)}"
    return ", then ".join(at(i) for i in sorted({0, low, high, last}))
