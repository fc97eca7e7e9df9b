"""MoESearchCV and tune."""

import inspect
import itertools
import pickle
import signal
import traceback
from functools import partial

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GroupKFold,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import Callback

from sklearn_moe import AttentiveGate, MLPExperts, MoEClassifier, MoESearchCV, tune
from sklearn_moe.model_selection import storages, studies, trials
from sklearn_moe.model_selection.selection import best_candidate, likelihood
from sklearn_moe.model_selection.trials import MedianPruner
from sklearn_moe.regularizers import Competence, Importance

# A warning would be an error here, and fail the trial.
pytestmark = pytest.mark.filterwarnings("ignore:The gate has collapsed")


# What takes no time, for tests of studies alone.
TREE = DecisionTreeClassifier(random_state=0)
DEPTH = {"max_depth": IntDistribution(1, 5)}


@pytest.fixture
def clf():
    return MoEClassifier(n_experts=3, batch_size=100, max_iter=3, random_state=0)


def n_experts(trial):
    return {"n_experts": trial.suggest_int("n_experts", 1, 3)}


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.smoke
def test_default_space(clf, iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), clf.set_params(max_iter=1))
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
    assert results["rank_test_log_likelihood"][search.best_index_] == 1
    assert np.all(results["mean_train_score"] <= 1) and np.all(results["mean_fit_time"] > 0)
    assert search.score(X, y) == search.best_estimator_.score(X, y)
    pd.DataFrame(results)


@pytest.mark.smoke
def test_trials_are_compared_by_log_likelihood(clf, iris):
    X, y = iris
    weight = np.linspace(0.1, 1, len(y))
    for scoring in (None, "accuracy"):
        search = tune(
            clf, X, y, n_experts, scoring=scoring, n_trials=3, cv=2, sample_weight=weight
        )
        results, frame = search.cv_results_, search.trials_dataframe()
        mean = results["mean_test_log_likelihood"]
        assert search.best_index_ == mean.argmax()
        assert [trial.value for trial in search.study_.trials] == frame["value"].tolist()
        np.testing.assert_allclose(frame["value"], mean)
        np.testing.assert_array_equal(frame["score"], results["mean_test_score"])
        assert search.best_score_ == results["mean_test_score"][search.best_index_] > 0
        assert search.pareto_front_[0]["score"] == search.best_score_
    train, test = next(StratifiedKFold(2).split(X, y))
    model = clone(clf).set_params(**results["params"][0]).fit(X[train], y[train], weight[train])
    expected = -log_loss(y[test], model.predict_proba(X[test]), sample_weight=weight[test])
    assert results["split0_test_log_likelihood"][0] == pytest.approx(expected)
    for estimator, space, scoring in ((TREE, DEPTH, None), (clf, n_experts, "roc_auc_ovr")):
        search = tune(estimator, X, y, space, scoring=scoring, n_trials=1, cv=2)
        assert search.study_.best_value == search.best_score_
        assert "mean_test_log_likelihood" not in search.cv_results_


def test_likelihood():
    X, y = np.arange(6)[:, np.newaxis], np.array(["b", "b", "b", "a", "d", "d"])
    model = DecisionTreeClassifier(max_depth=1).fit(X, y)
    assert likelihood(model, X, y).tolist() == [1, 1, 1, 1 / 3, 2 / 3, 2 / 3]
    assert 0 < likelihood(model, X[:1], ["c"]) < 1e-15  # which the model does not know


@pytest.mark.smoke
def test_the_estimator_as_it_is_comes_first(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=30, gate="kmeans", max_iter=1)
    pipeline = make_pipeline(StandardScaler(), clf.set_params(random_state=0))
    for pruner in ("median", optuna.pruners.ThresholdPruner(upper=-1e9)):
        search = tune(pipeline, X, y, n_trials=2, cv=2, pruner=pruner, random_state=0)
        first = search.cv_results_["params"][0]
        assert {name: pipeline.get_params()[name] for name in first} == first
        assert first["moeclassifier__n_experts"] == 30
        np.testing.assert_array_equal(
            [search.cv_results_[f"split{fold}_test_score"][0] for fold in range(2)],
            cross_val_score(pipeline, X, y, cv=2),
        )
    assert search.best_params_ == first  # the only one that no pruner may stop
    assert search.best_estimator_[-1].n_experts == 30


