"""Whether a decomposition comes back: matching, agreement, verdict, report and picture."""

import json
from itertools import pairwise, permutations
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    DecompositionStabilityDisplay,
    MoEClassifier,
    decomposition_report,
    decomposition_stability,
    groups,
)
from sklearn_moe.grouping import match_experts

matplotlib.use("agg")

# Restarts of linear experts may say that they disagree, and short trainings collapse.
pytestmark = pytest.mark.filterwarnings("ignore:The best of", "ignore:The gate has collapsed")


class Parts(ClassifierMixin, BaseEstimator):
    """A mixture whose gate has learned some part of the samples by heart.

    ``kind`` says how the parts depend on the seed: "same" numbers the same parts differently,
    "random" has other parts, and "one" gives one expert everything.
    """

    def __init__(self, kind="same", n_experts=3, random_state=None):
        self.kind = kind
        self.n_experts = n_experts
        self.random_state = random_state

    def fit(self, X, y, sample_weight=None):
        rng = np.random.RandomState(self.random_state)
        self.classes_ = np.unique(y)
        numbers = rng.permutation(self.n_experts)
        if self.kind == "same":
            self.part_of_ = lambda X: numbers[(X[:, 0] % self.n_experts).astype(int)]
        elif self.kind == "random":
            labels = rng.randint(self.n_experts, size=10_000)
            self.part_of_ = lambda X: labels[X[:, 0].astype(int)]
        else:
            self.part_of_ = lambda X: np.zeros(len(X), dtype=int)
        self.seen_ = X, y, sample_weight
        return self

    def gate_proba(self, X):
        sure = np.eye(self.n_experts)[self.part_of_(X)]
        return 0.94 * sure + 0.06 / self.n_experts

    def expert_log_likelihood(self, X, y):
        return np.full((len(X), self.n_experts), np.log(1 / len(self.classes_)))

    def predict_log_proba(self, X):
        return np.full((len(X), len(self.classes_)), np.log(1 / len(self.classes_)))


ROWS = np.arange(900, dtype=float)[:, np.newaxis]
LABELS = np.repeat(["no", "yes"], 450)


def sectors(n, seed=0):
    """Three logistic rules on four columns, chosen by a softmax gate on two others."""
    rng = np.random.default_rng(1000)
    rules = rng.uniform(2, 3, (3, 4)) * rng.choice([-1, 1], (3, 4))
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    angles = 2 * np.pi * np.arange(3) / 3
    scores = 5 * X[:, :2] @ np.array([np.cos(angles), np.sin(angles)])
    regime = (scores + rng.gumbel(size=(n, 3))).argmax(axis=1)
    log_odds = np.take_along_axis(X[:, 2:] @ rules.T, regime[:, np.newaxis], axis=1)[:, 0]
    return X, (log_odds + rng.logistic(size=n) > 0).astype(int)


def test_matching_is_the_best_of_all_permutations():
    rng = np.random.RandomState(0)
    for _ in range(20):
        one, other = rng.dirichlet(np.ones(3) / 3, size=(2, 50))
        best = max(
            permutations(range(3)),
            key=lambda order: sum((one[:, e] * other[:, f]).mean() for e, f in enumerate(order)),
        )
        assert match_experts(one, other).tolist() == list(best)


@pytest.mark.parametrize("resample", ["seeds", "bootstrap"])
def test_the_same_parts_with_other_numbers(resample):
    stability = decomposition_stability(
        Parts(random_state=0), ROWS, LABELS, n_refits=4, resample=resample, random_state=0
    )
    assert stability.verdict == "comes back"
    assert (stability.adjusted_rand_index == 1).all()
    assert stability.pairwise_adjusted_rand_index == 1
    for ones in (
        stability.agreement,
        stability.always,
        stability.expert_stays,
        stability.expert_always,
        stability.expert_agreement,
    ):
        assert (ones == 1).all()
    assert (stability.choice == stability.choice[0]).all()
    np.testing.assert_allclose(stability.usage_interval, 1 / 3)
    text = repr(stability)
    assert "33.3% (33.3% to 33.3%)" in text and "4 of 4" in text and "no interval" not in text


def test_random_parts():
    stability = decomposition_stability(
        Parts("random", random_state=0), ROWS, LABELS, n_refits=4, random_state=0
    )
    assert stability.verdict == "does not come back"
    assert abs(stability.adjusted_rand_index[0, 1:]).max() < 0.02
    assert abs(stability.pairwise_adjusted_rand_index) < 0.02
    assert 1 / 3 < stability.agreement.mean() < 0.45  # as they are matched
    assert np.isnan(stability.usage_interval).all()
    assert "There is no interval where fewer than 90%" in repr(stability)


