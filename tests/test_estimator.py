import functools
import pickle
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from kinds import OF_TABLES
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_readonly_memmap_input
from skorch.callbacks import Callback, TrainEndCheckpoint
from torch import nn

from sklearn_moe import (
    GATES,
    REGULARIZERS,
    AttentiveGate,
    Importance,
    Load,
    MLPExperts,
    MoEClassifier,
    SampleSimilarity,
    SoftmaxGate,
    TableEncoder,
    decomposition_entropy,
)
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.callbacks import BatchCallback, Progress


def nn_expert(input_shape, n_outputs, hidden_size):
    return nn.Sequential(nn.Linear(input_shape[0], hidden_size), nn.Linear(hidden_size, n_outputs))


MADE = nn.Linear(4, 3)


class PlainGate:
    """A user's own gate that is no scikit-learn estimator."""

    def build(self, input_shape, n_experts, hidden_size, generator):
        return SoftmaxGate().build(input_shape, n_experts, hidden_size, generator)


def make(**params):
    return MoEClassifier(**{"n_experts": 3, "max_iter": 10, "random_state": 0, **params})


# Predictions


@pytest.mark.parametrize("mixing", ["probability", "logit"])
@pytest.mark.parametrize("gate", GATES)
def test_shapes_and_sums(gate, mixing, iris):
    X, y = iris
    clf = make(gate=gate, mixing=mixing, max_iter=3).fit(X, y)
    proba = clf.predict_proba(X)
    assert proba.shape == (150, 3) and 0 <= proba.min() and proba.max() <= 1
    assert clf.gate_proba(X).shape == (150, 3)
    assert clf.expert_proba(X).shape == (150, 3, 3)
    for rows in (proba, clf.gate_proba(X), clf.expert_proba(X)):
        np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), proba, atol=1e-6)
    assert np.array_equal(clf.predict(X), clf.classes_[proba.argmax(axis=1)])
    assert np.array_equal(clf.apply(X), clf.gate_proba(X).argmax(axis=1))
    if mixing == "probability":
        mixed = np.einsum("ne,nec->nc", clf.gate_proba(X), clf.expert_proba(X))
        np.testing.assert_allclose(proba, mixed, atol=1e-6)
    assert np.isfinite(log_loss(y, proba))


@pytest.mark.parametrize("gate", GATES)
def test_probabilities_reach_certainty_on_separable_data(gate):
    rng = np.random.RandomState(0)
    y = rng.randint(2, size=200)
    X = rng.normal(size=(200, 2)) + 20 * y[:, None]
    assert (
        make(gate=gate, max_iter=15, batch_size=50).fit(X, y).predict_proba(X).max(axis=1).min()
        > 0.99
    )


def test_prediction_does_not_depend_on_the_batch_size_or_its_neighbours(digits):
    X, y = digits
    clf = make(batch_size=7, max_iter=1).fit(X[:300], y[:300])
    one_by_one = np.concatenate([clf.predict_proba(row[None]) for row in X[:20]])
    np.testing.assert_allclose(clf.predict_proba(X)[:20], one_by_one, atol=1e-6)
    many = np.repeat(X, 6, axis=0)  # more than a chunk
    np.testing.assert_allclose(clf.predict_proba(many)[::6], clf.predict_proba(X), atol=1e-6)


def test_log_probability_is_finite_where_the_probability_is_zero(iris):
    X, y = iris
    clf = make(max_iter=50, encoder=None, weight_decay=0.0).fit(X, y)
    assert (clf.predict_proba(100 * X) == 0).any()
    assert np.isfinite(clf.predict_log_proba(100 * X)).all()


def test_noise_and_dropout_are_off_in_prediction(iris):
    X, y = iris
    clf = make(gate="noisy_top_k", experts=MLPExperts(dropout=0.5), max_iter=2).fit(X, y)
    assert np.array_equal(clf.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("n_samples", [2, 3, 5])
def test_few_samples(n_samples, iris):
    X, y = iris[0][::30][:n_samples], np.arange(n_samples) % 2
    assert make(max_iter=2).fit(X, y).predict(X).shape == (n_samples,)


# Determinism


@pytest.mark.parametrize(
    "params",
    [
        {"gate": "noisy_top_k", "regularization": ["load", "importance"]},
        {"experts": MLPExperts(dropout=0.3), "regularization": "sample_similarity"},
        {"gate": "attentive", "early_stopping": True},
    ],
)
def test_same_seed_same_bits_also_from_threads(params, digits):
    X, y = digits[0][:150], digits[1][:150]

    def fit_predict(seed):
        return (
            make(batch_size=50, max_iter=3, **params)
            .set_params(random_state=seed)
            .fit(X, y)
            .predict_proba(X)
        )

    with ThreadPoolExecutor(2) as pool:
        first, second, other = pool.map(fit_predict, [0, 0, 1])
    assert np.array_equal(first, second)
    assert np.array_equal(first, fit_predict(0))
    assert not np.array_equal(first, other)


def test_global_states_stay_untouched(iris):
    X, y = iris
    torch_state, numpy_state = (
        torch.random.get_rng_state(),
        np.random.mtrand._rand.get_state()[1].copy(),
    )
    threads = torch.get_num_threads()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    make(gate="noisy_top_k", experts=MLPExperts(dropout=0.5), max_iter=2).fit(X, y).predict(X)
    make(experts=dropout_expert, early_stopping=True, max_iter=2).fit(X, y).predict(X)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state, np.random.mtrand._rand.get_state()[1])
    assert (threads, grad, dtype) == (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )


def dropout_expert(input_shape, n_outputs):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(input_shape)), 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, n_outputs),
    )


def test_custom_experts_are_reproducible_also_from_threads(iris):
    X, y = iris

    def fit_predict(seed):
        clf = make(experts=dropout_expert, batch_size=50, max_iter=3, random_state=seed)
        return clf.fit(X, y).predict_proba(X)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(fit_predict, [0, 0])
    assert np.array_equal(one, other)
    assert np.array_equal(one, fit_predict(0))


