"""MoESearchCV and tune."""

import pickle
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sklearn import config_context
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GroupKFold,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import Callback

from sklearn_moe import MLPExperts, MoEClassifier, MoESearchCV, tune
from sklearn_moe.model_selection.trials import MedianPruner

# A warning would be an error here, and fail the trial.
pytestmark = pytest.mark.filterwarnings("ignore:The gate has collapsed")


@pytest.fixture
def clf():
    return MoEClassifier(n_experts=3, max_iter=10, random_state=0)


def n_experts(trial):
    return {"n_experts": trial.suggest_int("n_experts", 1, 3)}


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.smoke
def test_default_space(clf, iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), clf.set_params(max_iter=3))
    search = tune(pipeline, X, y, n_trials=6, cv=2, scoring="neg_log_loss", random_state=0)
    assert len(search.study_.trials) == len(search.trials_dataframe()) == 6
    assert search.best_score_ == max(t.value for t in search.study_.trials if t.values) < 0
    names = "n_experts experts gate regularization learning_rate weight_decay".split()
    assert set(search.best_params_) == {f"moeclassifier__{name}" for name in names}
    best = search.best_estimator_
    for name, value in search.best_params_.items():
        assert repr(best.get_params()[name]) == repr(value)
    np.testing.assert_array_equal(search.predict(X), best.predict(X))
    assert not hasattr(pipeline[-1], "net_")  # the estimator that was passed stays as it was
    for trial in search.study_.trials:  # what plays no part is not asked for
        asked = trial.params
        assert ("gate_width" in asked) == (asked["gate"] == "attentive")
        for name in ("importance", "sample_similarity"):
            assert (f"{name}_strength" in asked) == (asked["regularization"] == name)


def test_default_space_leaves_the_experts_of_images_alone(digits):
    X, y = digits[0][:100].reshape(-1, 8, 8), digits[1][:100]
    for data, params in ((X, {}), (X.reshape(100, 64), {"input_shape": (8, 8)})):
        clf = MoEClassifier(max_iter=1, random_state=0, **params)
        search = tune(clf, data, y, n_trials=1, cv=2, random_state=0)
        assert "experts" not in search.best_params_ and "gate" in search.best_params_


@pytest.mark.smoke
def test_results_are_those_of_scikit_learn(clf, iris):
    X, y = iris
    space = {"n_experts": IntDistribution(1, 4), "gate": CategoricalDistribution(["softmax"])}
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    search = MoESearchCV(clf, space, n_trials=3, cv=cv, random_state=0, return_train_score=True)
    results = search.fit(X, y).cv_results_
    for place, params in enumerate(results["params"]):
        expected = cross_val_score(clone(clf).set_params(**params), X, y, cv=cv)
        scores = [results[f"split{fold}_test_score"][place] for fold in range(3)]
        np.testing.assert_array_equal(scores, expected)
        assert results["mean_test_score"][place] == pytest.approx(expected.mean())
    assert results["rank_test_score"][search.best_index_] == 1
    assert np.all(results["mean_train_score"] <= 1) and np.all(results["mean_fit_time"] > 0)
    assert search.score(X, y) == search.best_estimator_.score(X, y)
    pd.DataFrame(results)


def test_reproducible(clf, iris):
    one, other, third = (
        tune(clf, *iris, n_trials=4, cv=2, random_state=seed) for seed in (1, 1, 2)
    )
    params = [[trial.params for trial in search.study_.trials] for search in (one, other, third)]
    assert params[0] == params[1] != params[2]
    assert one.best_score_ == other.best_score_
    assert len({str(each) for each in params[0]}) == 4


def test_pickle_and_clone(clf, iris):
    search = MoESearchCV(clf, n_experts, n_trials=2, cv=2).fit(*iris)
    twin = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(twin.predict(iris[0]), search.predict(iris[0]))
    assert len(twin.study_.trials) == 2
    assert not hasattr(clone(search), "study_")