def test_by_hand():
    """Expert 1 of one refit has got half of the samples of expert 0."""
    fits = [[0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 2, 2]]

    class Told(Parts):
        def fit(self, X, y):
            super().fit(X, y)
            which = 0 if self.random_state == 0 else 1 + (self.random_state == SECOND)
            self.part_of_ = lambda X: np.array(fits[which])
            return self

    SECOND = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=2)[1]
    stability = decomposition_stability(
        Told(random_state=0), ROWS[:8], LABELS[::120], n_refits=2, random_state=0
    )
    assert stability.choice.tolist() == fits
    assert stability.agreement.tolist() == [0.75, 1]
    assert stability.always.tolist() == [True, True, False, False, True, True, True, True]
    assert stability.expert_stays.tolist() == [[0.5, 1, 1], [1, 1, 1]]
    assert stability.expert_always.tolist() == [0.5, 1, 1]
    np.testing.assert_allclose(stability.expert_agreement, [[2 / 3, 2 / 3, 1], [1, 1, 1]])
    index = adjusted_rand_score(fits[0], fits[1])
    np.testing.assert_allclose(
        stability.adjusted_rand_index, [[1, index, 1], [index, 1, index], [1, index, 1]]
    )
    assert stability.pairwise_adjusted_rand_index == pytest.approx(index)
    np.testing.assert_allclose(stability.measures["log_loss"], np.log(2))


def test_one_expert_with_all_samples():
    stability = decomposition_stability(Parts("one"), ROWS, LABELS, n_refits=1, random_state=0)
    assert stability.verdict == "divides nothing"
    text = repr(stability)
    assert "1 refit with new seeds can find no parts" in text and "nan%" not in text
    assert np.isnan(stability.expert_stays).sum() == 2  # of experts that have no samples
    assert np.isnan(stability.pairwise_adjusted_rand_index)
    DecompositionStabilityDisplay(stability).plot()
    plt.close("all")


def test_bootstrap_samples_have_all_classes_and_their_weights():
    y = np.where(ROWS[:, 0] < 3, "rare", LABELS)
    seen = []

    class Watched(Parts):
        def fit(self, X, y, sample_weight):
            seen.append((X[:, 0], y, sample_weight))
            return super().fit(X, y)

    weight = ROWS[:, 0] + 1
    decomposition_stability(
        Watched(random_state=0),
        ROWS,
        y,
        n_refits=3,
        resample="bootstrap",
        params={"sample_weight": weight},
        random_state=0,
    )
    assert len(seen) == 4 and (seen[0][0] == ROWS[:, 0]).all()
    for rows, labels, weights in seen[1:]:
        assert np.unique(labels, return_counts=True)[1].tolist() == [447, 3, 450]
        assert 500 < len(np.unique(rows)) < 650  # 0.63 of 900
        assert (weights == rows + 1).all() and (labels == y[rows.astype(int)]).all()
    assert (seen[1][0] != seen[2][0]).any()


def test_the_bootstrap_draws_whole_groups(monkeypatch):
    group, seen = np.random.RandomState(0).permutation(900) % 90, []

    class Watched(Parts):
        def fit(self, X, y, groups):
            seen.append((X[:, 0].astype(int), groups))
            return super().fit(X, y)

    arguments = {"n_refits": 2, "resample": "bootstrap", "random_state": 0}
    names = np.array([f"p{one}" for one in group])
    y = np.where(group < 2, "rare", LABELS)
    decomposition_stability(
        Watched(random_state=0), ROWS, y, params={"groups": names}, **arguments
    )
    assert (seen[0][1] == names).all()
    for rows, copies in seen[1:]:
        assert set(y[rows]) == {"no", "yes", "rare"}
        assert 45 < len(np.unique(group[rows])) < 70  # 0.63 of 90
        assert np.unique(copies).tolist() == list(range(90))
        for copy in range(90):  # each is one whole group
            one = rows[copies == copy]
            assert sorted(one) == np.flatnonzero(group == group[one[0]]).tolist()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        decomposition_stability(
            Watched(random_state=0), ROWS, y, params={"groups": names[:9]}, **arguments
        )
    monkeypatch.setattr(groups, "MANY_DRAWS", 1)
    with pytest.raises(
        ValueError, match=r"lacked a class, the last one \[[01]\]. It is in too few"
    ):
        for seed in range(20):
            groups.draw_again(np.array([0, 1, 1]), np.array([0, 1, 1]), seed)


