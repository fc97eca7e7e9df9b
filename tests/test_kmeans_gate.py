import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, log_loss
from torch import nn

from sklearn_moe import KMeansGate, MoEClassifier, decomposition_entropy, load, save
from sklearn_moe.gates.kmeans import KMeansGateModule, least_squares, match, weighted_median
from sklearn_moe.training.batches import spaced

CORNERS = np.array([[0, 0], [10, 0], [0, 10]])


def clusters(centres, n=40, scale=0.5):
    rng = np.random.RandomState(0)
    cluster = np.repeat(np.arange(len(centres)), n)
    return centres[cluster] + rng.normal(scale=scale, size=(len(cluster), 2)), cluster


def refitted(x, losses, generator, **params):
    gate = KMeansGate(**params).build((x.shape[1],), losses.shape[1], 1, generator)
    x = torch.as_tensor(x, dtype=torch.float32)
    gate.refit(x, torch.as_tensor(losses), torch.ones(len(x)), 0)
    return gate, x


@pytest.mark.parametrize("assignment", ["least_squares", "nearest_centroid"])
@pytest.mark.parametrize("matching", ["hungarian", "greedy"])
def test_clusters_go_to_the_experts_that_fit_them(assignment, matching, generator):
    x, cluster = clusters(CORNERS)
    best = np.array([2, 0, 1])
    losses = 1 - np.eye(3)[best[cluster]] * 0.5
    gate, x = refitted(x, losses, generator, assignment=assignment, matching=matching)
    for training in (True, False):
        out = gate.train(training)(x, None)
        proba = out.log_proba.exp()
        assert torch.equal(proba, torch.eye(3)[best[cluster]])
    assert not list(gate.parameters())


@pytest.mark.parametrize("assignment, share", [("least_squares", 0.72), ("nearest_centroid", 1.0)])
def test_a_cluster_between_two_others(assignment, share, generator):
    x, cluster = clusters(np.array([[-10, -10], [0, 0], [10, 10]]), n=300, scale=1.0)
    losses = 1 - np.eye(3)[cluster]
    gate, x = refitted(x, losses, generator, assignment=assignment)
    chosen = gate.eval()(x, None).logits.argmax(dim=1).numpy()
    reached = np.mean(chosen == cluster)
    assert reached == 1 if share == 1 else reached < 0.9


def test_least_squares_solve_the_normal_equations():
    rng = np.random.RandomState(0)
    x, y = rng.normal(size=(50, 4)), np.eye(3)[rng.randint(3, size=50)]
    design = np.column_stack([x, np.ones(50)])
    linear = least_squares(design.T @ design, y.T @ design, 0.0)
    assert np.abs(design.T @ (design @ linear.T - y)).max() < 1e-8


@pytest.mark.parametrize("assignment", ["least_squares", "nearest_centroid"])
@pytest.mark.parametrize("n_features", [3, 50])  # as they are, and their components
def test_a_weight_of_ten_equals_ten_copies(assignment, n_features, generator):
    rng = np.random.RandomState(0)
    x = torch.as_tensor(rng.normal(size=(90, n_features)), dtype=torch.float32)
    losses = torch.as_tensor(rng.uniform(size=(90, 3)))
    weight = torch.as_tensor(np.where(rng.uniform(size=90) < 0.2, 10, 1))
    gates = []
    for rows, weights in [
        (torch.arange(90), weight / weight.double().mean()),
        (torch.arange(90).repeat_interleave(weight), torch.ones(weight.sum())),
    ]:
        gate = KMeansGate(assignment=assignment, ridge=0.0).build((n_features,), 3, 1, generator)
        gate.refit(x[rows], losses[rows], weights, 0)
        gates.append(gate)
    for name in ("weight", "bias", "mean", "scale"):
        torch.testing.assert_close(getattr(gates[0], name), getattr(gates[1], name), msg=name)
    np.testing.assert_allclose(gates[0].centroids, gates[1].centroids, atol=1e-8)


def test_the_weighted_median_is_that_of_copies():
    rng = np.random.RandomState(0)
    values, weight = rng.normal(size=(7, 3)), np.array([1, 2, 3, 1, 10, 1, 1])
    copies = np.repeat(values, weight, axis=0)  # 19
    np.testing.assert_array_equal(weighted_median(values, weight / 7), np.median(copies, axis=0))


def test_samples_are_taken_by_weight():
    rows, counts = spaced(torch.tensor([1.0, 0, 10, 1, 8]), 4)  # at 2.5, 7.5, 12.5, 17.5 of 20
    assert rows.tolist() == [2, 4] and counts.tolist() == [2, 2]
    rows, counts = spaced(torch.ones(10), 4)
    assert rows.tolist() == [1, 3, 6, 8] and counts.tolist() == [1] * 4
    weight = torch.rand(5)
    rows, kept = spaced(weight, 5)
    assert rows == slice(None) and kept is weight


