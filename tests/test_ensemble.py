"""MixtureEnsemble, and refit="ensemble" of searches."""

import pickle
from functools import partial

import numpy as np
import pytest
from joblib import parallel_config
from optuna.distributions import IntDistribution
from optuna.pruners import ThresholdPruner
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GroupKFold,
    RepeatedStratifiedKFold,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import EpochTimer

from sklearn_moe import (
    MixtureEnsemble,
    MoEClassifier,
    decomposition_report,
    save,
    tune,
)
from sklearn_moe.experts import strong
from sklearn_moe.model_selection.ensemble import MOST_TRIALS, FoldModels, Library, select
from sklearn_moe.model_selection.spaces import Space
from sklearn_moe.model_selection.trials import Evaluation, ReportEpochs

pytestmark = pytest.mark.filterwarnings("ignore:The gate has collapsed")

TREE = DecisionTreeClassifier(random_state=0)
DEPTH = {"max_depth": IntDistribution(1, 5)}

go = partial(tune, n_trials=3, cv=2, refit="ensemble", random_state=0, verbose=0)


STRONG = {"experts": "strong", "gate": "softmax", "regularization": "auto"}


@pytest.fixture(scope="module")
def search(iris, small_strong_experts):
    """A search for a pipeline, with text labels, weights and a callback of the user's own."""
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=4, batch_size=100, random_state=0)
    clf.set_params(net_params={"callbacks": [EpochTimer()]})
    weight = np.linspace(0.5, 1, len(y))
    pipeline = make_pipeline(StandardScaler(), clf)
    return go(pipeline, X, np.array(["b", "c", "a"])[y], sample_weight=weight, cv=3, n_trials=4)