def test_random_state_none_and_instance(iris):
    X, y = iris
    one, other = (make(max_iter=2, random_state=None).fit(X, y).predict_proba(X) for _ in range(2))
    assert not np.array_equal(one, other)
    instance = np.random.RandomState(3)
    one, other = (
        make(max_iter=2, random_state=instance).fit(X, y).predict_proba(X) for _ in range(2)
    )
    assert not np.array_equal(one, other)


# Weights


@pytest.mark.parametrize("regularization", [None, *REGULARIZERS])
@pytest.mark.parametrize("gate", ["noisy_top_k", "attentive"])
def test_zero_weight_equals_removal(regularization, gate, digits):
    if regularization == "load" and gate == "attentive":
        pytest.skip("load needs a noisy gate")
    X, y = digits[0][:120], digits[1][:120]
    rows = np.arange(120) % 4 > 0
    clf = make(gate=gate, regularization=regularization, max_iter=2)
    weighted = clone(clf).fit(X, y, sample_weight=rows).predict_proba(X)
    removed = clone(clf).fit(X[rows], y[rows]).predict_proba(X)
    assert np.array_equal(weighted, removed)


@pytest.mark.parametrize("gate", ["softmax", "attentive"])
@pytest.mark.parametrize(
    "regularization", [None, *(name for name in REGULARIZERS if name != "load")]
)
def test_integer_weights_equal_repeats(regularization, gate, iris):
    X, y = iris
    counts = np.random.RandomState(0).randint(1, 4, size=150)
    if regularization == "sample_similarity":
        regularization = SampleSimilarity(max_samples=1000)  # which also compares all repeats
    encoder = TableEncoder(n_knots=None)  # "auto" goes by the number of rows, as batch_size does
    clf = make(gate=gate, regularization=regularization, encoder=encoder)
    clf.set_params(batch_size=1000, max_iter=4, learning_rate=3e-3)
    weighted = clone(clf).fit(X, y, sample_weight=counts).predict_proba(X)
    repeated = clone(clf).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts)).predict_proba(X)
    np.testing.assert_allclose(weighted, repeated, atol=1e-5)


