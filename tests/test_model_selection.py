import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    SCORERS,
    MoEClassifier,
    cross_validate,
    decomposition_entropy,
    tune,
)


@pytest.fixture
def clf():
    return MoEClassifier(n_experts=3, max_iter=10, random_state=0)


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


def test_tune_searches_the_default_space(clf, iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), clf.set_params(max_iter=3))
    result = tune(pipeline, X, y, n_trials=6, cv=2, scoring="neg_log_loss", random_state=0)
    assert len(result.study_.trials) == 6
    assert result.best_score_ == max(trial.value for trial in result.study_.trials) < 0
    best = result.best_estimator_
    for name, value in result.best_params_.items():
        assert repr(best.get_params()[name]) == repr(value)
    assert set(result.best_params_) == {
        f"moeclassifier__{name}" for name in ("n_experts", "gate", "regularization")
    }
    assert best.predict(X).shape == y.shape
    assert not hasattr(pipeline[-1], "net_")  # the estimator that was passed stays as it was


def test_tune_is_reproducible(clf, iris):
    X, y = iris
    one, other = (tune(clf, X, y, n_trials=3, cv=2, random_state=1) for _ in range(2))
    assert [trial.params for trial in one.study_.trials] == [
        trial.params for trial in other.study_.trials
    ]
    assert one.best_score_ == other.best_score_


def test_tune_with_an_own_space_and_decomposition_as_goal(clf, iris):
    X, y = iris

    def space(trial):
        return {"n_experts": trial.suggest_int("n_experts", 1, 3)}

    result = tune(
        clf, X, y, n_trials=4, space=space, cv=StratifiedKFold(2), scoring="usage_entropy"
    )
    assert isinstance(result.study_, optuna.Study)
    assert set(result.best_params_) == {"n_experts"}
    assert 0 <= result.best_score_ <= np.log2(3)


def test_tune_survives_trials_that_fail_and_remembers_the_best(clf, iris):
    X, y = iris

    def space(trial):
        return {"n_experts": trial.suggest_int("n_experts", 0, 2), "max_iter": 1 + trial.number}

    folds = StratifiedKFold(2).split(X, y)  # an iterator, which a second trial would find empty
    result = tune(clf, X, y, n_trials=6, space=space, cv=folds, random_state=0)
    states = {trial.state.name for trial in result.study_.trials}
    assert states == {"COMPLETE", "FAIL"}
    best = result.study_.best_trial
    assert result.best_params_ == {
        "n_experts": best.params["n_experts"],
        "max_iter": 1 + best.number,
    }
    for wrong in ({"n_experts": 0}, {"n_expert": 3}):
        with pytest.raises(ValueError, match="None of 2 trials has a score") as raised:
            tune(clf, X, y, n_trials=2, space=lambda trial, wrong=wrong: wrong)
        assert "n_expert" in str(raised.value.__cause__)
    with pytest.raises(ValueError, match="Raise timeout"):
        tune(clf, X, y, n_trials=2, timeout=1e-9)


def test_tune_leaves_the_verbosity_of_optuna_alone(clf, iris, capfd):
    before = optuna.logging.get_verbosity()
    tune(clf, *iris, n_trials=1, cv=2)
    assert optuna.logging.get_verbosity() == before
    assert "Trial 0" not in capfd.readouterr().err
    tune(clf, *iris, n_trials=1, cv=2, verbose=1)
    assert "1/1" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [{"n_trials": 0}, {"space": {}}, {"timeout": -1}])
def test_tune_wrong_parameters(wrong, clf, iris):
    with pytest.raises(ValueError, match=f"The '{next(iter(wrong))}' parameter of tune"):
        tune(clf, *iris, **wrong)


def test_tune_needs_a_mixture(iris):
    with pytest.raises(ValueError, match="needs exactly one MoEClassifier"):
        tune(LogisticRegression(), *iris, n_trials=1)
