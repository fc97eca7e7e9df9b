"""The number of experts: criteria, cross-validation, pictures and the bootstrap test."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    MoEClassifier,
    NExpertsDisplay,
    TableEncoder,
    choose_n_experts,
    decomposition_entropy,
    decomposition_stability,
    expert_summary,
    likelihood_ratio_test,
)
from sklearn_moe.model_selection import n_experts
from sklearn_moe.model_selection.likelihood_ratio import Simulation

pytestmark = pytest.mark.filterwarnings("ignore:(With . experts. )?The best of . restarts")

LINEAR = MoEClassifier(
    experts="linear",
    encoder=TableEncoder(n_knots=None, squash=False),
    regularization=None,
    max_iter=15,
    random_state=0,
)
# For what does not depend on the fits.
QUICK = MoEClassifier(experts="linear", regularization=None, max_iter=3, n_init=2, random_state=0)


def regimes(n, n_regimes=3, seed=0):
    """Labels of logistic rules; which rule holds depends on the direction of two columns."""
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(n, 6))
    angles = 2 * np.pi * np.arange(n_regimes) / n_regimes
    scores = 5 * X[:, :2] @ np.array([np.cos(angles), np.sin(angles)])
    regime = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    rules = rng.uniform(2, 3, (n_regimes, 4)) * rng.choice([-1, 1], (n_regimes, 4))
    logits = np.sum(X[:, 2:] * rules[regime], axis=1)
    return X, (logits + rng.logistic(size=n) > 0).astype(int)


@pytest.fixture(scope="module")
def small():
    return regimes(120)


@pytest.fixture(scope="module")
def choice():
    # Some seeds have regimes that often agree about the label, so that ICL takes one expert.
    return choose_n_experts(LINEAR, *regimes(1500, seed=3), range(1, 5), verbose=0)


def test_three_regimes(choice):
    assert choice.chosen["bic"] == choice.chosen["icl"] == choice.n_experts_ == 3
    model = choice.best_estimator_
    assert model is choice.estimators[3] and len(model.expert_usage_) == 3
    results = choice.results
    assert results["n_experts"].tolist() == list(choice.estimators) == [1, 2, 3, 4]
    assert (results["bic"][2], results["init_agreement"][2]) == (model.bic_, model.init_agreement_)
    assert results["n_init"].tolist() == [1, 10, 10, 10]
    n = 1500
    for name, factor in (("aic", 2), ("bic", np.log(n))):
        expected = factor * results["n_parameters"] - 2 * results["log_likelihood"]
        assert results[name] == pytest.approx(expected)
    assert results["smallest_usage"][0] == 1 and results["usage_entropy"][0] == 0
    assert len(pd.DataFrame(results)) == 4


def test_it_prints_a_table_and_takes_the_place_of_an_estimator(choice):
    head, *rows = repr(choice).splitlines()
    names = ["experts", "log-likelihood", "parameters", "AIC", "BIC", "ICL", "H_u"]
    assert head.split() == [*names, "least", "used", "agreement"]
    assert rows[2].split()[0] == "3" and rows[2].count("*") >= 2
    assert "BIC decides: 3 experts" in rows[-1]
    X, y = regimes(200, seed=1)
    assert decomposition_entropy(choice, X, y).table.shape == (3, 2)
    assert len(expert_summary(choice, *regimes(1500, seed=3)).usage) == 3


def test_stability_of_the_chosen_mixture(small):
    X, y = small
    choice = choose_n_experts(make_pipeline(StandardScaler(), QUICK), X, y, [2], verbose=0)
    stability = decomposition_stability(choice, X, y, n_refits=1, random_state=0)
    scaler, model = choice.best_estimator_
    assert (stability.choice[0] == model.apply(scaler.transform(X))).all()


def test_one_regime_is_a_logistic_regression():
    X, y = regimes(1000, n_regimes=1)
    choice = choose_n_experts(LINEAR, X, y, [2, 1], verbose=0)
    assert choice.n_experts_ == choice.chosen["icl"] == 1
    linear = LogisticRegression(C=1e6).fit(X, y)
    expected = -log_loss(y, linear.predict_proba(X), normalize=False)
    # The penalty on coefficients costs a little.
    assert -0.05 < choice.results["log_likelihood"][0] - expected <= 1e-6
    assert choice.results["n_parameters"][0] == 7


@pytest.mark.usefixtures("short_polish")
def test_log_loss_and_pipeline(small):
    X, y = small
    pipeline = make_pipeline(StandardScaler(), QUICK)
    choice = choose_n_experts(pipeline, X, y, [1, 2], cv=3, criterion="log_loss", verbose=0)
    for i, number in enumerate((1, 2)):
        one = make_pipeline(StandardScaler(), clone(QUICK)).set_params(
            moeclassifier__n_experts=number
        )
        losses = -cross_val_score(one, X, y, cv=3, scoring="neg_log_loss")
        assert choice.results["log_loss"][i] == pytest.approx(losses.mean())
        error = losses.std(ddof=1) / 3**0.5
        assert choice.results["log_loss_error"][i] == pytest.approx(error)
    assert choice.n_experts_ == 1 + choice.results["log_loss"].argmin()
    assert choice.best_estimator_.predict(X).shape == y.shape
    assert "std. error" in repr(choice)
    assert pipeline[-1].n_experts == 8 and not hasattr(pipeline[-1], "net_")


@pytest.mark.usefixtures("short_polish")
def test_mixtures_without_a_likelihood(small):
    X, y = small
    clf = MoEClassifier(max_iter=2, random_state=0)
    choice = choose_n_experts(clf, X, y, [2, 1], criterion="log_loss", verbose=0)
    assert list(choice.chosen) == ["log_loss"] and np.isnan(choice.results["bic"]).all()
    assert repr(choice).splitlines()[0].split()[:3] == ["experts", "log", "loss"]
    with pytest.raises(ValueError, match="Take experts='linear', or criterion='log_loss'"):
        choose_n_experts(clf, X, y, [1, 2], verbose=0)
    hard = MoEClassifier(experts="linear", gate="top_k", max_iter=2, n_init=1, random_state=0)
    with pytest.raises(ValueError, match="criterion='aic' needs the likelihood of linear"):
        choose_n_experts(hard, X, y, [2, 3], criterion="aic", verbose=0)


@pytest.mark.parametrize(
    "params, error, message",
    [
        ({"n_experts": []}, ValueError, "at least one number"),
        ({"n_experts": range(3)}, ValueError, "integers from 1 to .* 120; got 0"),
        ({"n_experts": [2, 121]}, ValueError, "integers from 1 to .* 120; got 121"),
        ({"n_experts": [2.5]}, ValueError, "got 2.5"),
        ({"n_experts": [True]}, ValueError, "got True"),
        ({"n_experts": [2, 3, 2]}, ValueError, "must not repeat a number"),
        ({"n_experts": 3}, ValueError, r"such as range\(1, 9\), got 3"),
        ({"criterion": "mdl"}, ValueError, "criterion must be one of"),
        ({"clf": LogisticRegression()}, TypeError, "clf must be a MoEClassifier or a pipeline"),
        ({"clf": GridSearchCV(QUICK, {})}, TypeError, "clf must be a MoEClassifier"),
        ({"cv": KFold(2), "y": [0] * 60 + [1] * 60}, ValueError, r"fold 0 has no sample of \[0\]"),
    ],
)
def test_errors(params, error, message, small):
    arguments = {"clf": QUICK, "X": small[0], "y": small[1], "verbose": 0, **params}
    with pytest.raises(error, match=message):
        choose_n_experts(**arguments)


def test_weights(small):
    """Weights count as rows that are repeated, in fits and in the log loss."""
    X, y = small
    weight = np.where(np.arange(120) < 60, 1.0, 0.0)
    half = np.arange(60)
    cv = [(half[:40], half[40:])]
    one = choose_n_experts(QUICK, X, y, [1, 2], cv=cv, sample_weight=weight, verbose=0)
    two = choose_n_experts(QUICK, X[:60], y[:60], [1, 2], cv=cv, verbose=0)
    for name in ("bic", "log_loss"):
        assert one.results[name] == pytest.approx(two.results[name])
    pipeline, unit = make_pipeline(StandardScaler(), QUICK), np.arange(120) % 4
    X = np.column_stack([unit, X])
    fits = (
        choose_n_experts(
            pipeline, X, y, [1], cv=cv, groups=groups, sample_weight=weight + 1, verbose=0
        )
        for cv, groups in ((GroupKFold(2), unit), (GroupKFold(2).split(X, y, unit), None))
    )
    # With one expert, groups change nothing else.
    one, two = (fit.results["log_loss"][0] for fit in fits)
    assert one == pytest.approx(two, rel=1e-4)


def visits(n_groups):
    """Two rules for groups of four samples; the first column tells the regime of a group."""
    X, rng = np.random.RandomState(0).normal(size=(4 * n_groups, 4)), np.random.RandomState(1)
    group = np.repeat(np.arange(n_groups), 4)
    X[:, 0] = X[::4, 0][group]
    regime = 2 * X[:, 0] + rng.logistic(size=n_groups)[group] > 0
    log_odds = np.where(regime, 3, -3) * X[:, 1] + X[:, 2]
    return X, (log_odds + rng.logistic(size=len(X)) > 0).astype(int), group


def by_group(clf, X, y, group):
    joint = pd.DataFrame(clf.expert_log_likelihood(X, y)).groupby(group).sum()
    gate_proba = np.maximum(clf.gate_proba(X), 1e-300, dtype=float)
    joint += np.log(pd.DataFrame(gate_proba).groupby(group).first())
    return np.logaddexp.reduce(joint.to_numpy(dtype=float), axis=1).sum()


@pytest.mark.usefixtures("short_polish")
def test_groups_in_fits_criteria_and_folds():
    X, y, group = visits(100)
    order = np.random.RandomState(2).permutation(400)  # groups need not be in one piece
    X, y, names = X[order], y[order], np.array([f"p{one}" for one in group])[order]
    choice = choose_n_experts(QUICK, X, y, [2], cv=2, groups=names, verbose=0)
    fitted, results = choice.best_estimator_, choice.results
    assert fitted.gate_columns_ == [0]
    assert fitted.log_likelihood_ == pytest.approx(by_group(fitted, X, y, names), rel=1e-4)
    # As in flexmix, the samples of BIC are the groups.
    expected = np.log(100) * results["n_parameters"][0] - 2 * results["log_likelihood"][0]
    assert results["bic"][0] == pytest.approx(expected)
    losses = []
    for train, test in StratifiedGroupKFold(2).split(X, y, names):
        clf = clone(QUICK).set_params(n_experts=2).fit(X[train], y[train], groups=names[train])
        losses.append(-by_group(clf, X[test], y[test], names[test]) / len(test))
    assert results["log_loss"][0] == pytest.approx(np.mean(losses), rel=1e-3)
    pipeline = make_pipeline("passthrough", QUICK)
    again = choose_n_experts(pipeline, X, y, [2], cv=2, groups=pd.Series(names), verbose=0)
    assert again.results["log_loss"][0] == pytest.approx(results["log_loss"][0], rel=1e-4)
    with pytest.raises(ValueError, match=r"Fold 0 has the group 'p.*' in both its training and"):
        choose_n_experts(QUICK, X, y, [2], cv=KFold(2).split(X), groups=names, verbose=0)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        choose_n_experts(QUICK, X, y, [2], groups=names[:9], verbose=0)


@pytest.mark.usefixtures("short_polish")
def test_likelihood_ratio_with_groups():
    X, y, group = visits(60)
    one, two = (clone(QUICK).set_params(n_experts=number) for number in (1, 2))
    arguments = {"groups": group, "n_bootstrap": 2, "random_state": 0}
    test = likelihood_ratio_test(one, make_pipeline(two), X, y, **arguments)
    fits = [clone(each).fit(X, y, groups=group) for each in (one, two)]
    assert test.statistic == pytest.approx(
        2 * (by_group(fits[1], X, y, group) - by_group(fits[0], X, y, group)), rel=1e-3
    )
    assert test.p_value == 1 / 3
    again = likelihood_ratio_test(*fits, X, y, **arguments)
    assert again.statistic == pytest.approx(test.statistic)
    with pytest.raises(ValueError, match="fitted to these samples and groups"):
        likelihood_ratio_test(one, clone(two).fit(X, y), X, y, **arguments)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        likelihood_ratio_test(one, two, X, y, groups=group[:9])


@pytest.mark.usefixtures("short_polish")
def test_goes_on(small, tmp_path, monkeypatch):
    fitted = []

    def fit(candidate, *args):
        fitted.append(n_experts.final_model(candidate)[0].n_experts)
        return original(candidate, *args)

    def go(numbers, *, clf=QUICK, X=small[0], cv=2):
        fitted.clear()
        return choose_n_experts(
            clf, X, small[1], numbers, cv=cv, storage=tmp_path / "fits", verbose=0
        )

    original = MoEClassifier.fit
    monkeypatch.setattr(MoEClassifier, "fit", fit)
    first = go([1, 2])
    assert fitted == [1] * 3 + [2] * 3
    again = go([1, 2, 3])
    assert fitted == [3] * 3
    for name in ("bic", "log_loss"):
        assert again.results[name][:2].tolist() == first.results[name].tolist()
    go([1], clf=make_pipeline(MoEClassifier(**QUICK.get_params())))
    assert fitted == [1] * 3
    go([1], X=-small[0])  # other data
    assert fitted == [1] * 3
    go([1], X=pd.DataFrame(small[0]).astype(object))  # which are encoded in another way
    assert fitted == [1] * 3
    go([1], cv=3)  # the fit on all samples is there
    assert fitted == [1] * 3
    monkeypatch.setattr(MoEClassifier, "fit", None)
    assert go([1, 2]).n_experts_ == first.n_experts_


def test_only_the_chosen_mixture_warns(small):
    X, y = small
    with pytest.warns(UserWarning) as caught:
        choice = choose_n_experts(QUICK, X, y, [2, 3, 4], verbose=0)
    assert np.isnan(choice.results["init_agreement"]).sum() > 1
    assert "none" in repr(choice)
    (warning,) = caught
    assert str(warning.message).startswith("With 2 experts: The best of 2 restarts")
    assert warning.filename == __file__


def test_display(choice):
    matplotlib.use("agg")
    display = NExpertsDisplay.from_result(choice)
    assert list(display.lines_) == ["AIC", "BIC", "ICL"] and len(display.axes_) == 1
    assert display.lines_["BIC"].get_ydata().tolist() == choice.results["bic"].tolist()
    display = NExpertsDisplay(
        [1, 2, 4],
        criteria={"BIC": [3, 1, 2]},
        log_loss=[0.3, 0.2, 0.25],
        log_loss_error=[0.1, 0.1, 0.1],
        chosen=2,
    ).plot()
    assert len(display.axes_) == 2 and list(display.lines_) == ["BIC", "log loss"]
    labels = [text.get_text() for text in display.axes_[0].get_legend().get_texts()]
    assert labels == ["BIC", "lowest", "chosen"]
    with pytest.raises(ValueError, match="nothing to draw"):
        NExpertsDisplay([1, 2]).plot()
    plt.close("all")


@pytest.fixture(scope="module")
def two_regimes():
    return regimes(300, n_regimes=2)


def linear(n_experts):
    return clone(LINEAR).set_params(n_experts=n_experts, n_init=3)


def test_likelihood_ratio(two_regimes):
    one, two = linear(1).fit(*two_regimes), linear(2).fit(*two_regimes)
    test = likelihood_ratio_test(one, two, *two_regimes, n_bootstrap=3, random_state=0)
    assert test.statistic == 2 * (two.log_likelihood_ - one.log_likelihood_)
    assert test.p_value == 1 / 4 and test.bootstrap_statistics.max() < test.statistic
    assert test.n_experts == (1, 2) and test.n_redrawn == 0
    assert repr(test).startswith("Likelihood-ratio test of 1 against 2 experts")


def test_enough_experts(two_regimes):
    test = likelihood_ratio_test(linear(2), linear(3), *two_regimes, n_bootstrap=4, random_state=0)
    assert test.p_value > 1 / 5
    larger = np.count_nonzero(test.bootstrap_statistics >= test.statistic)
    assert test.p_value == pytest.approx((1 + larger) / 5)


def test_a_simulated_group_gets_one_expert():
    class Fitted:
        classes_ = np.array(["a", "b"])

        def gate_proba(self, X):
            return np.tile([0.3, 0.7], (len(X), 1))

        def expert_proba(self, X):
            return np.tile(np.eye(2), (len(X), 1, 1))

    group = np.random.RandomState(0).permutation(np.repeat(np.arange(2000), 3))
    simulation = Simulation(Fitted(), np.zeros(len(group)), np.random.RandomState(0), group)
    labels = pd.Series(simulation.draw()).groupby(group)
    assert (labels.nunique() == 1).all()
    assert np.mean(labels.first() == "b") == pytest.approx(0.7, abs=0.03)


def test_simulated_labels():
    class Fitted:
        classes_ = np.array(["a", "b", "c"])

        def predict_proba(self, X):
            return X

    common = np.tile(np.float32([0.2, 0.5, 0.3]), (10_000, 1))
    labels = Simulation(Fitted(), common, np.random.RandomState(0)).draw()
    counts = np.unique(labels, return_counts=True)[1] / 10_000
    assert counts == pytest.approx([0.2, 0.5, 0.3], abs=0.02)
    # A sample without a class is drawn again.
    simulation = Simulation(Fitted(), common[:4], np.random.RandomState(0))
    assert all(len(np.unique(simulation.draw())) == 3 for _ in range(20))
    assert simulation.n_redrawn > 0
    simulation = Simulation(Fitted(), np.array([[0.5, 0.5, 0]] * 9), np.random.RandomState(0))
    with pytest.raises(ValueError, match=r"lacked a class, the last one .*'c'.* too rare"):
        simulation.draw()


def test_errors_of_the_likelihood_ratio(small):
    X, y = small
    one, two = clone(QUICK).set_params(n_experts=1), clone(QUICK).set_params(n_experts=2)
    flexible = MoEClassifier(2, max_iter=2, random_state=0)
    fitted = clone(one).fit(X, y)
    for smaller, larger, params, message in (
        (two, one, {}, "larger must have more experts than smaller, got 1 and 2"),
        (one, flexible, {}, "larger has no log_likelihood_, which needs .* linear experts"),
        (one, two, {"n_bootstrap": 0}, "n_bootstrap must be an integer of at least 1, got 0"),
        (fitted, two, {"X": X[:60], "y": y[:60]}, "smaller has a log-likelihood of .* fitted to"),
        (clone(one).fit(X, y + 1), two, {}, r"smaller was fitted to the classes \[1, 2\]"),
        (clone(one).fit(X, y, y + 1.0), two, {}, "without sample_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihood_ratio_test(smaller, larger, **{"X": X, "y": y, **params})
    with pytest.raises(TypeError, match="larger must be a MoEClassifier or a pipeline"):
        likelihood_ratio_test(one, LogisticRegression(), X, y)