def test_is_a_classifier_with_stratified_folds(clf, iris):
    search = MoESearchCV(clf, n_experts, n_trials=1, cv=2)
    assert is_classifier(search)
    X, y = iris  # sorted by class: folds that are not stratified have a class that is not known
    assert cross_val_score(search, X, y, cv=3).min() > 0.5


def failed_checks(search):
    results = check_estimator(search, on_fail=None, on_skip=None)
    return {each["check_name"] for each in results if each["status"] == "failed"}


def test_estimator_checks():
    base = LogisticRegression()
    ours = MoESearchCV(base, {"C": FloatDistribution(0.1, 1)}, n_trials=2, cv=2, random_state=0)
    theirs = RandomizedSearchCV(base, {"C": [0.1, 1.0]}, n_iter=2, cv=2, random_state=0)
    assert failed_checks(ours) <= failed_checks(theirs)


@pytest.mark.smoke
def test_several_scores(clf, iris):
    X, y = iris
    scoring = ["neg_log_loss", "neg_sample_entropy"]
    search = tune(clf, X, y, n_trials=8, cv=2, scoring=scoring, random_state=0)
    front = [[row[name] for name in scoring] for row in search.pareto_front_]
    everyone = np.array([trial.values for trial in search.study_.trials])
    for point in front:
        assert not np.any(np.all(everyone >= point, axis=1) & np.any(everyone > point, axis=1))
    assert front == sorted(front, reverse=True)
    assert search.best_score_ == front[0][0] == everyone[:, 0].max()
    assert search.best_params_ == search.pareto_front_[0]["params"]
    other = clone(search).set_params(refit="neg_sample_entropy").fit(X, y)
    assert other.best_score_ == everyone[:, 1].max()
    assert search.score(X, y) != other.score(X, y)
    with pytest.raises(ValueError, match="refit='accuracy' must be one of"):
        clone(search).set_params(refit="accuracy").fit(X, y)


def test_refit(clf, iris):
    search = tune(clf, *iris, n_experts, n_trials=2, cv=2, refit=False)
    assert not hasattr(search, "best_estimator_") and search.best_params_
    last = tune(clf, *iris, n_experts, n_trials=2, cv=2, refit=lambda results: 1)
    assert last.best_index_ == 1


def test_groups_and_sample_weight(clf, iris):
    X, y = iris
    weight, groups = (y > 0).astype(float), np.arange(len(y)) % 3
    search = MoESearchCV(clf, n_experts, n_trials=1, cv=GroupKFold(3))
    search.fit(X, y, groups=groups, sample_weight=weight)
    assert search.n_splits_ == 3 and 0 not in search.predict(X)
    with config_context(enable_metadata_routing=True):
        clf.set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        search.fit(X, y, groups=groups, sample_weight=weight)
    assert 0 not in search.predict(X)


def test_pruning_saves_epochs(digits):
    X, y = digits[0][:600], digits[1][:600]
    clf = MoEClassifier(n_experts=2, max_iter=10, batch_size=100, random_state=0)
    space = {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True)}
    pipeline = make_pipeline(StandardScaler(), clf)
    searches = [
        tune(
            estimator,
            X,
            y,
            {prefix + name: each for name, each in space.items()},
            n_trials=10 if pruner else 2,
            cv=2,
            pruner=pruner,
            random_state=0,
        )
        for estimator, prefix, pruner in (
            (clf, "", "median"),
            (pipeline, "moeclassifier__", "median"),
            (clf, "", "hyperband"),
            (clf, "", None),
        )
    ]
    epochs = [sum(t.user_attrs["n_epochs"] for t in s.study_.trials) for s in searches]
    assert epochs[3] == 2 * 2 * 10 and max(epochs[:3]) < 0.9 * 10 * 2 * 10
    for search in searches[:3]:
        assert set(states(search.study_)) == {"COMPLETE", "PRUNED"}
        assert search.cv_results_["trial"].tolist() == [
            trial.number for trial in search.study_.trials if trial.state.name == "COMPLETE"
        ]
        assert search.best_score_ > 0.85
    callbacks = (searches[0].best_estimator_.net_params or {}).get("callbacks", [])
    assert not callbacks  # the refitted mixture has none of the search


