"""The pictures: what they compute, that they keep their artists, and that nothing overlaps."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from scipy import sparse
from scipy.special import softmax
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_moe import (
    DecompositionDisplay,
    ExpertRegionsDisplay,
    ExpertSamplesDisplay,
    GateDisplay,
    MoEClassifier,
    ParetoFrontDisplay,
    TrainingDisplay,
    decomposition_entropy,
    tune,
)

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _settings_and_figures():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


@pytest.fixture(scope="module")
def clf(digits):
    X, y = digits
    return MoEClassifier(
        n_experts=5,
        gate="attentive",
        regularization="importance",
        max_iter=6,
        track_decomposition=True,
        random_state=0,
    ).fit(X[:600], y[:600], X_val=X[1200:], y_val=y[1200:])


def boxes(texts):
    """Boxes in pixels of all texts that are there to be read."""
    found = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    assert found
    return np.array([[box.x0, box.y0, box.x1, box.y1] for box in found])


def assert_apart(*groups):
    """No two texts of a group overlap, and all are inside the figure."""
    figure = groups[0][0].figure
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for texts in groups:
        found = boxes(texts)
        assert found[:, :2].min() >= -1
        assert (found[:, 2] <= width + 1).all() and (found[:, 3] <= height + 1).all()
        for number, (x0, y0, x1, y1) in enumerate(found):
            others = found[number + 1 :]
            overlap = (np.minimum(others[:, 2], x1) - np.maximum(others[:, 0], x0) > 1) & (
                np.minimum(others[:, 3], y1) - np.maximum(others[:, 1], y0) > 1
            )
            assert not overlap.any()


def tick_labels(axis):
    return [label for label in axis.get_ticklabels() if label.get_text()]


def gate_probabilities(n_experts, n_samples=600):
    rng = np.random.RandomState(0)
    return rng.dirichlet(np.full(n_experts, 0.1), size=n_samples), rng.randint(10, size=n_samples)


# Decomposition


@pytest.mark.smoke
def test_decomposition_from_estimator(clf, digits):
    X, y = digits
    display = DecompositionDisplay.from_estimator(clf, X, y)
    expected = decomposition_entropy(clf, X, y)
    assert np.array_equal(display.im_.get_array(), expected.table)
    shares = expected.table.sum(axis=1) / expected.table.sum()
    assert [bar.get_width() for bar in display.bars_] == pytest.approx(shares.tolist())
    np.testing.assert_array_equal(display.usage_.get_xdata(), expected.usage)
    assert display.text_[0, 0].get_text() == (
        str(expected.table[0, 0]) if expected.table[0, 0] else ""
    )
    title = display.ax_.get_title()
    assert f"one expert per sample: {1 - expected.normalized_sample_entropy:.0%}" in title
    assert f"experts used evenly: {expected.normalized_usage_entropy:.0%}" in title
    assert f"{2**expected.specialization:.2f} times as probable" in title
    assert f"H_u={expected.usage_entropy:.2f}" in title
    assert display.colorbar_ is None and display.figure_ is display.ax_.figure
    display = DecompositionDisplay.from_estimator(clf, X)
    assert display.decomposition.expert_accuracy is None
    assert "times as probable" not in display.ax_.get_title()


def test_colours_of_pictures_of_the_same_samples_can_be_compared():
    y = np.repeat([0, 1], [30, 50])
    clims = [
        DecompositionDisplay.from_predictions(np.eye(2)[chosen], y).im_.get_clim()
        for chosen in (y, np.arange(80) % 2)
    ]
    assert clims == [(0, 50), (0, 50)]
    display = DecompositionDisplay.from_predictions(np.eye(2)[y], y, normalize="expert")
    assert display.im_.get_clim() == (0, 1)


class Rules:
    names = ("age > 60", "a rule that is long enough for more than one line and some more", "")


@pytest.mark.parametrize("names", [Rules, Rules.names, pd.Index(Rules.names)])
def test_experts_by_name(names):
    p, y = gate_probabilities(3)
    names = names() if names is Rules else names
    display = DecompositionDisplay.from_predictions(p, y, expert_names=names)
    labels = [label.get_text() for label in tick_labels(display.ax_.yaxis)]
    assert labels[0] == "0: age > 60" and labels[2] == "expert 2"
    assert labels[1].count("\n") == 1 and labels[1].endswith("…")
    assert_apart([*tick_labels(display.ax_.yaxis), display.ax_.yaxis.label])
    for draw in (
        GateDisplay.from_predictions(p, expert_names=names),
        ExpertSamplesDisplay.from_predictions(p, p, expert_names=names),
    ):
        draw.figure_.draw_without_rendering()
        texts = [text.get_text() for text in (*draw.ax_.texts, *draw.ax_.get_yticklabels())]
        assert any(text.startswith("0: age > 60") for text in texts)


@pytest.mark.parametrize("names", ["abc", ["a", "b"], pd.Index(["a"])])
def test_wrong_names_of_experts(names):
    for draw in (DecompositionDisplay, GateDisplay):
        p, y = gate_probabilities(3)
        with pytest.raises(ValueError, match="expert_names must be 3 names, one per expert"):
            draw.from_predictions(
                *(p, y)[: 1 + (draw is DecompositionDisplay)], expert_names=names
            )


@pytest.mark.parametrize("normalize, axis", [("expert", 1), ("class", 0), ("all", None)])
def test_decomposition_normalized(normalize, axis):
    display = DecompositionDisplay.from_predictions(*gate_probabilities(4), normalize=normalize)
    np.testing.assert_allclose(np.asarray(display.im_.get_array()).sum(axis=axis), 1)


@pytest.mark.parametrize(
    "n_experts, names",
    [*((n, "short") for n in (1, 5, 16, 64)), (5, "long"), (64, "long"), (5, "hundred")],
)
def test_decomposition_is_readable(n_experts, names):
    p, y = gate_probabilities(n_experts)
    if names == "long":
        y = np.array([f"the name of a class that is much too long {label}" for label in y])
    elif names == "hundred":
        y = np.arange(len(y)) % 100
    display = DecompositionDisplay.from_predictions(p, y)
    ax = display.ax_
    labels = [*tick_labels(ax.xaxis), *tick_labels(ax.yaxis)]
    legend = display.usage_ax_.get_legend().get_texts()
    groups = [[*labels, ax.xaxis.label, ax.yaxis.label, ax.title, *legend]]
    if display.text_ is not None:
        groups.append(display.text_.ravel().tolist())
    else:
        assert display.colorbar_ is not None
    assert_apart(*groups)
    if names == "long":
        shown = [label.get_text() for label in tick_labels(display.ax_.xaxis)]
        assert len(set(shown)) == 10 and max(map(len, shown)) <= 14


def test_decomposition_in_given_axes(clf, digits):
    figure, axes = plt.subplots(1, 2)
    display = DecompositionDisplay.from_estimator(
        clf,
        *digits,
        ax=axes[1],
        cmap="viridis",
        include_values=False,
        display_labels=list("abcdefghij"),
    )
    assert display.ax_ is axes[1] and display.figure_ is figure and display.text_ is None
    assert display.plot() is display and display.figure_ is not figure
    with pytest.raises(TypeError, match="ax must be one matplotlib axes"):
        DecompositionDisplay.from_estimator(clf, *digits, ax=axes)
    with pytest.raises(ValueError, match="display_labels must have 10 names, got 2"):
        DecompositionDisplay.from_estimator(clf, *digits, display_labels=["a", "b"])
    with pytest.raises(ValueError, match="'normalize' parameter of DecompositionDisplay"):
        display.plot(normalize="true")


def test_displays_in_subfigures(clf, digits):
    X, y = digits
    subfigures = plt.figure(figsize=(12, 6)).subfigures(1, 2)
    DecompositionDisplay.from_estimator(clf, X, y, ax=subfigures[0].subplots())
    GateDisplay.from_estimator(clf, X, ax=subfigures[1].subplots())


def test_heat_map_with_a_norm_of_its_own(clf, digits):
    norm = matplotlib.colors.LogNorm(1, 100)
    display = DecompositionDisplay.from_estimator(clf, *digits, im_kw={"norm": norm})
    assert display.im_.norm is norm


# Gate


def test_gate_quantiles_by_hand():
    p = [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.6, 0.4], [0.8, 0.2], [0.2, 0.8]]
    display = GateDisplay.from_predictions(np.column_stack([p, np.zeros(6)]))
    everything, first, second = display.bars_  # the third expert has no samples
    assert (first.get_x(), first.get_width()) == pytest.approx((0.6, 0.2))
    assert (second.get_x(), second.get_width()) == pytest.approx((0.8, 0))
    most = np.max(p, axis=1)
    assert everything.get_x() == pytest.approx(np.quantile(most, 0.25))
    assert display.points_.get_xdata() == pytest.approx([np.median(most), 0.7, 0.8])
    assert display.points_.get_ydata().tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_experts", [1, 5, 64])
def test_gate_is_readable(n_experts):
    display = GateDisplay.from_predictions(gate_probabilities(n_experts)[0])
    labels = tick_labels(display.ax_.yaxis)
    assert len(labels) == n_experts + 1
    legend = display.ax_.get_legend().get_texts()
    assert_apart([*labels, *legend, display.ax_.xaxis.label, display.ax_.yaxis.label])


def test_gate_in_given_axes(clf, digits):
    _, axes = plt.subplots(1, 2)
    assert GateDisplay.from_estimator(clf, digits[0], ax=axes[1]).ax_ is axes[1]
    with pytest.raises(TypeError, match="ax must be one matplotlib axes"):
        GateDisplay.from_estimator(clf, digits[0], ax=axes)
    with pytest.raises(ValueError, match="rows at least 0 that sum to 1"):
        GateDisplay.from_predictions([[0.5, 0.6]])


# Regions


@pytest.fixture(scope="module")
def plane():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 2)) * [1, 100]
    return X, (X[:, 0] > 0) + 2 * (X[:, 1] > 0)


def fit_plane(X, y):
    moe = MoEClassifier(n_experts=4, gate="attentive", max_iter=10, random_state=0)
    return make_pipeline(StandardScaler(), moe.set_params(regularization="importance")).fit(X, y)


def test_regions_are_those_of_the_chosen_experts(plane):
    X, y = plane
    clf = fit_plane(X, y)
    display = ExpertRegionsDisplay.from_estimator(clf, X, grid_resolution=30)
    grid = np.column_stack([display.xx0.ravel(), display.xx1.ravel()])
    expected = clf[-1].apply(clf[:-1].transform(grid)).reshape(30, 30)
    assert np.array_equal(display.response.argmax(axis=2), expected)
    assert {int(text.get_text()) for text in display.text_} <= set(np.unique(expected))
    margin = np.ptp(X, axis=0) / 20
    np.testing.assert_allclose(grid.min(axis=0), X.min(axis=0) - margin)
    np.testing.assert_allclose(grid.max(axis=0), X.max(axis=0) + margin)
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("feature 0", "feature 1")
    (points,) = display.points_
    np.testing.assert_array_equal(points.get_offsets(), X)
    np.testing.assert_array_equal(display.chosen, clf[-1].apply(clf[:-1].transform(X)))
    display = ExpertRegionsDisplay.from_estimator(clf, X, y, grid_resolution=5)
    sizes = [len(points.get_offsets()) for points in display.points_]
    assert sizes == np.bincount(y).tolist()
    shown = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert shown[-5:] == ["Mark of a point: its class", *"0123"]
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ExpertRegionsDisplay.from_estimator(clf, X, y[:5])


@pytest.mark.parametrize("n_classes", [1, 8, 10, 40])
def test_points_of_many_classes(n_classes):
    rng = np.random.RandomState(0)
    xx0, xx1 = np.meshgrid([0.0, 1], [0.0, 1])
    display = ExpertRegionsDisplay(
        xx0=xx0,
        xx1=xx1,
        response=rng.dirichlet([1, 1], size=(2, 2)),
        points=rng.uniform(size=(200, 2)),
        chosen=rng.randint(2, size=200),
        labels=np.array([f"{'long name' * (n_classes == 40)}{i % n_classes}" for i in range(200)]),
        expert_names=["left", "right"],
    ).plot()
    display.figure_.draw_without_rendering()
    shown = np.concatenate([points.get_offsets() for points in display.points_])
    assert len(display.points_) == (n_classes if n_classes <= 10 else 1) and len(shown) == 200
    names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    classes = {1: ["0"], 8: list("01234567"), 10: [], 40: ["sample"]}[n_classes]
    heading = "Points: samples" if n_classes == 40 else "Mark of a point: its class"
    assert names == ["0: left", "1: right", heading, *classes]


@pytest.mark.parametrize("n_experts", [1, 5, 64])
def test_regions_are_readable(n_experts):
    xx0, xx1 = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60))
    centres = np.random.RandomState(0).uniform(size=(n_experts, 2))
    distance = (xx0[..., None] - centres[:, 0]) ** 2 + (xx1[..., None] - centres[:, 1]) ** 2
    display = ExpertRegionsDisplay(
        xx0=xx0, xx1=xx1, response=softmax(-100 * distance, axis=2)
    ).plot()
    assert len(display.text_) >= min(n_experts, 40)  # none in the smallest regions
    assert_apart(display.text_)


@pytest.mark.smoke
@pytest.mark.parametrize("features", [(0, 2), ("a", "c")])
def test_two_of_many_features_in_a_frame(features, plane):
    X, y = plane
    kinds = np.where(np.arange(300) % 3 == 0, "rare", "often")
    frame = pd.DataFrame({"a": X[:, 0], "kind": kinds, "c": X[:, 1], "d": np.arange(300.0)})
    encoder = make_column_transformer((OneHotEncoder(), ["kind"]), remainder=StandardScaler())
    moe = MoEClassifier(n_experts=3, max_iter=5, regularization="importance", random_state=0)
    clf = make_pipeline(encoder, moe).fit(frame, y)
    display = ExpertRegionsDisplay.from_estimator(clf, frame, features=features, grid_resolution=5)
    grid = pd.DataFrame(
        {"a": display.xx0.ravel(), "kind": "often", "c": display.xx1.ravel(), "d": 149.5}
    )
    expected = moe.gate_proba(encoder.transform(grid)).reshape(5, 5, 3)
    np.testing.assert_allclose(display.response, expected, atol=1e-6)
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("a", "c")


def test_other_columns_of_a_frame_keep_their_types(plane):
    X, y = plane
    n = len(X)
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    frame["kind"] = pd.Categorical(np.where(np.arange(n) % 3, "often", "rare"))
    frame["identity"] = [f"row {number}" for number in range(n)]
    frame["empty"] = None
    frame["time"] = pd.date_range("2020-01-01", periods=n)
    seen = []

    class Look(StandardScaler):
        def fit(self, X, y=None):
            return super().fit(X[["a", "b"]])

        def transform(self, X):
            seen.append(X)
            return super().transform(X[["a", "b"]])

        def fit_transform(self, X, y=None):
            return self.fit(X).transform(X)

    moe = MoEClassifier(n_experts=3, max_iter=5, regularization="importance", random_state=0)
    clf = make_pipeline(Look(), moe).fit(frame, y)
    ExpertRegionsDisplay.from_estimator(clf, frame, features=("a", "b"), grid_resolution=20)
    *_, grid, own = seen
    assert len(grid) == 400 and own.equals(frame)
    assert grid.dtypes.to_dict() == frame.dtypes.to_dict()
    assert set(grid["kind"]) == {"often"}
    ExpertSamplesDisplay.from_estimator(clf, frame)
    as_polars = polars.from_pandas(frame.drop(columns="empty"))
    display = ExpertRegionsDisplay.from_estimator(clf, as_polars, features=("a", "b"))
    assert display.ax_.get_xlabel() == "a"


def test_colours_say_which_expert_and_how_sure(plane):
    p = np.zeros((2, 2, 3))
    p[0], p[1] = [[1, 0, 0], [0, 1, 0]], [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]]
    xx0, xx1 = np.meshgrid([0.0, 1], [0.0, 1])
    display = ExpertRegionsDisplay(xx0=xx0, xx1=xx1, response=p).plot()
    sure, unsure = display.surface_.get_array()
    assert not np.allclose(sure[0], sure[1])
    assert unsure[0].sum() > sure[0].sum() and unsure[1].sum() > sure[1].sum()  # paler


@pytest.mark.parametrize("as_frame", [False, True])
def test_regions_of_a_projection(as_frame, iris):
    X, y = iris
    X = pd.DataFrame(X, columns=list("abcd")) if as_frame else X
    clf = MoEClassifier(n_experts=3, max_iter=10, random_state=0).fit(X, y)
    pca = PCA(2).fit(X)
    display = ExpertRegionsDisplay.from_estimator(clf, X, projection=pca, grid_resolution=7)
    grid = pca.inverse_transform(np.column_stack([display.xx0.ravel(), display.xx1.ravel()]))
    grid = pd.DataFrame(grid, columns=list("abcd")) if as_frame else grid
    np.testing.assert_allclose(display.response.reshape(49, 3), clf.gate_proba(grid), atol=1e-6)


@pytest.mark.parametrize(
    "params, message",
    [
        ({}, r"X has 4 features: say which two to draw, such as features=\(0, 1\)"),
        ({"features": (0, 9)}, r"features=\(0, 9\) must be two of \[0, 1, 2, 3\]"),
        ({"X": np.zeros((5, 2, 2))}, r"X must be a table of shape .* got 3 dimensions"),
        ({"features": 1}, "features must be two different features, got 1"),
        ({"features": "ab"}, "features must be two different features, got 'ab'"),
        ({"features": (1, 1)}, r"features must be two different features, got \(1, 1\)"),
        ({"projection": StandardScaler()}, "must map to two dimensions"),
        ({"projection": OneHotEncoder}, "must map|not fitted|transform"),
        ({"projection": np.mean}, "must have an inverse_transform"),
        ({"projection": PCA(2), "features": (0, 1)}, "features or projection, not both"),
        ({"features": (0, 1), "grid_resolution": 1}, "'grid_resolution' parameter"),
        ({"features": (0, 1), "eps": -1}, "'eps' parameter"),
    ],
)
def test_wrong_regions(params, message, iris):
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=2, random_state=0).fit(X, y)
    if isinstance(params.get("projection"), (StandardScaler, PCA)):
        params["projection"].fit(X)
    with pytest.raises((ValueError, TypeError), match=message):
        ExpertRegionsDisplay.from_estimator(clf, **{"X": X, **params})


# Samples


@pytest.mark.smoke
def test_images_from_the_surest_to_the_least_sure(clf, digits):
    X, y = digits
    display = ExpertSamplesDisplay.from_estimator(clf, X, y, image_shape=(8, 8), n_images=4)
    proba, chosen = clf.gate_proba(X).astype(np.float64), clf.apply(X)
    proba /= proba.sum(axis=1, keepdims=True)
    for expert, (images, labels) in enumerate(zip(display.images, display.labels, strict=True)):
        own = np.flatnonzero(chosen == expert)
        own = own[np.argsort(-proba[own, expert], kind="stable")]
        last = len(own) - 1
        own = own[[0, round(last / 3), round(2 * last / 3), last]]
        assert np.array_equal(images, X[own].reshape(-1, 8, 8))
        assert np.array_equal(labels, y[own])
    assert display.bars_ is None and display.im_.get_array().ndim == 2
    texts = [text.get_text() for text in display.text_]
    assert texts[1:5] == [str(label) for label in display.labels[0]] and len(texts) == 5 * 5
    assert shown_image(display, 0, 8) == pytest.approx(display.images[0][0])


def shown_image(display, row, height):
    """The first image of an expert as it is drawn."""
    label = display.text_[row]
    width = display.images[row].shape[2]
    left = round(label.get_position()[0] + max(2, height // 2) / 2)
    return np.asarray(display.im_.get_array())[:height, left : left + width]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3)])
@pytest.mark.parametrize("scale", [1, 255])
def test_images_of_any_shape(shape, scale):
    rng = np.random.RandomState(0)
    images = (scale * rng.uniform(size=(50, *shape))).astype(np.uint8 if scale > 1 else np.float32)
    display = ExpertSamplesDisplay.from_predictions(np.eye(3)[np.arange(50) % 2], images)
    assert "never chosen" in [text.get_text() for text in display.text_]
    if shape[-1] == 3:
        first = display.images[0][0] / scale
        np.testing.assert_allclose(shown_image(display, 0, 6), first, atol=1e-6)
    with pytest.raises(ValueError, match="Images must have the shape"):
        ExpertSamplesDisplay.from_predictions(np.eye(2), np.zeros((2, 5, 5, 2)))


def test_images_with_channels_first_and_of_any_scale():
    rng = np.random.RandomState(0)
    images = rng.normal(size=(10, 3, 8, 8))
    display = ExpertSamplesDisplay.from_predictions(np.ones((10, 1)), images, n_images=10)
    assert np.array_equal(display.images[0], np.moveaxis(images, 1, 3))
    low, high = images.min(), images.max()
    expected = (display.images[0][0] - low) / (high - low)
    np.testing.assert_allclose(shown_image(display, 0, 8), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["images", "table"])
@pytest.mark.parametrize("n_experts", [1, 5, 64])
def test_samples_are_readable(kind, n_experts):
    p, _ = gate_probabilities(n_experts)
    X = np.random.RandomState(0).normal(size=(600, 64))
    names = [f"a feature with a long name {number}" for number in range(64)]
    params = {"image_shape": (8, 8)} if kind == "images" else {"feature_names": names}
    display = ExpertSamplesDisplay.from_predictions(p, X, **params)
    assert_apart([*display.text_, display.ax_.title])


def test_differences_by_hand():
    p = np.eye(3)[[0, 0, 1, 1]]
    X = pd.DataFrame({"height": [1.0, 3, 2, 4], "kind": ["a", "a", "b", "b"], "same": 0.1})
    display = ExpertSamplesDisplay.from_predictions(p, X)
    assert display.feature_names == ["height", "kind = a", "kind = b", "same"]
    expected = [-1 / np.std([1, 3, 2, 4]), 2, -2, 0]
    np.testing.assert_allclose(display.differences[:2], [expected, -np.array(expected)])
    assert np.isnan(display.differences[2]).all()
    texts = [text.get_text() for text in display.text_]
    start = texts.index("expert 0 (50%)")
    assert texts[start + 1 : start + 4] == ["kind = a", "1", "0"]
    assert texts[texts.index("expert 2 (0%)") + 1] == "never chosen"
    np.testing.assert_allclose(display.means[:, 0, 0], [2, 3])
    assert len(display.bars_) == 6 and display.im_ is None


def test_differences_against_the_definition():
    rng = np.random.RandomState(0)
    p, _ = gate_probabilities(4)
    X = rng.normal(5, 3, size=(600, 6))
    X[rng.uniform(size=X.shape) < 0.1] = np.nan
    X[:, 5] = 0.1  # constant, though its computed deviation is not zero
    display = ExpertSamplesDisplay.from_predictions(p, X)
    for expert in range(4):
        own = p.argmax(axis=1) == expert
        expected = np.nanmean(X[own, :5], axis=0) - np.nanmean(X[~own, :5], axis=0)
        expected /= np.nanstd(X[:, :5], axis=0)
        np.testing.assert_allclose(display.differences[expert], [*expected, 0])
        means = [np.nanmean(X[each, :5], axis=0) for each in (own, ~own)]
        np.testing.assert_allclose(display.means[:, expert, :5], means)


@pytest.mark.smoke
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_of_any_columns(library):
    n = 3000
    frame = pd.DataFrame(
        {
            "number": np.arange(n) % 7,
            "flag": np.arange(n) % 2 == 0,
            "kind": np.where(np.arange(n) % 3, "a", "b"),
            "identity": [f"row {number}" for number in range(n)],
            "time": pd.date_range("2020-01-01", periods=n),
            "maybe": pd.array([1, None, 3] * (n // 3), dtype="Int64"),
        }
    )
    X = frame if library == "pandas" else polars.from_pandas(frame)
    display = ExpertSamplesDisplay.from_predictions(np.eye(2)[np.arange(n) % 2], X)
    assert display.feature_names[:4] == ["number", "flag", "kind = a", "kind = b"]
    assert len(display.feature_names) == 4 + 20 + 1
    assert display.differences[0, 1] == pytest.approx(2)


CONTAINERS = {
    "CSR": sparse.csr_array,
    "COO": sparse.coo_matrix,
    "pandas, sparse": lambda frame: frame.astype(pd.SparseDtype("float64", 0.0)),
    "pandas, one sparse": lambda frame: frame.astype({"a": pd.SparseDtype("float64", 0.0)}),
    "polars": polars.from_pandas,
    "polars, lazy": lambda frame: polars.from_pandas(frame).lazy(),
    "pyarrow": pa.Table.from_pandas,
    "dask": lambda frame: pytest.importorskip("dask.dataframe").from_pandas(frame, npartitions=2),
}


def displays_of(clf, X):
    regions = ExpertRegionsDisplay.from_estimator(clf, X, grid_resolution=20)
    samples = ExpertSamplesDisplay.from_estimator(clf, X)
    alternating = ExpertSamplesDisplay.from_predictions(np.eye(2)[np.arange(300) % 2], X)
    return regions.response, samples.differences, alternating.differences


@pytest.fixture(scope="module")
def of_frame(plane):
    frame = pd.DataFrame(plane[0], columns=["a", "b"])
    clf = MoEClassifier(n_experts=3, max_iter=2, random_state=0).fit(frame, plane[1])
    return clf, frame, displays_of(clf, frame)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_of_tables(container, of_frame):
    clf, frame, expected = of_frame
    found = displays_of(clf, CONTAINERS[container](frame))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


def test_one_expert_and_missing_values():
    X = np.array([[1.0, np.nan], [2, 3], [3, 4]])
    display = ExpertSamplesDisplay.from_predictions(np.ones((3, 1)), X)
    assert display.differences.tolist() == [[0, 0]]
    assert "nothing to compare it with" in [text.get_text() for text in display.text_]
    display = ExpertSamplesDisplay.from_predictions(np.eye(2)[[0, 1, 1]], X[:, ::-1])
    assert np.isfinite(display.differences[1, 1])


@pytest.mark.parametrize(
    "X, params, message",
    [
        (np.zeros((3, 2)), {}, "inconsistent numbers of samples"),
        (np.array([["a"], ["b"]]), {}, "could not convert string to float"),
        (
            np.zeros((2, 6)),
            {"image_shape": (2, 4)},
            r"image_shape=\(2, 4\) must be a shape of the 6",
        ),
        (np.zeros((2, 6)), {"image_shape": 6}, "image_shape=6 must be a shape of the 6 values"),
        (np.zeros((2, 6)), {"n_features": -1}, "'n_features' parameter"),
        (np.zeros((2, 2)), {"feature_names": ["a"]}, "feature_names must have 2 names, got 1"),
        (np.zeros((2, 2)), {"n_images": 0}, "'n_images' parameter"),
        (pd.DataFrame({"t": pd.to_datetime(["2020", "2021"])}), {}, "X has no columns of numbers"),
        (np.zeros((2, 6)), {"image_shape": (6,)}, "Images must have the shape"),
    ],
)
def test_wrong_samples(X, params, message):
    with pytest.raises(ValueError, match=message):
        ExpertSamplesDisplay.from_predictions(np.eye(2), X, **params)


# Training


@pytest.mark.smoke
def test_training_curves(clf):
    display = TrainingDisplay.from_estimator(clf)
    curves = clf.decomposition_curves_ | {
        "loss": clf.loss_curve_,
        "validation_loss": clf.validation_loss_curve_,
        "validation_score": clf.validation_scores_,
    }
    assert set(display.lines_) == set(curves)
    for name, curve in curves.items():
        if name in ("usage_entropy", "expert_class_information"):
            curve = 100 * np.array(curve) / np.log2(5)
        elif name == "sample_entropy":
            curve = 100 - 100 * np.array(curve) / np.log2(5)
        elif name == "validation_score":
            curve = 100 * np.array(curve)
        np.testing.assert_allclose(display.lines_[name].get_ydata(), curve)
        np.testing.assert_array_equal(display.lines_[name].get_xdata(), np.arange(1, 7))
    assert len(display.axes_) == 3


def test_training_draws_what_there_is(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=3, max_iter=5, warm_start=True, random_state=0).fit(X, y)
    _, ax = plt.subplots()
    display = TrainingDisplay.from_estimator(clf, ax=ax)
    assert list(display.lines_) == ["loss"] and len(display.axes_) == 1
    # Epochs without a figure leave a gap.
    clf.set_params(track_decomposition=True).fit(X, y, X_val=X, y_val=y)
    display = TrainingDisplay.from_estimator(make_pipeline(clf))
    curve = display.lines_["validation_loss"].get_ydata()
    assert np.isnan(curve[:5]).all() and curve[5:].tolist() == clf.validation_loss_curve_
    assert len(display.axes_) == 3


def test_training_of_a_search_and_of_one_epoch(iris):
    X, y = iris
    moe = MoEClassifier(n_experts=2, max_iter=1, track_decomposition=True, random_state=0)
    search = GridSearchCV(moe, {"n_experts": [2]}, cv=2).fit(X, y)
    display = TrainingDisplay.from_estimator(search)
    assert display.lines_["loss"].get_marker() == "o"
    with pytest.raises(ValueError, match="not fitted"):
        TrainingDisplay.from_estimator(MoEClassifier())


@pytest.mark.filterwarnings("ignore:The gate has collapsed")
def test_epochs_with_another_loss_are_shaded(iris):
    clf = MoEClassifier(2, experts="linear", n_init=1, max_iter=6, random_state=0).fit(*iris)
    for annealing, expected in ((0.2, ["annealing: another loss"]), (None, [])):
        display = TrainingDisplay.from_estimator(clf.set_params(annealing=annealing))
        labels = [text.get_text() for text in display.axes_[0].get_legend().get_texts()]
        assert labels == [*expected, "training samples, with penalties"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda clf, X, y: DecompositionDisplay.from_estimator(clf, X, y),
        lambda clf, X, y: GateDisplay.from_estimator(clf, X),
        lambda clf, X, y: ExpertSamplesDisplay.from_estimator(clf, X),
        lambda clf, X, y: ExpertRegionsDisplay.from_estimator(clf, X, features=(0, 1)),
        lambda clf, X, y: TrainingDisplay.from_estimator(clf),
    ],
)
def test_only_mixtures_are_drawn(draw, iris):
    with pytest.raises(TypeError, match="has no gate_proba"):
        draw(StandardScaler().fit(iris[0]), *iris)


def test_front_of_a_search(iris):
    clf = MoEClassifier(max_iter=3, random_state=0)
    scoring = ["accuracy", "neg_sample_entropy", "usage_entropy"]
    search = tune(clf, *iris, n_trials=6, cv=2, scoring=scoring[:2], random_state=0)
    display = ParetoFrontDisplay.from_estimator(search)
    assert display.points_.get_offsets().shape == (6, 2)
    front = [[row[name] for name in scoring[:2]] for row in search.pareto_front_]
    np.testing.assert_allclose(display.line_.get_xydata(), np.array(front) * [1, -1])
    assert display.ax_.get_xlabel() == "accuracy\n(higher is better)"
    assert display.ax_.get_ylabel().endswith("(lower is better)")
    display = ParetoFrontDisplay.from_estimator(search, names=scoring[1::-1])
    assert display.ax_.get_ylabel() == "accuracy\n(higher is better)"
    for names in (["accuracy"], ["accuracy", "usage_entropy"]):
        with pytest.raises(ValueError, match="needs two of the scores"):
            ParetoFrontDisplay.from_estimator(search, names=names)
    display = ParetoFrontDisplay([[0, 1], [1, 0], [0.4, 0.4], [0, 0.5]], names="ab").plot()
    assert display.front_.tolist() == [1, 2, 0]
