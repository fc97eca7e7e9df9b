from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    SCORERS,
    Decomposition,
    MoEClassifier,
    decomposition_entropy,
    expert_class_information,
    sample_entropy,
    specialization,
    usage_entropy,
)
from sklearn_moe.decomposition import cut
from sklearn_moe.measures import mutual_information


@pytest.mark.parametrize(
    "gate_proba, y, h_s, h_u, information",
    [
        ([[1, 0], [1, 0], [0, 1]], [0, 0, 1], 0, 0.9182958, 0.9182958),
        ([[0.5, 0.5]] * 4, [0, 0, 1, 1], 1, 1, 0),
        ([[1, 0]] * 4, [0, 0, 1, 1], 0, 0, 0),  # collapse
        ([[1], [1]], [0, 1], 0, 0, 0),  # one expert
        ([[0.25, 0.75]], [0], 0.8112781, 0.8112781, 0),  # one sample
    ],
)
def test_measures_by_hand(gate_proba, y, h_s, h_u, information):
    measures = (
        sample_entropy(gate_proba),
        usage_entropy(gate_proba),
        expert_class_information(gate_proba, y),
    )
    assert measures == pytest.approx((h_s, h_u, information), abs=1e-7)
    assert "-0.0" not in [str(measure) for measure in measures]


def test_measures_against_the_definitions():
    rng = np.random.RandomState(0)
    p = rng.dirichlet(np.full(5, 0.3), size=400)
    y = rng.randint(4, size=400)
    assert sample_entropy(p) == pytest.approx(np.mean([-np.sum(r * np.log2(r)) for r in p]))
    mean = p.mean(axis=0)
    assert usage_entropy(p) == pytest.approx(-np.sum(mean * np.log2(mean)))
    in_bits = mutual_info_score(p.argmax(axis=1), y) / np.log(2)
    assert expert_class_information(p, y) == pytest.approx(in_bits)
    assert 0 <= sample_entropy(p) <= usage_entropy(p) <= np.log2(5)


@pytest.mark.parametrize("wrong", [[[0.5, 0.6]], [[1.5, -0.5]]])
def test_gate_proba_must_be_probabilities(wrong):
    with pytest.raises(ValueError, match="rows at least 0 that sum to 1"):
        sample_entropy(wrong)


@pytest.fixture(scope="module")
def fitted(iris):
    return MoEClassifier(n_experts=3, max_iter=10, random_state=0).fit(*iris)


def test_decomposition_of_a_classifier(fitted, iris):
    X, y = iris
    result = decomposition_entropy(fitted, X, y)
    gate_proba = fitted.gate_proba(X)
    chosen = gate_proba.argmax(axis=1)
    assert result.sample_entropy == pytest.approx(sample_entropy(gate_proba))
    assert result.usage_entropy == pytest.approx(usage_entropy(gate_proba))
    assert result.expert_class_information == expert_class_information(gate_proba, y)
    assert result.usage == pytest.approx(gate_proba.mean(axis=0))
    for expert, label in np.ndindex(3, 3):
        assert result.table[expert, label] == np.sum((chosen == expert) & (y == label))
    alone = fitted.expert_proba(X)[np.arange(len(X)), chosen].argmax(axis=1)
    assert result.chosen_expert_accuracy == np.mean(alone == y)
    for expert in range(3):
        own = chosen == expert
        assert result.expert_accuracy[expert] == pytest.approx(np.mean((alone == y)[own]))
        assert result.expert_certainty[expert] == pytest.approx(gate_proba[own, expert].mean())
    for measure in ("sample_entropy", "usage_entropy", "expert_class_information"):
        assert 0 <= getattr(result, f"normalized_{measure}") <= 1