def test_own_pruner_and_callbacks(clf, iris):
    seen = []
    with pytest.raises(ValueError, match="None of 3 trials has a score"):
        tune(
            clf,
            *iris,
            n_experts,
            n_trials=3,
            cv=2,
            pruner=optuna.pruners.ThresholdPruner(upper=-1e9),  # all of them
            callbacks=[lambda study, trial: seen.append(trial.number)],
        )
    assert seen == [0, 1, 2]


class FailsOnSome(BaseEstimator):
    def build(self, input_shape, n_experts, n_classes, generator):
        if n_experts > 1:
            raise RuntimeError("too many experts")
        return MLPExperts().build(input_shape, n_experts, n_classes, generator)


def test_trials_may_fail(clf, iris):
    X, y = iris
    folds = StratifiedKFold(2).split(X, y)  # an iterator, which a second trial would find empty
    clf.set_params(experts=FailsOnSome())
    search = tune(clf, X, y, n_experts, n_trials=8, cv=folds, random_state=0)
    assert set(states(search.study_)) == {"COMPLETE", "FAIL"}
    errors = {t.user_attrs["error"] for t in search.study_.trials if t.state.name == "FAIL"}
    assert errors == {"RuntimeError: too many experts"}
    assert search.best_params_ == {"n_experts": 1}


def test_scores_that_are_no_numbers(clf, iris):
    with pytest.raises(ValueError, match="not a finite number"):
        tune(clf, *iris, n_experts, n_trials=2, cv=2, scoring=lambda *_: np.nan)


@pytest.mark.parametrize("as_frame", [False, True])
def test_string_labels_and_frames(as_frame, clf, iris):
    X, y = iris
    names = np.array(["b", "c", "a"])[y]
    if as_frame:
        X, names = pd.DataFrame(X, columns=list("pqrs")), pd.Series(names)
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), clf)
    search = tune(pipeline, X, names, n_trials=7, cv=2, random_state=0)
    assert set(search.predict(X)) <= set("abc")
    assert ("feature_names_in_" in vars(search)) == as_frame


def test_all_trials_fail(clf, iris):
    clf.set_params(experts=FailsOnSome())
    search = MoESearchCV(clf, {"n_experts": IntDistribution(2, 4)}, n_trials=100, cv=2)
    with pytest.raises(ValueError, match=r"None of 10 trials.*RuntimeError: too many experts"):
        search.fit(*iris)
    assert states(search.study_) == ["FAIL"] * 10  # kept
    with pytest.raises(ValueError, match="Raise timeout"):
        tune(clf, *iris, n_experts, n_trials=2, timeout=1e-9)


@pytest.mark.parametrize(
    "params, error, message",
    [
        ({"n_trials": 0}, ValueError, "The 'n_trials' parameter of MoESearchCV"),
        ({"timeout": -1}, ValueError, "The 'timeout' parameter of MoESearchCV"),
        ({"pruner": "often"}, ValueError, "The 'pruner' parameter of MoESearchCV"),
        ({"space": 3}, ValueError, "The 'space' parameter of MoESearchCV"),
        ({"space": {"n_experts": [1, 2]}}, ValueError, "must be one of optuna.distributions"),
        ({"space": {"n_expert": IntDistribution(1, 2)}}, ValueError, "Invalid parameter 'n_exp"),
        ({"scoring": []}, ValueError, "at least one score"),
        ({"scoring": lambda *_: {"a": 1}}, ValueError, "must return one number"),
        ({"storage": optuna.storages.InMemoryStorage(), "n_jobs": 2}, ValueError, "InMemory"),
        ({"scoring": "acuracy"}, ValueError, "no scorer 'acuracy'.*neg_sample_entropy"),
        ({"storage": "postgresql://nobody@127.0.0.1:1/x"}, ConnectionError, "can't be opened"),
        ({"storage": "nowhere://x"}, ConnectionError, "can't be opened"),
        ({"n_iter": 3}, TypeError, "n_iter"),
    ],
)
def test_wrong_parameters(params, error, message, clf, iris):
    with pytest.raises(error, match=message):
        tune(clf, *iris, **{"space": n_experts, "cv": 2, **params})


