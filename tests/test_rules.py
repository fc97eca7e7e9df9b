"""Rules of the gate: what they say, how far they hold, SQL, and the picture."""

import sqlite3
from itertools import product

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.colors import to_hex
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_moe import GateRules, GateRulesDisplay, MoEClassifier, gate_rules
from sklearn_moe.display.layout import COLORS
from sklearn_moe.interpretation.conditions import Among, Categories, Range, as_words
from sklearn_moe.interpretation.questions import rounded

matplotlib.use("agg")


class Known(MoEClassifier):
    """A mixture whose gate follows a rule that tests choose."""

    def follow(self, rule):
        self.rule_ = rule
        return self

    def apply(self, X):
        super().apply(X)  # checks the columns
        return np.asarray(self.rule_(X)).astype(int)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    n = 900
    X = pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "in come": np.where(rng.random(n) < 0.2, np.nan, rng.exponential(4e4, n)),
            "region": rng.choice(["Nor'th", "south", "west", "east", None], n),
            "smokes": rng.random(n) < 0.5,
        }
    )
    return X, rng.integers(2, size=n)


@pytest.fixture(scope="module")
def mixture(people):
    return Known(3, max_iter=1, random_state=0).fit(*people)


def texts(rules):
    return {(rule.text, rule.expert) for rule in rules.rules}


def in_sql(frame, *expressions):
    """Return the values of expressions of SQL for each row of a frame."""
    with sqlite3.connect(":memory:") as base:
        frame.to_sql("people", base, index=False)
        return np.array(base.execute(f"SELECT {', '.join(expressions)} FROM people").fetchall())