def test_matching():
    cost = np.array([[1.0, 2.0, 9.0], [1.1, 9.0, 9.0], [3.0, 3.0, 3.0]])
    hungarian, greedy = match(cost, "hungarian"), match(cost, "greedy")
    assert hungarian.tolist() == [1, 0, 2] and greedy.tolist() == [0, 1, 2]
    rows = np.arange(3)
    assert cost[rows, hungarian].sum() < cost[rows, greedy].sum()
    shifted = cost + np.array([[5.0], [0], [-2]])
    assert match(shifted, "hungarian").tolist() == hungarian.tolist()


def test_too_few_clusters_leave_the_gate_as_it_is(generator):
    x, cluster = clusters(CORNERS)
    gate, _ = refitted(x, 1 - np.eye(3)[cluster], generator)
    before = gate.weight.clone()
    for n_samples in (2, 9):  # fewer samples, and fewer distinct ones, than experts
        gate.refit(torch.ones(n_samples, 2), torch.ones(n_samples, 3), torch.ones(n_samples), 0)
        assert torch.equal(gate.weight, before) and gate.centroids is None


def test_the_state_has_the_centroids(generator):
    x, cluster = clusters(CORNERS)
    gate, x = refitted(x, 1 - np.eye(3)[cluster], generator)
    new = KMeansGate().build((2,), 3, 1, generator)
    for one, other in ((gate, new), (KMeansGate().build((2,), 3, 1, generator), gate)):
        state = one.state_dict()
        other.load_state_dict(state)
        assert np.array_equal(other.centroids, one.centroids)
    assert gate.centroids is None and new.centroids.shape == (3, 2)


def test_before_the_first_refit_all_experts_learn(generator):
    gate = KMeansGate().build((2,), 4, 1, generator)
    x = torch.randn(5, 2, generator=generator)
    torch.testing.assert_close(gate.train()(x, None).log_proba.exp(), torch.full((5, 4), 0.25))


def families(n, seed):
    """Return samples of four families, each with an XOR of its own, labels and families."""
    rng = np.random.RandomState(seed)
    family = rng.randint(4, size=n)
    inner = rng.uniform(-1, 1, size=(n, 2))
    angle = family * np.pi / 8
    turned = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], 1)
    turned = np.einsum("nij,nj->ni", turned.reshape(n, 2, 2), inner)
    y = (turned.prod(axis=1) > 0).astype(int)
    return inner + 8 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[family], y, family


@pytest.mark.parametrize("assignment", ["least_squares", "nearest_centroid"])
def test_it_finds_families(assignment):
    X, y, _ = families(1200, 0)
    clf = MoEClassifier(
        4, gate=KMeansGate(assignment=assignment), regularization=None, max_iter=25, random_state=0
    ).fit(X, y)
    X_test, y_test, family_test = families(1000, 1)
    assert adjusted_rand_score(family_test, clf.apply(X_test)) > 0.99
    found = decomposition_entropy(clf, X_test, y_test)
    assert found.sample_entropy == 0 and found.usage_entropy > 1.9
    assert clf.score(X_test, y_test) > 0.85
    assert clf.gate_proba(X_test).max(axis=1).min() == 1
    # The chosen expert is the mixture.
    np.testing.assert_allclose(
        clf.predict_proba(X_test), clf.expert_proba(X_test, chosen_only=True), atol=1e-6
    )


class CountingExpert(nn.Linear):
    def __init__(self, input_shape, n_outputs):
        super().__init__(*input_shape, n_outputs)
        self.n_rows = 0

    def forward(self, x):
        self.n_rows += len(x)
        return super().forward(x)


def test_exactly_one_expert_runs_for_a_sample():
    X, y, _ = families(320, 0)
    clf = MoEClassifier(4, experts=CountingExpert, gate="kmeans", max_iter=3, random_state=0)
    experts = clf.fit(X, y).module_.experts.experts
    for expert in experts:
        expert.n_rows = 0
    clf.predict_proba(X)
    assert [expert.n_rows for expert in experts] == np.bincount(clf.apply(X), minlength=4).tolist()


def test_early_stopping_restores_the_gate_of_its_best_epoch():
    X, y, _ = families(400, 0)
    clf = MoEClassifier(
        4,
        gate="kmeans",
        early_stopping=True,
        n_iter_no_change=3,
        learning_rate=0.1,
        learning_rate_schedule="constant",
        random_state=0,
    )
    X_val, y_val, _ = families(200, 1)
    clf.fit(X, y, X_val=X_val, y_val=y_val)
    assert clf.n_iter_ < 40
    assert log_loss(y_val, clf.predict_proba(X_val)) == pytest.approx(
        min(clf.validation_loss_curve_), rel=1e-4
    )


