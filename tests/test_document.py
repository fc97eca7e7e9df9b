"""The document about a mixture: what it has, that it is the same again, and its errors."""

import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss

from sklearn_moe import MoEClassifier, model_document

matplotlib.use("agg")


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
    assert f"<td>{log_loss(y, clf.predict_proba(X)):.3f}</td>" in text
    for sex in "fm":
        assert f"<td>sex: {sex}</td><td>{(X['sex'] == sex).sum()}</td>" in text
    assert "It was not measured" in text


def test_document_of_images(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 8, 8)).astype(np.float32), np.arange(60) % 3
    clf = MoEClassifier(2, max_iter=1, random_state=0).fit(X, y)
    assert "Who owns what" in model_document(clf, X, y, tmp_path / "a.html").read_text("utf-8")


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
    assert not path.exists()