def test_choices_that_a_study_cannot_keep(clf, iris):
    with pytest.warns(UserWarning, match="persistent storage"):
        space = {"gate": CategoricalDistribution([(8,), 1])}
    with pytest.raises(ValueError, match=r"the choice \(8,\), which a study cannot keep"):
        tune(clf, *iris, space)


def test_needs_a_mixture_or_a_space(iris):
    with pytest.raises(ValueError, match="needs exactly one MoEClassifier"):
        tune(LogisticRegression(), *iris, n_trials=1)
    space = {"C": FloatDistribution(0.1, 1)}
    assert tune(LogisticRegression(max_iter=500), *iris, space, n_trials=1).best_score_ > 0.9


def test_leaves_the_verbosity_of_optuna_alone(clf, iris, capfd):
    before = optuna.logging.get_verbosity()
    tune(clf, *iris, n_experts, n_trials=1, cv=2)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""
    tune(clf, *iris, n_experts, n_trials=1, cv=2, verbose=1)
    assert "1/1" in capfd.readouterr().err


def test_interruption_ends_the_search(clf, iris):
    def interrupt(net, X=None, y=None, **kwargs):
        raise KeyboardInterrupt

    class Interrupt(Callback):
        on_epoch_begin = interrupt

    for callbacks in ([Interrupt()], [("own", Interrupt())]):
        clf.set_params(net_params={"callbacks": callbacks})
        search = MoESearchCV(clf, n_experts, n_trials=3, cv=2)
        with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
            search.fit(*iris)
        assert states(search.study_) == ["FAIL"]


def test_median_is_that_of_the_same_step():
    study = optuna.create_study(direction="maximize", pruner=MedianPruner())
    for _ in range(5):
        trial = study.ask()
        for step, value in ((50, -0.3), (101, 0.9), (151, -0.3)):
            trial.report(value, step)
        study.tell(trial, 0.9)
    trial = study.ask()
    for step, value, prunes in ((10, -9, 0), (50, -0.2, 0), (101, 0.95, 0), (151, -1.0, 1)):
        trial.report(value, step)
        assert trial.should_prune() == prunes


def test_many_epochs_and_classes_that_no_training_sample_has(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=120, random_state=0)
    search = tune(clf, X, y, n_experts, n_trials=1, cv=2)  # no warning of steps
    assert search.study_.trials[0].user_attrs["n_epochs"] == 240
    folds = [(np.arange(100), np.arange(100, 150))]
    assert tune(clf, X, y, n_experts, n_trials=1, cv=folds).best_score_ == 0


def test_weights_with_our_scores(clf, iris):
    search = MoESearchCV(clf, n_experts, n_trials=1, cv=2, scoring=["accuracy", "usage_entropy"])
    assert search.fit(*iris, sample_weight=np.ones(150)).n_splits_ == 2


@pytest.mark.smoke
def test_pickle_needs_no_storage(clf, iris, tmp_path):
    path = tmp_path / "study.db"
    search = tune(clf, *iris, n_experts, n_trials=1, cv=2, storage=f"sqlite:///{path}")
    data = pickle.dumps(search)
    path.unlink()
    twin = pickle.loads(data)
    assert len(twin.study_.trials) == 1 and twin.predict(iris[0]).shape == (150,)
    assert str(path).encode() not in pickle.dumps(twin.study_)