def test_thresholds_are_found():
    """The regimes of a fitted mixture, chosen by a threshold in each of two columns."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(1500, 4)), columns=["x1", "x2", "x3", "x4"])
    regime = np.where(X["x1"] > 0.5, 0, np.where(X["x2"] > -0.3, 1, 2))
    coefficients = np.array([[2, -3], [-3, -2], [2, 3]])[regime]
    log_odds = (X[["x3", "x4"]].to_numpy() * coefficients).sum(axis=1)
    y = (log_odds + rng.logistic(size=1500) > 0).astype(int)
    clf = MoEClassifier(
        3, experts="linear", gate_features=["x1", "x2"], n_init=2, max_iter=20, random_state=0
    ).fit(X[:1000], y[:1000])
    rules = gate_rules(clf, X[:1000], X_test=X[1000:], random_state=0)
    assert rules.fidelity >= 0.95 and rules.n_new == 500
    assert len(rules.rules) == 3
    bounds = {
        each.column: bound
        for rule in rules.rules
        for each in rule.conditions
        for bound in (each.low, each.high)
        if np.isfinite(bound)
    }
    span = X.max() - X.min()
    assert abs(bounds["x1"] - 0.5) < 0.05 * span["x1"]
    assert abs(bounds["x2"] + 0.3) < 0.05 * span["x2"]


def test_all_kinds_of_conditions(people, mixture):
    X, _ = people
    mixture.follow(
        lambda X: np.select(
            [X["in come"].isna(), X["region"].isin(["south", "west"]) & (X["age"] > 39)], [2, 1], 0
        )
    )
    rules = gate_rules(mixture, X, random_state=0)
    assert texts(rules) == {
        ("in come is missing", 2),
        ("in come is known and region is south or west and age > 39", 1),
        ("in come is known and region is south or west and age <= 39", 0),
        ("in come is known and region is not south or west", 0),
    }
    assert rules.fidelity == pytest.approx(1) and rules.is_usable
    assert all(rule.purity == pytest.approx(1) for rule in rules.rules)
    assert sum(rule.coverage for rule in rules.rules) == pytest.approx(1)
    np.testing.assert_array_equal(rules.predict(X), mixture.apply(X))
    assert str(rules.rules[-1]) == "in come is missing -> expert 2"
    assert rules.names[2] == "in come is missing"
    text = repr(rules)
    assert "100% of 225 new samples" in text and "too low" not in text


def test_ranges_are_merged_and_agreeing_leaves_pruned(people, mixture):
    X, _ = people
    mixture.follow(lambda X: ((X["age"] > 30) & (X["age"] <= 60)) | X["smokes"])
    rules = gate_rules(mixture, X, random_state=0)
    assert {text for text, _ in texts(rules)} == {
        "smokes is 1",
        "smokes is 0 and 30 < age <= 60",
        "smokes is 0 and age <= 30",
        "smokes is 0 and age > 60",
    }
    assert len({each.column for each in rules.rules[0].conditions}) == 2


def test_what_is_missing_goes_with_a_side(people, mixture):
    X, _ = people
    mixture.follow(lambda X: X["in come"].isna() | (X["in come"] > 40_000))
    (low, high) = gate_rules(mixture, X, random_state=0).rules
    assert high.text.startswith("in come > ") and high.text.endswith(" (or missing)")
    assert abs(high.conditions[0].low - 40_000) < 2000
    assert low.text == high.text.replace(">", "<=").removesuffix(" (or missing)")


@pytest.mark.parametrize("max_depth", [1, 3, 6])
def test_sql_and_predict_choose_the_same(people, mixture, max_depth):
    X, _ = people
    noise = np.random.default_rng(0).integers(3, size=1000)
    mixture.follow(
        lambda X: (
            (
                noise[X["age"] * 7 % 100]
                + (X["in come"] > 3e4).to_numpy()
                + X["region"].isin(["Nor'th", "east"])
            )
            % 3
        )
    )
    rules = gate_rules(mixture, X, max_depth=max_depth, random_state=0)
    assert len(rules.rules) > 1
    assert all(len(rule.conditions) <= max_depth for rule in rules.rules)
    new = X.copy()  # with values that the tree has not seen
    new.loc[::5, "age"] = np.nan
    new.loc[::7, "region"] = "Mars"
    for each in (X, new):
        np.testing.assert_array_equal(in_sql(each, rules.to_sql())[:, 0], rules.predict(each))


def test_measures_are_those_on_new_samples(people, mixture):
    X, _ = people
    rng = np.random.default_rng(1)
    noise = rng.random(len(X)) < 0.2
    mixture.follow(lambda X: (X["age"] > 50) ^ noise[X.index])
    weight = rng.random(300)
    rules = gate_rules(mixture, X[:600], X_test=X[600:], sample_weight_test=weight, random_state=0)
    chosen, said = mixture.apply(X[600:]), rules.predict(X[600:])
    assert rules.n_new == 300
    assert rules.fidelity == pytest.approx(np.average(chosen == said, weights=weight))
    np.testing.assert_allclose(rules.shares[1], np.average(chosen == 1, weights=weight))
    for rule in rules.rules:
        own = said == rule.expert
        assert rule.coverage == pytest.approx(np.average(own, weights=weight))
        purity = np.average(chosen[own] == rule.expert, weights=weight[own])
        assert rule.purity == pytest.approx(purity)
    frame = rules.to_frame()
    assert frame.columns.tolist() == ["rule", "expert", "coverage", "purity"]
    assert frame["rule"].tolist() == [rule.text for rule in rules.rules]


def test_a_weight_of_zero_removes_the_sample(people, mixture):
    X, _ = people
    mixture.follow(lambda X: X["age"] > X["smokes"] * 40)
    weight = np.ones(len(X))
    weight[::3] = 0
    kept = gate_rules(mixture, X[weight > 0], random_state=0)
    assert repr(gate_rules(mixture, X, sample_weight=weight, random_state=0)) == repr(kept)


def test_chance_only_comes_from_random_state(people, mixture):
    X, _ = people
    mixture.follow(lambda X: X["age"] * X["smokes"] > 50)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = (gate_rules(mixture, X, random_state=3) for _ in range(2))
    assert repr(one) == repr(other) and one.tree == other.tree
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_low_fidelity_is_said(people, mixture):
    X, _ = people
    noise = np.random.default_rng(1).integers(3, size=len(X))
    mixture.follow(lambda X: noise[X.index])
    rules = gate_rules(mixture, X, random_state=0)
    assert not rules.is_usable and rules.fidelity < 0.5
    text = repr(rules)
    for word in ("too low", "max_depth=5", "gate_features", "sparse_gate"):
        assert word in text
    assert rules.names == ["expert 0", "expert 1", "expert 2"]


def test_experts_without_a_rule_are_named(people, mixture):
    X, _ = people
    mixture.follow(lambda X: np.where(X.index % 50 == 0, 2, X["smokes"]))
    rules = gate_rules(mixture, X, random_state=0)
    assert "No rule for expert 2, chosen for 1.8% of samples." in repr(rules)
    assert rules.names == ["smokes is 0", "smokes is 1", "expert 2"]


@pytest.mark.parametrize("n_experts", [1, 3])
def test_one_expert_owns_all(people, mixture, n_experts):
    X, y = people
    clf = mixture.follow(lambda X: np.zeros(len(X)))
    if n_experts == 1:
        clf = MoEClassifier(1, max_iter=1, random_state=0).fit(X, y)
    rules = gate_rules(clf, X, random_state=0)
    assert "Expert 0 owns all samples" in repr(rules)
    assert rules.names[0] == "all samples" and rules.to_sql() == "0"
    assert (rules.predict(X) == 0).all()
    display = GateRulesDisplay(rules).plot()
    assert len(display.leaves_) == 1 and display.questions_ == []
    plt.close(display.figure_)


def test_rules_only_read_what_the_gate_reads(people):
    X, y = people
    clf = Known(2, gate_features=["region"], max_iter=1, random_state=0).fit(X, y)
    clf.follow(lambda X: X["age"] > 50)
    rules = gate_rules(clf, X, random_state=0)
    assert {each.column for rule in rules.rules for each in rule.conditions} <= {"region"}
    # An attentive gate also reads what the experts make of all columns.
    clf = Known(2, gate="attentive", gate_features=["region"], max_iter=1, random_state=0)
    rules = gate_rules(clf.fit(X, y).follow(lambda X: X["age"] > 50), X, random_state=0)
    assert rules.fidelity == 1


def test_containers(people, mixture):
    X, _ = people
    mixture.follow(lambda X: np.where(np.asarray(X["age"]) > 50, 0, np.asarray(X["smokes"]) + 1))
    rules = gate_rules(mixture, X, random_state=0)
    assert repr(gate_rules(mixture, pl.from_pandas(X), random_state=0)) == repr(rules)
    expected = rules.predict(X)
    for same in (
        pl.from_pandas(X),
        X[["smokes", "age"]],
        X.to_numpy(dtype=object),
        X.to_numpy(dtype=object).tolist(),
    ):
        np.testing.assert_array_equal(rules.predict(same), expected)


@pytest.mark.parametrize("kind", [np.asarray, np.float32, sparse.csr_array, np.ndarray.tolist])
def test_arrays_have_numbered_columns(kind):
    X = np.random.default_rng(0).normal(size=(400, 3)) + 5
    X = np.asarray(X, dtype=np.float32).astype(float)
    clf = Known(2, max_iter=1, random_state=0).fit(kind(X), np.arange(400) % 2)
    rules = gate_rules(clf.follow(lambda _: X[:, 2] > 5), kind(X), random_state=0)
    assert texts(rules) == {("x2 <= 5", 0), ("x2 > 5", 1)}
    np.testing.assert_array_equal(rules.predict(kind(X)), X[:, 2] > 5)


def test_huge_and_close_numbers():
    """scikit-learn's tree has single precision, the rules do not."""
    X = np.random.default_rng(0).integers(1000, size=(400, 2)) * [1.0, 1e297] + [1e9, 0]
    clf = Known(2, max_iter=1, random_state=0).fit(X, np.arange(400) % 2)
    for rule in (X[:, 0] > 1e9 + 499, X[:, 1] > 4e299):
        rules = gate_rules(clf.follow(lambda _, rule=rule: rule), X, random_state=0)
        assert rules.fidelity >= 0.98


