"""Classifiers of scikit-learn as experts, and the constant gate."""

import pickle
import sqlite3

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import adjusted_rand_score, log_loss
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_validate,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from sklearn_moe import (
    GATES,
    TRUSTED_TYPES,
    EstimatorExperts,
    GateRulesDisplay,
    MLPExperts,
    MoEClassifier,
    SoftmaxGate,
    choose_n_experts,
    decomposition_report,
    decomposition_stability,
    distill,
    expert_summary,
    gate_rules,
    model_document,
    prune_experts,
    tune,
)
from sklearn_moe.display import DecompositionDisplay

X, y = make_classification(
    300, 5, n_informative=4, n_redundant=0, n_classes=3, n_clusters_per_class=1, random_state=0
)


def experts():
    return [
        ("line", LogisticRegression()),
        ("tree", DecisionTreeClassifier(max_depth=4)),
        ("net", MLPExperts(hidden_layer_sizes=(8,))),
    ]


@pytest.fixture(scope="module")
def fitted():
    return MoEClassifier(experts=experts(), max_iter=5, random_state=0).fit(X, y)


class Counting(GaussianNB):
    """Counts the rows that it predicts."""

    rows = 0

    def predict_proba(self, X):
        type(self).rows += len(X)
        return super().predict_proba(X)


class Moody(GaussianNB):
    """Raises an error when tests want it."""

    error = None

    def fit(self, X, y):
        if self.error is not None:
            raise self.error("no")
        return super().fit(X, y)


class Odd(GaussianNB):
    """Has probabilities that are none."""

    def predict_proba(self, X):
        return super().predict_proba(X) * np.nan


def regions(seed, n_samples=4000):
    """Return three regions with a rule each, and classifiers that know one rule each."""
    random = np.random.RandomState(seed)
    X = random.randn(n_samples, 5)
    region = np.digitize(X[:, 0], [-0.5, 0.5])
    slopes = random.randn(3, 5) * 3
    y = (random.rand(n_samples) < 1 / (1 + np.exp(-(X * slopes[region]).sum(axis=1)))).astype(int)
    known, rest = np.arange(n_samples) < n_samples // 2, np.arange(n_samples) >= n_samples // 2
    parts = [known & (region == part) for part in range(3)]
    classifiers = [
        (f"region {part}", LogisticRegression().fit(X[rows], y[rows]))
        for part, rows in enumerate(parts)
    ]
    return X[rest], y[rest], region[rest], classifiers


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_mixes_them(gate, fitted):
    clf = MoEClassifier(experts=experts(), gate=gate, max_iter=3, random_state=0).fit(X, y)
    assert clf.expert_names_ == ["line", "tree", "net"]
    assert list(clf.named_experts_) == ["line", "tree"]
    mixed = np.einsum("ne,nec->nc", clf.gate_proba(X), clf.expert_proba(X))
    np.testing.assert_allclose(clf.predict_proba(X), mixed, atol=1e-6)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_experts_answer_as_the_fitted_classifiers_do():
    one = EstimatorExperts([("line", LogisticRegression())], calibrate=False)
    clf = MoEClassifier(experts=one, max_iter=1, random_state=0).fit(X, y)
    expected = LogisticRegression().fit(X, y).predict_proba(X)
    np.testing.assert_allclose(clf.named_experts_.line.predict_proba(X), expected)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)


def test_the_gate_learns_from_samples_that_they_have_not_seen():
    """A forest knows its training samples by heart; on folds it is no better than it is."""
    rows = np.random.RandomState(0).permutation(300)
    noise = np.random.RandomState(1).randint(2, size=300)
    listed = [("forest", RandomForestClassifier(20)), ("prior", DummyClassifier())]
    clf = MoEClassifier(experts=listed, gate="constant", max_iter=10, random_state=0)
    clf.fit(X[rows], noise)
    shares = clf.gate_proba(X[:1])[0]
    assert shares[1] > 0.7
    fitted = [("forest", RandomForestClassifier(20).fit(X[rows], noise)), listed[1]]
    fitted[1] = ("prior", DummyClassifier().fit(X, noise))
    clf.set_params(experts=EstimatorExperts(fitted, cv="prefit")).fit(X[rows], noise)
    assert clf.gate_proba(X[:1])[0, 1] < 0.1


