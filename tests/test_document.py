"""The document about a mixture: what it has, that it is the same again, and its errors."""

import re
from dataclasses import replace
from html import escape, unescape
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    MoEClassifier,
    choose_n_experts,
    decomposition_stability,
    expert_summary,
    model_document,
)
from sklearn_moe.interpretation.behaviour import effect_in_words
from sklearn_moe.interpretation.sections import groups_of

matplotlib.use("agg")

# Short trainings may find no regimes.
pytestmark = pytest.mark.filterwarnings("ignore:(With . experts. )?The best of", "ignore:The gate")


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "a<b>": rng.normal(size=300),
            "x": rng.normal(size=300),
            "sex": rng.choice(["f", "m"], 300),
        }
    )
    y = np.where(X["a<b>"] > 0, X["x"] > 0, X["x"] < 0).astype(int)
    clf = MoEClassifier(
        2, experts="linear", gate_features=["a<b>"], n_init=4, max_iter=30, random_state=0
    )
    return clf.fit(X, y), X, y


def read(path):
    """Return the sections of a document by their names, as text."""
    text = re.sub(r'src="data:[^"]*"', "", path.read_text("utf-8"))
    parts = re.split(r"<h2[^>]*>\d+\. (.*?)</h2>", text)
    return dict(zip(parts[1::2], map(unescape, parts[2::2]), strict=True))


def test_document(fitted, tmp_path):
    clf, X, y = fitted
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    arguments = {"X_train": X, "y_train": y, "group_by": "sex", "title": "A & B"}
    text = model_document(clf, X, y, tmp_path / "a.html", **arguments).read_text("utf-8")
    again = model_document(clf, X, y, tmp_path / "b.html", **arguments).read_text("utf-8")
    assert text == again
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == figures
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(", text)
    assert "a<b>" not in text and "a&lt;b&gt;" in text and "A &amp; B" in text
    assert len(re.findall(r'<img alt="[^"]{20,}"', text)) == text.count("<img") == 4
    assert f"<td>{log_loss(y, clf.predict_proba(X)):.3f}</td>" in text
    for sex in "fm":
        assert f"<td>sex: {sex}</td><td>{(X['sex'] == sex).sum()}</td>" in text
    sections = read(tmp_path / "a.html")
    assert next(iter(sections)) == "In short"
    in_short = sections["In short"]
    assert "300 test rows. From 3 columns" in in_short and "logistic regressions" in in_short
    chosen = clf.apply(X)
    owner = chosen[X["a<b>"].argmax()]
    share = f"{(chosen == owner).mean():.0%}"
    assert re.search(rf"expert {owner} \(a<b> > -?[0-9.]+\) owns {share}", in_short)
    assert f"{clf.score(X, y):.1%} of the test rows" in in_short
    assert "was not measured" in in_short and "was not measured" in sections["Stability"]
    # In one regime the probability rises with x, in the other it falls.
    what = sections["What the experts do"]
    assert re.search("rises from .*falls from|falls from .*rises from", what, re.S)
    assert "one logistic regression" in sections["Error and calibration"]


def test_choice_and_stability(fitted, tmp_path):
    _, X, y = fitted
    clf = MoEClassifier(experts="linear", n_init=2, max_iter=3, random_state=0)
    choice = choose_n_experts(clf, X, y, [1, 2], verbose=0)
    clf = choice.estimators[2]
    stability = decomposition_stability(clf, X, y, n_refits=1, random_state=0)
    arguments = {"choice": choice, "stability": stability}
    sections = read(model_document(clf, X, y, tmp_path / "a.html", **arguments))
    assert repr(choice) in sections["The number of experts"]
    assert repr(stability) in sections["Stability"] and stability.sentence in sections["In short"]
    one = replace(choice, chosen=choice.chosen | {"bic": 1})
    sections = read(model_document(one, X, y, tmp_path / "b.html", group_by=0))
    assert repr(one) in sections["The number of experts"]
    assert "Who owns what" not in sections and "a single expert" in sections["In short"]
    assert "a<b>: over" in sections["Error and calibration"]
    with pytest.raises(ValueError, match="with 2 experts, but the estimator has 1"):
        model_document(one, X, y, tmp_path / "b.html", stability=stability)


def test_search_of_a_pipeline_with_three_classes(iris, tmp_path):
    X, y = iris[0], np.array(["setosa", "versicolor", "virginica"])[iris[1]]
    moe = MoEClassifier(experts="linear", n_init=2, max_iter=5, random_state=0)
    clf = make_pipeline(StandardScaler(), GridSearchCV(moe, {"n_experts": [2]}, cv=2)).fit(X, y)
    labels = pd.Series(y, name="kind")
    path = model_document(clf, X, labels, tmp_path / "a.html", X_train=X, y_train=y)
    sections = read(path)
    assert 'predicts "kind", which is setosa (33%)' in sections["In short"]
    assert "after the first steps" in sections["What the experts do"]
    assert "2 linear experts, 150 samples" in sections["What the experts do"]


def test_missing_values_and_text(tmp_path):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "number": np.where(rng.random(120) < 0.3, np.nan, rng.normal(size=120)),
            "city": rng.choice(["Ulm", "Bonn", None], 120),
            "note": [f"text {i}" for i in range(120)],
            "empty": np.full(120, np.nan),
        }
    )
    y = np.where(X["number"] > 0, "yes", "no")
    clf = MoEClassifier(2, max_iter=2, categorical_features=["city", "note"], random_state=0)
    path = model_document(clf.fit(X, y), X, y, tmp_path / "a.html", group_by="note")
    sections = read(path)
    assert "other values" in sections["Error and calibration"]
    assert f"{X['number'].isna().mean():.1%}" in sections["The data"]