def test_pipelines_and_searches_speak_of_the_columns_as_passed(people):
    X = people[0][["age", "smokes"]].astype(float)
    y = (X["age"] > 50).astype(int)
    clf = MoEClassifier(2, gate="kmeans", max_iter=2, random_state=0)
    pipeline = make_pipeline(StandardScaler(), clf)
    rules = gate_rules(pipeline.fit(X, y), X, random_state=0)
    assert rules.fidelity > 0.9
    bounds = [
        each.high for rule in rules.rules for each in rule.conditions if isinstance(each, Range)
    ]
    assert all(bound > 18 for bound in bounds)  # in years
    search = GridSearchCV(pipeline, {"standardscaler__with_mean": [True]}, cv=2).fit(X, y)
    assert repr(gate_rules(search, X, random_state=0)) == repr(rules)
    # Columns that only the pipeline can read are left out.
    dated = X.assign(day=pd.Timestamp("2020-01-01"))
    pipeline = make_pipeline(FunctionTransformer(lambda X: X[["age", "smokes"]]), clf).fit(
        dated, y
    )
    assert gate_rules(pipeline, dated, random_state=0).fidelity > 0.9


def test_few_rows(people, mixture):
    X, _ = people
    mixture.follow(lambda X: X["age"] > 50)
    assert gate_rules(mixture, X[:3], random_state=0).n_new == 1
    assert len(gate_rules(mixture, X[:30], random_state=0).rules) == 2