def test_constant_gate_finds_the_best_weights():
    """The weights are those of a search over all of them, on the same probabilities."""
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    listed = EstimatorExperts([("a", GaussianNB()), ("b", DummyClassifier())], cv=cv)
    clf = MoEClassifier(experts=listed.set_params(calibrate=False), gate="constant")
    weight = clf.fit(X, y).gate_proba(X[:1])[0, 0]
    a, b = (
        cross_val_predict(each, X, y, cv=cv, method="predict_proba")[np.arange(300), y]
        for each in (GaussianNB(), DummyClassifier())
    )
    grid = np.linspace(0.01, 0.99, 99)
    losses = [-np.log(w * a + (1 - w) * b).mean() for w in grid]
    assert weight == pytest.approx(grid[np.argmin(losses)], abs=0.03)


def test_a_mean_of_calibrated_classifiers_is_made_surer():
    """Each knows some columns, so that both together know more than each of them says."""
    rng = np.random.RandomState(0)
    X = rng.randn(1000, 6)
    y = (X.sum(axis=1) + 0.5 * rng.randn(1000) > 0).astype(int)
    halves = [("left", slice(0, 3)), ("right", slice(3, 6))]
    listed = [
        (name, make_pipeline(make_column_transformer(("passthrough", part)), LogisticRegression()))
        for name, part in halves
    ]
    mixtures = [
        MoEClassifier(experts=EstimatorExperts(each, calibrate=calibrate), gate="constant")
        .set_params(random_state=0, max_iter=10)
        .fit(X[:500], y[:500])
        for each, calibrate in [(listed, False), (listed, True), (listed[:1], True)]
    ]
    losses = [log_loss(y[500:], clf.predict_proba(X[500:])) for clf in mixtures]
    assert losses[1] < losses[0] - 0.01
    both, alone = (clf.reader_.committee.temperatures for clf in mixtures[1:])
    assert max(both) < 0.8 < alone[0]


def test_finds_who_is_right_where():
    X, y, region, classifiers = regions(0)
    for gate in (SoftmaxGate(), SoftmaxGate((16,)), SoftmaxGate(top_k=1)):
        clf = MoEClassifier(experts=EstimatorExperts(classifiers, cv="prefit"), gate=gate)
        clf.set_params(random_state=0).fit(X[:1500], y[:1500])
        assert adjusted_rand_score(region, clf.apply(X)) > 0.75
    constant = clone(clf).set_params(gate="constant", experts=clf.experts).fit(X[:1500], y[:1500])
    test = X[1500:], y[1500:]
    losses = [log_loss(test[1], each.predict_proba(test[0])) for each in (clf, constant)]
    assert losses[0] < losses[1] - 0.05


def test_calibration_lowers_the_loss():
    random = np.random.RandomState(0)
    X = random.randn(1000, 12).round(1).repeat(1, axis=0)
    X = np.hstack([X[:, :1]] * 10)  # naive Bayes counts the same evidence ten times
    y = (random.rand(1000) < 1 / (1 + np.exp(-X[:, 0]))).astype(int)
    loss = {}
    for calibrate in (False, True):
        listed = EstimatorExperts([("bayes", GaussianNB())], calibrate=calibrate)
        clf = MoEClassifier(experts=listed, max_iter=1, random_state=0).fit(X[:500], y[:500])
        loss[calibrate] = log_loss(y[500:], clf.predict_proba(X[500:]))
    assert loss[True] < 0.8 * loss[False]


@pytest.mark.parametrize(
    "gate, per_row", [("hard", 1), (SoftmaxGate(top_k=2), 2), ("softmax", 3), ("attentive", 3)]
)
def test_runs_only_the_chosen_classifiers(gate, per_row):
    listed = [(name, Counting()) for name in "abc"]
    clf = MoEClassifier(experts=listed, gate=gate, max_iter=2, random_state=0).fit(X, y)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        Counting.rows = 0
        getattr(clf, method)(X)
        assert Counting.rows == per_row * len(X)
    for method, expected in (("gate_proba", 0), ("apply", 0), ("expert_proba", 3)):
        Counting.rows = 0
        getattr(clf, method)(X)
        assert Counting.rows == (3 if gate == "attentive" else expected) * len(X)


def test_text_and_categories_reach_them_as_they_came():
    frame = pd.DataFrame(X, columns=list("abcde")).assign(kind=np.where(y == 0, "x", "z"))
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder=StandardScaler())
    boosting = HistGradientBoostingClassifier(max_iter=5, categorical_features=[5])
    frame["kind"] = frame["kind"].astype("category")
    listed = [("line", make_pipeline(encode, LogisticRegression())), ("trees", boosting)]
    clf = MoEClassifier(experts=listed, max_iter=3, random_state=0).fit(frame, y)
    assert clf.score(frame, y) > 0.8
    assert clf.named_experts_.line.feature_names_in_.tolist() == [*"abcde", "kind"]
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame.rename(columns={"a": "other"}))


