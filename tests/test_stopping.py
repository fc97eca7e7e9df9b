"""What early stopping watches."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import check_scoring, log_loss, make_scorer, recall_score
from sklearn.model_selection import train_test_split

from sklearn_moe import MoEClassifier


@pytest.fixture(scope="module")
def split():
    X, y = load_breast_cancer(return_X_y=True)
    y = np.array(["malignant", "benign"])[y]
    X, X_val, y, y_val = train_test_split(X, y, test_size=0.4, stratify=y, random_state=0)
    return X, y, X_val, y_val


def fit(split, early_stopping, **params):
    X, y, X_val, y_val = split
    clf = MoEClassifier(
        n_experts=2, max_iter=8, early_stopping=early_stopping, random_state=0, **params
    )
    return clf.fit(X, y, X_val=X_val, y_val=y_val)


def watched(clf):
    return np.array(clf.net_.history[:, "stopping_loss"])


def test_the_loss_by_its_name(split):
    usual, named = fit(split, True), fit(split, "neg_log_loss")
    assert np.allclose(watched(named), usual.validation_loss_curve_, atol=1e-6)
    assert np.array_equal(usual.predict_proba(split[2]), named.predict_proba(split[2]))


@pytest.mark.parametrize(
    "score", ["roc_auc", "accuracy", make_scorer(recall_score, pos_label="benign")], ids=str
)
def test_scores(score, split):
    """The weights of the best epoch come back, and the score is that of a user's own call."""
    clf = fit(split, score)
    X_val, y_val = split[2:]
    assert np.isclose(-watched(clf).min(), check_scoring(clf, score)(clf, X_val, y_val))
    if score == "accuracy":
        assert np.allclose(-watched(clf), clf.validation_scores_)
        assert clf.best_validation_score_ == pytest.approx(max(clf.validation_scores_))


def test_refined_log_loss(split):
    clf = fit(split, "refined_log_loss")
    X_val, y_val = split[2:]
    log_proba = clf.predict_log_proba(X_val)

    def loss(temperature):
        proba = np.exp(log_proba / temperature)
        return log_loss(y_val, proba / proba.sum(axis=1, keepdims=True))

    lowest = min(map(loss, np.geomspace(0.2, 20, 400)))
    # The search of the temperature prefers those near 1 a little.
    assert lowest - 1e-6 < watched(clf).min() < lowest + 0.02
    assert np.all(watched(clf) < np.array(clf.validation_loss_curve_) + 1e-6)


def test_weights_count(split):
    X, y, X_val, y_val = split
    weight = np.where(y_val == "benign", 1.0, 0.0)
    clf = MoEClassifier(n_experts=2, max_iter=3, early_stopping="accuracy", random_state=0)
    clf.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weight)
    own = y_val == "benign"
    assert np.isclose(-watched(clf).min(), clf.score(X_val[own], y_val[own]))


def test_errors(split):
    X, y, X_val, y_val = split
    one_class = X, y, X_val[y_val == "benign"], y_val[y_val == "benign"]
    with (
        pytest.raises(ValueError, match="early_stopping='roc_auc' gives the score nan"),
        pytest.warns(UserWarning, match="Only one class"),
    ):
        fit(one_class, "roc_auc")
    with pytest.raises(ValueError, match=r"'early_stopping' parameter.*Got 'loss'"):
        fit(split, "loss")
    with pytest.raises(ValueError, match=r"early_stopping='f1' can't score .* pos_label=1"):
        fit(split, "f1")
    clf = MoEClassifier(early_stopping="accuracy")
    with pytest.raises(ValueError, match="does not support early_stopping='accuracy'"):
        clf.partial_fit(X, y, classes=np.unique(y))