@pytest.mark.smoke
def test_is_the_weighted_mean_of_folds_and_refits(search, iris):
    X, y = iris
    y, weight = np.array(["b", "c", "a"])[y], np.linspace(0.5, 1, len(y))
    ensemble = search.best_estimator_
    assert isinstance(ensemble, MixtureEnsemble) and ensemble.classes_.tolist() == ["a", "b", "c"]
    assert len(ensemble.members_) == len(ensemble.weights_) == 4 * len(set(ensemble.trials_))
    assert ensemble.weights_.sum() == pytest.approx(1)
    results, expected = search.cv_results_, 0
    for trial, share in zip(dict.fromkeys(ensemble.trials_), ensemble.weights, strict=True):
        if trial == -1:
            params = {f"moeclassifier__{name}": value for name, value in STRONG.items()}
        else:
            params = results["params"][results["trial"].tolist().index(trial)]
        parts = [(train, share / 6) for train, _ in StratifiedKFold(3).split(X, y)]
        for rows, part in (*parts, (np.arange(len(y)), share / 2)):
            model = clone(search.estimator).set_params(**params)
            model.fit(X[rows], y[rows], moeclassifier__sample_weight=weight[rows])
            expected = expected + part * model.predict_proba(X)
    np.testing.assert_allclose(ensemble.predict_proba(X), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(search.predict(X), ensemble.predict(X))
    assert search.score(X, y) > 0.8 and search.n_features_in_ == 4


def test_members_are_mixtures_of_their_own(search, iris):
    X, y = iris
    ensemble = pickle.loads(pickle.dumps(search)).best_estimator_
    np.testing.assert_array_equal(ensemble.predict_proba(X), search.predict_proba(X))
    member = ensemble.members_[0]
    labels = np.array(["b", "c", "a"])[y]
    assert "H_s" in str(decomposition_report(member, X, labels))
    for whole in (ensemble, search):
        with pytest.raises(TypeError, match=r"has \d+ mixtures.*Pass one of its members_"):
            decomposition_report(whole, X, labels)
    mixture = member[-1]  # nothing of the search is left in it
    (own,) = mixture.net_params["callbacks"]
    assert isinstance(own, EpochTimer)
    kept = [each for _, each in mixture.net_.callbacks_] + mixture.net_.callbacks
    assert not any(isinstance(each, ReportEpochs) for each in kept)


def test_strong_experts_take_part(mixed_table, small_strong_experts, tmp_path):
    """Beside trials that are no better than chance, they have all weight."""
    X, y = mixed_table
    weak = MoEClassifier(n_experts=2, max_iter=1, learning_rate=1e-9, random_state=0)
    search = go(weak, X, y, n_trials=1, cv=3)
    ensemble = search.best_estimator_
    assert ensemble.trials_.tolist() == [-1] * 4 and len(search.cv_results_["params"]) == 1
    (estimator,) = ensemble.estimators
    assert {name: getattr(estimator, name) for name in STRONG} == STRONG
    assert list(ensemble.members_[-1].named_experts_) == [
        "boosting",
        "forest",
        "mixture",
        "regression",
    ]
    assert ensemble.score(X, y) > weak.fit(X, y).score(X, y) + 0.1
    twin = pickle.loads(pickle.dumps(ensemble))
    np.testing.assert_array_equal(twin.predict_proba(X), ensemble.predict_proba(X))
    with pytest.raises(TypeError, match=r"\['boosting', 'forest'.*space=suggest_parameters"):
        save(ensemble, tmp_path / "ensemble.safetensors")


@pytest.mark.parametrize(
    "params, space, convert",
    [
        ({"experts": "linear"}, None, np.asarray),
        ({"experts": [("tree", TREE), ("net", "mlp")]}, None, np.asarray),
        ({}, {"n_experts": IntDistribution(2, 3)}, np.asarray),
        ({}, None, sparse.csr_matrix),  # which would become dense
        ({}, None, lambda X: X.reshape(-1, 2, 2)),
        ({"input_shape": (2, 2)}, None, np.asarray),
    ],
)
def test_where_strong_experts_take_no_part(params, space, convert, iris):
    X, y = iris
    clf = MoEClassifier(max_iter=1, **params)
    assert Space(space, clf, convert(X), y, wide=False).strong is None
    assert Space(None, MoEClassifier(), X, y, wide=False).strong == STRONG


def test_strong_experts_that_fail_are_left_out(iris, monkeypatch):
    def fail(is_categorical):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(strong, "_experts_for", fail)
    clf = MoEClassifier(n_experts=2, max_iter=1, random_state=0)
    with pytest.warns(UserWarning, match=r"no mixture with experts='strong'.*out of memory"):
        search = go(clf, *iris, n_trials=1)
    assert set(search.best_estimator_.trials_) == {0}


def test_strong_experts_need_time_and_a_trial(iris, monkeypatch):
    monkeypatch.setattr(Evaluation, "_evaluate", lambda *args, **kwargs: 1 / 0)
    clf = MoEClassifier()
    space = Space(None, clf, *iris, wide=False)
    evaluation = Evaluation(clf, space, [], None, {}, {}, "score", False, False, True)
    library = Library()
    evaluation.add_strong_experts(library, *iris, deadline=np.inf)
    library.add(FoldModels(0, True, 0.0, TREE, (), ()))
    evaluation.add_strong_experts(library, *iris, deadline=0.0)
    assert len(library.trials) == 1


def test_groups_repeated_folds_and_parallel_trials(iris):
    X, y = iris
    for cv, groups in (
        (GroupKFold(3), np.arange(150) % 3),
        (RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=0), None),
    ):
        with parallel_config(backend="threading"):
            search = go(TREE, X, y, DEPTH, cv=cv, groups=groups, n_jobs=2)
        assert len(search.best_estimator_.members_) % (search.n_splits_ + 1) == 0
        assert search.score(X, y) > 0.9
    with parallel_config(backend="threading"):
        assert cross_val_score(search, X, y, cv=2).min() > 0.8