@pytest.mark.parametrize("storage", [None, "sqlite", "journal"])
def test_parallel(storage, clf, iris, tmp_path):
    path = {"sqlite": f"sqlite:///{tmp_path}/a.db", "journal": tmp_path / "a.log"}.get(storage)
    search = tune(clf, *iris, n_experts, n_trials=4, cv=2, n_jobs=2, storage=path)
    assert states(search.study_) == ["COMPLETE"] * 4
    assert pickle.loads(pickle.dumps(search)).best_score_ == search.best_score_


@pytest.mark.smoke
@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_goes_on(storage, clf, iris, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    go = partial(tune, clf, *iris, cv=2, study_name="mine", storage=storage, random_state=0)
    first = go(n_trials=3)
    assert (tmp_path / (storage or "mine.db")).exists()
    second = go(n_trials=5)
    assert len(first.study_.trials) == len(second.study_.trials) == 5  # one study
    whole = tune(clf, *iris, cv=2, n_trials=5, random_state=0)
    assert [t.params for t in second.study_.trials] == [t.params for t in whole.study_.trials]
    assert second.cv_results_["mean_test_score"].tolist() == (
        whole.cv_results_["mean_test_score"].tolist()
    )
    assert repr(second.best_params_) == repr(whole.best_params_)
    assert go(n_trials=5).best_score_ == whole.best_score_  # nothing left to do
    with pytest.raises(ValueError, match=r"trials of another space.*Take another study_name"):
        go(n_trials=5, space={"tol": FloatDistribution(0, 1)})
    with pytest.raises(ValueError, match=r"'n_folds': 2.*Take another study_name"):
        go(cv=3, n_trials=5)
    for change in ({"scoring": "neg_log_loss"}, {"return_train_score": True}):
        with pytest.raises(ValueError, match="Take another study_name"):
            go(n_trials=5, **change)
    with pytest.raises(ValueError, match="Take another study_name"):  # as in a nested search
        tune(clf, iris[0][:90], iris[1][:90], cv=2, study_name="mine", storage=storage)


WORKER = """
    import sys
    from sklearn.datasets import load_iris
    from sklearn_moe import MoEClassifier, tune
    clf = MoEClassifier(max_iter=30, random_state=0)
    tune(clf, *load_iris(return_X_y=True), n_trials={n_trials}, cv=3, study_name="shared",
         storage={storage!r}, pruner=None, callbacks=[lambda *_: print("done", flush=True)])
"""


def worker(storage, n_trials):
    code = textwrap.dedent(WORKER.format(storage=storage, n_trials=n_trials))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def check_shared(study, n_trials):
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert n_trials <= len(complete) <= n_trials + 1
    assert len({str(trial.params) for trial in complete}) == len(complete)  # none twice
    return complete


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_search_goes_on(tmp_path):
    path = f"sqlite:///{tmp_path}/study.db"
    process = worker(path, 50)
    for _ in range(2):
        assert process.stdout.readline() == "done\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    study = optuna.load_study(study_name="shared", storage=path)
    before = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(before) >= 2
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = optuna.storages.RDBStorage(path, heartbeat_interval=1, grace_period=2)
    time.sleep(3)  # the killed process has not been heard of
    n_trials = len(before) + 3
    clf = MoEClassifier(max_iter=30, random_state=0)
    search = tune(
        clf,
        *load_iris(return_X_y=True),
        n_trials=n_trials,
        cv=3,
        study_name="shared",
        storage=storage,
        pruner=None,
    )
    complete = check_shared(search.study_, n_trials)
    assert complete[: len(before)] == before  # none lost
    assert "RUNNING" not in states(search.study_)
    assert len(search.cv_results_["params"]) == n_trials


def test_two_processes_share_the_work(tmp_path):
    path = f"sqlite:///{tmp_path}/study.db"
    processes = [worker(path, 8) for _ in range(2)]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert all("done" in out for out, _ in printed)
    check_shared(optuna.load_study(study_name="shared", storage=path), 8)