def test_decomposition_without_labels_takes_the_predicted_classes(fitted, iris):
    X, _ = iris
    result = decomposition_entropy(fitted, X)
    chosen = fitted.apply(X)
    alone = fitted.expert_proba(X)[np.arange(len(X)), chosen].argmax(axis=1)
    assert result.table.sum(axis=0).tolist() == np.bincount(alone, minlength=3).tolist()
    assert result.chosen_expert_accuracy is None and result.expert_accuracy is None
    assert result.specialization is None and result.expert_specialization_to_best is None
    assert "specialization" not in str(result)


def test_decomposition_prints_a_table(fitted, iris):
    X, y = iris
    result = decomposition_entropy(fitted, X, y)
    text = str(result)
    for part in ("H_s", "H_u", "I(E;Y)", "bits", "accuracy of the chosen expert", "usage"):
        assert part in text
    assert f"specialization{result.specialization:18.3f} bits" in text
    assert len(text.splitlines()) == 6 + 1 + 1 + 3


def test_decomposition_cuts_long_class_names_and_takes_strings(iris):
    X, y = iris
    names = np.array(["setosa", "versicolor", "a name that is much too long for a column"])
    clf = MoEClassifier(n_experts=2, max_iter=5, random_state=0).fit(X, names[y])
    text = str(decomposition_entropy(clf, X, names[y]))
    assert "versicolor" in text and "a name that…" in text
    assert max(map(len, text.splitlines())) < 99


def test_decomposition_looks_through_pipelines_and_searches(fitted, iris):
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=5, random_state=0)
    pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    search = GridSearchCV(pipeline, {"moeclassifier__n_experts": [2]}, cv=2).fit(X, y)
    expected = usage_entropy(pipeline[-1].gate_proba(pipeline[:-1].transform(X)))
    for estimator in (pipeline, search, make_pipeline(clf)):
        assert decomposition_entropy(estimator, X, y).usage_entropy == pytest.approx(
            expected, abs=1e-5
        )
    with pytest.raises(ValueError, match=r"y has none of the classes \[0, 1, 2\]"):
        decomposition_entropy(pipeline, X, y.astype(str))
    with pytest.raises(TypeError, match="has no gate_proba"):
        decomposition_entropy(StandardScaler().fit(X), X, y)


def test_one_expert_and_one_sample(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=1, max_iter=5, random_state=0).fit(X, y)
    result = decomposition_entropy(clf, X[:1], y[:1])
    assert result.normalized_sample_entropy == result.normalized_usage_entropy == 0
    assert result.normalized_expert_class_information == 0
    assert result.specialization == result.specialization_to_best == 0
    assert result.expert_specialization.tolist() == [0]
    str(result)


@pytest.mark.parametrize("name", SCORERS)
def test_scorers(name, fitted, iris):
    X, y = iris
    result = decomposition_entropy(fitted, X, y)
    sign = -1 if name.startswith("neg_") else 1
    expected = sign * getattr(result, name.removeprefix("neg_"))
    assert SCORERS[name](fitted, X, y) == pytest.approx(expected)


def test_normalised_measures_by_hand():
    y = np.array([0, 1] * 50)

    class TwoOfFour:
        """Experts 0 and 1 own a class each; experts 2 and 3 are idle."""

        classes_ = np.array([0, 1])
        expert_costs_ = np.ones(4)
        module_ = SimpleNamespace(is_conditional=True, layers=())

        def gate_proba(self, X):
            return np.eye(4)[y]

        def expert_proba(self, X, chosen_only):
            return np.eye(2)[y]

        def expert_log_likelihood(self, X, y):
            return np.zeros((100, 4))

    result = decomposition_entropy(TwoOfFour(), np.zeros((100, 1)), y)
    assert result.normalized_expert_class_information == pytest.approx(1)
    assert result.normalized_usage_entropy == pytest.approx(0.5)
    assert result.normalized_sample_entropy == 0
    assert str(SCORERS["neg_sample_entropy"](TwoOfFour(), np.zeros((100, 1)), y)) == "0.0"


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_the_information(seed):
    rng = np.random.RandomState(seed)
    p = rng.dirichlet(np.full(5, 0.3), size=200)
    y = rng.choice(7, size=200, p=rng.dirichlet(np.ones(7)))
    chosen = p.argmax(axis=1)
    of_experts, of_classes = (usage_entropy(np.eye(7)[labels]) for labels in (chosen, y))
    assert 0 <= expert_class_information(p, y) <= min(of_experts, of_classes) + 1e-12
    assert expert_class_information(p, chosen) == pytest.approx(of_experts)