def test_a_fold_without_a_class(iris):
    X, y = iris
    folds = [(np.arange(100), np.arange(100, 150)), (np.arange(50, 150), np.arange(50))]
    search = go(TREE, X, y, DEPTH, cv=folds)
    first, second = search.best_estimator_.members_[:2]
    assert (len(first.classes_), len(second.classes_)) == (2, 2)
    proba = search.predict_proba(X)
    assert proba.shape == (150, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_selection():
    rng = np.random.RandomState(0)
    likelihood = rng.uniform(0.05, 1, size=(6, 40))
    repeats = rng.randint(1, 4, size=40)

    def loss(weights, rows=slice(None)):
        return -np.log(weights @ likelihood[:, rows]).mean()

    bag, best = [], (np.inf, None)  # as Caruana et al. say
    for _ in range(50):
        bag.append(
            min(
                range(6),
                key=lambda i: loss(np.bincount([*bag, i], minlength=6)) + np.log(len(bag) + 1),
            )
        )
        weights = np.bincount(bag, minlength=6) / len(bag)
        best = min(best, (loss(weights), weights.tolist()))
    weights = select(list(likelihood))
    np.testing.assert_allclose(weights, best[1])
    assert loss(weights) < min(loss(one) for one in np.eye(6))
    many = np.repeat(np.arange(40), repeats)
    np.testing.assert_array_equal(
        select(list(likelihood), repeats), select(list(likelihood[:, many]))
    )
    assert select([likelihood[0]]).tolist() == [1]
    assert select([likelihood[0], likelihood[0]]).tolist() == [1, 0]


def test_a_library_keeps_the_best_and_the_default():
    library = Library()
    for number in range(MOST_TRIALS + 5):
        library.add(FoldModels(number, number == 0, float(number), TREE, (), ()))
    assert {each.trial for each in library.trials} == {0, *range(5, MOST_TRIALS + 5)}


def test_trials_of_earlier_searches_have_no_models(iris, tmp_path):
    continued = partial(go, TREE, *iris, DEPTH, storage=tmp_path / "a.db", study_name="mine")
    continued(n_trials=2)
    with pytest.raises(ValueError, match=r"all 2 complete trials.*'mine'.*Raise n_trials"):
        continued(n_trials=2)
    search = continued(n_trials=4)
    assert set(search.best_estimator_.trials_) <= {2, 3}
    assert len(search.cv_results_["params"]) == 4


@pytest.mark.parametrize(
    "estimator, params, message",
    [
        (
            TREE,
            {"scoring": ["accuracy", "roc_auc_ovr"]},
            "one of the scores.*needs a single score",
        ),
        (LinearSVC(), {"space": {"max_iter": IntDistribution(1, 2)}}, "with predict_proba"),
        (DecisionTreeRegressor(), {}, "needs a classifier"),
        (TREE, {"refit": "Ensemble"}, "must be True, False, 'ensemble' or a function"),
        (MoEClassifier(max_iter=1), {"scoring": "specialization"}, "needs a score of predictions"),
        (TREE, {"timeout": 1e-9}, "None of 0 trials has a score"),
        (MoEClassifier(max_iter=1), {"space": lambda trial: {"gate": "none"}}, "None of"),
        (
            MoEClassifier(max_iter=1),
            {"space": {}, "pruner": ThresholdPruner(upper=-1e9)},
            "None of 3 trials has a score",
        ),
    ],
)
def test_searches_that_make_no_ensemble(estimator, params, message, iris):
    with pytest.raises(ValueError, match=message):
        go(estimator, *iris, **{"space": DEPTH, **params})


def test_a_score_may_have_the_name(iris):
    search = go(TREE, *iris, DEPTH, scoring={"ensemble": "accuracy"})
    assert isinstance(search.best_estimator_, DecisionTreeClassifier)


def test_fits_by_itself(iris):
    X, y = iris
    trees = [DecisionTreeClassifier(max_depth=depth, random_state=0) for depth in (1, 3)]
    ensemble = MixtureEnsemble(trees, weights=[1, 3]).fit(X, y, sample_weight=(y > 0) + 0.0)
    expected = [clone(tree).fit(X, y, (y > 0) + 0.0).predict_proba(X) for tree in trees]
    np.testing.assert_allclose(
        ensemble.predict_proba(X), expected[0] / 4 + expected[1] * 3 / 4, atol=1e-12
    )
    assert not hasattr(trees[0], "tree_")
    with pytest.raises(ValueError, match="at least one classifier, got none"):
        MixtureEnsemble([]).fit(X, y)
    for weights in ([1], [1, -1], [0, 0], [np.nan, 1], [np.inf, 1], ["a", "b"]):
        with pytest.raises(ValueError, match="weights must be 2 finite numbers of at least 0"):
            MixtureEnsemble(trees, weights).fit(X, y)
    with pytest.raises(ValueError, match="must hold classifiers with predict_proba, got 'tree'"):
        MixtureEnsemble(["tree"]).fit(X, y)
    with pytest.raises(ValueError, match="'estimators' parameter of MixtureEnsemble"):
        MixtureEnsemble(TREE).fit(X, y)


def test_estimator_checks():
    ensemble = MixtureEnsemble([LogisticRegression(C=1), LogisticRegression(C=0.1)])
    results = check_estimator(ensemble, on_fail=None, on_skip=None)
    failed = {each["check_name"] for each in results if each["status"] == "failed"}
    assert failed == set()