def test_errors(people, mixture):
    X, _ = people
    mixture.follow(lambda X: X["age"] > 50)
    with pytest.raises(NotFittedError):
        gate_rules(MoEClassifier(), X)
    with pytest.raises(TypeError, match="Expected a fitted MoEClassifier"):
        gate_rules("mixture", X)
    with pytest.raises(ValueError, match="feature names should match"):
        gate_rules(mixture, X.drop(columns="age"))
    for name, value in (
        ("max_depth", 0),
        ("max_depth", 1.5),
        ("test_size", 0),
        ("test_size", 1.0),
    ):
        with pytest.raises(ValueError, match=f"'{name}' parameter of gate_rules"):
            gate_rules(mixture, X, **{name: value})
    with pytest.raises(ValueError, match="X has 2 samples with a positive weight"):
        gate_rules(mixture, X[:2])
    with pytest.raises(ValueError, match="sample_weight_test is for X_test"):
        gate_rules(mixture, X, sample_weight_test=np.ones(len(X)))
    rules = gate_rules(mixture, X, random_state=0)
    with pytest.raises(ValueError, match="X has no column 'age', which the rules read"):
        rules.predict(X[["smokes"]])
    with pytest.raises(ValueError, match="a table with 4 columns, got an array of shape"):
        rules.predict(np.zeros((5, 3)))
    images = MoEClassifier(2, max_iter=1).fit(np.zeros((8, 6, 6)), np.arange(8) % 2)
    with pytest.raises(ValueError, match=r"mixture reads images.*ExpertSamplesDisplay"):
        gate_rules(images, np.zeros((8, 6, 6)))


# Conditions

VALUES = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, np.nan])
LEVELS = ["a'b", "b", 1.5, None]
RANGES = [
    Range("n um", low=0.5),
    Range("n um", high=2.0, missing=True),
    Range("n um", high=1.0),
    Range("n um", low=np.inf, missing=True),
    Range("n um", 0.0, 2.0, missing=True),
]
AMONG = [
    Among('c"at', frozenset(values), frozenset(LEVELS), inside)
    for values in (["b"], ["a'b", "b"], [None], [None, 1.5])
    for inside in (True, False)
]


