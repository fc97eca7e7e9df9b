import numpy as np
import pandas as pd
import polars as pl
import pytest
from optuna.distributions import IntDistribution
from scipy import stats
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    GroupKFold,
    LeaveOneGroupOut,
    RepeatedStratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from skorch.callbacks import Callback

from sklearn_moe import (
    SCORERS,
    MoEClassifier,
    compare,
    cross_validate,
    decomposition_entropy,
    tune,
)

pytestmark = pytest.mark.smoke


@pytest.fixture
def clf():
    return MoEClassifier(n_experts=3, max_iter=3, random_state=0)


def one_expert_accuracy(clf, X, y):
    of_all, chosen = clf.expert_proba(X), clf.apply(X)
    right = [of_all[n, chosen[n]].argmax() == label for n, label in enumerate(y)]
    return np.mean(right)


def test_cross_validate_adds_the_measures(clf, iris):
    X, y = iris
    result = cross_validate(clf, X, y, cv=3, return_estimator=True, return_indices=True)
    assert result["test_score"].tolist() == cross_val_score(clf, X, y, cv=3).tolist()
    for fold, (estimator, test) in enumerate(
        zip(result["estimator"], result["indices"]["test"], strict=True)
    ):
        decomposition = decomposition_entropy(estimator, X[test], y[test])
        for name, expected in (
            ("neg_sample_entropy", -decomposition.sample_entropy),
            ("usage_entropy", decomposition.usage_entropy),
            ("expert_class_information", decomposition.expert_class_information),
            ("specialization", decomposition.specialization),
            ("chosen_expert_accuracy", one_expert_accuracy(estimator, X[test], y[test])),
        ):
            assert result[f"test_{name}"][fold] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "scoring, keys",
    [
        ("neg_log_loss", ["test_score"]),
        ("neg_sample_entropy", ["test_score"]),
        (["accuracy", "neg_sample_entropy"], ["test_accuracy", "test_neg_sample_entropy"]),
        ({"acc": "accuracy", "h_u": "usage_entropy"}, ["test_acc", "test_h_u"]),
    ],
)
def test_cross_validate_scoring(scoring, keys, clf, iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), clf)
    result = cross_validate(pipeline, X, y, cv=3, scoring=scoring, return_train_score=True)
    for key in [*keys, *(f"test_{name}" for name in SCORERS), "train_usage_entropy"]:
        assert np.isfinite(result[key]).all() and len(result[key]) == 3
    pd.DataFrame(result)


def test_cross_validate_groups_and_params(clf, iris):
    X, y = iris
    result = cross_validate(
        clf,
        X,
        y,
        cv=LeaveOneGroupOut(),
        groups=np.arange(150) % 3,
        params={"sample_weight": (y > 0).astype(float)},
        return_estimator=True,
    )
    for estimator in result["estimator"]:
        assert 0 not in estimator.predict(X)  # class 0 had no weight


def test_cross_validate_prints_itself(clf, iris):
    result = cross_validate(clf, *iris, cv=3, return_estimator=True)
    assert isinstance(result, dict)
    lines = repr(result).splitlines()
    assert lines[0].split() == ["3", "folds", "mean", "std"]
    numbers = {name: (float(mean), float(std)) for name, mean, std in map(str.split, lines[1:])}
    for name in ("test_score", "test_chosen_expert_accuracy"):
        expected = result[name].mean(), result[name].std(ddof=1)
        assert numbers[name] == pytest.approx(expected, abs=1e-4)


def test_cross_validate_routes_metadata(clf, iris):
    X, y = iris
    params = {"sample_weight": (y > 0).astype(float), "groups": np.arange(150) % 3}
    with config_context(enable_metadata_routing=True):
        clf.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        result = cross_validate(
            clf,
            X,
            y,
            cv=GroupKFold(3),
            params=params,
            scoring={"acc": make_scorer(accuracy_score).set_score_request(sample_weight=True)},
            return_estimator=True,
            error_score="raise",
        )
    for estimator in result["estimator"]:
        assert 0 not in estimator.predict(X)


def test_cross_validate_unknown_scorer(clf, iris):
    with pytest.raises(ValueError, match=r"no scorer 'entropie'.*usage_entropy"):
        cross_validate(clf, *iris, scoring=["accuracy", "entropie"])


def test_compare(clf, iris):
    X, y = iris
    estimators = {"moe": clf, "one": clf.set_params(n_experts=1), "linear": LogisticRegression()}
    cv = RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0)
    result = compare(estimators, X, y, cv=cv, scoring="neg_log_loss")
    for name, estimator in estimators.items():
        expected = cross_val_score(estimator, X, y, cv=cv, scoring="neg_log_loss")
        np.testing.assert_array_equal(result.scores[name], expected)
    pairs = [(row["first"], row["second"]) for row in result.differences]
    assert pairs == [("moe", "one"), ("moe", "linear"), ("one", "linear")]
    row = pd.DataFrame(result.differences).iloc[1]
    d = result.scores["moe"] - result.scores["linear"]
    error = np.sqrt((1 / 6 + 50 / 100) * np.sum((d - d.mean()) ** 2) / 5)
    assert row.difference == pytest.approx(d.mean())
    assert row.standard_error == pytest.approx(error)
    tail = stats.t(5).cdf(-abs(d.mean() / error))
    assert row.p_value == pytest.approx(2 * tail)
    # Wider than the t-test that takes the folds for independent.
    assert row.p_value > stats.ttest_rel(*(result.scores[n] for n in ("moe", "linear"))).pvalue
    assert result.differences[0]["p_value"] == 1  # the same estimator under two names
    assert "linear" in repr(result) and f"{d.mean():.4f}" in repr(result)


def test_compare_needs_two(clf, iris):
    with pytest.raises(ValueError, match=r"at least two estimators, got \['moe'\]"):
        compare({"moe": clf}, *iris)
    with pytest.raises(ValueError, match="at least two folds, got 1"):
        compare({"a": clf, "b": clf}, *iris, cv=[(np.arange(100), np.arange(100, 150))])


@pytest.mark.parametrize("library", ["polars", "dask"])
def test_lazy_frames(library, clf, iris):
    X, y = pd.DataFrame(iris[0], columns=list("abcd")), pd.Series(iris[1], name="y")
    if library == "polars":
        held = pl.from_pandas(X).lazy(), y
    else:
        from_pandas = pytest.importorskip("dask.dataframe").from_pandas
        held = from_pandas(X, npartitions=2), from_pandas(y, npartitions=2)
    expected = cross_validate(clf, X, y, cv=2)["test_score"]
    assert np.array_equal(cross_validate(clf, *held, cv=2)["test_score"], expected)
    comparison = compare({"mixture": clf, "again": clf}, *held, cv=2)
    assert np.array_equal(comparison.scores["mixture"], expected)
    space = {"n_experts": IntDistribution(3, 3)}
    search = tune(clf, *held, space, n_trials=1, cv=2, verbose=0)
    assert search.best_score_ == expected.mean()
    assert np.array_equal(search.predict(held[0]), search.predict(X))


class Interrupt(Callback):
    def on_epoch_begin(self, net, **kwargs):
        raise KeyboardInterrupt


def test_interruption_ends_all_folds(iris):
    clf = MoEClassifier(max_iter=1, net_params={"callbacks": [Interrupt()]})
    for n_jobs in (None, 1):
        with pytest.raises(KeyboardInterrupt):
            cross_validate(clf, *iris, cv=2, n_jobs=n_jobs)
    with pytest.raises(KeyboardInterrupt):
        compare({"tree": DecisionTreeClassifier(), "mixture": clf}, *iris, cv=2)
