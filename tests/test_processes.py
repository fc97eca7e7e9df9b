"""What runs in several processes: one file, so that all tests share joblib's workers."""

import pickle
import re

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from test_choose_n_experts import QUICK, regimes
from test_search import DEPTH, TREE, n_experts, states

from sklearn_moe import MoEClassifier, choose_n_experts, likelihood_ratio_test, tune


@pytest.fixture
def clf():
    return MoEClassifier(n_experts=2, max_iter=1, batch_size=75, random_state=0)


@pytest.mark.smoke
def test_cross_val_score(clf, iris):
    one, two = (cross_val_score(clf, *iris, cv=4, n_jobs=n_jobs) for n_jobs in (1, 2))
    assert one.tolist() == two.tolist()


@pytest.mark.parametrize("storage", [None, "sqlite", "journal"])
def test_search(storage, clf, iris, tmp_path):
    path = {"sqlite": f"sqlite:///{tmp_path}/a.db", "journal": tmp_path / "a.log"}.get(storage)
    options = {"n_trials": 4, "cv": 2, "n_jobs": 2, "storage": path, "refit": "ensemble"}
    search = tune(clf, *iris, n_experts, **options)
    assert states(search.study_) == ["COMPLETE"] * 4
    twin = pickle.loads(pickle.dumps(search))
    assert twin.best_score_ == search.best_score_
    np.testing.assert_array_equal(twin.predict_proba(iris[0]), search.predict_proba(iris[0]))


def test_search_with_sqlite_in_memory(iris, capfd):
    search = tune(TREE, *iris, DEPTH, n_trials=2, cv=2, storage="sqlite:///:memory:", n_jobs=2)
    assert states(search.study_) == ["COMPLETE"] * 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:(With . experts. )?The best of . restarts")
def test_choose_n_experts(tmp_path, capfd):
    X, y = regimes(120)
    parameters = {"cv": 2, "storage": joblib.Memory(tmp_path, verbose=0)}
    one = choose_n_experts(QUICK, X, y, [1, 2], verbose=0, cv=2)
    two = choose_n_experts(QUICK, X, y, [1, 2], n_jobs=2, **parameters)
    assert re.search(r"choose_n_experts: 100%.* 6/6", capfd.readouterr().err)
    for name, values in one.results.items():
        np.testing.assert_allclose(two.results[name], values, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The best of . restarts")
def test_likelihood_ratio(capfd):
    """Unfitted, in a pipeline and in parallel it is the same test."""
    X, y = regimes(120, n_regimes=2)
    arguments = {"n_bootstrap": 2, "random_state": 0}
    smaller, larger = (clone(QUICK).set_params(n_experts=number) for number in (1, 2))
    fitted = (clone(each).fit(X, y) for each in (smaller, larger))
    test = likelihood_ratio_test(*fitted, X, y, **arguments)
    smaller = make_pipeline("passthrough", smaller)
    again = likelihood_ratio_test(smaller, larger, X, y, n_jobs=2, verbose=1, **arguments)
    assert again.statistic == pytest.approx(test.statistic, abs=1e-3)
    np.testing.assert_allclose(again.bootstrap_statistics, test.bootstrap_statistics, atol=1e-3)
    assert re.search(r"likelihood_ratio_test: 100%.* 2/2", capfd.readouterr().err)