@pytest.mark.parametrize(
    "make", [sparse.csr_matrix, sparse.coo_array, np.ndarray.tolist, memoryview]
)
def test_other_containers(make):
    listed = [("line", LogisticRegression()), ("net", MLPExperts(hidden_layer_sizes=(4,)))]
    clf = MoEClassifier(experts=listed, max_iter=2, random_state=0).fit(make(X), y)
    assert clf.predict_proba(make(X[:4])).shape == (4, 3)


@pytest.mark.parametrize("routing", [False, True])
def test_sample_weights_reach_them(routing):
    weight = np.random.RandomState(0).rand(300)
    with sklearn.config_context(enable_metadata_routing=routing):
        line, scale = LogisticRegression(), StandardScaler()
        if routing:
            line.set_fit_request(sample_weight=True)
            scale.set_fit_request(sample_weight=False)
        piped = make_pipeline(scale, line)
        listed = EstimatorExperts([("line", line), ("piped", piped)], calibrate=False)
        clf = MoEClassifier(experts=listed, max_iter=1).fit(X, y, sample_weight=weight)
    expected = LogisticRegression().fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(clf.named_experts_.line.coef_, expected.coef_, rtol=1e-4)
    with pytest.raises(ValueError, match="'near' does not take them"):
        MoEClassifier(experts=[("near", KNeighborsClassifier())]).fit(X, y, weight)


def test_balanced_class_weights_reach_them():
    rare = np.flatnonzero((y > 0) | (np.arange(300) % 5 == 0))
    listed = EstimatorExperts([("line", LogisticRegression())], calibrate=False)
    clf = MoEClassifier(experts=listed, class_weight="balanced", max_iter=1).fit(X[rare], y[rare])
    expected = LogisticRegression(class_weight="balanced").fit(X[rare], y[rare])
    np.testing.assert_allclose(clf.named_experts_.line.coef_, expected.coef_, rtol=1e-4)


def test_samples_without_weight_count_as_removed():
    weight = (np.arange(300) < 200).astype(float)
    clf = MoEClassifier(experts=experts(), max_iter=2, random_state=0)
    with_zeros = clone(clf).fit(X, y, sample_weight=weight).predict_proba(X)
    np.testing.assert_allclose(with_zeros, clf.fit(X[:200], y[:200]).predict_proba(X), atol=1e-6)


def test_folds_keep_groups_together():
    group = np.arange(300) // 30
    frame = np.column_stack([X, group])
    seen = []

    class Spy(GaussianNB):
        def fit(self, X, y):
            seen.append(set(X[:, 5]))
            return super().fit(X, y)

    MoEClassifier(experts=[("spy", Spy())], max_iter=1).fit(frame, y, groups=group)
    assert [len(each) for each in seen] == [8] * 5 + [10]


def test_a_class_that_a_fold_lacks():
    rare = y.copy()
    rare[rare == 2] = 1
    rare[0] = 2
    clf = MoEClassifier(experts=[("tree", DecisionTreeClassifier())], max_iter=2).fit(X, rare)
    assert np.isfinite(clf.loss_curve_).all()
    known = LogisticRegression().fit(X[y < 2], y[y < 2])
    listed = EstimatorExperts([("two", known), ("three", GaussianNB().fit(X, y))], cv="prefit")
    clf = MoEClassifier(experts=listed, max_iter=2).fit(X, y)
    assert clf.expert_proba(X)[:, 0, 2].max() < 1e-6


