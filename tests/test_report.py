import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    GATES,
    REGULARIZERS,
    AttentiveGate,
    Entropy,
    Importance,
    MoEClassifier,
    decomposition_entropy,
    decomposition_report,
)


class Mixture:
    """A fitted mixture whose gate and experts say what the test wants them to."""

    classes_ = np.array(["cat", "dog", "emu"])

    def __init__(
        self, gate_proba, *, gate="softmax", regularization=(), mixing="probability", classes_=None
    ):
        self.proba = np.asarray(gate_proba, dtype=float)
        self.classes_ = self.classes_ if classes_ is None else classes_
        names = [regularization] if isinstance(regularization, str) else regularization
        gate = GATES[gate] if isinstance(gate, str) else gate
        self.net_ = SimpleNamespace(
            gate=gate,
            module_=SimpleNamespace(gate=SimpleNamespace(needs_hidden=gate.needs_hidden)),
            regularizations=[REGULARIZERS[e] if isinstance(e, str) else e for e in names],
            mixing=mixing,
        )
        self.module_ = SimpleNamespace(is_conditional=True, layers=())
        self.expert_costs_ = np.arange(1, self.proba.shape[1] + 1)
        self.n_parameters_ = 1234

    def gate_proba(self, X):
        return self.proba

    def expert_proba(self, X, chosen_only):
        """Expert e predicts class e mod 3."""
        return np.eye(3)[self.proba.argmax(axis=1) % 3]

    def expert_log_likelihood(self, X, y):
        """Expert e gives 0.8 to class e mod 3 and 0.1 to each other class."""
        owned = self.classes_[np.arange(self.proba.shape[1]) % 3]
        return np.log(np.where(owned == np.asarray(y)[:, np.newaxis], 0.8, 0.1))

    def predict(self, X):
        return self.classes_[self.proba.argmax(axis=1) % 3]


Y = np.array(["cat", "dog", "emu", "cat"])


def report(gate_proba, y=Y, output_dict=False, **params):
    X = np.zeros((len(y), 1))
    return decomposition_report(Mixture(gate_proba, **params), X, y, output_dict=output_dict)


GOOD = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.8, 0.2, 0]]


def test_report_by_hand():
    result = report(GOOD, output_dict=True)
    assert result["verdict"] == ["even", "sure", "specialized"] and result["advice"] == []
    assert result["accuracy"] == result["chosen_expert_accuracy"] == 1
    assert result["experts"][0] == {
        "expert": 0,
        "name": None,
        "share": 0.5,
        "usage": pytest.approx(0.45),
        "accuracy": 1,
        "certainty": pytest.approx(0.9),
        "specialization": pytest.approx(3),
        "specialization_to_best": pytest.approx(3),
        "main_classes": {"cat": 1},
    }
    assert result["specialization"] == pytest.approx(3)  # 0.8 in place of 0.1
    idle = str(report([[*row, 0] for row in GOOD]))
    assert "1 of 4 experts are never chosen" in idle
    text = str(report(GOOD))
    row = "     0   50.0%   45.0%     1.000       0.90   3.00  cat (100%)"
    assert row in text.splitlines()
    assert "The experts are used evenly, and the gate is sure." in text and "try" not in text
    assert "3.00 bits are lost if the others replace the chosen expert, 3.00 if the best" in text
    # Of 1 + 2 + 3 multiply-adds the samples take 1, 2, 3 and 1 + 2.
    assert result["n_parameters"] == 1234 and result["cost"] == 9 / 4
    assert result["relative_cost"] == 9 / 24 and result["skipping_share"] == 3 / 4
    assert "1,234 parameters; 2 multiply-adds of the experts per sample, 38% of all" in text
    assert "75.0% of the samples run none of the costliest experts" in text


def test_report_shows_itself():
    text = report(GOOD)
    assert isinstance(text, str) and repr(text) == str(text)


UNEVEN = [[0.99, 0.01, 0, 0, 0]] * 4
UNSURE = [[0.34, 0.33, 0.33]] * 4
SURER = ["regularization=Entropy(0.1)", "a gate with a temperature"]


@pytest.mark.parametrize(
    "gate_proba, params, verdict, advice",
    [
        (UNEVEN, {}, ["uneven", "sure"], ["regularization='importance'", "n_experts=2"]),
        (
            UNEVEN,
            {"regularization": "load"},
            ["uneven", "sure"],
            ["a higher strength", "n_experts"],
        ),
        ([[0.99, 0.01]] * 4, {}, ["uneven", "sure"], ["regularization='importance'"]),
        (UNSURE, {}, ["even", "unsure"], ["gate='attentive'", *SURER]),
        (UNSURE, {"gate": "attentive"}, ["even", "unsure"], SURER),
        (UNSURE, {"gate": AttentiveGate()}, ["even", "unsure"], SURER),
        (
            UNSURE,
            {"regularization": "entropy"},
            ["even", "unsure"],
            ["gate=", "a higher strength of the entropy", SURER[1]],
        ),
        (
            UNEVEN,
            {"regularization": ["z_loss", Entropy(0.1)]},
            ["uneven", "sure"],
            ["'importance' or 'sample_similarity' beside the present", "n_experts"],
        ),
        (
            UNSURE,
            {"regularization": [Importance()]},
            ["even", "unsure"],
            ["gate=", "Entropy(0.1) beside the present", SURER[1]],
        ),
        (
            UNSURE,
            {"mixing": "logit"},
            ["even", "unsure"],
            ["mixing='probability'", "gate='attentive'", *SURER],
        ),
        (
            [[0.5, 0.5, 0, 0, 0, 0, 0]] * 4,
            {},
            ["uneven", "unsure"],
            ["regularization='importance'", "n_experts=2", "gate=", *SURER],
        ),
    ],
)
def test_verdict_and_advice(gate_proba, params, verdict, advice):
    result = report(gate_proba, output_dict=True, **params)
    assert result["verdict"][:2] == verdict
    assert len(result["advice"]) == len(advice)
    for text, start in zip(result["advice"], advice, strict=True):
        assert text.startswith(start)
        assert text in str(report(gate_proba, **params))