def test_linear_experts_find_the_same_regimes_and_others_do_not():
    X, y = sectors(1000)
    linear = MoEClassifier(
        3, experts="linear", gate_features=[0, 1], n_init=5, max_iter=20, random_state=0
    )
    stability = decomposition_stability(linear, X, y, n_refits=3, random_state=0)
    assert stability.adjusted_rand_index.min() >= 0.9 and stability.verdict == "comes back"
    assert np.isfinite(stability.usage_interval).all()
    assert stability.measures["specialization"].min() > 1
    # An unfitted mixture is not changed.
    assert not hasattr(linear, "net_") and hasattr(stability.estimator, "net_")
    report = decomposition_report(stability.estimator, X, y, stability=stability)
    last = report.splitlines()
    assert stability.sentence in last
    assert "Whether these are the right parts, this report does not know." in last
    report = decomposition_report(stability.estimator, X, y, stability=stability, output_dict=True)
    assert report["stability"]["verdict"] == "comes back"
    json.dumps(report)

    flexible = MoEClassifier(3, max_iter=10, random_state=0).fit(X, y)
    stability = decomposition_stability(flexible, X, y, n_refits=2, random_state=0)
    assert stability.adjusted_rand_index[0, 1:].max() < 0.6
    assert stability.verdict == "does not come back"
    assert stability.estimator is flexible


def test_pipeline_with_a_search_of_a_frame(iris):
    X = pd.DataFrame(iris[0], columns=list("abcd"))
    y = np.array(["setosa", "versicolor", "virginica"])[iris[1]]
    moe = MoEClassifier(gate="kmeans", max_iter=2, random_state=0)
    clf = make_pipeline(StandardScaler(), GridSearchCV(moe, {"n_experts": [3]}, cv=2)).fit(X, y)
    params = {"n_refits": 2, "resample": "bootstrap", "random_state": 0}
    stability = decomposition_stability(clf, X, y, **params)
    assert isinstance(stability.estimator[-1], MoEClassifier)  # no search is done again
    assert stability.choice.shape == (3, 150) and stability.usage.shape == (3, 3)
    assert (stability.choice[0] == clf[-1].best_estimator_.apply(clf[:-1].transform(X))).all()
    assert stability.measures["accuracy"][0] == clf.score(X, y)
    with parallel_config("threading"):
        parallel = decomposition_stability(clf, X, y, n_jobs=2, **params)
    assert (parallel.choice == stability.choice).all()


def test_the_report_line_fits_on_a_screen():
    for kind in ("same", "random"):
        for resample in ("seeds", "bootstrap"):
            stability = decomposition_stability(
                Parts(kind), ROWS, LABELS, n_refits=10, resample=resample, random_state=0
            )
            assert max(map(len, repr(stability).splitlines())) < 100
    assert len(stability.sentence) < 100


def test_errors(iris):
    for params in ({"n_refits": 0}, {"resample": "jackknife"}, {"n_refits": 1.5}):
        with pytest.raises(ValueError, match=next(iter(params))):
            decomposition_stability(Parts(), ROWS, LABELS, **params)
    clf = Parts(random_state=0).fit(ROWS, LABELS)
    with pytest.raises(ValueError, match="but the estimator was fitted with"):
        decomposition_stability(clf, ROWS[:450], LABELS[:450])
    with pytest.raises(ValueError, match="NaN"):
        decomposition_stability(clf, ROWS, np.where(LABELS == "no", np.nan, 1.0))
    with pytest.raises(ValueError, match="inconsistent"):
        decomposition_stability(clf, ROWS, LABELS[1:])
    with pytest.raises(TypeError, match="has no gate_proba"):
        decomposition_stability(LogisticRegression().fit(*iris), *iris)
    moe = MoEClassifier(2, max_iter=1, random_state=0).fit(*iris)
    with pytest.raises(ValueError, match="with 3 experts, but the estimator has 2"):
        decomposition_report(moe, *iris, stability=SimpleNamespace(usage=np.ones((2, 3))))


def test_display():
    clf = Parts("random", random_state=0)
    display = DecompositionStabilityDisplay.from_estimator(
        clf, ROWS, LABELS, n_refits=3, random_state=0
    )
    assert len(display.bars_) == 3 and len(display.points_.get_offsets()) == 9
    assert display.text_.shape == (4, 4) and display.text_[0, 0].get_text() == ""
    assert display.axes_[0].get_legend().get_title().get_text().endswith("does not come back")
    stays = display.stability.expert_stays[:, np.argsort(-display.stability.usage[0])]
    np.testing.assert_allclose(display.points_.get_offsets()[:, 0], stays.ravel())
    display.figure_.draw_without_rendering()
    width = display.figure_.get_figwidth() * display.figure_.dpi
    cells = [display.text_[0, column].get_window_extent() for column in (1, 2, 3)]
    assert all(one.x1 < other.x0 for one, other in pairwise(cells))
    assert cells[-1].x1 < width
    # No numbers where there is no room, and no more experts than one can see.
    many = Parts("random", n_experts=40, random_state=0)
    display = DecompositionStabilityDisplay.from_estimator(
        many, ROWS, LABELS, n_refits=40, random_state=0
    )
    assert display.text_ is None and len(display.bars_) == 16
    _, ax = plt.subplots()
    assert len(DecompositionStabilityDisplay(display.stability).plot(ax=ax).axes_) == 2
    plt.close("all")