def test_same_seed_same_result():
    one, other = (
        MoEClassifier(experts=experts(), max_iter=2, random_state=3).fit(X, y).predict_proba(X)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


def test_nested_parameters_and_searches():
    clf = MoEClassifier(experts=experts(), max_iter=1, random_state=0)
    assert clf.get_params()["experts__tree__max_depth"] == 4
    search = GridSearchCV(clf, {"experts__tree__max_depth": [1, 3]}, cv=2).fit(X, y)
    assert set(search.cv_results_["param_experts__tree__max_depth"]) == {1, 3}
    assert clf.get_params()["experts__tree__max_depth"] == 4
    clf.set_params(experts__tree=GaussianNB())
    assert isinstance(clf.experts[1][1], GaussianNB)
    with pytest.raises(ValueError, match="has no such parameter"):
        clf.set_params(experts__nobody__alpha=1)
    listed = EstimatorExperts(experts())
    assert MoEClassifier(experts=listed).get_params()["experts__tree__max_depth"] == 4


def test_fitted_classifiers_are_taken_as_they_are():
    line = LogisticRegression().fit(X[:150], y[:150])
    coefficients = line.coef_.copy()
    frozen = [("frozen", FrozenEstimator(line)), ("fresh", GaussianNB())]
    results = cross_validate(MoEClassifier(experts=frozen, max_iter=1), X, y, cv=2)
    assert np.isfinite(results["test_score"]).all()
    np.testing.assert_array_equal(line.coef_, coefficients)
    clf = MoEClassifier(experts=EstimatorExperts([("line", line)], cv="prefit"), max_iter=1)
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        clone(clf).fit(X, y)


def test_a_fitted_mixture_is_an_expert():
    old = MoEClassifier(2, max_iter=3, random_state=0).fit(X[y < 2], y[y < 2])
    listed = [("old", FrozenEstimator(old)), ("new", MLPExperts())]
    clf = MoEClassifier(experts=listed, max_iter=5, random_state=0).fit(X, y)
    assert clf.named_experts_.old.estimator is old
    assert clf.score(X, y) > old.score(X, y)


def test_partial_fit_and_warm_start():
    clf = MoEClassifier(experts=experts(), random_state=0)
    clf.partial_fit(X[:200], y[:200], classes=[0, 1, 2])
    line = clf.named_experts_.line
    clf.partial_fit(X[200:], y[200:])
    assert clf.named_experts_.line is line
    warm = MoEClassifier(experts=experts(), warm_start=True, max_iter=2, random_state=0).fit(X, y)
    line = warm.named_experts_.line
    assert warm.fit(X, y).named_experts_.line is not line
    assert warm.n_iter_ == 4


def test_early_stopping_and_validation_sets():
    clf = MoEClassifier(experts=experts(), early_stopping=True, max_iter=3, random_state=0)
    assert len(clf.fit(X, y).validation_loss_curve_) == 3
    clf.fit(X[:200], y[:200], X_val=X[200:], y_val=y[200:])
    expected = log_loss(y[200:], clf.predict_proba(X[200:]))
    assert min(clf.validation_loss_curve_) == pytest.approx(expected, rel=1e-4)


def test_pruning_drops_classifiers(fitted):
    for method in ("similarity", "heavy_hitters", "random"):
        pruned = prune_experts(fitted, method=method, n_experts=2, X=X, y=y, random_state=0)
        assert len(pruned.expert_names_) == 2
        assert set(pruned.named_experts_) == set(pruned.expert_names_) - {"net"}
        mixed = np.einsum("ne,nec->nc", pruned.gate_proba(X), pruned.expert_proba(X))
        np.testing.assert_allclose(pruned.predict_proba(X), mixed, atol=1e-6)
        again = pickle.loads(pickle.dumps(pruned))
        np.testing.assert_array_equal(again.predict_proba(X), pruned.predict_proba(X))
    assert list(fitted.named_experts_) == ["line", "tree"]


def test_names_are_shown(fitted):
    assert "line" in str(decomposition_report(fitted, X, y))
    rules = gate_rules(fitted, X, random_state=0)
    assert rules.expert_names == ["line", "tree", "net"]
    assert f"({rules.expert_names[rules.shares.argmax()]}) would be right" in rules.sentence
    assert all(rules.expert_names[rule.expert] in str(rules) for rule in rules.rules)
    rows = decomposition_report(fitted, X, y, output_dict=True)["experts"]
    assert [row["name"] for row in rows] == ["line", "tree", "net"]
    pytest.importorskip("matplotlib")
    display = DecompositionDisplay.from_estimator(fitted, X, y)
    assert display.expert_names == ["line", "tree", "net"]


def test_rules_name_the_experts():
    names = ["it's", "other"]
    listed = [(name, GaussianNB()) for name in names]
    clf = MoEClassifier(experts=listed, regularization=None, max_iter=1, random_state=0).fit(X, y)
    clf.apply = lambda X: (X[:, 0] > 0).astype(int)
    rules = gate_rules(clf, X, random_state=0)
    assert all(str(rule).endswith(f"expert {rule.expert} ({rule.name})") for rule in rules.rules)
    assert [name.split(" (")[0] for name in rules.names] == names and "x0" in rules.names[0]
    assert set(rules.to_frame()["name"]) == set(names)
    assert "it's" in repr(rules).split("rule\n")[1]
    table = pd.DataFrame(X, columns=[f"x{i}" for i in range(5)])
    with sqlite3.connect(":memory:") as base:
        table.to_sql("table", base, index=False)
        said = [row[0] for row in base.execute(f'SELECT {rules.to_sql()} FROM "table"')]
    assert said == [names[expert] for expert in rules.predict(X)]
    pytest.importorskip("matplotlib")
    display = GateRulesDisplay(rules).plot()
    assert any("(it's)" in text.get_text() for text in display.leaves_)


def test_stability_matches_by_name(fitted):
    stability = decomposition_stability(fitted, X, y, n_refits=2, random_state=0)
    assert stability.expert_names == ["line", "tree", "net"]
    assert np.isfinite(stability.usage_interval).all()
    seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=2)[0]
    refit = clone(fitted).set_params(random_state=int(seed), experts__tree__random_state=int(seed))
    refit.set_params(experts__line__random_state=int(seed)).fit(X, y)
    np.testing.assert_array_equal(stability.choice[1], refit.apply(X))
    assert " tree " in repr(stability)


