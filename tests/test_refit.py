"""Trainings that fail or are interrupted, and what is left of the mixture afterwards."""

import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from skorch.callbacks import Callback, EarlyStopping

from sklearn_moe import Importance, MLPExperts, MoEClassifier, SoftmaxGate
from sklearn_moe.containers import read_table
from sklearn_moe.tables import TableTransformer


def make(**params):
    return MoEClassifier(**{"n_experts": 3, "max_iter": 5, "random_state": 0, **params})


class Raises(Callback):
    """Raises an error after so many epochs of one training."""

    def __init__(self, error, epoch=2):
        self.error, self.epoch = error, epoch

    def on_train_begin(self, net, **kwargs):
        self.left = self.epoch

    def on_batch_end(self, net, training, **kwargs):
        if training and self.left == 0:
            raise self.error

    def on_epoch_end(self, net, **kwargs):
        self.left -= 1


FAILURES = {
    "gate": {"gate": SoftmaxGate(top_k=99)},
    "NaN": {"learning_rate": 1e30, "learning_rate_schedule": "constant"},
    "callback": {"net_params": {"callbacks": [Raises(RuntimeError("broken"))]}},
    "memory": {"experts": MLPExperts((10**9, 10**9))},
    "penalty": {"regularization": lambda mixture, x, y, sample_weight: 1 / 0},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_fit_leaves_the_mixture_as_it_was(failure):
    X, y = load_iris(return_X_y=True, as_frame=True)
    clf = make().fit(X, y)
    before, state = clf.predict_proba(X), {**vars(clf)}
    other = pd.DataFrame(X.to_numpy()[:, :2] * 100 + 50, columns=["a", "b"])
    clf.set_params(**FAILURES[failure])
    with pytest.raises((ValueError, RuntimeError, MemoryError, ZeroDivisionError)):
        clf.fit(other, np.array(list("uvw"))[y])
    assert np.array_equal(clf.predict_proba(X), before)
    fitted = {name for name in vars(clf) if name.endswith("_")}
    assert all(vars(clf)[name] is state[name] for name in fitted)


@pytest.mark.parametrize("incremental", [False, True])
def test_a_failed_training_can_go_on(incremental, iris):
    X, y = iris
    clf, same = (make(warm_start=not incremental) for _ in range(2))

    def train(each, **kwargs):
        return each.partial_fit(X, y, [0, 1, 2]) if incremental else each.fit(X, y)

    train(clf)
    clf.set_params(**FAILURES["penalty"])
    with pytest.raises(ZeroDivisionError):
        train(clf)
    clf.set_params(regularization="auto")
    train(clf)
    train(train(same))
    assert np.array_equal(clf.predict_proba(X), same.predict_proba(X))
    assert clf.loss_curve_ == same.loss_curve_


def test_predictions_during_a_refit_are_of_the_one_or_the_other(iris):
    X, y = iris
    clf = make(max_iter=60).fit(X, y)
    before, seen = clf.predict_proba(X), []
    with ThreadPoolExecutor(1) as pool:
        refit = pool.submit(clf.set_params(warm_start=True).fit, X, y)
        while not refit.done():
            seen.append(clf.predict_proba(X))
    after = clf.predict_proba(X)
    assert len(seen) > 3 and not np.array_equal(before, after)
    assert all(np.array_equal(each, before) or np.array_equal(each, after) for each in seen)


class CtrlC(Callback):
    """Interrupts a training as a user does, in its third epoch."""

    def on_batch_end(self, net, training, **kwargs):
        if training and len(net.history) == 3:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_stops_what_is_around(iris):
    X, y = iris
    clf = make(net_params={"callbacks": [CtrlC()]})
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(clf, X, y)
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(clf, {"n_experts": [2, 3]}).fit(X, y)
    with pytest.raises(KeyboardInterrupt):
        BaggingClassifier(clf).fit(X, y)
    with pytest.raises(KeyboardInterrupt, match="after 2 complete epochs; the mixture keeps"):
        clf.fit(X, y)
    assert clf.n_iter_ == 2 and clf.predict(X).shape == (150,)
    clf.set_params(warm_start=True, net_params=None).fit(X, y)  # its net still has the callback
    assert clf.n_iter_ == 7


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_in_the_first_epoch_changes_nothing(iris):
    X, y = iris

    class AtOnce(Callback):
        def on_batch_end(self, net, training, **kwargs):
            signal.raise_signal(signal.SIGINT)

    clf = make(net_params={"callbacks": [AtOnce()]})
    with pytest.raises(KeyboardInterrupt, match="in its first epoch"):
        clf.partial_fit(X, y, [0, 1, 2])
    with pytest.raises(NotFittedError):
        clf.predict(X)
    clf.set_params(net_params=None).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(net_params={"callbacks": [AtOnce()]})
    with pytest.raises(KeyboardInterrupt, match="as it was before"):
        clf.fit(X, y)
    assert clf.n_iter_ == 5 and np.array_equal(clf.predict_proba(X), before)


class AtEpochsEnd(Callback):
    """Interrupts a training as a user does, at the end of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interruption_at_the_end_of_an_epoch(early_stopping, iris):
    X, y = iris
    clf = make(early_stopping=early_stopping, net_params={"callbacks": [AtEpochsEnd(2)]})
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(clf, X, y)
    with pytest.raises(KeyboardInterrupt, match="after 2 complete epochs; the mixture keeps"):
        clf.fit(X, y)
    assert clf.n_iter_ == len(clf.loss_curve_) == 2 and clf.predict(X).shape == (150,)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_at_the_end_of_a_partial_fit(iris):
    X, y = iris
    clf = make(net_params={"callbacks": [AtEpochsEnd(2)]}).partial_fit(X, y, [0, 1, 2])
    same = make(net_params={"callbacks": [AtEpochsEnd(9)]}).partial_fit(X, y, [0, 1, 2])
    with pytest.raises(KeyboardInterrupt, match="the mixture keeps the weights"):
        clf.partial_fit(X, y)
    assert clf.n_iter_ == 2
    assert np.array_equal(clf.predict_proba(X), same.partial_fit(X, y).predict_proba(X))


@pytest.mark.usefixtures("interruptible")
def test_a_handler_of_a_user_may_end_a_training_gently(iris):
    X, y = iris
    asked = []

    class EndsIfAsked(Callback):
        def on_batch_end(self, net, training, **kwargs):
            if training and len(net.history) == 3:
                signal.raise_signal(signal.SIGINT)

        def on_epoch_end(self, net, **kwargs):
            if asked:
                raise KeyboardInterrupt  # skorch's signal to stop

    signal.signal(signal.SIGINT, lambda *args: asked.append(args))
    clf = make(net_params={"callbacks": [EndsIfAsked()]}).fit(X, y)
    assert clf.n_iter_ == 3


def test_callbacks_of_skorch_end_a_training(iris):
    stop = EarlyStopping("train_loss", patience=2, threshold=1e9, threshold_mode="abs")
    assert make(net_params={"callbacks": [stop]}).fit(*iris).n_iter_ < 5


# What later chunks have that the first one had not


def frame(**columns):
    columns = {"number": np.arange(40.0), "kind": ["a", "b"] * 20, **columns}
    return pd.DataFrame(columns), np.arange(40) % 2


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize(
    "news, message",
    [
        ({"kind": ["a", "c"] * 20}, "Column 'kind' has the category 'c' for the first time"),
        ({"kind": ["a", None] * 20}, "Column 'kind' has missing values for the first time"),
        ({"number": [1.0, np.nan] * 20}, "Column 'number' has missing values for the first"),
        ({"number": np.arange(40) + 1e4}, "Column 'number' has values about 866 standard dev"),
        (
            {"number": np.where(np.arange(40) % 5 < 2, 1e6, np.arange(40.0))},
            "Column 'number' has values about .* standard dev",
        ),
        ({"number": np.arange(40) / 1000 + 20}, "Column 'number' varies .* times less than in"),
    ],
)
def test_news_of_later_chunks_are_told_once(news, message, incremental):
    X, y = frame()
    later = frame(**news)[0]
    clf = make(warm_start=not incremental)

    def train(X):
        return clf.partial_fit(X, y, [0, 1]) if incremental else clf.fit(X, y)

    train(X)
    with pytest.warns(UserWarning, match=message) as warned:
        train(later)
    assert warned[0].filename == __file__ and len(warned) == 1
    train(later)


ORDINARY = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "large": lambda rng, n: 1e9 + rng.normal(size=n),
    "Cauchy": lambda rng, n: rng.standard_t(1, n),
    "zeros": lambda rng, n: np.where(rng.uniform(size=n) < 0.6, 0, rng.exponential(size=n)),
    "counts": lambda rng, n: rng.poisson(0.5, n).astype(float),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_chunks_of_another_scale_are_news_and_ordinary_ones_are_not(kind):
    draw, rng, numbers = ORDINARY[kind], np.random.RandomState(0), np.array([False])

    def read(values):
        return read_table(values[:, None], numbers)

    fitted = TableTransformer().fit(read(draw(rng, 500)), is_categorical=numbers)
    for _ in range(200):
        assert fitted.news(read(draw(rng, rng.randint(10, 51)))) == {}
    later = draw(rng, 100)
    assert "standard deviations" in fitted.news(read(later * 1000))[0]
    moved = np.where(rng.uniform(size=100) < 0.4, later + 1e4 * fitted.scale_, later)
    assert "standard deviations" in fitted.news(read(moved))[0]
    fitted.fit(read(draw(rng, 500) * 1000), is_categorical=numbers)
    assert 0 in fitted.news(read(later))


@pytest.mark.parametrize("n_samples", [3, 1000, 100_000])
def test_constant_columns_are_constant(n_samples):
    X, numbers = read_table(np.full((n_samples, 1), 0.1), np.array([False])), np.array([False])
    fitted = TableTransformer().fit(X, is_categorical=numbers)
    assert fitted.is_constant_.all() and fitted.news(X) == {}
    single = read_table(np.full((50, 1), 0.1, dtype=np.float32), numbers)
    assert fitted.news(single) == {}


def test_a_first_chunk_of_one_row():
    clf = make().partial_fit([[1.0, 2.0]], [0], [0, 1])
    with pytest.warns(UserWarning, match="Column 0 was constant so far"):
        clf.partial_fit([[3.0, 2.0], [1.0, 2.0], [2.0, 2.0]], [0, 1, 0])


# Classes and weights


def test_class_weights_of_classes_that_a_fold_lacks():
    y = np.r_[[0, 1] * 40, [0, 1, 2, 0] * 10]
    X = np.random.RandomState(0).normal(size=(120, 3)) + y[:, None]
    folds, weights = TimeSeriesSplit(3), {0: 1, 1: 2, 2: 5}
    assert np.isfinite(cross_val_score(make(class_weight=weights), X, y, cv=folds)).all()
    for clf in (make(class_weight={0: 1, 3: 2}), LogisticRegression(class_weight={0: 1, 3: 2})):
        with pytest.raises(ValueError, match=r"class_weight|classes"):
            clf.fit(X, y)


@pytest.mark.parametrize("scale", [1e307, 1e-320])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1.0, 1: 3.0, 2: 1.0}])
def test_weights_of_any_scale(scale, class_weight, iris):
    X, y = iris
    weight = 1.0 + np.arange(150) % 3
    clf = make(class_weight=class_weight)
    expected = clf.fit(X, y, weight).predict_proba(X)
    proba = clf.fit(X, y, weight * scale).predict_proba(X)
    np.testing.assert_allclose(proba, expected, atol=1e-3)


# Mistakes


@pytest.mark.parametrize(
    "params, message",
    [
        ({"n_experts": 10**9}, r"'n_experts' parameter .*\[1, 65536\]"),
        ({"n_experts": True}, "n_experts must be an integer, got True"),
        ({"max_iter": False}, "max_iter must be an integer, got False|'max_iter' parameter"),
        ({"learning_rate": True}, "learning_rate must be a number, got True"),
        ({"gate": SoftmaxGate(top_k=True)}, "gate__top_k must be an integer, got True"),
        ({"gate": SoftmaxGate(temperature=np.True_)}, "gate__temperature must be a number, got"),
        (
            {"experts": MLPExperts((True,))},
            r"hidden_layer_sizes must hold integers .* got \(True,",
        ),
        (
            {"experts": MLPExperts(True)},
            "experts__hidden_layer_sizes must be an integer, got True",
        ),
        ({"regularization": [Importance(True)]}, "regularization__0__strength must be a number"),
        ({"class_weight": {(0, 1): 2.0}}, r"class_weight has a weight for \(0, 1\)"),
        ({"class_weight": {0: 10**400}}, "class_weight must hold finite numbers"),
        ({"weight_decay": 10**400}, r"weight_decay must be smaller than 2\*\*63, got a number of"),
        ({"experts": MLPExperts((10**400,))}, "experts__hidden_layer_sizes must be smaller than"),
        ({"regularization": [Importance(10**400)]}, "regularization__0__strength must be smaller"),
        ({"n_threads": 10**6}, r"'n_threads' parameter .*\[1, 1024\]"),  # OpenMP would crash
    ],
)
def test_wrong_parameters(params, message, iris):
    with pytest.raises(ValueError, match=message):
        make(**params).fit(*iris)


def test_too_few_samples_to_set_some_aside(iris):
    X, y = iris[0][49:51], iris[1][49:51]
    with pytest.raises(ValueError, match=r"cannot set validation_fraction=0.9 of 2 samples aside"):
        make(early_stopping=True, validation_fraction=0.9).fit(X, y)


def test_batches_larger_than_any_data(iris):
    clf = make(batch_size=10**330).fit(*iris)
    assert np.array_equal(
        clf.predict_proba(iris[0]), make(batch_size=150).fit(*iris).predict_proba(iris[0])
    )


@pytest.mark.parametrize(
    "y, message",
    [
        ("abc", r"y must be array-like of shape \(n_samples,\), got 'abc'"),
        ({0, 1}, r"y must be array-like of shape \(n_samples,\), got {0, 1}"),
        (None, "requires y to be passed"),
        ([0, 1, np.nan], "Input y contains NaN. Every sample needs a class label"),
        ([0, 1, np.inf], "Input y contains infinity.*Every sample needs a class label"),
        ([0, 1, 1j], "y must hold class labels"),
        ([0, 1, None], "Input y contains NaN|Every sample needs a class label"),
        (["a", "b", pd.NA], "Input y contains NaN. Every sample needs a class label"),
        ([0, 0, 0], "at least 2 classes, got one class"),
        ([0, 1], "inconsistent numbers of samples"),
        (np.zeros(3, dtype="i4, i4"), "must hold class labels, got records of type"),
    ],
)
def test_wrong_labels(y, message):
    with pytest.raises(ValueError, match=message):
        make().fit(np.eye(3), y)
    if y is not None and str(y) != "[0, 0, 0]":
        with pytest.raises(ValueError, match="The validation set X_val, y_val is not valid"):
            make().fit(np.eye(3), [0, 1, 0], X_val=np.eye(3), y_val=y)


@pytest.mark.parametrize(
    "weight, message",
    [
        (["a", "b", "c"], "sample_weight is not valid.*'a'"),
        ([1, np.nan, 1], "sample_weight contains NaN"),
        ([1, -1, 1], "sample_weight must be finite and at least 0, got -1.0"),
        ([0, 0, 0], "All weights are zero|at least one non-zero"),
        ([1, 1], "sample_weight"),
        (np.nan, "sample_weight must be finite and at least 0, got nan"),
        (np.inf, "sample_weight must be finite and at least 0, got inf"),
        ({0: 1.0}, "sample_weight"),
        ([1, 1, 1j], "sample_weight"),
        ([1, 1, pd.NA], "sample_weight is not valid"),
        ([1, 1, 10**400], "sample_weight is not valid"),
        (np.array([1, 1, np.longdouble("1e4000")]), "sample_weight contains infinity"),
    ],
)
def test_wrong_weights(weight, message):
    with pytest.raises(ValueError, match=message):
        make().fit(np.eye(3), [0, 1, 0], weight)
    with pytest.raises(ValueError, match="sample_weight_val"):
        make().fit(
            np.eye(3), [0, 1, 0], X_val=np.eye(3), y_val=[0, 1, 0], sample_weight_val=weight
        )


def test_wrong_classes_of_a_stream():
    with pytest.raises(ValueError, match=r"classes must be array-like.*got {0, 1}"):
        make().partial_fit(np.eye(3), [0, 1, 0], {0, 1})


def test_samples_without_numbers():
    with pytest.raises(ValueError, match=r"samples of shape \(2, 0\), which hold no numbers"):
        make().fit(np.zeros((4, 2, 0)), [0, 1, 0, 1])


@pytest.mark.parametrize("params", [{"verbose": 1}, {"track_decomposition": True}, {}])
def test_a_diverged_training_says_so(params, iris):
    clf = make(learning_rate=1e30, learning_rate_schedule="constant", **params)
    with pytest.raises(ValueError, match=r"The training loss became .* Lower learning_rate"):
        clf.fit(*iris)


def test_too_much_memory(iris):
    with pytest.raises(MemoryError, match=r"n_experts=3.*fewer or smaller experts"):
        make(experts=MLPExperts((10**9, 10**9))).fit(*iris)