@pytest.mark.parametrize(
    "lost, to_twin, words",
    [
        (-0.001, -0.001, "interchangeable"),
        (0.04, 0.04, "interchangeable"),
        (0.06, 0.06, "partly specialized"),
        (0.6, 0.6, "specialized"),
        (2, 0, "interchangeable"),  # another expert knows the same
    ],
)
def test_verdict_on_what_the_experts_know(lost, to_twin, words, monkeypatch):
    """Experts 0 and 1 lose ``to_twin`` bits to one another, and ``lost`` to experts 2 and 3."""

    def log_likelihood(self, X, y):
        # From a quarter, so that a negative loss is a probability, too.
        own, twin, other = np.log(0.25 / 2 ** np.array([0, to_twin, lost]))
        pairs = [[own, twin, other, other], [twin, own, other, other]]
        return np.array([*pairs, *(row[::-1] for row in pairs[::-1])])

    monkeypatch.setattr(Mixture, "expert_log_likelihood", log_likelihood)
    result = report(np.eye(4), output_dict=True)
    assert result["verdict"] == ["even", "sure", words]
    assert result["specialization_to_best"] == pytest.approx(min(lost, to_twin), abs=1e-9)
    text = str(report(np.eye(4)))
    assert f"The experts are {words}." in text and "-0.00" not in text


@pytest.mark.parametrize("gate_proba", [GOOD, UNEVEN, UNSURE])
def test_it_says_what_it_does_not_know(gate_proba):
    """An even and sure division may be wrong, and another one right."""
    text = str(report(gate_proba))
    assert "Whether these are the right parts" in text
    assert "whether another fit finds them, this report does not know." in text
    for word in ("fine", "smeared", "collapsed", "good", "bad"):
        assert word not in text


def test_one_expert_has_nothing_to_divide():
    assert "nothing to divide" in str(report([[1.0]] * 4))
    result = report([[1.0]] * 4, output_dict=True)
    assert result["verdict"] == ["even", "sure", "interchangeable"]
    assert result["specialization"] == result["experts"][0]["specialization"] == 0


def test_many_experts_and_long_names_fit_on_a_screen():
    names = np.array([f"a class with the very long name {name}" for name in "abc"])
    y = np.tile(names, 40)
    gate_proba = np.eye(64)[np.arange(len(y)) % 50]
    text = str(report(gate_proba, y, classes_=names))
    lines = text.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) < 100
    assert "34 more   60.0%" in lines
    assert "14 of 64 experts are never chosen" in lines


def test_report_of_a_pipeline(iris):
    X, y = iris
    clf = make_pipeline(StandardScaler(), MoEClassifier(n_experts=4, random_state=0)).fit(X, y)
    result = decomposition_report(clf, X, y, output_dict=True)
    expected = decomposition_entropy(clf, X, y)
    assert result["accuracy"] == clf.score(X, y)
    assert result["usage_entropy"] == expected.usage_entropy
    assert sum(row["share"] for row in result["experts"]) == pytest.approx(1)
    assert [row["usage"] for row in result["experts"]] == pytest.approx(expected.usage.tolist())
    assert result["specialization"] == expected.specialization
    json.dumps(result)
    assert "accuracy" in str(decomposition_report(clf, X, y))


def test_missing_labels(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=2, max_iter=2, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        decomposition_report(clf, X, np.where(y == 0, np.nan, y))


def test_wrong_estimator(iris):
    with pytest.raises(TypeError, match="has no gate_proba"):
        decomposition_report(StandardScaler().fit(iris[0]), *iris)


@pytest.mark.parametrize("dtype", [str, object, "category", bool, int, float])
def test_labels_of_any_type(dtype, iris):
    X, y = iris
    y = pd.Series(y > 0 if dtype is bool else y)
    y = (y.astype(str) if dtype in (object, "category") else y).astype(dtype)
    clf = MoEClassifier(n_experts=3, max_iter=3, regularization="importance", random_state=0)
    clf.fit(X, y)
    result = decomposition_report(clf, X, y, output_dict=True)
    assert result["accuracy"] == clf.score(X, y)
    for expert in result["experts"]:
        assert set(expert["main_classes"]) <= set(clf.classes_.tolist())
    str(decomposition_report(clf, X, y))


def test_a_column_of_labels_is_taken_as_labels(iris):
    X, y = iris
    clf = MoEClassifier(n_experts=3, max_iter=5, random_state=0).fit(X, y)
    column = decomposition_report(clf, X, y[:, np.newaxis], output_dict=True)
    assert column["accuracy"] == clf.score(X, y)