def test_what_a_list_cannot_have(fitted):
    with pytest.raises(ValueError, match="prune_experts"):
        choose_n_experts(MoEClassifier(experts=experts()), X, y, [1, 2], criterion="log_loss")
    with pytest.raises(TypeError, match=r"a list of experts, \['line'.*expert_importance"):
        expert_summary(fitted, X, y)


def test_tuning_leaves_the_list_alone():
    pytest.importorskip("optuna")
    clf = MoEClassifier(experts=experts()[:2], max_iter=1, random_state=0)
    search = tune(clf, X, y, n_trials=1, cv=2, random_state=0, verbose=0)
    assert not {"n_experts", "experts"} & set(search.best_params_)


def test_documents_name_the_experts(fitted, tmp_path):
    pytest.importorskip("matplotlib")
    text = model_document(fitted, X, y, tmp_path / "experts.html").read_text(encoding="utf-8")
    assert "here line, tree and net, share the work" in text
    assert "expert 1 (tree" in text and ">expert 1<" not in text


def test_costs_are_not_known(fitted):
    report = decomposition_report(fitted, X, y, output_dict=True)
    assert report["cost"] is None
    assert "without the classifiers" in str(decomposition_report(fitted, X, y))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupted_fit_changes_nothing(error):
    clf = MoEClassifier(experts=[("moody", Moody())], max_iter=2, random_state=0).fit(X, y)
    before, attributes = clf.predict_proba(X), dict(vars(clf))
    Moody.error = error
    try:
        with pytest.raises((error, ValueError)):
            clf.fit(X[:150, :4], y[:150] + 7)
    finally:
        Moody.error = None
    assert vars(clf).keys() == attributes.keys()
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_an_error_in_prediction_names_the_expert(fitted):
    missing = X.copy()
    missing[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"'line' failed in predict_proba.*NaN"):
        fitted.expert_proba(missing)
    listed = EstimatorExperts([("line", LogisticRegression().fit(X[:, :3], y))], cv="prefit")
    with pytest.raises(ValueError, match=r"'line' failed in predict_proba.*expecting 3 features"):
        MoEClassifier(experts=listed).fit(X, y)
    with pytest.raises(ValueError, match=r"'odd' failed in a fit.*not finite"):
        MoEClassifier(experts=[("odd", Odd())]).fit(X, y)


def test_a_pruned_list_goes_on(fitted):
    pruned = prune_experts(fitted, method="router_norm", n_experts=2, X=X, y=y)
    names = pruned.expert_names_
    assert [name for name, _ in pruned.experts] == names and len(fitted.experts) == 3
    assert clone(pruned).fit(X, y).expert_names_ == names
    gone = set(fitted.expert_names_) - set(names)
    assert f"Gone: {gone.pop()}." in str(pruned.report_)
    again = pickle.loads(pickle.dumps(pruned))
    assert again.partial_fit(X, y).expert_names_ == names
    assert again.set_params(warm_start=True).fit(X, y).score(X, y) > 0.8
    tuned = prune_experts(fitted, method="random", n_experts=2, X=X, y=y, fine_tune=True)
    assert len(tuned.expert_names_) == 2