def test_decomposition_of_plain_arrays():
    p = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.3, 0.7, 0]])
    result = Decomposition.from_predictions(
        p, ["a", "b", "b"], chosen_expert_prediction=["a", "a", "b"], classes=["a", "b", "c"]
    )
    assert result.table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result.expert_accuracy == pytest.approx([0.5, 1, np.nan], nan_ok=True)
    assert result.expert_certainty == pytest.approx([0.75, 0.7, np.nan], nan_ok=True)
    assert result.chosen_expert_accuracy == pytest.approx(2 / 3)
    assert result.sample_entropy == sample_entropy(p)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        Decomposition.from_predictions(p, ["a", "b"])


def test_mutual_information_of_weights():
    assert mutual_information([[0.5, 0], [0, 0.5]]) == pytest.approx(1)
    assert mutual_information([[1.5, 3], [0.5, 1]]) == pytest.approx(0)
    assert mutual_information([[0, 3], [0, 0]]) == 0


@pytest.mark.parametrize(
    "names, expected",
    [
        (["short", 3], ["short", "3"]),
        (["a long name", "short"], ["a long …", "short"]),
        (["prefix_one", "prefix_two"], ["pre…_one", "pre…_two"]),
        (["the same name", "the same name"], ["the sam…", "the sam…"]),
    ],
)
def test_names_are_cut_so_that_they_differ(names, expected):
    assert cut(names, 8) == expected


def test_costs_by_hand():
    gate_proba = [[1, 0, 0], [0.5, 0.5, 0], [0, 0.9, 0.1], [0, 1, 0]]
    measure = partial(Decomposition.from_predictions, gate_proba, [0, 0, 1, 1])
    found = measure(expert_costs=[1, 10, 100])
    assert (found.cost, found.relative_cost) == pytest.approx((33, 33 / 111))
    assert found.skipping_share == 0.75
    found = measure(expert_costs=[1, 10, 100], all_run=True)
    assert (found.cost, found.relative_cost, found.skipping_share) == (111, 1, 0)
    assert measure().cost is None and "multiply-adds" not in repr(measure())
    with pytest.raises(ValueError, match="one cost per expert, 3, got the shape"):
        measure(expert_costs=[1, 2])


@pytest.mark.parametrize(
    "gate, experts, share",
    [
        ("softmax", "mlp", 1),
        ("hard", "mlp", 1 / 4),
        ("attentive", "mlp", 1),
        ("kmeans", "mlp", 1 / 4),
        ("top_k", "mlp", 1 / 2),
        ("top_k", "orthogonal", 1),
    ],
)
def test_costs_are_those_of_the_experts_that_run(gate, experts, share, iris):
    clf = MoEClassifier(4, gate=gate, experts=experts, max_iter=2, random_state=0).fit(*iris)
    found = decomposition_entropy(clf, iris[0])
    assert found.relative_cost == pytest.approx(share)
    assert found.cost == pytest.approx(share * clf.expert_costs_.sum())
    assert clf.expert_costs_.shape == (4,)
    assert clf.n_parameters_ == sum(p.numel() for p in clf.module_.parameters())


# Specialization