def test_the_best_must_beat_the_default():
    def best(*scores, default=0):
        scores = np.transpose(scores)
        results = {f"split{fold}_test_score": scores[fold] for fold in range(len(scores))}
        results["mean_test_score"] = scores.mean(axis=0)
        return best_candidate(results, "score", default, ratio=0.5)

    default = [0.5, 0.7, 0.9]
    assert best(default, [0.6, 0.8, 1.0], [0, 0, 0]) == 1  # the same difference in each fold
    assert best(default, [0.9, 0.7, 0.9]) == 0  # the difference is .133, and its error .211
    assert best(default, [0.9, 0.7, 0.9], default=None) == 1
    assert best(default, [0.6, 0.7, 1.0]) == 1  # .067, and .053
    assert best(default, [0.4, 0.6, 0.8]) == 0
    assert best([0.5], [0.6]) == 1  # one fold has no standard error


def test_the_best_has_no_lower_score_than_the_default():
    results = {
        "mean_test_score": np.array([0.8, 0.7, 0.8, 0.9]),
        "split0_test_log_likelihood": np.array([-0.5, -0.1, -0.2, -0.3]),
        "split1_test_log_likelihood": np.array([-0.5, -0.1, -0.2, -0.3]),
        "mean_test_log_likelihood": np.array([-0.5, -0.1, -0.2, -0.3]),
    }
    assert best_candidate(results, "log_likelihood", 0, ratio=0.5) == 2
    assert best_candidate(results, "log_likelihood", None, ratio=0.5) == 1


def test_reproducible(clf, iris):
    one, other, third = (
        tune(clf.set_params(max_iter=1), *iris, n_trials=4, cv=2, random_state=seed)
        for seed in (1, 1, 2)
    )
    params = [[trial.params for trial in search.study_.trials] for search in (one, other, third)]
    assert params[0] == params[1] != params[2]
    assert one.best_score_ == other.best_score_
    assert len({str(each) for each in params[0]}) == 4


def test_pickle_and_clone(clf, iris):
    search = MoESearchCV(clf.set_params(max_iter=2), n_experts, n_trials=2, cv=2).fit(*iris)
    twin = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(twin.predict(iris[0]), search.predict(iris[0]))
    assert len(twin.study_.trials) == 2
    assert not hasattr(clone(search), "study_")


def test_is_a_classifier_with_stratified_folds(clf, iris):
    search = MoESearchCV(clf, n_experts, n_trials=1, cv=2)
    assert is_classifier(search)
    X, y = iris  # sorted by class: folds that are not stratified have a class that is not known
    assert cross_val_score(search, X, y, cv=3).min() > 0.5


def test_estimator_checks():
    base = LogisticRegression()
    search = MoESearchCV(base, {"C": FloatDistribution(0.1, 1)}, n_trials=1, cv=2, random_state=0)
    results = check_estimator(search, on_fail=None, on_skip=None)
    failed = {each["check_name"] for each in results if each["status"] == "failed"}
    # Which RandomizedSearchCV fails, too.
    assert failed <= {"check_dtype_object", "check_supervised_y_no_nan"}


