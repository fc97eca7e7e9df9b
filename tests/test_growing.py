"""Growing: new experts, new classes, and nothing forgotten."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_moe import (
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    decomposition_report,
    distill,
    grow,
    prune_experts,
)

SMALL = {"experts": MLPExperts((16,)), "max_iter": 10, "random_state": 0}


@pytest.fixture(scope="module")
def tasks():
    """Digits: 0, 2 and 9, then 1 and 4, then 3."""
    X, y = load_digits(return_X_y=True)
    X, y = X[::2], y[::2]
    return [(X[rows], y[rows]) for rows in (np.isin(y, own) for own in ([0, 2, 9], [1, 4], [3]))]


@pytest.fixture(scope="module")
def first(tasks):
    return MoEClassifier(2, **SMALL).fit(*tasks[0])


@pytest.fixture(scope="module")
def grown(first, tasks):
    return grow(first, *tasks[1])


@pytest.fixture(scope="module")
def twice(grown, tasks):
    return grow(grown, *tasks[2], n_new=2)


def joined(tasks):
    X, y = zip(*tasks, strict=True)
    return np.concatenate(X), np.concatenate(y)


def test_classes_come_and_none_is_forgotten(first, grown, twice, tasks):
    assert grown.classes_.tolist() == [0, 1, 2, 4, 9]
    assert twice.classes_.tolist() == [0, 1, 2, 3, 4, 9]
    assert (first.n_experts, grown.n_experts, twice.n_experts) == (2, 3, 5)
    for clf, seen in ((grown, tasks[:2]), (twice, tasks)):
        for X, y in seen:
            assert clf.score(X, y) > 0.95
        X, y = joined(seen)
        gate_proba = clf.gate_proba(X)
        assert gate_proba.shape == (len(X), clf.n_experts)
        assert np.allclose(gate_proba.sum(axis=1), 1)
        assert np.allclose(clf.predict_proba(X).sum(axis=1), 1)
        mixed = np.einsum("ne,nec->nc", gate_proba, clf.expert_proba(X))
        assert np.allclose(clf.predict_proba(X), mixed, atol=1e-6)
    assert "experts" in decomposition_report(twice, *joined(tasks))


def test_former_experts_stay(first, grown, twice, tasks):
    X = tasks[0][0]
    x = torch.as_tensor(X, dtype=torch.float32)
    with torch.no_grad():
        expected = first.module_.expert_logits(x)
        assert torch.equal(grown.module_.expert_logits(x)[:, :2, [0, 2, 4]], expected)
        assert torch.equal(twice.module_.expert_logits(x)[:, :2, [0, 2, 5]], expected)
    # New classes have the lowest probability, and a finite likelihood.
    assert np.allclose(grown.expert_proba(X)[:, :2, [1, 3]], 1e-7, rtol=1e-3)
    assert np.isfinite(grown.expert_log_likelihood(*tasks[1])).all()
    assert all(parameter.requires_grad for parameter in grown.module_.parameters())


def test_the_mixture_is_not_changed(first, tasks):
    before = pickle.dumps(first.net_)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    one, other = (grow(first, *tasks[1], random_state=1, max_iter=2) for _ in range(2))
    assert pickle.dumps(first.net_) == before and first.classes_.tolist() == [0, 2, 9]
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    X = tasks[0][0]
    assert np.array_equal(one.predict_proba(X), other.predict_proba(X))
    assert one.max_iter == one.n_iter_ == 2


def test_stages_are_normal_distributions(grown, tasks):
    """As scipy has them, with the mean and the covariance of the class that were kept."""
    X, y = joined(tasks[:2])
    gate = grown.module_.gate
    x = grown.module_.encode(torch.as_tensor(X, dtype=torch.float32)).detach()
    density = gate.log_density(x).numpy()
    summary = grown.input_summary_
    expected = []
    for k, label in enumerate([0, 2, 9, 1, 4]):
        own = x[torch.as_tensor(y == label)].numpy()
        assert np.allclose(summary.means[k], own.mean(axis=0), atol=1e-4)
        assert summary.counts[k] == (y == label).sum()
        directions = summary.directions[k]
        covariance = directions.T @ np.diag(summary.variances[k]) @ directions
        covariance = covariance + summary.remaining * np.eye(x.shape[1])
        expected.append(multivariate_normal(summary.means[k], covariance).logpdf(x.numpy()))
    difference = density - np.transpose(expected)
    # Directions have half precision, with which log-densities of up to 556 differ by 0.09.
    assert np.allclose(difference, difference.mean(), atol=0.15)


def test_pickles(twice, tasks):
    X = joined(tasks)[0]
    loaded = pickle.loads(pickle.dumps(twice))
    assert np.array_equal(loaded.predict_proba(X), twice.predict_proba(X))
    assert np.array_equal(loaded.gate_proba(X), twice.gate_proba(X))


@pytest.mark.filterwarnings("ignore:The gate has collapsed")
@pytest.mark.parametrize(
    "params",
    [
        {"gate": "hard"},
        {"gate": SoftmaxGate((16,), top_k=2)},
        {"gate": "cosine"},
        {"gate": "constant"},
        {"experts": "linear"},
        {"gate_features": [*range(20, 50)]},
    ],
    ids=str,
)
def test_gates_and_experts(params, tasks):
    first = MoEClassifier(2, **{**SMALL, "n_init": 1, **params}).fit(*tasks[0])
    grown = grow(first, *tasks[1])
    X, y = joined(tasks[:2])
    assert grown.score(X, y) > 0.85
    loaded = pickle.loads(pickle.dumps(grown))
    assert np.array_equal(loaded.predict_proba(X), grown.predict_proba(X))
    top_k = first.module_.gate.top_k
    assert ((grown.gate_proba(X) > 0).sum(axis=1) <= (top_k or 3)).all()


@pytest.mark.parametrize("encoder", [None, "conv"])
def test_images(encoder, tasks):
    images = [(X.reshape(-1, 8, 8) / 16, y) for X, y in tasks]
    clf = MoEClassifier(2, experts="conv" if encoder is None else "mlp", encoder=encoder)
    first = clf.set_params(max_iter=8, random_state=0).fit(*images[0])
    grown = grow(first, *images[1])
    assert grown.score(*joined(images[:2])) > 0.85
    X = images[0][0]
    assert np.array_equal(
        pickle.loads(pickle.dumps(grown)).predict_proba(X), grown.predict_proba(X)
    )
    former, kept = (clf.module_.encoder.state_dict() for clf in (first, grown))
    assert all(torch.equal(former[name], kept[name]) for name in former)
    with pytest.raises(ValueError, match="shape"):
        grow(first, X[:, :, :4], images[0][1])


def test_tables_with_categories():
    random = np.random.RandomState(0)
    x, place = random.normal(size=400), random.choice(["a", "b", "c"], 400)
    X = pd.DataFrame({"x": x, "place": pd.Categorical(place)})
    X.loc[::40, "x"] = np.nan
    y = np.where(x > 0, "yes", np.where(place == "a", "maybe", "no"))
    old = np.arange(400) < 200
    first = MoEClassifier(2, **SMALL).fit(X[old], y[old])
    X_new = X[~old].assign(x=lambda frame: frame["x"] + 20)
    y_new = np.where(place[~old] == "b", "later", "yes")
    grown = grow(first, X_new, y_new)
    assert grown.classes_.tolist() == ["later", "maybe", "no", "yes"]
    assert grown.score(X_new, y_new) > 0.9
    assert grown.score(X[old], y[old]) > first.score(X[old], y[old]) - 0.05
    with pytest.raises(ValueError, match="feature names"):
        grow(first, X_new.rename(columns={"x": "z"}), y_new)
    with pytest.raises(ValueError, match="of the type of the former classes"):
        grow(first, X_new, np.arange(len(X_new)))


def test_pipelines_and_searches(tasks):
    X, y = tasks[0]
    pipeline = make_pipeline(MinMaxScaler(), MoEClassifier(2, **SMALL)).fit(X, y)
    grown = grow(pipeline, *tasks[1], memory=(X[:50], y[:50]))
    assert len(grown) == 2 and grown.score(*joined(tasks[:2])) > 0.9
    search = GridSearchCV(pipeline, {"moeclassifier__max_iter": [10]}, cv=2).fit(X, y)
    assert grow(search, *tasks[1])[-1].n_experts == 3


def test_only_the_gate(first, tasks):
    X, y = tasks[0]
    same = grow(first, X, y, n_new=0)
    assert same.n_experts == 2
    assert np.array_equal(same.expert_proba(X), first.expert_proba(X))
    assert same.score(X, y) > 0.95
    with pytest.raises(ValueError, match="The new classes \\[1, 4\\] need new experts"):
        grow(first, *tasks[1], n_new=0)


def test_memory(first, tasks):
    """Where old and new samples are alike, a few old ones tell which labels are right."""
    X, y = tasks[0]
    moved = np.array([2, 0, 9])[np.searchsorted([0, 2, 9], y)]
    few = np.arange(0, len(X), 5)
    grown = grow(first, X, moved, memory=(X[few], y[few]))
    gate = grown.module_.gate
    start = np.log(grown.input_summary_.counts)
    assert not np.allclose(gate.log_weights, start, atol=1e-4)
    every = grow(first, *tasks[1], memory=(X[few], y[few]), freeze=False)
    assert every.score(*joined(tasks[:2])) > 0.95
    x = torch.as_tensor(X, dtype=torch.float32)
    assert not torch.equal(
        every.module_.expert_logits(x)[:, 0, 0], first.module_.expert_logits(x)[:, 0, 0]
    )


def test_weights_of_new_samples(first, tasks):
    X, y = tasks[1]
    weight = np.random.RandomState(0).randint(3, size=len(y))
    few = {"max_iter": 2}
    grown = grow(first, X, y, sample_weight=weight, **few)
    kept = weight > 0
    removed = grow(first, X[kept], y[kept], sample_weight=weight[kept] * 1e-9, **few)
    assert np.allclose(grown.predict_proba(X), removed.predict_proba(X), atol=1e-5)
    assert not np.allclose(grown.predict_proba(X), grow(first, X, y, **few).predict_proba(X))
    summary, repeated = (
        grow(first, X[rows], y[rows], sample_weight=w, **few).input_summary_
        for rows, w in [(slice(None), weight), (np.repeat(np.arange(len(y)), weight), None)]
    )
    assert np.allclose(summary.means, repeated.means, atol=1e-4)
    assert np.allclose(summary.variances, repeated.variances, rtol=1e-3, atol=1e-4)
    totals = [summary.counts[-2:], repeated.counts[-2:]]
    assert np.allclose(totals[0] / totals[0].sum(), totals[1] / totals[1].sum())
    x = first.module_.encode(torch.as_tensor(X[y == 1], dtype=torch.float32)).detach().numpy()
    assert np.allclose(summary.means[-2], np.average(x, axis=0, weights=weight[y == 1]), atol=1e-4)


def test_weights_with_memory(first, tasks):
    X, y = tasks[0]
    moved = np.array([2, 0, 9])[np.searchsorted([0, 2, 9], y)]
    weight = (np.arange(len(y)) % 2).astype(float)
    params = {"memory": (X[::5], y[::5]), "max_iter": 2}
    for freeze in (True, False):
        grown = grow(first, X, moved, sample_weight=weight, freeze=freeze, **params)
        removed = grow(first, X[1::2], moved[1::2], freeze=freeze, **params)
        assert np.allclose(grown.predict_proba(X), removed.predict_proba(X), atol=1e-5)
        assert np.allclose(grown.expert_usage_, removed.expert_usage_, atol=1e-5)


def test_class_weights(tasks):
    X, y = tasks[0]
    few = y != 2
    few[:60] = True
    balanced = MoEClassifier(2, class_weight="balanced", **SMALL).fit(X[few], y[few])
    assert np.allclose(balanced.input_summary_.counts, few.sum() / 3, rtol=1e-4)
    X_new, y_new = tasks[1][0][100:], tasks[1][1][100:]
    grown = grow(balanced, X_new, y_new, max_iter=2)
    assert np.allclose(grown.input_summary_.counts, few.sum() / 3, rtol=1e-4)
    ordinary = MoEClassifier(2, class_weight={2: 3.0, 4: 2.0, 1: 0.5, 9: 1.0, 0: 1.0}, **SMALL)
    grown = grow(ordinary.fit(X, y), X_new, y_new, max_iter=2)
    labels, counts = np.unique(np.concatenate([y, y_new]), return_counts=True)
    of_class = dict(zip(labels, counts * [1, 0.5, 3, 2, 1], strict=True))
    expected = [of_class[label] for label in (0, 2, 9, 1, 4)]
    assert np.allclose(grown.input_summary_.counts, expected, rtol=1e-4)
    ordinary.set_params(class_weight={0: 1.0, 1: 1.0, 2: 3.0, 4: 0.0, 9: 1.0})
    without = grow(ordinary, X_new, y_new, max_iter=2)
    one = y_new == 1
    alone = grow(ordinary, X_new[one], y_new[one], max_iter=2)
    assert without.classes_.tolist() == [0, 1, 2, 4, 9]
    assert np.array_equal(without.input_summary_.means, alone.input_summary_.means)


def test_partial_fit_before_and_after(first, tasks):
    X, y = tasks[0]
    stream = clone(first).partial_fit(X, y, classes=[0, 2, 9])
    for _ in range(9):
        stream.partial_fit(X, y)
    with pytest.raises(ValueError, match="no summary of its former samples"):
        grow(stream, *tasks[1])
    grown = grow(stream, *tasks[1], memory=(X[:200], y[:200]))
    assert grown.score(*joined(tasks[:2])) > 0.9
    grown.partial_fit(*joined(tasks[:2]))
    assert grown.score(*joined(tasks[:2])) > 0.9
    assert grow(grown, *tasks[2]).score(*joined(tasks)) > 0.9  # the gate has what it needs


def test_pruning_and_distillation(twice, tasks):
    X = joined(tasks)[0]
    pruned = prune_experts(twice, method="heavy_hitters", n_experts=4, X=X)
    assert np.allclose(pruned.gate_proba(X).sum(axis=1), 1)
    merged = prune_experts(twice, method="similarity", n_experts=4, X=X)
    for clf in (pruned, merged, grow(merged, *tasks[2], max_iter=2)):
        loaded = pickle.loads(pickle.dumps(clf))
        assert np.array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert clf.n_experts == 5
    attentive = MoEClassifier(2, gate="attentive", **SMALL).fit(*tasks[0])
    with pytest.raises(ValueError, match="Distil the mixture first"):
        grow(attentive, *tasks[1])
    assert grow(distill(attentive, *tasks[0]), *tasks[1]).score(*joined(tasks[:2])) > 0.9


def test_sparse_tables(tasks):
    sparse_tasks = [(csr_array(X), y) for X, y in tasks]
    first = MoEClassifier(2, **SMALL).fit(*sparse_tasks[0])
    few = csr_array(tasks[0][0][:50]), tasks[0][1][:50]
    grown = grow(first, *sparse_tasks[1], memory=few)
    X, y = joined(tasks[:2])
    assert grown.score(csr_array(X), y) > 0.9


def test_errors(first, tasks):
    X, y = tasks[1]
    with pytest.raises(NotFittedError):
        grow(clone(first), X, y)
    with pytest.raises(ValueError, match="'n_new' parameter of grow"):
        grow(first, X, y, n_new=-1)
    with pytest.raises(ValueError, match="features"):
        grow(first, X[:, :5], y)
    with pytest.raises(ValueError, match="of the type of the former classes"):
        grow(first, X, y.astype(str))
    for weight, message in (
        (-np.ones(len(y)), "sample_weight must be finite and at least 0, got -1.0"),
        (np.ones(3), "sample_weight.*"),
        (np.full(len(y), np.nan), "sample_weight contains NaN"),
        (np.zeros(len(y)), "one non-zero"),
    ):
        with pytest.raises(ValueError, match=message):
            grow(first, X, y, sample_weight=weight)
    with pytest.raises(ValueError, match="memory must be a tuple"):
        grow(first, X, y, memory=(X,))
    with pytest.raises(ValueError, match="memory must be a tuple"):
        grow(first, X, y, memory=(X, None))
    with pytest.raises(ValueError, match="the labels of memory contains"):
        grow(first, X, y, memory=(X, y))
    with pytest.raises(TypeError, match="gate_proba"):
        grow(LogisticRegression(), X, y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gate": "kmeans"}, "learns by gradients"),
        ({"mixing": "logit"}, "mixing='probability'"),
        ({"experts": [("line", LogisticRegression())]}, "experts of one kind"),
        ({"experts": "zero_computation", "n_experts": 4}, "what the experts"),
    ],
    ids=str,
)
def test_mixtures_that_cannot_grow(params, message, tasks):
    X, y = tasks[0]
    clf = MoEClassifier(**{"n_experts": 2, "max_iter": 1, "random_state": 0, **params}).fit(X, y)
    with pytest.raises(ValueError, match=message):
        grow(clf, *tasks[1])