def test_one_epoch_is_enough_for_a_gate():
    X, y, family = families(400, 0)
    clf = MoEClassifier(4, gate="kmeans", max_iter=1, random_state=0).fit(X, y)
    assert adjusted_rand_score(family, clf.apply(X)) > 0.99


@pytest.mark.parametrize("assignment", ["least_squares", "nearest_centroid"])
def test_chunks_go_on_from_what_was_seen(assignment):
    X, y, family = families(900, 0)
    clf = MoEClassifier(
        4, gate=KMeansGate(assignment=assignment), max_iter=2, encoder=None, random_state=0
    ).fit(X[:300], y[:300])
    expert = clf.apply(X)
    assert adjusted_rand_score(family, expert) > 0.99
    for chunk in (X[300:][family[300:] == 2], X[300:310], X[300:]):
        clf.partial_fit(chunk, np.arange(len(chunk)) % 2)
        assert (clf.apply(X) == expert).all()  # also for families that the chunk lacks
    seen = np.concatenate([X[:300], X[300:][family[300:] == 2], X[300:310], X[300:]])
    which = clf.apply(seen)
    means = [seen[which == e].mean(axis=0) for e in range(4)]
    np.testing.assert_allclose(clf.module_.gate.centroids, means, rtol=1e-4)


def test_a_whole_fit_forgets_what_was_seen():
    X, y, _ = families(400, 0)
    params = {"gate": "kmeans", "max_iter": 2, "encoder": None, "random_state": 0}
    clf = MoEClassifier(4, warm_start=True, **params).fit(X, y).partial_fit(X + 9, y)
    clf.fit(X[::-1], y[::-1])
    assert clf.module_.gate.sums[:, -1].sum() == 400


def test_at_most_so_many_are_remembered(generator):
    x, cluster = clusters(CORNERS)
    gate, x = refitted(x, 1 - np.eye(3)[cluster], generator, max_samples=30)
    gate.remember()
    for _ in range(2):  # epochs of one training
        gate.refit(x, torch.zeros(len(x), 3), torch.ones(len(x)), 0)
        assert gate.sums[:, -1].sum() == 30 + 120


def test_partial_fit_and_many_features(digits):
    X, y = digits  # 64 features, of which 32 components are clustered
    clf = MoEClassifier(3, gate="kmeans", random_state=0)
    for _ in range(3):
        clf.partial_fit(X, y, classes=range(10))
    assert clf.module_.gate.is_fitted and clf.expert_usage_.min() > 0.1
    clf = MoEClassifier(3, gate="kmeans", early_stopping=True, max_iter=5, random_state=0)
    assert clf.fit(X, y).score(X, y) > 0.9


def turned(x, turn=1.0):
    """Return points, turned, stretched and shifted far away."""
    cos, sin = np.cos(turn), np.sin(turn)
    return 100 + 3 * x @ np.array([[cos, sin], [-sin, cos]])


def test_experts_keep_their_clusters_when_features_move(generator):
    x, cluster = clusters(CORNERS)
    best = np.array([2, 0, 1])[cluster]
    gate, _ = refitted(x, 1 - np.eye(3)[best], generator)
    for turn in (1.0, 2.0, 3.0):  # epochs, in which other experts become better
        moved = turned(x, turn)
        losses = 1 - np.eye(3)[(best + 1) % 3]
        gate.refit(torch.as_tensor(moved), torch.as_tensor(losses), torch.ones(len(x)), 0)
        means = [moved[best == e].mean(axis=0) for e in range(3)]
        np.testing.assert_allclose(gate.centroids, means)
        moved = torch.as_tensor(moved, dtype=torch.float32)
        assert (gate.score(moved, None).argmax(dim=1).numpy() == best).all()


def test_refits_read_what_the_encoder_makes_now(monkeypatch):
    X, y, _ = families(200, 0)
    images = X[:, None].astype(np.float32)  # which no table transformer changes
    encoders, seen = [], []

    def encoder(input_shape):
        layers = nn.Flatten(), nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh()
        encoders.append(nn.Sequential(*layers))
        return encoders[-1]

    def refit(gate, x, losses, sample_weight, seed):
        learn(gate, x, losses, sample_weight, seed)
        with torch.no_grad():
            features = encoders[-1](torch.as_tensor(images)).double().numpy()
        np.testing.assert_allclose(x, features, atol=1e-6)
        means = [features[gate.former == e].mean(axis=0) for e in range(4)]
        np.testing.assert_allclose(gate.centroids, means, atol=1e-6)
        seen.append(features)

    learn = KMeansGateModule.refit
    monkeypatch.setattr(KMeansGateModule, "refit", refit)
    clf = MoEClassifier(4, gate="kmeans", encoder=encoder, max_iter=3, random_state=0)
    clf.fit(images, y)
    assert len(seen) == 3
    assert all(np.abs(now - then).max() > 0.01 for then, now in pairwise(seen))
    assert clf.module_.gate.former is None and clf.module_.gate.before is None


