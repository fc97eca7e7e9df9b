"""Classifiers among the experts see the columns that importance, effects and explain change."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from sklearn_moe import (
    ExpertEffectDisplay,
    MLPExperts,
    MoEClassifier,
    expert_importance,
    explain,
)
from sklearn_moe.interpretation.columns import read_columns
from sklearn_moe.interpretation.rebuilding import Template

matplotlib.use("agg")

random = np.random.RandomState(0)
N = 120
FRAME = pd.DataFrame(
    {
        "kind": pd.Categorical(random.choice(["x", "y", "z"], N), ["z", "y", "x"]),
        "a": random.randn(N),
        "whole": random.randint(0, 9, N),
        "interval": pd.cut(random.randn(N), 3),
        "yes": pd.Categorical(random.rand(N) < 0.5),
        "text": random.choice(["u", "v", None], N),
        "missing": pd.Series(random.randint(0, 9, N), dtype="Int64").mask(random.rand(N) < 0.2),
    }
)
SIMPLE = FRAME[["kind", "a", "whole"]].astype({"kind": object})
y = ((FRAME["a"] > 0) ^ (FRAME["kind"] == "x")).to_numpy().astype(int)


class Spy(DummyClassifier):
    """Remembers the last table."""

    def predict_proba(self, X):
        type(self).seen = X
        return super().predict_proba(X)


CONTAINERS = {
    "numbers": FRAME[["a", "whole"]].to_numpy(),
    "float32": FRAME[["a", "whole"]].to_numpy(np.float32),
    "whole numbers": FRAME[["whole"]].to_numpy(),
    "objects": SIMPLE.to_numpy(),
    "list": SIMPLE.to_numpy().tolist(),
    "sparse": sparse.csr_matrix(FRAME[["a", "whole"]].to_numpy()),
    "pandas": FRAME,
    "pandas, objects": SIMPLE.astype(object),
    "pandas, numbers as names": pd.DataFrame(FRAME[["a", "whole"]].to_numpy()),
    "pandas, sparse": FRAME[["whole"]].astype(pd.SparseDtype(float)),
    "polars": pl.DataFrame(SIMPLE).with_columns(pl.col("kind").cast(pl.Enum(["y", "x", "z"]))),
    "pyarrow": pl.DataFrame(SIMPLE).to_arrow(),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_table_becomes_what_it_was(container):
    X = CONTAINERS[container]
    clf = MoEClassifier(experts=[("spy", Spy())], max_iter=1, random_state=0).fit(X, y)
    table = read_columns(clf, X, "test")
    before = Spy.seen
    table.expert_log_proba(table.samples, 0)
    assert type(Spy.seen) is type(before)
    if isinstance(before, pd.DataFrame):
        pd.testing.assert_frame_equal(Spy.seen, before)
    elif isinstance(before, np.ndarray):
        assert Spy.seen.dtype == before.dtype
        np.testing.assert_array_equal(Spy.seen, before)
    elif sparse.issparse(before):
        assert (Spy.seen != before).nnz == 0
    else:
        assert Spy.seen.equals(before) and Spy.seen.schema == before.schema


def test_what_is_unknown_is_missing():
    clf = MoEClassifier(experts=[("spy", Spy())], max_iter=1, random_state=0).fit(FRAME, y)
    table = read_columns(clf, FRAME, "test")
    places = table.places.tolist()
    samples = table.samples[:2].copy()
    samples[:, [places[0], places[4], places[5]]] = -1
    samples[:, [places[1], places[6]]] = np.nan
    filled = Template(FRAME, clf.encoder_).fill(samples[:, places])
    assert filled.isna().to_numpy().tolist() == [[True, True, False, False, True, True, True]] * 2
    assert filled.dtypes.astype(str).tolist() == FRAME.dtypes.astype(str).tolist()


@pytest.fixture(scope="module")
def fitted():
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    line = make_pipeline(encode, LogisticRegression())
    trees = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5)
    listed = [("trees", trees), ("line", line), ("net", MLPExperts(hidden_layer_sizes=(4,)))]
    X = FRAME[["kind", "a", "whole"]]
    return MoEClassifier(experts=listed, max_iter=3, random_state=0).fit(X, y), X


def test_experts_answer_for_changed_columns(fitted):
    clf, X = fitted
    table = read_columns(clf, X, "test")
    order = np.random.RandomState(1).permutation(N)
    for column, name in enumerate(X):
        samples, changed = table.samples.copy(), X.copy()
        samples[:, table.places[column]] = samples[order, table.places[column]]
        changed[name] = X[name].to_numpy()[order]
        changed[name] = changed[name].astype(X[name].dtype)
        expected = clf.expert_proba(changed)
        for expert in range(3):
            found = np.exp(table.expert_log_proba(samples, expert))
            np.testing.assert_allclose(found, expected[:, expert], atol=1e-6)


def test_only_the_expert_is_asked():
    listed = [("spy", Spy()), ("line", LogisticRegression())]
    X = FRAME[["a", "whole"]]
    clf = MoEClassifier(experts=listed, max_iter=1, random_state=0).fit(X, y)
    table = read_columns(clf, X, "test")
    Spy.seen = None
    table.expert_log_proba(table.samples, 1)
    assert Spy.seen is None
    table.expert_log_proba(table.samples, 0)
    assert Spy.seen is not None


def test_importance_of_classifiers(fitted):
    clf, X = fitted
    importance = expert_importance(clf, X, y, n_repeats=2, random_state=0)
    assert importance.expert_names == ["trees", "line", "net"]
    chosen = importance.n_samples.argmax()
    assert (importance.importance[chosen] != 0).any()
    assert f"expert {chosen} ({clf.expert_names_[chosen]})" in repr(importance)
    assert set(importance.to_frame()["name"]) == set(clf.expert_names_)


def test_effects_of_classifiers(fitted):
    clf, X = fitted
    display = ExpertEffectDisplay.from_estimator(clf, X, ["a", "kind"], grid_resolution=5)
    chosen = clf.apply(X)
    for effect, values in zip(display.effects, (display.effects[0].grid, "xyz"), strict=True):
        for expert in np.unique(chosen):
            own = X[chosen == expert]
            for value, found in zip(values, effect.response[expert], strict=True):
                changed = own.assign(**{effect.name: value})
                changed["kind"] = changed["kind"].astype(X["kind"].dtype)
                expected = clf.expert_proba(changed)[:, expert, 1].mean()
                assert found == pytest.approx(expected, abs=1e-5)
    texts = [text.get_text() for text in display.axes_[-1, 0].get_legend().get_texts()]
    assert any("trees" in text for text in texts)
    plt.close(display.figure_)


def test_explanations_of_classifiers(fitted):
    """Contributions sum to the log odds of the chosen expert and of the gate."""
    clf, X = fitted
    for background in (None, X[40:]):
        explained = explain(clf, X[:5], background=background, n_permutations=4, random_state=0)
        proba = clf.expert_proba(X[:5], chosen_only=True)
        np.testing.assert_allclose(
            explained.logit, np.log(proba[:, 1] / proba[:, 0]), rtol=1e-3, atol=1e-4
        )
        gate = clf.gate_proba(X[:5])
        rows = np.arange(5)
        odds = gate[rows, explained.expert] / gate[rows, explained.runner_up]
        np.testing.assert_allclose(explained.gate_logit, np.log(odds), rtol=1e-3, atol=1e-4)
    assert f"({clf.expert_names_[explained.expert[0]]}, " in repr(explained)
    moved = np.abs(explained.contributions).sum(axis=0)
    assert (moved[:2] > 0).all()