def naive_specialization(p, o):
    """The bits that each sample loses to the mean and to the best of the others."""
    n_samples, n_experts = p.shape
    chosen = [max(range(n_experts), key=lambda e: p[n, e]) for n in range(n_samples)]
    to_mean, to_best = np.empty(n_samples), np.empty(n_samples)
    for n, e in enumerate(chosen):
        others = [f for f in range(n_experts) if f != e]
        to_mean[n] = np.log2(o[n, e]) - np.log2(np.mean([o[n, f] for f in others]))
        own = [m for m in range(n_samples) if chosen[m] == e]
        best = max(others, key=lambda f: sum(np.log2(o[m, f]) for m in own))
        to_best[n] = np.log2(o[n, e]) - np.log2(o[n, best])
    return np.array(chosen), to_mean, to_best


@pytest.fixture(scope="module")
def likelihoods():
    """Gate probabilities of five experts, of which the last is never chosen, and likelihoods."""
    rng = np.random.RandomState(0)
    p = rng.dirichlet([1, 1, 1, 1, 1e-3], size=60)
    p = p[p.argmax(axis=1) < 4]
    return p, rng.beta(2, 1, size=p.shape)


def test_specialization_against_the_definition(likelihoods):
    p, o = likelihoods
    chosen, to_mean, to_best = naive_specialization(p, o)
    assert specialization(p, np.log(o)) == pytest.approx(to_mean.mean())
    assert specialization(p, np.log(o), to_best=True) == pytest.approx(to_best.mean())
    result = Decomposition.from_predictions(p, chosen, expert_log_likelihood=np.log(o))
    assert result.specialization == pytest.approx(to_mean.mean())
    assert result.specialization_to_best == pytest.approx(to_best.mean())
    for expert in range(4):
        own = chosen == expert
        assert result.expert_specialization[expert] == pytest.approx(to_mean[own].mean())
        assert result.expert_specialization_to_best[expert] == pytest.approx(to_best[own].mean())
    assert np.isnan(
        [result.expert_specialization[4], result.expert_specialization_to_best[4]]
    ).all()


def test_specialization_does_not_depend_on_the_order_of_the_experts(likelihoods):
    p, o = likelihoods
    order = [3, 0, 4, 2, 1]
    for to_best in (False, True):
        found = specialization(p[:, order], np.log(o[:, order]), to_best=to_best)
        assert found == pytest.approx(specialization(p, np.log(o), to_best=to_best))


@pytest.mark.parametrize("to_best", [False, True])
def test_equal_experts_have_no_specialization(to_best):
    rng = np.random.RandomState(0)
    p = rng.dirichlet(np.ones(3), size=50)
    equal = np.repeat(np.log(rng.uniform(size=(50, 1))), 3, axis=1)
    assert specialization(p, equal, to_best=to_best) == pytest.approx(0, abs=1e-12)
    assert specialization(p[:, :1] ** 0, equal[:, :1], to_best=to_best) == 0  # one expert


def test_specialization_finds_regimes_that_the_classes_do_not_show():
    """Experts of opposite rules: which one is chosen says nothing about the class."""
    X = np.random.RandomState(0).normal(size=(2000, 2))
    regime = (X[:, 0] > 0).astype(int)
    y = regime ^ (X[:, 1] > 0)
    gate_proba = np.eye(2)[regime]
    knows = np.log(np.where(gate_proba == 1, 0.99, 0.01))
    result = Decomposition.from_predictions(gate_proba, y, expert_log_likelihood=knows)
    assert result.expert_class_information < 0.01
    assert result.specialization == pytest.approx(np.log2(99))
    # The same gate over experts that all know both rules.
    smear = np.full_like(knows, np.log(0.99))
    assert specialization(gate_proba, smear) == pytest.approx(0, abs=1e-12)


def test_the_best_other_expert_may_be_a_twin():
    """Expert 1 knows what expert 0 knows; the mean of the others does not show it."""
    o = np.array([[0.8, 0.8, 0.1, 0.1]])
    p = [[0.7, 0.1, 0.1, 0.1]]
    assert specialization(p, np.log(o)) == pytest.approx(np.log2(0.8 / (1 / 3)))
    assert specialization(p, np.log(o), to_best=True) == 0
    assert specialization([[0.1, 0.1, 0.7, 0.1]], np.log(o)) < -2  # others are better


