"""What experts need for their samples, and how their predictions change with a column."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.inspection import partial_dependence
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import ExpertEffectDisplay, MoEClassifier, expert_importance, prune_experts

matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

MOE = MoEClassifier(3, max_iter=3, random_state=0)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def mixed(mixed_table):
    X, y = mixed_table
    y = np.where(y == "yes", "yes", "no")
    return clone(MOE).fit(X, y), X, y


@pytest.fixture(scope="module")
def lonely(table):
    """A mixture of which one expert is never chosen."""
    clf = clone(MOE).fit(*table)
    last = clf.module_.gate.network.layers[-1]
    last.bias.data[0, 1] = -100
    return clf


def test_importance_against_its_definition(mixed):
    clf, X, y = mixed
    result = expert_importance(clf, X, y, n_repeats=8, random_state=0)
    chosen = clf.apply(X)
    log_likelihood = clf.expert_log_likelihood(X, y) / np.log(2)
    rng = np.random.RandomState(1)
    for expert in range(3):
        own = X[chosen == expert].reset_index(drop=True)
        before = log_likelihood[chosen == expert, expert].mean()
        assert result.n_samples[expert] == len(own)
        assert result.log_likelihood[expert] == pytest.approx(before, abs=1e-5)
        for column, name in enumerate(X.columns):
            losses = []
            for _ in range(8):
                other = own.copy()
                other[name] = own[name].array[rng.permutation(len(own))]
                after = clf.expert_log_likelihood(other, y[chosen == expert])[:, expert]
                losses.append(before - after.mean() / np.log(2))
            error = 6 * np.std(losses) / np.sqrt(8) + 1e-5
            assert result.importance[expert, column] == pytest.approx(np.mean(losses), abs=error)


def test_what_sets_samples_apart(mixed):
    clf, X, y = mixed
    result = expert_importance(clf, X, y, n_repeats=1)
    frame = result.to_frame()
    assert len(frame) == 18 and list(frame["feature"][:6]) == list(X.columns)
    chosen = clf.apply(X)
    for expert in range(3):
        own, others = X[chosen == expert], X[chosen != expert]
        row = frame[(frame["expert"] == expert) & (frame["feature"] == "size")].iloc[0]
        assert row["own"] == own["size"].median() and row["others"] == others["size"].median()
        expected = (own["size"].mean() - others["size"].mean()) / X["size"].std(ddof=0)
        assert row["difference"] == pytest.approx(expected)
        assert pd.isna(row["category"])
        row = frame[(frame["expert"] == expert) & (frame["feature"] == "colour")].iloc[0]
        is_own, is_other = (
            part["colour"].isna()
            if row["category"] == "missing"
            else part["colour"] == row["category"]
            for part in (own, others)
        )
        assert row["own"] == pytest.approx(is_own.mean())
        assert row["others"] == pytest.approx(is_other.mean())


def test_importance_of_unread_columns(mixed_table):
    X, y = mixed_table
    clf = clone(MOE).set_params(expert_features=["size", "town"]).fit(X, y)
    result = expert_importance(clf, X, y, random_state=0)
    assert (result.importance[:, [1, 2, 3, 5]] == 0).all()
    assert result.importance[:, 0].max() > 0
    again = expert_importance(clf, X, y, random_state=0)
    np.testing.assert_array_equal(result.importance, again.importance)


def test_importance_without_samples(lonely, table):
    X, y = table
    result = expert_importance(lonely, X, y, n_repeats=1)
    assert result.n_samples[1] == 0 and np.isnan(result.importance[1]).all()
    assert np.isnan(result.difference[1]).all() and np.isnan(result.log_likelihood[1])
    assert "expert 1: never chosen" in repr(result)
    one = expert_importance(lonely, X[:1], y[:1], n_repeats=1)
    assert np.isnan(one.importance).all() and (one.n_samples.sum() == 1) and repr(one)


def test_importance_with_unknown_labels(lonely, table):
    X, y = table
    known = expert_importance(lonely, X, y, n_repeats=1, random_state=0)
    strange = np.r_[y, 7]
    result = expert_importance(lonely, np.r_[X, X[:1]], strange, n_repeats=1, random_state=0)
    np.testing.assert_allclose(result.log_likelihood, known.log_likelihood)
    with pytest.raises(ValueError, match="none of the classes"):
        expert_importance(lonely, X, y + 10)


def test_text_of_importance(mixed):
    clf, X, y = mixed
    text = repr(expert_importance(clf, X, y, n_repeats=1))
    assert text.count("log-likelihood -") == 3 and "median" in text and "%" in text
    assert max(map(len, text.splitlines())) < 120


def test_curves_are_partial_dependences(mixed):
    clf, X, _ = mixed
    display = ExpertEffectDisplay.from_estimator(
        clf, X, ["size", "colour", 2], grid_resolution=7, subsample=10_000
    )
    chosen = clf.apply(X)
    size, colour, rooms = display.effects
    assert [each.name for each in display.effects] == ["size", "colour", "rooms"]
    assert rooms.grid.tolist() == list(range(1, 8)) and len(size.grid) == 7
    assert colour.categories == ["blue", "green", "red", "missing"]
    for expert in range(3):
        own = X[chosen == expert].reset_index(drop=True)
        for value, expected in zip(size.grid, size.response[expert], strict=True):
            other = own.assign(size=value)
            proba = clf.expert_proba(other)[:, expert, 1].mean()
            assert proba == pytest.approx(expected, abs=1e-5)
        other = own.assign(colour=pd.Categorical(["red"] * len(own), own["colour"].cat.categories))
        proba = clf.expert_proba(other)[:, expert, 1].mean()
        assert proba == pytest.approx(colour.response[expert, 2], abs=1e-5)
        assert len(size.samples[expert]) == own["size"].notna().sum()
    assert display.target == "yes" and display.axes_.shape == (3, 2)


def test_one_expert_is_the_mixture(table):
    X, y = table
    clf = clone(MOE).set_params(n_experts=1).fit(X, y)
    display = ExpertEffectDisplay.from_estimator(clf, X, 0, target=2, grid_resolution=9)
    grid = display.effects[0].grid
    expected = partial_dependence(
        clf, X, [0], custom_values={0: grid}, response_method="predict_proba", kind="average"
    )
    few = ExpertEffectDisplay.from_estimator(
        clf, X, 0, target=2, grid_resolution=9, subsample=len(X)
    )
    np.testing.assert_allclose(few.effects[0].response[0], expected["average"][2], atol=1e-5)
    difference = display.effects[0].response - few.effects[0].response
    assert np.abs(difference).max() < 0.05


def test_dashes_without_samples(lonely, table):
    X, _ = table
    display = ExpertEffectDisplay.from_estimator(lonely, X, [0, 1], target=0)
    effect = display.effects[0]
    assert np.isnan(effect.response[1]).all() and not effect.is_nearby(1).any()
    assert len(display.lines_[0]) == 2
    own = effect.samples[0]
    distance = np.abs(effect.grid[:, np.newaxis] - own).min(axis=1)
    expected = distance <= 0.05 * np.ptp(effect.grid)
    np.testing.assert_array_equal(effect.is_nearby(0), expected)
    drawn = display.lines_[0][0].get_ydata()
    np.testing.assert_array_equal(np.isnan(drawn), ~expected)
    labels = [text.get_text() for text in display.axes_[-1, 0].get_legend().get_texts()]
    assert "expert 1 (never chosen)" in labels and "no samples of its own nearby" in labels


@pytest.mark.parametrize(("n_experts", "columns"), [(8, 1), (2, 2), (8, 5)])
def test_panels_do_not_overlap(mixed_table, n_experts, columns):
    X, y = mixed_table
    clf = MoEClassifier(n_experts, max_iter=1, random_state=0).fit(X, y)
    display = ExpertEffectDisplay.from_estimator(
        clf, X, list(X.columns[:columns]), target="no", grid_resolution=3, subsample=20
    )
    display.figure_.canvas.draw()
    # Without the legend, which is beside the last panel.
    boxes = [ax.get_tightbbox(bbox_extra_artists=[]) for ax in display.axes_.ravel()]
    for i, one in enumerate(boxes):
        assert one.x0 > 0 and one.y0 > 0 and one.y1 <= display.figure_.bbox.y1
        for other in boxes[i + 1 :]:
            width = min(one.x1, other.x1) - max(one.x0, other.x0)
            assert width < 3 or min(one.y1, other.y1) - max(one.y0, other.y0) < 3


def test_given_axes(lonely, table):
    _, axes = plt.subplots(1, 4)
    display = ExpertEffectDisplay.from_estimator(lonely, table[0], [0, 1], target=0, ax=axes[:2])
    assert display.figure_ is axes[0].figure
    with pytest.raises(ValueError, match="ax must be one axes or 2"):
        display.plot(axes[:3])
    display.plot(axes[3])


def test_pipelines(table):
    X, y = table
    pipeline = make_pipeline(StandardScaler(), clone(MOE)).fit(X, y)
    assert expert_importance(pipeline, X, y, n_repeats=1).feature_names[0] == "x0"
    display = ExpertEffectDisplay.from_estimator(pipeline, X, "x3", target=0, grid_resolution=3)
    assert np.abs(display.effects[0].grid).max() < 5


def test_errors(mixed, table):
    clf, X, y = mixed
    draw = ExpertEffectDisplay.from_estimator
    with pytest.raises(ValueError, match="features has 'length', which must be one of"):
        draw(clf, X, ["size", "length"])
    for feature in (6, -1):
        with pytest.raises(ValueError, match="position from 0 to 5"):
            draw(clf, X, feature)
    with pytest.raises(ValueError, match="features is empty"):
        draw(clf, X, [])
    with pytest.raises(ValueError, match=r"target='perhaps' must be one of .*'no', 'yes'"):
        draw(clf, X, "size", target="perhaps")
    several = clone(MOE).fit(*table)
    with pytest.raises(ValueError, match=r"target=None must be one of .*0, 1, 2"):
        draw(several, table[0], 0)
    with pytest.raises(ValueError, match="Column 'size' has no known value"):
        draw(clf, X.assign(size=np.nan), "size")
    with pytest.raises(ValueError, match="'subsample' parameter"):
        draw(clf, X, "size", subsample=0)
    with pytest.raises(ValueError, match="feature names"):
        draw(clf, X[["size", "age"]], "size")
    with pytest.raises(ValueError, match="'n_repeats' parameter"):
        expert_importance(clf, X, y, n_repeats=0)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        expert_importance(clf, X, y[:-1])
    with pytest.raises(NotFittedError):
        expert_importance(MoEClassifier(), X, y)
    with pytest.raises(NotFittedError):
        draw(MoEClassifier(), X, "size")
    images, y = load_digits(return_X_y=True)
    images = images[:100].reshape(-1, 8, 8)
    of_images = MoEClassifier(2, max_iter=1, random_state=0).fit(images, y[:100])
    with pytest.raises(ValueError, match="ExpertEffectDisplay needs a table"):
        draw(of_images, images, 0, target=1)
    with pytest.raises(ValueError, match="expert_importance needs a table"):
        expert_importance(of_images, images, y[:100])


def test_pruned_mixtures(table):
    X, y = table
    clf = clone(MOE).fit(X, y)
    pruned = prune_experts(clf, method="similarity", n_experts=2, X=X, y=y)
    assert expert_importance(pruned, X, y, n_repeats=1).importance.shape == (2, 6)
    assert len(ExpertEffectDisplay.from_estimator(pruned, X, 0, target=0).lines_[0]) <= 2