def test_conditions_are_sets_of_values():
    codes = Categories(np.arange(4), LEVELS)
    rows = list(product(VALUES, LEVELS))
    frame = pd.DataFrame(rows, columns=["n um", 'c"at'], dtype=object)
    for kind, values in ((RANGES, VALUES), (AMONG, codes)):
        for one, other in product(kind, kind):
            both = one.joined(other)
            np.testing.assert_array_equal(
                both.holds(values), one.holds(values) & other.holds(values)
            )
        for one in kind:
            column = frame[one.column].to_numpy()
            if kind is RANGES:
                holds = one.holds(column.astype(float))
            else:
                holds = one.holds(Categories(np.tile(np.arange(4), 7), LEVELS))
            sql = in_sql(frame, f"CASE WHEN {one.sql()} THEN 1 ELSE 0 END")[:, 0]
            np.testing.assert_array_equal(sql, holds)
    for one in (*RANGES[:4], *AMONG):
        values = VALUES if isinstance(one, Range) else codes
        np.testing.assert_array_equal(one.negated().holds(values), ~one.holds(values))


def test_conditions_in_words():
    levels = frozenset(["a", "b", "c", "d", "e", "f", None])
    assert Range("year", high=2019.0).text() == "year <= 2019"
    assert Range("income", 12_500.0, 1e6).text() == "12,500 < income <= 1,000,000"
    assert Range("x", low=0.25, missing=True, may_miss=True).text() == "x > 0.25 (or missing)"
    assert Range("x", low=0.25, missing=True).text() == "x > 0.25"
    assert Among("c", frozenset(["b", "a", None]), levels).text() == "c is a, b or missing"
    assert Among("c", frozenset(["b"]), levels, inside=False).text() == "c is not b"
    assert Among("c", levels - {"a", "f"}, levels, inside=False).text() == "c is a or f"
    few = Among("c", frozenset("abc"), frozenset("abcdefgh"))
    many = Among("c", frozenset("abcd"), frozenset("abcdefgh"))
    assert few.text(short=True) == "c is a, b or c"
    assert many.text(short=True) == "c is a, b or 2 more"
    assert as_words((few, Range("x", low=1.0))) == "c is a, b or c and x > 1"
    assert as_words(()) == "all samples"


def test_thresholds_have_few_digits():
    rng = np.random.default_rng(0)
    for scale in (1e-9, 1e-3, 1.0, 1e4, 1e200):
        values = np.sort(rng.normal(size=500)) * scale
        for place in rng.integers(20, 480, size=10):
            low, high = values[place], values[place + 1]
            bound = rounded(low, high, values, np.ones(500))
            assert abs(np.sum(values <= bound) - (place + 1)) <= 5
            assert len(np.format_float_scientific(bound, trim="-").split("e")[0]) <= 6
    assert rounded(29.0, 61.0, np.array([29.0, 61.0]), np.ones(2), whole=True) == 40
    assert rounded(39.0, 40.0, np.array([39.0, 40.0]), np.ones(2), whole=True) == 39
    assert rounded(-0.2, 0.3, np.array([-0.2, 0.3]), np.ones(2)) == 0


# Picture


def test_display(people, mixture):
    X, _ = people
    mixture.follow(lambda X: np.where(X["age"] > 50, 0, X["smokes"] + 1))
    rules = gate_rules(mixture, X, random_state=0)
    assert isinstance(rules, GateRules)
    display = GateRulesDisplay.from_estimator(mixture, X, random_state=0)
    assert [text.get_text() for text in display.questions_] == ["age <= 50?", "smokes is 0?"]
    for text, expert in zip(display.leaves_, [1, 2, 0], strict=True):
        rule = next(rule for rule in rules.rules if rule.expert == expert)
        share = f"{rule.coverage:.0%} of samples"
        assert text.get_text() == f"expert {expert}\n{share}\n100% are right"
        assert to_hex(text.get_bbox_patch().get_edgecolor()) == COLORS[expert].lower()
    words = [text.get_text() for text in display.ax_.texts]
    assert words.count("yes") == words.count("no") == 2 and len(display.lines_) == 4
    assert "100% of 225 new samples" in display.ax_.get_title(loc="left").replace("\n", " ")
    _, ax = plt.subplots()
    assert GateRulesDisplay(rules).plot(ax).ax_ is ax
    plt.close("all")