def test_skops(fitted):
    io = pytest.importorskip("skops.io")
    file = io.dumps(fitted)
    others = {*io.get_untrusted_types(data=file)} - {*TRUSTED_TYPES}
    assert others == {"sklearn.tree._tree.Tree"}
    again = io.loads(file, trusted=[*TRUSTED_TYPES, *others])
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))


def test_text_in_lists():
    rows = [[1.0, "a"], [2.0, "b"]] * 10
    encode = make_pipeline(OneHotEncoder(), LogisticRegression())
    clf = MoEClassifier(experts=[("line", encode)], max_iter=1).fit(rows, [0, 1] * 10)
    assert clf.named_experts_.line[0].categories_[0].tolist() == [1.0, 2.0]


def test_distil():
    clf = MoEClassifier(experts=experts(), gate="attentive", max_iter=5, random_state=0).fit(X, y)
    student = distill(clf, X, y, max_iter=20)
    assert student.expert_names_ == clf.expert_names_
    assert student.score(X, y) > 0.8


def test_real_data():
    X, y = load_breast_cancer(return_X_y=True)
    line = make_pipeline(StandardScaler(), LogisticRegression())
    listed = [("line", line), ("forest", RandomForestClassifier(20))]
    clf = MoEClassifier(experts=listed, random_state=0).fit(X[::2], y[::2])
    assert clf.score(X[1::2], y[1::2]) > 0.93


@pytest.mark.parametrize(
    "listed, message",
    [
        ([], "empty list"),
        ([("a", GaussianNB()), ("a", GaussianNB())], "'a' stands twice"),
        ([("a__b", GaussianNB())], "must not have the name 'a__b'"),
        ([("cv", GaussianNB())], "must not have the name 'cv'"),
        ([GaussianNB()], "tuples, got"),
        ([("a", GaussianNB)], "not a class"),
        ([("line", LinearRegression())], "must be a classifier"),
        ([("svm", LinearSVC())], "predict_proba.*CalibratedClassifierCV"),
        ([("scale", StandardScaler())], "predict_proba"),
        ([("what", 3)], "method fit"),
        ([("net", "mpl")], "The expert 'net' is 'mpl', which is no kind.*'mlp'"),
        ([("nb", GaussianNB(priors=[1, 2]))], "'nb' failed in a fit.*priors"),
    ],
)
def test_bad_lists(listed, message):
    with pytest.raises(ValueError, match=message):
        MoEClassifier(experts=listed).fit(X, y)


def test_bad_data():
    listed = EstimatorExperts([("line", LogisticRegression().fit(X, y))], cv="prefit")
    with pytest.raises(ValueError, match=r"'line' was fitted on the classes \[2\], which y lacks"):
        MoEClassifier(experts=listed).fit(X[y < 2], y[y < 2])
    images = np.zeros((20, 8, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="experts='strong' needs a table, got images"):
        MoEClassifier(experts="strong").fit(images, np.arange(20) % 2)
    with pytest.raises(ValueError, match="test each sample once"):
        once = StratifiedKFold(3)
        once.split = lambda X, y, groups: [(np.arange(200), np.arange(200, 300))]
        listed = EstimatorExperts([("line", LogisticRegression())], cv=once)
        MoEClassifier(experts=listed).fit(X, y)


@pytest.mark.filterwarnings("ignore:The best of")
@pytest.mark.parametrize("n_estimators", [1, 2])
def test_restarts_of_the_gate_alone(n_estimators):
    """With classifiers only, what the experts say is the same in all restarts."""
    estimators = [("bayes", GaussianNB()), ("line", LogisticRegression())][:n_estimators]
    clf = MoEClassifier(experts=estimators, n_init=3, max_iter=2, random_state=0).fit(X, y)
    assert clf.init_scores_.shape == (3,) and clf.gate_proba(X).shape == (len(X), n_estimators)
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1)


def test_partial_fit_cannot_change_experts_to_a_list():
    clf = MoEClassifier(2, max_iter=1, random_state=0).fit(X, y)
    clf.set_params(experts=[("bayes", GaussianNB())])
    with pytest.raises(ValueError, match="partial_fit cannot change experts to"):
        clf.partial_fit(X, y)


def test_huge_weights():
    """Their sum would be infinite."""
    experts = [("bayes", GaussianNB()), ("line", LogisticRegression())]
    clf = MoEClassifier(experts=experts, max_iter=2, random_state=0)
    expected = clf.fit(X, y).predict_proba(X)
    huge = clf.fit(X, y, np.full(len(y), 1e307)).predict_proba(X)
    np.testing.assert_allclose(huge, expected, atol=1e-6)
