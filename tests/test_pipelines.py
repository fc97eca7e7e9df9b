"""The estimator in and with the tools that a scikit-learn user has, one test each."""

import pickle
from copy import deepcopy

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_moe import SCORERS, MoEClassifier, SampleSimilarity, SoftmaxGate

pytestmark = pytest.mark.smoke


@pytest.fixture
def clf():
    return MoEClassifier(
        n_experts=2, learning_rate=0.05, batch_size=75, max_iter=12, random_state=0
    )


@pytest.fixture(scope="module")
def frame(iris):
    X, y = iris
    return pd.DataFrame(X, columns=["a", "b", "c", "d"]), np.array(["x", "y", "z"])[y]


def test_pipeline(clf, iris):
    assert make_pipeline(StandardScaler(), clf).fit(*iris).score(*iris) > 0.9


def test_grid_search_over_nested_parameters(clf, iris):
    clf.set_params(gate=SoftmaxGate(), regularization=SampleSimilarity(), max_iter=8)
    grid = {"gate__top_k": [None, 1, 2], "regularization__strength": [0.1, 1.0]}
    search = GridSearchCV(clf, grid, cv=2, error_score="raise").fit(*iris)
    assert len(search.cv_results_["params"]) == 6
    assert search.best_estimator_.gate.top_k == search.best_params_["gate__top_k"]
    assert search.best_score_ > 0.8


def test_grid_search_over_names_and_decomposition_scores(clf, iris):
    grid = {"gate": ["softmax", "attentive"], "regularization": [None, "importance"]}
    scoring = {"accuracy": "accuracy", **SCORERS}
    clf.set_params(max_iter=2)
    search = GridSearchCV(clf, grid, cv=2, scoring=scoring, refit="usage_entropy").fit(*iris)
    for name in SCORERS:
        assert np.isfinite(search.cv_results_[f"mean_test_{name}"]).all()
    assert GridSearchCV(clf, grid, cv=2, scoring=SCORERS["usage_entropy"]).fit(*iris).best_score_


def test_randomized_search(clf, iris):
    space = {"n_experts": [1, 2, 3], "learning_rate": [0.01, 0.05]}
    clf.set_params(max_iter=5)
    search = RandomizedSearchCV(clf, space, n_iter=3, cv=2, random_state=0, error_score="raise")
    assert search.fit(*iris).best_score_ > 0.5


def test_halving_search_over_epochs(clf, iris):
    search = HalvingGridSearchCV(
        clf, {"n_experts": [1, 2, 3]}, resource="max_iter", max_resources=9, cv=2, random_state=0
    ).fit(*iris)
    assert search.best_estimator_.n_iter_ == search.best_estimator_.max_iter == 9


def test_calibrated_classifier(clf, iris):
    assert CalibratedClassifierCV(clf, cv=2).fit(*iris).score(*iris) > 0.8


def test_stacking_classifier(clf, iris):
    stack = StackingClassifier([("moe", clf), ("lr", LogisticRegression())], cv=2)
    assert stack.fit(*iris).score(*iris) > 0.8


@pytest.mark.parametrize("voting", ["hard", "soft"])
def test_voting_classifier(clf, iris, voting):
    vote = VotingClassifier([("moe", clf), ("lr", LogisticRegression())], voting=voting)
    assert vote.fit(*iris).score(*iris) > 0.9


def test_bagging_classifier(clf, iris):
    assert BaggingClassifier(clf, n_estimators=3, random_state=0).fit(*iris).score(*iris) > 0.9


def test_ada_boost_classifier(clf, iris):
    assert AdaBoostClassifier(clf, n_estimators=2).fit(*iris).score(*iris) > 0.8


def test_one_vs_rest_classifier(clf, iris):
    assert OneVsRestClassifier(clf).fit(*iris).score(*iris) > 0.8


def test_permutation_importance(clf, iris):
    result = permutation_importance(clf.fit(*iris), *iris, n_repeats=2, random_state=0)
    assert result.importances_mean[2:].max() > result.importances_mean[:2].max()


def test_sequential_feature_selector(clf, iris):
    clf.set_params(max_iter=2)
    selector = SequentialFeatureSelector(clf, n_features_to_select=2, cv=2).fit(*iris)
    assert selector.get_support().sum() == 2


def test_set_output_and_pandas(clf, frame):
    X, y = frame
    clf.set_params(max_iter=2)
    pipeline = make_pipeline(StandardScaler(), clf).set_output(transform="pandas").fit(X, y)
    assert pipeline[-1].feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert set(pipeline.predict(X)) <= set(y)
    with pytest.raises(ValueError, match="feature names should match"):
        pipeline[-1].predict(X[["b", "a", "c", "d"]])


def test_column_transformer(clf, frame):
    X, y = frame
    X = X.assign(kind=np.where(X["a"] > 0, "large", "small"))
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    assert make_pipeline(encode, clf).fit(X, y).score(X, y) > 0.9


def test_polars(clf, frame):
    X, y = frame
    clf.set_params(max_iter=2)
    from_polars = clf.fit(pl.from_pandas(X), pl.Series(y)).predict_proba(pl.from_pandas(X))
    assert np.array_equal(from_polars, clf.fit(X, y).predict_proba(X))
    assert clf.feature_names_in_.tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("copy", [lambda clf: pickle.loads(pickle.dumps(clf)), deepcopy])
def test_pickle_and_deepcopy(clf, iris, copy):
    X, y = iris
    clf.set_params(max_iter=2).fit(X, y)
    twin = copy(clf)
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))
    # Training goes on alike, too: the optimizer and the random state are kept.
    for each in (clf, twin):
        each.partial_fit(X, y)
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))


def test_joblib(clf, iris, tmp_path):
    X, y = iris
    joblib.dump(clf.set_params(max_iter=2).fit(X, y), tmp_path / "clf.joblib")
    twin = joblib.load(tmp_path / "clf.joblib")
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))


def test_metadata_routing(clf, iris):
    X, y = iris
    weight = np.where(y == 0, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            clf.set_fit_request(sample_weight=True, X_val=True, y_val=True),
            transform_input=["X_val"],
        )
        pipeline.fit(X, y, sample_weight=weight, X_val=X, y_val=y)
    assert 0 not in pipeline.predict(X)  # class 0 had no weight
    assert len(pipeline[-1].validation_scores_) == 12