def test_two_chunks_equal_their_union(generator):
    first, second = clusters(CORNERS), clusters(CORNERS, n=30, scale=1.5)
    second = second[0][30:], second[1][30:]  # of other means and scales, without a cluster
    x, expert = np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
    gate, _ = refitted(first[0], 1 - np.eye(3)[first[1]], generator, ridge=0.0)
    gate.remember()
    for _ in range(2):  # a second epoch changes nothing
        gate.refit(torch.as_tensor(second[0]), torch.rand(60, 3), torch.ones(60), 0)
        np.testing.assert_allclose(gate.mean, x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(gate.scale, x.std(axis=0), rtol=1e-5)
        means = [x[expert == e].mean(axis=0) for e in range(3)]
        np.testing.assert_allclose(gate.centroids, means, atol=1e-5)
        left, right = np.zeros((3, 3)), np.zeros((3, 3))
        for row, e in zip(x, expert, strict=True):
            left += np.outer([*row, 1], [*row, 1])
            right[e] += [*row, 1]
        linear = np.linalg.solve(left, right.T).T
        np.testing.assert_allclose(gate.weight, linear[:, :-1], atol=1e-6)
        np.testing.assert_allclose(gate.bias, linear[:, -1], atol=1e-6)


@pytest.mark.parametrize("assignment", ["least_squares", "nearest_centroid"])
@pytest.mark.parametrize("seed", range(5))
def test_a_stream_of_one_family_at_a_time(assignment, seed):
    X, y, family = families(1000, seed)
    gate = KMeansGate(assignment=assignment)
    clf = MoEClassifier(4, gate=gate, encoder=None, random_state=seed)
    chosen = []
    for part in range(8):  # each family twice
        rows = np.flatnonzero(family == part % 4)[part // 4 :: 2]
        clf.partial_fit(X[rows], y[rows], classes=[0, 1])
        chosen.append(clf.apply(X))
    for after in chosen[3:]:  # all families were there
        assert adjusted_rand_score(family, after) > 0.9
        assert (after == chosen[3]).mean() > 0.99
    assert clf.module_.gate.sums[:, -1].sum() == len(X)


def test_weights_in_a_stream_are_copies(generator):
    x, cluster = clusters(CORNERS)
    weight = torch.as_tensor(np.random.RandomState(0).randint(4, size=len(x)))
    copied = torch.arange(len(x)).repeat_interleave(weight)
    gates = []
    for rows, weights in [(torch.arange(len(x)), weight), (copied, torch.ones(len(copied)))]:
        gate, _ = refitted(x[::2], 1 - np.eye(3)[cluster[::2]], generator)
        gate.remember()
        gate.refit(torch.as_tensor(x)[rows], torch.zeros(len(rows), 3), weights.float(), 0)
        gates.append(gate.state_dict())
    torch.testing.assert_close(*gates)


def test_a_column_that_was_constant_in_the_first_chunk(generator):
    x, cluster = clusters(CORNERS)
    x = np.column_stack([x, np.full(len(x), 0.1)])
    gate, _ = refitted(x, 1 - np.eye(3)[cluster], generator)
    for value, scale in ((0.1, 1.0), (5.0, 4.9 * np.sqrt(60 * 300) / 360)):
        gate.remember()
        x[::2, 2] = value
        gate.refit(torch.as_tensor(x), torch.zeros(len(x), 3), torch.ones(len(x)), 0)
        np.testing.assert_allclose(gate.scale[2], scale, rtol=1e-5)
        assert gate.weight.isfinite().all()


def test_a_stream_goes_on_from_a_file(tmp_path):
    X, y, _ = families(400, 0)
    clf = MoEClassifier(4, gate="kmeans", random_state=0).partial_fit(X[:200], y[:200], [0, 1])
    save(clf, tmp_path / "mixture.moe")
    others = [pickle.loads(pickle.dumps(clf)), load(tmp_path / "mixture.moe")]
    state = clf.partial_fit(X[200:], y[200:]).module_.gate.state_dict()
    for other in others:
        other.partial_fit(X[200:], y[200:])
        torch.testing.assert_close(other.module_.gate.state_dict(), state, rtol=0, atol=0)