def test_specialization_of_probabilities_that_would_be_0():
    knows = np.log([[0.5, 1e-60, 1e-60]])  # 0 in single precision
    expected = np.log2(0.5) - np.log2(1e-60)
    for to_best in (False, True):
        found = specialization([[0.8, 0.1, 0.1]], knows.astype(np.float32), to_best=to_best)
        assert found == pytest.approx(expected, rel=1e-6)


def test_specialization_leaves_rows_of_nan_out():
    p = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]
    knows = np.log([[0.8, 0.2], [np.nan, np.nan], [np.nan, np.nan]])
    result = Decomposition.from_predictions(p, [0, 1, 2], expert_log_likelihood=knows)
    assert result.specialization == specialization(p, knows) == pytest.approx(2)
    assert result.expert_specialization == pytest.approx([2, np.nan], nan_ok=True)
    assert np.isnan(specialization(p[1:], knows[1:]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ([[-1.0, -1, -1]], "the shape of gate_proba"),
        ([[0.8, 0.2]], "logarithms of probabilities"),
        ([[0, -np.inf]], "contains infinity"),
    ],
)
def test_wrong_log_likelihood(wrong, message):
    with pytest.raises(ValueError, match=message):
        specialization([[0.5, 0.5]], wrong)


def test_specialization_of_a_classifier(fitted, iris):
    X, y = iris
    result = decomposition_entropy(fitted, X, y)
    o = fitted.expert_proba(X)[np.arange(len(X)), :, y]
    _, to_mean, to_best = naive_specialization(fitted.gate_proba(X), o)
    assert result.specialization == pytest.approx(to_mean.mean(), abs=1e-5)
    assert result.specialization_to_best == pytest.approx(to_best.mean(), abs=1e-5)


def test_labels_that_the_mixture_does_not_know_are_left_out(fitted, iris):
    X, y = iris
    known = np.arange(len(y)) % 3 > 0
    other = np.where(known, y, 7)
    found = decomposition_entropy(fitted, X, other)
    expected = decomposition_entropy(fitted, X[known], y[known])
    assert found.specialization == pytest.approx(expected.specialization, abs=1e-6)
    assert SCORERS["specialization"](fitted, X, other) == found.specialization
    assert np.isnan(SCORERS["specialization"](fitted, X, y.astype(str)))


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_log_likelihood_of_experts(container, iris, monkeypatch):
    X, y = container(iris[0]), np.array(["a", "b", "c"])[iris[1]]
    clf = MoEClassifier(n_experts=3, max_iter=5, random_state=0).fit(X, y)
    with torch.no_grad():  # so that single precision would round probabilities to 0
        for parameter in clf.module_.experts.parameters():
            parameter *= 10
    found = clf.expert_log_likelihood(X, y)
    assert found.shape == (150, 3) and np.isfinite(found).all() and found.min() < -110
    o = clf.expert_proba(X)[np.arange(150), :, iris[1]]
    np.testing.assert_allclose(np.exp(found), o, atol=1e-5)
    monkeypatch.setattr("sklearn_moe.fitted.LOG_PROBA_AT_ONCE", 16 * 3 * 3)
    assert np.array_equal(clf.expert_log_likelihood(X, y), found)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.expert_log_likelihood(X, y[:10])


def test_specialization_of_fitted_mixtures(digits):
    """Experts that own samples know what others do not; the default is an ensemble."""
    X, y = digits
    own = MoEClassifier(
        5, gate="attentive", regularization="sample_similarity", max_iter=10, random_state=0
    )
    ensemble = MoEClassifier(max_iter=10, random_state=0)
    score = SCORERS["specialization"]
    assert score(own.fit(X[:1000], y[:1000]), X[1000:], y[1000:]) > 0.3
    assert abs(score(ensemble.fit(X[:1000], y[:1000]), X[1000:], y[1000:])) < 0.05