def test_weights_act_by_their_ratio(iris):
    X, y = iris
    weight = np.random.RandomState(0).uniform(size=len(X))
    one, other = (
        make(max_iter=3).fit(X, y, scale * weight).predict_proba(X) for scale in (1, 1000)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_huge_weights(iris):
    X, y = iris
    huge = make(max_iter=3).fit(X, y, np.full(150, 1e308)).predict_proba(X)
    assert np.array_equal(huge, make(max_iter=3).fit(X, y).predict_proba(X))


def test_expert_usage_is_weighted(iris):
    X, y = iris
    weight = np.random.RandomState(0).uniform(size=150)
    clf = make(max_iter=3).fit(X, y, weight)
    expected = np.average(clf.gate_proba(X), axis=0, weights=weight)
    np.testing.assert_allclose(clf.expert_usage_, expected, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_expert_usage_is_the_mean_of_gate_proba(gate, iris):
    clf = make(gate=gate, max_iter=3).fit(*iris)
    expected = clf.gate_proba(iris[0]).mean(axis=0)
    np.testing.assert_allclose(clf.expert_usage_, expected, atol=1e-6)


def test_class_weight_equals_sample_weight(iris):
    X, y = iris
    names = np.array(["a", "b", "c"])[y]
    weight = {"a": 1.0, "b": 3.0, "c": 0.5}
    by_class = make(max_iter=4, class_weight=weight).fit(X, names).predict_proba(X)
    by_sample = make(max_iter=4).fit(X, names, [weight[name] for name in names]).predict_proba(X)
    np.testing.assert_allclose(by_class, by_sample, atol=1e-6)


def test_balanced_class_weight_takes_sample_weight_into_account(iris):
    X, y = iris
    rows = (y == 2) | (np.arange(150) % 5 == 0)
    balanced = make(class_weight="balanced", batch_size=150, max_iter=5)
    weighted = clone(balanced).fit(X, y, sample_weight=rows).predict_proba(X)
    removed = clone(balanced).fit(X[rows], y[rows]).predict_proba(X)
    np.testing.assert_allclose(weighted, removed, atol=1e-5)


# Stopping, validation


def test_early_stopping_restores_the_best_weights(digits):
    X, y = digits[0][:400], digits[1][:400]
    X_val, y_val = digits[0][400:800], digits[1][400:800]
    clf = make(
        early_stopping=True,
        max_iter=300,
        n_iter_no_change=3,
        tol=0,
        learning_rate=0.05,
        learning_rate_schedule="constant",
    ).fit(X, y, X_val=X_val, y_val=y_val)
    assert clf.n_iter_ == len(clf.loss_curve_) == len(clf.validation_loss_curve_) < 300
    best = np.argmin(clf.validation_loss_curve_)
    assert best == clf.n_iter_ - 1 - 3
    restored = -clf.predict_log_proba(X_val)[np.arange(400), y_val].mean()
    assert restored == pytest.approx(clf.validation_loss_curve_[best], rel=1e-4)
    assert clf.score(X_val, y_val) == pytest.approx(clf.validation_scores_[best], abs=1e-6)
    assert clf.best_validation_score_ == clf.validation_scores_[best]


def test_early_stopping_restores_the_lowest_loss_whatever_the_tolerance(iris):
    X, y = iris
    clf = make(early_stopping=True, tol=10.0, n_iter_no_change=8, max_iter=50)
    # The first epoch counts as a fall, no other does; the rate rises for 15 epochs.
    for schedule, n_epochs in {"constant": 9, "one_cycle": 15 + 8 + 8}.items():
        clf.set_params(learning_rate_schedule=schedule).fit(X, y, X_val=X, y_val=y)
        assert clf.n_iter_ == n_epochs
        assert log_loss(y, clf.predict_proba(X)) == pytest.approx(
            min(clf.validation_loss_curve_), rel=1e-4
        )


@pytest.mark.parametrize("patience, n_epochs", [(1, 10 + 4), (8, 17 + 6), (19, 30), (40, 30)])
def test_learning_rate_comes_down_before_early_stopping_ends(patience, n_epochs, iris):
    X, y = iris
    rates = []

    class Spy(Callback):
        def on_batch_end(self, net, training, **kwargs):
            if training:
                rates.append(net.optimizer_.param_groups[0]["lr"] / net.lr)

    net_params = {"callbacks": [Spy()], "lr": 1e-9}  # with which no loss falls
    params = {"n_iter_no_change": patience, "batch_size": 50, "max_iter": 30}
    clf = make(early_stopping=True, net_params=net_params, **params).fit(X, y, X_val=X, y_val=y)
    assert clf.n_iter_ == n_epochs and len(rates) == 3 * n_epochs
    assert np.argmax(rates) == 27 and rates[27] > 0.99
    assert sorted(rates[27:])[::-1] == rates[27:] and 0 < rates[-1] < 0.05


def test_callbacks_see_the_restored_weights_at_the_end(iris):
    X, y = iris
    seen = []

    class Spy(Callback):
        def on_train_end(self, net, **kwargs):
            seen.append(net.evaluate(X.astype(np.float32), MixtureOfExperts.predict_log_proba))

    net_params = {"callbacks": [Spy()]}
    params = {"learning_rate": 0.3, "learning_rate_schedule": "constant", "n_iter_no_change": 2}
    params |= {"encoder": None, "net_params": net_params}
    clf = make(early_stopping=True, max_iter=100, **params).fit(X, y)
    np.testing.assert_allclose(seen[0], clf.predict_log_proba(X), atol=1e-5)


def test_early_stopping_with_few_weighted_samples(iris):
    X, y = iris
    weight = np.arange(150) % 10 == 0
    clf = make(early_stopping=True, max_iter=3).fit(X, y, sample_weight=weight)
    assert np.isfinite(clf.validation_loss_curve_).all()


def test_early_stopping_without_any_weight_says_so(iris):
    clf = make(early_stopping=True, class_weight={0: 0, 1: 0, 2: 0})
    with pytest.raises(ValueError, match="All weights are zero"):
        clf.fit(*iris)
    with pytest.raises(ValueError, match="one validation sample, must have a positive weight"):
        make(class_weight={0: 0}).fit(*iris, X_val=iris[0][:9], y_val=iris[1][:9])


def test_early_stopping_sets_a_part_aside(iris):
    X, y = iris
    seen = []

    def spy(mixture, x, y, sample_weight):
        seen.append(y)
        return x.new_zeros(())

    make(early_stopping=True, validation_fraction=0.2, max_iter=1, regularization=spy).fit(X, y)
    assert np.bincount(torch.cat(seen)).tolist() == [40, 40, 40]  # stratified
    clf = make(early_stopping=True, max_iter=3).fit(X, y)
    assert len(clf.validation_scores_) == 3
    # A class with one sample cannot be stratified; the split goes on without.
    rare = np.where(np.arange(150) == 0, 9, y)
    assert len(make(early_stopping=True, max_iter=3).fit(X, rare).validation_scores_) == 3


def test_validation_set_alone_only_records(iris):
    X, y = iris
    with_val = make(max_iter=3).fit(
        X, y, X_val=X[::2], y_val=y[::2], sample_weight_val=np.ones(75)
    )
    without = make(max_iter=3).fit(X, y)
    assert np.array_equal(with_val.predict_proba(X), without.predict_proba(X))
    assert len(with_val.validation_loss_curve_) == 3
    assert without.validation_loss_curve_ is without.best_validation_score_ is None
    assert with_val.best_validation_score_ in with_val.validation_scores_


def test_validation_loss_is_weighted(iris):
    X, y = iris
    weight = np.random.RandomState(0).uniform(size=150)
    clf = make(max_iter=3).fit(X, y, X_val=X, y_val=y, sample_weight_val=weight)
    expected = log_loss(y, clf.predict_proba(X), sample_weight=weight)
    assert clf.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-4)
    assert clf.validation_scores_[-1] == pytest.approx(clf.score(X, y, weight), abs=1e-6)
    assert abs(clf.score(X, y, weight) - clf.score(X, y)) > 1e-3


def test_warm_start_goes_on(iris):
    X, y = iris
    clf = make(warm_start=True, learning_rate_schedule="constant", batch_size=150).fit(X, y)
    losses = list(clf.loss_curve_)
    clf.set_params(max_iter=5, regularization="importance", learning_rate=1e-3).fit(X, y)
    assert clf.n_iter_ == len(clf.loss_curve_) == 15
    assert clf.loss_curve_[:10] == losses
    assert clf.net_.optimizer_.param_groups[0]["lr"] == 1e-3
    assert len(clf.net_.regularizations) == 1
    cold = make().fit(X, y).fit(X, y)
    assert cold.n_iter_ == 10


def test_learning_rate_goes_up_and_down_in_each_training(iris):
    X, y = iris
    rates = []

    class Spy(Callback):
        def on_batch_end(self, net, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    params = {"warm_start": True, "batch_size": 50, "net_params": {"callbacks": [Spy()]}}
    clf = make(learning_rate=0.01, **params).fit(X, y)
    expected = [
        min(i / 31 / 0.3, 0.5 + 0.5 * np.cos(np.pi * (i / 31 - 0.3) / 0.7)) for i in range(1, 31)
    ]
    np.testing.assert_allclose(rates, np.multiply(0.01, expected))
    rates.clear()
    clf.set_params(learning_rate=0.1).fit(X, y)
    np.testing.assert_allclose(rates, np.multiply(0.1, expected))
    rates.clear()
    clf.partial_fit(X, y)
    assert rates == [0.1] * 3


@pytest.mark.parametrize("net_params", [{"batch_size": -1}, {"iterator_train__batch_size": 40}])
def test_schedule_knows_the_number_of_batches(net_params, iris):
    clf = make(net_params=net_params, learning_rate_schedule="one_cycle")
    rates = []

    class Spy(Callback):
        def on_batch_end(self, net, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    net_params["callbacks"] = [Spy()]
    clf.fit(*iris)
    peak = np.argmax(rates)
    assert 0 < peak < len(rates) - 1 and min(rates) > 0
    assert sorted(rates[:peak]) == rates[:peak] and sorted(rates[peak:])[::-1] == rates[peak:]


def test_failed_training_leaves_the_fitted_mixture_as_it_was(iris):
    X, y = iris
    clf = make(warm_start=True).fit(X, y)
    before = clf.predict_proba(X)
    for train in (clf.fit, clf.partial_fit):
        clf.set_params(learning_rate=1e30, learning_rate_schedule="constant")
        with pytest.raises(ValueError, match="loss became"):
            for _ in range(5):
                train(X, y)
                before = clf.predict_proba(X)
        assert np.array_equal(clf.predict_proba(X), before)
        assert np.isfinite(before).all() and len(clf.net_.history) == clf.n_iter_
    clf.set_params(learning_rate=1e-3).fit(X, y)
    assert np.isfinite(clf.loss_curve_[-1])


def test_two_warm_starts_equal_one_fit(iris):
    X, y = iris
    params = {"learning_rate_schedule": "constant", "batch_size": 150}
    halves = make(warm_start=True, max_iter=5, **params).fit(X, y).fit(X, y)
    np.testing.assert_allclose(
        halves.predict_proba(X), make(**params).fit(X, y).predict_proba(X), atol=1e-6
    )


@pytest.mark.parametrize(
    "change",
    [{"n_experts": 4}, {"gate": "hard"}, {"mixing": "logit"}, {"experts": MLPExperts((3,))}],
)
def test_warm_start_cannot_change_the_architecture(change, iris):
    clf = make(warm_start=True, max_iter=1).fit(*iris)
    with pytest.raises(ValueError, match=f"cannot change {next(iter(change))} from"):
        clf.set_params(**change).fit(*iris)


def test_warm_start_sees_a_nested_change(iris):
    clf = make(warm_start=True, max_iter=1, gate=SoftmaxGate()).fit(*iris)
    with pytest.raises(ValueError, match="cannot change gate from"):
        clf.set_params(gate__top_k=1).fit(*iris)


def test_partial_fit_is_an_epoch(iris):
    X, y = iris
    clf = make(learning_rate=0.01)
    for n_calls in range(1, 4):
        clf.partial_fit(X[:100], y[:100], classes=[0, 1, 2] if n_calls == 1 else None)
        assert clf.n_iter_ == len(clf.loss_curve_) == n_calls
    assert clf.classes_.tolist() == [0, 1, 2]
    for _ in range(20):
        clf.partial_fit(X, y)
    assert clf.score(X, y) > 0.9


def test_equal_parameters_are_no_change(iris):
    clf = make(warm_start=True, max_iter=2, gate=SoftmaxGate([]), experts=MLPExperts([8])).fit(
        *iris
    )
    clf.set_params(gate=SoftmaxGate(()), experts=MLPExperts((8,))).fit(*iris)
    with pytest.raises(ValueError, match="cannot change experts"):
        clf.set_params(experts=functools.partial(nn_expert, hidden_size=4)).fit(*iris)


@pytest.mark.parametrize(
    "params",
    [
        {"experts": functools.partial(nn_expert, hidden_size=4)},
        {"experts": MLPExperts(np.array([8, 4]))},
        {"gate": PlainGate()},
    ],
)
def test_partial_fit_goes_on_with_any_kind_of_object(params, iris):
    clf = make(**params).partial_fit(*iris, classes=[0, 1, 2])
    clf.partial_fit(*iris)
    assert pickle.loads(pickle.dumps(clf)).partial_fit(*iris).n_iter_ == 3


def test_a_stream_of_single_classes_does_not_warn_of_collapse(iris):
    X, y = iris
    clf = make(gate="hard").partial_fit(X, y, classes=[0, 1, 2])
    for label in range(3):
        clf.partial_fit(X[y == label], y[y == label])


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("experts", OF_TABLES)
def test_interruption_leaves_a_usable_model(experts, iris):
    X, y = iris

    class CtrlC(Callback):
        def on_batch_end(self, net, training, **kwargs):
            if training and len(net.history) == 4:
                signal.raise_signal(signal.SIGINT)

    clf = make(experts=experts, net_params={"callbacks": [CtrlC()]})
    with pytest.raises(KeyboardInterrupt, match="interrupted after 3 complete epochs"):
        clf.fit(X, y)
    assert clf.n_iter_ == len(clf.loss_curve_) == 3
    assert clf.predict(X).shape == (150,)
    own = len(clf.net_._default_callbacks) + 1  # what lives as long as a training is gone
    assert clf.net_.train_split is None and len(clf.net_.callbacks_) == own


@pytest.mark.parametrize("value", [5.0, [5.0, 2.0]])
def test_every_penalty_is_added_once(value, iris):
    def constant(penalty):
        return lambda mixture, x, y, sample_weight: mixture.log_proba.new_tensor(penalty)

    penalties = [constant(each) for each in np.atleast_1d(value).tolist()]
    penalised = make(max_iter=3, regularization=penalties).fit(*iris).loss_curve_
    plain = make(max_iter=3, regularization=None).fit(*iris).loss_curve_
    assert penalised == pytest.approx([loss + np.sum(value) for loss in plain], abs=1e-5)


def test_strength_zero_is_no_term(iris):
    clf = make(regularization=Load(0.0), max_iter=3).fit(
        *iris
    )  # with any other strength this gate raises
    assert clf.net_.regularizations == []
    none = make(regularization=None, max_iter=3).fit(*iris)
    assert np.array_equal(clf.predict_proba(iris[0]), none.predict_proba(iris[0]))


def test_training_is_shuffled_in_each_epoch(iris):
    first = []

    def spy(mixture, x, y, sample_weight):
        first.append(tuple(x[0].tolist()))
        return x.new_zeros(())

    make(regularization=spy, batch_size=50).fit(*iris)
    assert len(set(first)) > 15  # of 10 epochs of 3 batches


@pytest.mark.parametrize("n_samples, expected", [(100, 32), (1600, 160), (10_000, 256)])
def test_automatic_batch_size(n_samples, expected):
    clf = make(max_iter=1).fit(
        np.random.RandomState(0).normal(size=(n_samples, 2)), np.arange(n_samples) % 2
    )
    assert clf.net_.batch_size == expected


def test_automatic_recipe(iris, digits):
    def trained_with(X, y, **params):
        net = make(max_iter=1, **params).fit(X, y).net_
        names = [type(each).__name__ for each in net.regularizations]
        return net.lr, net.optimizer__weight_decay, names

    table = ["Importance", "Competence"]
    assert trained_with(*iris) == (0.03, 0.7, table)
    assert trained_with(iris[0], iris[1] == 0) == (0.03, 2.0, table)
    assert trained_with(*iris, encoder=None) == (0.03, 0.7, table)
    assert trained_with(*iris, gate="attentive") == (0.01, 0.7, table)
    assert trained_with(*iris, learning_rate_schedule="constant") == (3e-3, 0.7, table)
    own = {"regularization": "load", "gate": "noisy_top_k", "weight_decay": 0.3}
    assert trained_with(*iris, learning_rate=0.1, **own) == (0.1, 0.3, ["Load"])
    assert trained_with(*iris, experts=lambda shape, n: nn.Linear(*shape, n)) == (3e-3, 0.0, [])
    images = digits[0].reshape(-1, 8, 8)[:100], digits[1][:100]
    assert trained_with(*images) == (3e-3, 0.0, [])
    chunk = make().partial_fit(*iris, classes=[0, 1, 2]).net_
    assert (chunk.lr, chunk.optimizer__weight_decay) == (3e-3, 0.7 / 40)


@pytest.mark.parametrize("params", [{"batch_size": 2}, {"net_params": {"batch_size": 2}}])
def test_more_steps_of_an_epoch_do_not_decay_the_weights_more(params, iris):
    net_params = {**params.pop("net_params", {}), "callbacks": [Stop()]}
    clf = make(**params, net_params=net_params).fit(*iris)
    assert clf.net_.optimizer__weight_decay * 75 == pytest.approx(0.7 * 16)
    clf.set_params(weight_decay=0.7).fit(*iris)
    assert clf.net_.optimizer__weight_decay == 0.7


def test_full_batch_of_sorted_samples_is_compared_over_all_classes(digits):
    X, y = digits
    order = np.argsort(y, kind="stable")
    seen = []

    def metric(a, b):
        seen.append(a)
        return torch.cdist(a, b)

    params = {"regularization": SampleSimilarity(metric=metric), "batch_size": 2000}
    make(encoder=None, max_iter=1, **params).fit(X[order], y[order])
    labels = {row.tobytes(): label for row, label in zip(X.astype(np.float32), y, strict=True)}
    assert {labels[row.numpy().tobytes()] for row in seen[0]} == set(range(10))


def test_nan_loss_stops_with_advice(iris):
    X, y = iris
    params = {"learning_rate": 1e30, "learning_rate_schedule": "constant"}
    with pytest.raises(ValueError, match="Lower learning_rate"):  # in the last step
        make(max_iter=1, batch_size=150, **params).fit(X, y)
    with pytest.raises(ValueError, match=r"loss became nan in epoch \d+. Lower learning_rate"):
        make(learning_rate=1e30, learning_rate_schedule="constant").fit(X, y)


def test_collapse_warns_and_names_what_helps(iris):
    def send_all_to_the_first(mixture, x, y, sample_weight):
        return -100 * mixture.gate_proba[:, 0].log().mean()

    with pytest.warns(UserWarning, match="collapsed: expert 0 .*regularization='importance'"):
        make(
            learning_rate=0.1,
            weight_decay=0.0,
            max_iter=40,
            regularization=send_all_to_the_first,
        ).fit(*iris)


# The decomposition of each epoch


@pytest.mark.parametrize("weighted", [False, True])
def test_tracked_decomposition_is_that_of_the_training_samples(weighted, iris):
    X, y = iris
    rng = np.random.RandomState(0)
    repeats = rng.randint(1, 4, size=len(X)) if weighted else np.ones(len(X), dtype=int)
    # With such a learning rate the weights stay those of the epoch that is tracked.
    clf = make(track_decomposition=True, max_iter=1, batch_size=20, learning_rate=1e-30)
    clf.fit(X, y, sample_weight=repeats)
    expected = decomposition_entropy(clf, np.repeat(X, repeats, axis=0), np.repeat(y, repeats))
    for name, curve in clf.decomposition_curves_.items():
        assert curve == pytest.approx([getattr(expected, name)], rel=1e-4)


def test_tracking_changes_nothing_else(iris):
    X, y = iris
    tracked, plain = (make(track_decomposition=track).fit(X, y) for track in (True, False))
    assert plain.decomposition_curves_ is None
    assert np.array_equal(tracked.predict_proba(X), plain.predict_proba(X))
    assert tracked.loss_curve_ == plain.loss_curve_
    assert set(tracked.decomposition_curves_) == {
        "sample_entropy",
        "usage_entropy",
        "expert_class_information",
    }
    assert {len(curve) for curve in tracked.decomposition_curves_.values()} == {10}
    pickle.loads(pickle.dumps(tracked))


def test_callbacks_of_a_user_see_the_tracked_figures(iris):
    seen = []

    class Spy(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(net.history[-1, "sample_entropy"])
            if len(seen) == 3:
                raise KeyboardInterrupt  # skorch's signal to stop

    clf = make(track_decomposition=True, net_params={"callbacks": [Spy()]}).fit(*iris)
    assert clf.decomposition_curves_["sample_entropy"] == seen and len(clf.loss_curve_) == 3


def test_chosen_expert_alone(iris):
    X, y = iris
    for gate in ("softmax", "hard", "attentive"):
        clf = make(gate=gate, regularization="importance", max_iter=3).fit(X, y)
        expected = clf.expert_proba(X)[np.arange(len(X)), clf.apply(X)]
        np.testing.assert_allclose(clf.expert_proba(X, chosen_only=True), expected, atol=1e-6)


def test_tracking_in_a_warm_start_and_with_verbose(iris, capsys):
    X, y = iris
    clf = make(warm_start=True).fit(X, y)
    clf.set_params(track_decomposition=True, max_iter=5).fit(X, y)
    assert clf.n_iter_ == 15 and len(clf.decomposition_curves_["usage_entropy"]) == 5
    clf = make(verbose=2, max_iter=2).fit(X, y)
    assert "usage_entropy" in capsys.readouterr().out
    assert len(clf.decomposition_curves_["usage_entropy"]) == 2


# Skorch and scikit-learn behind it


def test_net_params_win_and_callbacks_are_added(iris):
    X, y = iris
    seen = []

    class Spy(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(net.history[-1, "train_loss"])

    net_params = {"optimizer": torch.optim.SGD, "lr": 0.5, "callbacks": [("spy", Spy())]}
    clf = make(net_params=net_params, learning_rate_schedule="constant").fit(X, y)
    assert isinstance(clf.net_.optimizer_, torch.optim.SGD)
    assert clf.net_.optimizer_.param_groups[0]["lr"] == 0.5
    assert seen == clf.loss_curve_
    assert clone(clf).fit(X, y).loss_curve_ == clf.loss_curve_


def test_own_optimizer_has_its_own_defaults(iris):
    net_params = {"optimizer": torch.optim.AdamW, "optimizer__betas": (0.8, 0.9)}
    clf = make(net_params=net_params, weight_decay=0.7, max_iter=1).fit(*iris)
    (group,) = clf.net_.optimizer_.param_groups
    assert (group["betas"], group["weight_decay"], group["fused"]) == ((0.8, 0.9), 0.01, None)
    assert (
        make(weight_decay=0.7, max_iter=1)
        .fit(*iris)
        .net_.optimizer_.param_groups[0]["weight_decay"]
        == 0.7
    )
    slow = make(net_params={"optimizer__fused": False}, max_iter=1).fit(*iris)
    assert slow.net_.optimizer_.param_groups[0]["fused"] is False


def test_torch_data_loader_is_reproducible(iris):
    net_params = {"iterator_train": torch.utils.data.DataLoader, "iterator_train__shuffle": True}
    curves = [
        make(net_params=net_params, batch_size=50, max_iter=3).fit(*iris).loss_curve_
        for _ in range(2)
    ]
    assert curves[0] == curves[1]


def test_skorch_checkpoint(iris, tmp_path):
    checkpoint = TrainEndCheckpoint(dirname=tmp_path)
    clf = make(max_iter=2, net_params={"callbacks": [checkpoint]}).fit(*iris)
    assert {path.name for path in tmp_path.iterdir()} >= {"train_end_params.pt"}
    assert all(row["batches"] == [] for row in clf.net_.history)


class Stop(Callback):
    """Stop after two epochs, as skorch's own callbacks do."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def test_best_weights_where_another_callback_stops(iris):
    X, y = iris
    clf = make(early_stopping=True, net_params={"callbacks": [Stop()]}).fit(X, y, X_val=X, y_val=y)
    losses = clf.validation_loss_curve_
    assert losses[1] < losses[0]
    assert log_loss(y, clf.predict_proba(X)) == pytest.approx(losses[1], rel=1e-4)


def test_scikit_learn_callbacks_hear_the_end_where_another_callback_stops(iris):
    pytest.importorskip("sklearn.callback")
    open_tasks = []

    class Recorder:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            open_tasks.append(context.task_name)

        def on_fit_task_end(self, estimator, context):
            open_tasks.remove(context.task_name)

        def teardown(self, estimator, context):
            pass

    clf = make(net_params={"callbacks": [Stop()]}).set_callbacks(Recorder()).fit(*iris)
    assert clf.n_iter_ == 2 and open_tasks == []


def test_skorch_early_stopping_is_no_interruption(iris):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(net_params={"callbacks": [Stop()]}).fit(*iris).n_iter_ == 2


def test_scikit_learn_callbacks(iris):
    pytest.importorskip("sklearn.callback")
    X, y = iris

    class Recorder:
        def __init__(self):
            self.events, self.scores = [], []

        def setup(self, estimator, context):
            self.events.append("setup")

        def on_fit_task_begin(self, estimator, context):
            self.events.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
            self.events.append(f"end {context.task_name}")
            self.scores.append(fitted_estimator.score(X, y))
            return len(self.scores) == 3

        def teardown(self, estimator, context):
            self.events.append("teardown")

    recorder = Recorder()
    clf = make(max_iter=5).set_callbacks(recorder).fit(X, np.array(["a", "b", "c"])[y])
    epoch = ["begin epoch", "end epoch"]
    assert recorder.events == ["setup", "begin fit", *(3 * epoch), "end fit", "teardown"]
    assert clf.n_iter_ == 3
    assert recorder.scores[-1] == clf.score(X, np.array(["a", "b", "c"])[y])


def test_scikit_learn_callbacks_get_the_users_weights(iris):
    pytest.importorskip("sklearn.callback")
    X, y = iris
    seen = []

    class Recorder:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, X, metadata):
            seen.append((len(X), metadata))

        def teardown(self, estimator, context):
            pass

    clf = make(max_iter=1, class_weight={0: 5.0}).set_callbacks(Recorder())
    clf.fit(X, y)
    assert seen == [(150, None)] * 2
    clf.fit(X, y, sample_weight=np.where(y == 0, 0.0, 2.0))
    n_samples, metadata = seen[-1]
    assert n_samples == 100 and set(metadata["sample_weight"]) == {2.0}


def test_progress_bar_and_lines(iris, capsys):
    make(verbose=1).fit(*iris)
    assert "10.0/10" in capsys.readouterr().err
    make(verbose=2).fit(*iris)
    assert "train_loss" in capsys.readouterr().out
    make().fit(*iris)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_moves_with_the_batches(iris):
    class Read(BatchCallback):
        def on_batch_end(self, net, training, **kwargs):
            (bar,) = (each.bar for each in net.listeners if isinstance(each, Progress))
            places.append(bar.n)

    places = []
    clf = make(verbose=1, max_iter=2, batch_size=50, net_params={"callbacks": [Read()]})
    clf.fit(*iris)  # three batches an epoch, each read before the bar hears of it
    assert places == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])


def test_nothing_heavy_stays(digits):
    X, y = digits
    clf = make(early_stopping=True, max_iter=6, regularization="importance").fit(X, y)
    # The weights and AdamW's two moments, 4 bytes each, the summary for grow, and little else.
    summary = sum(np.asarray(value).nbytes for value in vars(clf.input_summary_).values())
    assert len(pickle.dumps(clf)) < 3 * 4 * clf.n_parameters_ + summary + 40_000
    assert all(row["batches"] == [] for row in clf.net_.history)


def test_repr_shows_what_was_set():
    clf = MoEClassifier(gate=AttentiveGate(top_k=2), regularization=[Importance(0.5)])
    text = "MoEClassifier(gate=AttentiveGate(top_k=2), regularization=[Importance(strength=0.5)])"
    assert " ".join(repr(clf).split()) == text
    assert "AttentiveGate" in clf._repr_html_()


def test_the_users_objects_are_not_shared(iris):
    gate = SoftmaxGate(top_k=2)
    clf = make(gate=gate, max_iter=2).fit(*iris)
    gate.top_k = 1
    assert (clf.gate_proba(iris[0]) > 0).sum(axis=1).max() == 2
    assert (
        clf.net_.gate is not gate
        and GATES["top_k"].get_params() == SoftmaxGate(top_k=2).get_params()
    )


def test_readonly_memmap():
    check_readonly_memmap_input("MoEClassifier", make(max_iter=2))


def test_to_device(iris):
    clf = make(max_iter=2).fit(*iris)
    before = clf.predict_proba(iris[0])
    assert clf.to("cpu").device_ == "cpu"
    assert np.array_equal(clf.predict_proba(iris[0]), before)
    clf.partial_fit(*iris)


# Images


def conv_expert(input_shape, n_outputs):
    return nn.Sequential(
        nn.Unflatten(1, (1, input_shape[0])),
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(n_outputs),
    )


@pytest.mark.parametrize("gate", ["softmax", "attentive"])
def test_images_with_own_experts(gate, digits):
    X, y = digits[0].reshape(-1, 8, 8)[:600], digits[1][:600]
    clf = make(experts=conv_expert, gate=gate, regularization="importance", batch_size=64)
    clf.set_params(learning_rate=0.01)
    pipeline = make_pipeline(FunctionTransformer(lambda X: X * 2), clf)
    scores = cross_validate(pipeline, X, y, cv=2, error_score="raise")
    assert scores["test_score"].min() > 0.8
    clf.set_params(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match=r"samples of shape \(8, 7\).*fitted with.*\(8, 8\)"):
        clf.predict(X[:, :, :7])
    with pytest.raises(ValueError, match="X has 7 features, but MoEClassifier is expecting 8"):
        clf.predict(X[:, :7])
    with pytest.raises(ValueError, match=r"X_val has samples of shape \(8, 7\)"):
        clf.fit(X, y, X_val=X[:, :, :7], y_val=y)


def test_experts_that_work_in_place_leave_the_data_alone(iris):
    def in_place_expert(input_shape, n_outputs):
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(input_shape[0], n_outputs))

    X, y = iris[0].astype(np.float32), iris[1]
    before = X.copy()
    make(experts=in_place_expert, batch_size=150, max_iter=2).fit(X, y).predict(X)
    assert np.array_equal(X, before)


def test_mlp_experts_flatten_images(digits):
    X, y = digits[0][:300], digits[1][:300]
    params = {
        "experts": "mlp",
        "encoder": None,
        "regularization": "sample_similarity",
        "max_iter": 3,
    }
    params |= {"learning_rate": 0.01, "weight_decay": 0.1}
    images, rows = make(**params).fit(X.reshape(-1, 8, 8), y), make(**params).fit(X, y)
    assert np.array_equal(images.predict_proba(X.reshape(-1, 8, 8)), rows.predict_proba(X))


# Bad input: each raises at once and names the parameter, the value and what to do


@pytest.mark.parametrize(
    "params, message",
    [
        (
            {"gate": "sofmax"},
            r"The 'gate' parameter of MoEClassifier must be a str among.*'attentive'",
        ),
        ({"experts": "cnn"}, r"The 'experts' parameter.*'mlp'"),
        ({"regularization": "l2"}, r"The 'regularization' parameter.*'sample_similarity'"),
        (
            {"regularization": ["l2"]},
            r"regularization='l2' is not known; the names are \['competence'",
        ),
        ({"gate": SoftmaxGate}, r"gate must be an object, not a class: write gate=SoftmaxGate\("),
        ({"experts": MLPExperts}, r"experts must be an object, not a class"),
        ({"regularization": Importance}, r"regularization must be an object, not a class"),
        ({"regularization": [None]}, r"regularization=None must be a name, a regularization"),
        ({"regularization": SoftmaxGate()}, r"The 'regularization' parameter"),
        ({"experts": nn.Linear(4, 3)}, r"experts must be a function .* not a module"),
        ({"experts": lambda shape, n: MADE}, r"must return a new torch.nn.Module in each call"),
        ({"net_params": {"callbacks": "disable"}}, r"net_params\['callbacks'\] must be a list"),
        ({"device": "meta"}, r"device='meta' must be 'auto'"),
        ({"class_weight": {0: -1.0}}, r"class_weight must hold finite numbers.*got -1.0 for 0"),
        ({"class_weight": {0: "a"}}, r"class_weight must hold finite numbers.*got 'a' for 0"),
        ({"regularization": Importance(-1)}, r"The 'strength' parameter of Importance"),
        ({"regularization": SampleSimilarity(max_samples=1)}, r"The 'max_samples' parameter"),
        ({"gate": SoftmaxGate(top_k=5)}, r"top_k=5 must not be larger than n_experts=3"),
        ({"gate": "top_k", "n_experts": 1}, r"top_k=2 must not be larger than n_experts=1"),
        ({"n_experts": 0}, r"The 'n_experts' parameter.*Got 0"),
        ({"learning_rate": 0}, r"The 'learning_rate' parameter"),
        ({"max_iter": 0}, r"The 'max_iter' parameter"),
        ({"mixing": "proba"}, r"The 'mixing' parameter.*'logit'"),
        (
            {"device": "gpu"},
            r"device='gpu' must be 'auto', 'cpu', 'cuda', 'mps' or such as 'cuda:1'",
        ),
        ({"class_weight": {7: 2.0}}, r"class_weight has a weight for 7, .*\[0, 1, 2\]"),
        ({"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}}, r"All weights are zero"),
        ({"regularization": "load"}, r"regularization='load' needs a gate that draws noise"),
        ({"net_params": {"batch": 3}}, r"batch"),
    ],
)
def test_wrong_parameters(params, message, iris):
    with pytest.raises((ValueError, TypeError), match=message):
        make(**params).fit(*iris)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu(iris):
    with pytest.raises(ValueError, match=r"torch finds 0 CUDA devices\. Use device='cpu'"):
        make(device="cuda").fit(*iris)


def _wrong_data():
    X, y = np.random.RandomState(0).normal(size=(30, 2)), np.arange(30) % 3
    with_nan, with_inf = X.copy(), X.copy()
    with_nan[3, 1], with_inf[3, 1] = np.nan, np.inf
    text = X.astype(object)
    text[:, 1] = "red"
    yield "no encoder", with_nan, y, {"encoder": None}, "Input X contains NaN.*encoder='auto'"
    yield "infinity", with_inf, y, {}, "Column 1 of X contains infinity.*Clip or drop"
    yield "too large", X * 1e300, y, {"encoder": None}, "infinity or a value too large"
    yield "text", text, y, {"encoder": None}, "'red'.*Leave encoder='auto'"
    yield "complex", X + 1j, y, {}, "Complex data not supported.*real and imaginary part"
    yield "no samples", X[:0], y[:0], {}, "0 sample"
    yield "no features", X[:, :0], y, {}, "0 feature"
    yield "one class", X, y * 0, {}, r"at least 2 classes, got one class: \[0\]"
    yield "real y", X, X[:, 0], {}, "Unknown label type"
    yield "lengths", X, y[:-1], {}, "inconsistent numbers of samples"
    yield (
        "weight",
        X,
        y,
        {"sample_weight": -np.ones(30)},
        "sample_weight must be finite and at least 0, got -1",
    )
    yield "weight 0", X, y, {"sample_weight": np.zeros(30)}, "zero"
    yield "y_val alone", X, y, {"y_val": y}, "X_val and y_val must be passed together"
    yield "weight_val", X, y, {"sample_weight_val": y}, "X_val and y_val must be passed together"
    yield "y_val", X, y, {"X_val": X, "y_val": y + 1}, r"y_val contains \[3\].*\[0, 1, 2\]"
    yield "X_val", X, y, {"X_val": X[:, :1], "y_val": y}, "validation set X_val.*1 feature"
    yield "X_val inf", X, y, {"X_val": with_inf, "y_val": y}, "validation set X_val.*infinity"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the cast of 1e300 to float32
@pytest.mark.parametrize(
    "X, y, fit_params, message",
    [pytest.param(*case, id=name) for name, *case in _wrong_data()],
)
def test_wrong_data(X, y, fit_params, message):
    clf = make(encoder=fit_params.pop("encoder", "auto"))
    with pytest.raises((ValueError, TypeError), match=message):
        clf.fit(X, y, **fit_params)


def test_wrong_data_for_a_fitted_mixture(iris):
    X, y = iris
    with pytest.raises(NotFittedError):
        make().predict(X)
    clf = make(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="X has 3 features, but MoEClassifier is expecting 4"):
        clf.predict(X[:, :3])
    with pytest.raises(ValueError, match=r"y contains \[7\], which are not among the classes"):
        clf.partial_fit(X, np.full(150, 7))
    with pytest.raises(ValueError, match=r"The classes \[0, 1\] differ from \[0, 1, 2\]"):
        clf.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"needs at least 2 classes, got one class: \[0\]"):
        clf.partial_fit(X, y, classes=[0])
    with pytest.raises(ValueError, match=r"The classes \[1, 2, 3\] differ from \[0, 1, 2\]"):
        clf.set_params(warm_start=True).fit(X, y + 1)


def test_partial_fit_says_what_it_cannot_do(iris):
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        make().partial_fit(*iris)
    with pytest.raises(ValueError, match="does not support early_stopping=True"):
        make(early_stopping=True).partial_fit(*iris, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="does not support class_weight='balanced'"):
        make(class_weight="balanced").partial_fit(*iris, classes=[0, 1, 2])


def test_nested_parameters_of_a_name_are_explained():
    with pytest.raises(
        ValueError,
        match=r"Cannot set gate__top_k: gate='softmax' .*object in its place.*gate=",
    ):
        MoEClassifier().set_params(gate__top_k=2)
    clf = MoEClassifier().set_params(gate=SoftmaxGate(), gate__top_k=2)
    assert clf.gate.top_k == 2