@pytest.mark.smoke
def test_several_scores(clf, iris):
    X, y = iris
    scoring = ["neg_log_loss", "neg_sample_entropy"]
    clf.set_params(max_iter=2)
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
    clf.set_params(max_iter=2)
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
    X, y = digits[0][:400], digits[1][:400]
    clf = MoEClassifier(n_experts=2, max_iter=10, batch_size=100, random_state=0)
    space = {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True)}
    pipeline = make_pipeline(StandardScaler(), clf)
    searches = [
        tune(
            estimator,
            X,
            y,
            {prefix + name: each for name, each in space.items()},
            n_trials=8 if pruner else 1,
            cv=2,
            pruner=pruner,
            study_name="fixed",  # which decides about the brackets of Hyperband
            storage=optuna.storages.InMemoryStorage(),
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
    assert epochs[3] == 2 * 10 and max(epochs[:3]) < 0.9 * 8 * 2 * 10
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
    clf.set_params(max_iter=1)
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


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("storage", [None, "study.db", "study.log"])
def test_choices_of_any_kind(storage, iris, tmp_path):
    choices = [None, {0: 2, 1: 1, 2: 1}, "balanced"]

    def space(trial):
        assert trial.suggest_categorical("sizes", [(8,), (8, 8)]) in [(8,), (8, 8)]
        assert isinstance(trial.suggest_categorical("gate", [AttentiveGate()]), AttentiveGate)
        return {"class_weight": trial.suggest_categorical("weight", choices)}

    where = storage and tmp_path / storage
    for each in (space, {"class_weight": CategoricalDistribution(choices)}):
        name = storage and str(type(each))
        for n_trials in (2, 3):
            search = tune(
                TREE, *iris, each, n_trials=n_trials, cv=2, storage=where, study_name=name
            )
        assert states(search.study_) == ["COMPLETE"] * 3
        assert search.best_params_["class_weight"] in choices


def test_choices_that_a_study_cannot_keep(iris):
    for choices in ([object(), 1], [[1], [1]]):
        with pytest.raises(ValueError, match=r"'x' has the choice .*, which a study cannot tell"):
            tune(TREE, *iris, lambda t, x=choices: {"x": t.suggest_categorical("x", x)})


def test_strengths_in_a_list(iris):
    clf = MoEClassifier(n_experts=2, max_iter=1, regularization=[Importance(), Competence()])
    name = "regularization__1__strength"
    search = tune(clf, *iris, {name: FloatDistribution(2, 3)}, n_trials=1, cv=2)
    assert search.best_params_[name] == search.best_estimator_.regularization[1].strength >= 2
    assert clf.regularization[1].strength == Competence().strength == clf.get_params()[name]
    both = clone(clf).set_params(regularization=[Importance()], regularization__0__strength=4)
    assert both.regularization[0].strength == 4
    for wrong in ({"regularization__2__strength": 1}, {"regularization__0__force": 1}):
        with pytest.raises(ValueError, match=r"has no such parameter.*list of objects"):
            clf.set_params(**wrong)


def test_needs_a_mixture_or_a_space(iris):
    with pytest.raises(ValueError, match="needs exactly one MoEClassifier"):
        tune(LogisticRegression(), *iris, n_trials=1)
    space = {"C": FloatDistribution(0.1, 1)}
    assert tune(LogisticRegression(max_iter=500), *iris, space, n_trials=1).best_score_ > 0.9


def test_leaves_the_verbosity_of_optuna_alone(iris, capfd):
    before = optuna.logging.get_verbosity()
    tune(TREE, *iris, DEPTH, n_trials=1, cv=2, verbose=0)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr().err == ""
    tune(TREE, *iris, DEPTH, n_trials=1, cv=2)
    assert "1/1" in capfd.readouterr().err


def test_tune_shows_all_options():
    options = inspect.signature(tune).parameters
    for name, parameter in inspect.signature(MoESearchCV).parameters.items():
        assert options[name].default == (1 if name == "verbose" else parameter.default)


def test_tune_with_weights_and_groups(iris):
    X, y = iris
    weight = (y > 0).astype(float)
    pipeline = make_pipeline(StandardScaler(), TREE)
    for estimator, prefix in ((TREE, ""), (pipeline, "decisiontreeclassifier__")):
        space = {f"{prefix}max_depth": IntDistribution(1, 3)}
        search = tune(
            estimator,
            X,
            y,
            space,
            sample_weight=weight,
            groups=np.arange(150) % 3,
            n_trials=1,
            cv=GroupKFold(3),
            scoring=lambda model, X, y: float(0 not in model.predict(X)),
        )
        assert search.best_score_ == 1 and search.n_splits_ == 3
        assert 0 not in search.predict(X)


class PrunesTheSecond:
    def prune(self, study, trial):
        return trial.number == 1


def test_pruned_trials_have_no_score(iris):
    search = tune(TREE, *iris, DEPTH, n_trials=3, cv=2, pruner=PrunesTheSecond())
    frame = search.trials_dataframe()
    assert frame["state"].tolist() == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert frame["value"].isna().tolist() == [False, True, False]


class InterruptsFit(Callback):
    """Interrupt one of all fits."""

    number = 0

    def __init__(self, which):
        self.which = which

    def on_epoch_begin(self, net, **kwargs):
        type(self).number += 1
        if self.number == self.which:
            raise KeyboardInterrupt


@pytest.mark.parametrize("which, expected", [(1, "FAIL"), (4, "COMPLETE FAIL"), (7, None)])
def test_interruption_ends_the_search(which, expected, iris, monkeypatch):
    monkeypatch.setattr(InterruptsFit, "number", 0)
    clf = MoEClassifier(max_iter=1, random_state=0)
    search = MoESearchCV(clf, n_experts, n_trials=1, cv=2).fit(*iris)
    clf.set_params(net_params={"callbacks": [InterruptsFit(which)]})
    with pytest.raises(KeyboardInterrupt):
        search.set_params(n_trials=3).fit(*iris)
    assert states(search.study_) == (expected.split() if expected else ["COMPLETE"] * 3)
    # What was complete is there, and nothing of the search before.
    n_complete = states(search.study_).count("COMPLETE")
    assert len(getattr(search, "cv_results_", {}).get("params", [])) == n_complete
    assert hasattr(search, "best_params_") == (n_complete > 0)
    assert not hasattr(search, "best_estimator_")


@pytest.mark.usefixtures("interruptible")
def test_interruption_at_the_end_of_an_epoch(iris, monkeypatch):
    def interrupt(*args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trials._Progress, "after_epoch", interrupt)
    search = MoESearchCV(MoEClassifier(max_iter=1), n_experts, n_trials=2, cv=2)
    with pytest.raises(KeyboardInterrupt):
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
    clf = MoEClassifier(n_experts=2, batch_size=100, max_iter=120, random_state=0)
    search = tune(clf, X, y, n_experts, n_trials=1, cv=2)  # no warning of steps
    assert search.study_.trials[0].user_attrs["n_epochs"] == 240
    folds = [(np.arange(100), np.arange(100, 150))]
    clf.set_params(max_iter=2)
    assert tune(clf, X, y, n_experts, n_trials=1, cv=folds).best_score_ == 0


def test_weights_with_our_scores(clf, iris):
    search = MoESearchCV(clf, n_experts, n_trials=1, cv=2, scoring=["accuracy", "usage_entropy"])
    assert search.fit(*iris, sample_weight=np.ones(150)).n_splits_ == 2


@pytest.mark.smoke
@pytest.mark.parametrize("as_object", [False, True])
def test_pickle_needs_no_storage(as_object, iris, tmp_path):
    path = tmp_path / "study.db"
    storage = f"sqlite:///{path}"
    storage = optuna.storages.RDBStorage(storage) if as_object else storage
    search = tune(TREE, *iris, DEPTH, n_trials=1, cv=2, storage=storage)
    data = pickle.dumps(search)
    path.unlink()
    twin = pickle.loads(data)
    assert not path.exists()  # nothing was opened
    assert len(twin.study_.trials) == 1 and twin.predict(iris[0]).shape == (150,)
    assert str(path).encode() not in pickle.dumps(twin.study_)
    if as_object:
        storage.engine.dispose()  # Optuna leaves it open, of which Python 3.13 warns


ADDRESS = "postgresql+psycopg://moe:{}@127.0.0.1:1/moe"


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS.format("s3cret"),
        ADDRESS.format("s3cret%20x"),
        ADDRESS.format("s3cret@d/e?n"),  # which has to be quoted
        "postgresql+psycopg://127.0.0.1:1/moe?user=moe&password=s3cret",
        "nowhere://moe:s3cret@host/moe",
    ],
)
def test_passwords_are_hidden(address, iris):
    search = MoESearchCV(TREE, DEPTH, n_trials=1, cv=2, storage=address)
    assert clone(search).storage == search.get_params()["storage"] == address
    with pytest.raises(ConnectionError, match=r"storage='.*\*\*\*") as caught:
        search.fit(*iris)
    error = "".join(traceback.format_exception(caught.value))
    assert pickle.loads(pickle.dumps(search)).storage == address  # as a worker needs it
    fitted = search.set_params(storage=None).fit(*iris).set_params(storage=address)
    shown = [str(search.get_params()), str(pickle.dumps(fitted)), error]
    for each in (search, fitted, make_pipeline(fitted)):
        shown += [repr(each), each._repr_html_()]
    assert all("s3cret" not in text for text in shown)
    with pytest.raises(ValueError, match="lost its password in a pickle"):
        pickle.loads(pickle.dumps(fitted)).fit(*iris)