def test_document_with_a_summary(fitted, tmp_path):
    clf, X, y = fitted
    summary = expert_summary(
        clf, X, y, standard_errors="bootstrap", n_bootstrap=20, random_state=0, confidence=0.8
    )
    page = model_document(clf, X, y, tmp_path / "a.html", summary=summary).read_text("utf-8")
    assert "Pass X_train" not in page
    assert escape(summary.notes[-1]) in page


def test_document_of_images(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 8, 8)).astype(np.float32), np.arange(60) % 3
    clf = MoEClassifier(2, max_iter=1, random_state=0).fit(X, y)
    sections = read(model_document(clf, X, y, tmp_path / "a.html"))
    assert "60 test images" in sections["In short"] and "(8, 8)" in sections["The data"]
    assert "with their true classes" in sections["Who owns what"]
    with pytest.raises(ValueError, match="group_by='x' needs a table"):
        model_document(clf, X, y, tmp_path / "a.html", group_by="x")


def test_groups():
    numbers = np.array([0.0] * 30 + [*range(1, 20), np.nan])
    groups = groups_of(numbers)
    assert list(groups) == ["0", "over 0 to 7", "over 7 to 19", "missing"]
    assert np.sum(list(groups.values()), axis=0).tolist() == [1] * 50
    assert list(groups_of(np.array([10.0, 9.0, 10.0, np.nan]))) == ["9", "10", "missing"]
    words = np.array([*"abcdefghijklmn", "n", "m", None], dtype=object)
    assert list(groups_of(words)) == [*"abcdefghij", "m", "n", "other values", "missing"]


def test_effects_in_words():
    def words(response, near=None, categories=None):
        near = np.ones(len(response), dtype=bool) if near is None else np.array(near)
        return effect_in_words(
            SimpleNamespace(
                response=np.array([response]),
                grid=np.arange(len(response)) * 1.0,
                categories=categories,
                is_nearby=lambda expert: near,
            ),
            0,
        )

    assert words([0.1, 0.2, 0.4]) == "rises from 10% at 0 to 40% at 2"
    assert words([0.4, 0.1, 0.3]) == "40% at 0, then 10% at 1, then 30% at 2"
    assert words([0.9, 0.4, 0.1], [False, True, True]) == "falls from 40% at 1 to 10% at 2"
    assert words([0.4, 0.41]) == "about 40% everywhere"
    assert words([0.4], [False]) == "-"
    assert words([0.4, 0.1], categories=["a", "b"]) == "from 10% for b to 40% for a"


def test_errors(fitted, tmp_path):
    clf, X, y = fitted
    path = tmp_path / "a.html"
    with pytest.raises(NotFittedError):
        model_document(MoEClassifier(), X, y, path)
    with pytest.raises(ValueError, match=r"group_by='age'.*'x', 'sex'"):
        model_document(clf, X, y, path, group_by="age")
    with pytest.raises(OSError, match="does not exist"):
        model_document(clf, X, y, tmp_path / "none" / "a.html")
    with pytest.raises(ValueError, match=r"the labels \[5\]"):
        model_document(clf, X, np.where(np.arange(300) == 0, 5, y), path)
    with pytest.raises(ValueError, match="y has none of the classes"):
        model_document(clf, X, y + 7, path)
    with pytest.raises(ValueError):
        model_document(clf, X[["x"]], y, path)
    for name, value in {"choice": 3, "stability": "good", "title": None, "date": 2026}.items():
        with pytest.raises(ValueError, match=f"The '{name}' parameter"):
            model_document(clf, X, y, path, **{name: value})
    assert not path.exists()