@pytest.mark.parametrize("name", ["q?x=1", "../.up", "{a} 100 %"])
def test_any_name_is_one_of_a_file(name, iris, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n_trials in (1, 2):
        search = tune(TREE, *iris, DEPTH, n_trials=n_trials, cv=2, study_name=name)
    assert len(search.study_.trials) == 2
    (file,) = tmp_path.rglob("*")
    assert file.suffix == ".db" and not file.name.startswith(".")


def test_names_of_files_differ():
    assert len({studies.file_name(name) for name in ("a?", "a%3F", "a/", "a", "ä", ".a")}) == 6
    with pytest.raises(ValueError, match="study_name must not be empty"):
        MoESearchCV(TREE, DEPTH, study_name="").fit([[0]], [0])


def test_files_are_what_they_are(iris, tmp_path):
    go = partial(tune, TREE, *iris, DEPTH, cv=2, study_name="mine")
    for name, start in (("a?{b}.sqlite", b"SQLite"), ("a.log", b"{"), ("a", b"{")):
        go(storage=tmp_path / name, n_trials=1)
        assert (tmp_path / name).read_bytes().startswith(start)
    (tmp_path / "a.log").rename(tmp_path / "b.db")  # the content says what it is
    assert len(go(storage=str(tmp_path / "b.db"), n_trials=2).study_.trials) == 2
    text = tmp_path / "notes.txt"
    text.write_text("Do not touch.")
    with pytest.raises(ConnectionError, match=r"notes.txt is neither an SQLite file nor a journ"):
        go(storage=text)
    assert text.read_text() == "Do not touch."


def test_sqlite_in_memory(iris):
    search = tune(TREE, *iris, DEPTH, n_trials=2, cv=2, storage="sqlite://")
    assert states(search.study_) == ["COMPLETE"] * 2


def test_journal_that_was_cut(iris, tmp_path, monkeypatch):
    path = tmp_path / "journal.log"
    go = partial(tune, TREE, *iris, DEPTH, cv=2, study_name="mine", storage=path)
    go(n_trials=2)
    path.write_bytes(path.read_bytes()[:-40])
    monkeypatch.setattr(storages, "GRACE", 0)  # the trial that was cut off is dead
    with pytest.warns(UserWarning, match=r"journal.log ended within a line"):
        search = go(n_trials=3)
    assert states(search.study_) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert states(go(n_trials=3).study_) == states(search.study_)  # no warning


@pytest.mark.parametrize("n_left", [1, 9, 10, 30])
def test_journal_that_was_cut_within_its_first_line(n_left, iris, tmp_path):
    path = tmp_path / "journal.log"
    go = partial(tune, TREE, *iris, DEPTH, cv=2, study_name="mine", storage=path, n_trials=1)
    go()
    path.write_bytes(path.read_bytes()[:n_left])
    with pytest.warns(UserWarning, match=r"journal.log ended within a line"):
        search = go()
    assert states(search.study_) == ["COMPLETE"]


def test_full_disk_under_a_journal(iris, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "journal.log"
    go = partial(tune, TREE, *iris, DEPTH, cv=2, study_name="mine", storage=path)
    go(n_trials=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 500, limits[1]))
    try:
        with pytest.raises(ConnectionError, match=r"journal.log'.* written: .*too large"):
            go(n_trials=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes().endswith(b"\n")
    assert states(go(n_trials=3).study_).count("COMPLETE") == 3


def test_full_disk_under_sqlite(iris, tmp_path):
    path = tmp_path / "study.db"
    go = partial(tune, TREE, *iris, DEPTH, cv=2, study_name="mine", storage=path)
    go(n_trials=1)
    connect = storages.sqlite3.connect

    def connect_to_full_disk(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 1")  # as many as it has
        return connection

    storages.sqlite3.connect = connect_to_full_disk
    try:
        with pytest.raises(ConnectionError, match=r"study.db.*disk is full") as caught:
            go(n_trials=999)
    finally:
        storages.sqlite3.connect = connect
    assert "invalid data" not in str(caught.value)
    n_complete = len(go(n_trials=1).cv_results_["params"])
    assert 1 <= n_complete < 999


@pytest.mark.smoke
@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_goes_on(storage, clf, iris, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clf.set_params(max_iter=1)
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


def test_goes_on_with_the_same_trials(iris, tmp_path):
    def space(trial):  # after ten trials, the rest learn from them
        criterion = trial.suggest_categorical("criterion", ["gini", "entropy"])
        names = ["max_depth"] if criterion == "gini" else ["min_samples_leaf", "max_leaf_nodes"]
        return {"criterion": criterion, **{name: trial.suggest_int(name, 2, 40) for name in names}}

    go = partial(tune, TREE, *iris, space, cv=2, random_state=0, verbose=0)
    for n_trials in (12, 15):
        search = go(n_trials=n_trials, study_name="mine", storage=tmp_path / "a.db")
    whole = go(n_trials=15)
    params = [trial.params for trial in whole.study_.trials]
    assert [trial.params for trial in search.study_.trials] == params
    assert len({str(each) for each in params}) > 12


def test_goes_on_with_an_equal_sparse_table(iris, tmp_path):
    go = partial(tune, TREE, cv=2, study_name="mine", storage=tmp_path / "mine.db", space=DEPTH)
    X, y = sparse.csr_array(iris[0]), iris[1]
    X.sum_duplicates()  # scipy remembers in X that this was done
    go(X, y, n_trials=1)
    for held in (sparse.csr_array, sparse.csr_matrix, sparse.csc_array, sparse.coo_array):
        assert len(go(held(iris[0]), y, n_trials=2).study_.trials) == 2
    with pytest.raises(ValueError, match="Take another study_name"):
        go(2 * X, y)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_one_trial_begins(order):
    study = optuna.create_study()
    trials = [study.ask() for _ in order]
    answers = [studies.begins(trials[number]) for number in order]
    assert answers == [number == 0 for number in order]
    study.tell(0, state=optuna.trial.TrialState.FAIL)  # its process was killed
    late, later = study.ask(), study.ask()
    assert not studies.begins(later) and studies.begins(late)
    study.tell(late, 1.0)
    assert not studies.begins(study.ask())
