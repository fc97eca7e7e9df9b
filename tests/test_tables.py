import pickle
from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from sklearn_moe import KMeansGate, MoEClassifier, TableEncoder, cross_validate, distill, tune
from sklearn_moe.containers import SparseRows

pytestmark = pytest.mark.smoke


def make(**params):
    return MoEClassifier(
        **{"n_experts": 3, "batch_size": 100, "max_iter": 3, "random_state": 0, **params}
    )


@pytest.fixture(scope="module")
def table():
    """A frame of all kinds of columns, and a target that needs numbers and categories."""
    rng = np.random.RandomState(0)
    n = 300
    colour = rng.choice(["blue", "green", "red"], n)
    size = rng.normal(1e6, 1e3, n)
    X = pd.DataFrame(
        {
            "size": np.where(rng.uniform(size=n) < 0.1, np.nan, size),
            "colour": pd.Categorical(colour),
            "town": np.where(rng.uniform(size=n) < 0.1, None, rng.choice(["Bonn", "Ulm"], n)),
            "rooms": rng.randint(1, 5, n),
            "new": rng.uniform(size=n) < 0.5,
        }
    )
    y = np.where((size > 1e6) ^ (colour == "red"), "yes", "no")
    return X, y


def test_frames_as_they_come(table):
    X, y = table
    clf = make(max_iter=40).fit(X, y)
    assert clf.score(X, y) > 0.9
    assert clf.n_features_in_ == 5 and clf.feature_names_in_.tolist() == X.columns.tolist()
    assert clf.encoder_.is_categorical_.tolist() == [False, True, True, False, False]
    again = pickle.loads(pickle.dumps(clf))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(X[X.columns[::-1]])


def test_polars_and_pandas_agree(table):
    X, y = table
    frame = pl.from_pandas(X)
    clf, other = make().fit(X, y), make().fit(frame, y)
    assert np.array_equal(clf.predict_proba(X), other.predict_proba(frame))
    assert np.array_equal(clf.predict_proba(frame), other.predict_proba(X))


def test_nullable_columns_agree_with_plain_ones(table):
    X, y = table
    nullable = X.astype({"town": "string", "rooms": "Int64", "size": "Float64", "new": "boolean"})
    assert nullable["town"].isna().any() and nullable["size"].isna().any()
    expected = make().fit(X, y).predict_proba(X)
    assert np.array_equal(make().fit(nullable, y).predict_proba(nullable), expected)
    as_category = nullable.astype({"town": "category"})
    assert np.array_equal(make().fit(as_category, y).predict_proba(as_category), expected)


@pytest.mark.parametrize(
    "categorical_features", [["colour", "town"], [1, 2], [False, True, True, False, False]]
)
def test_categories_by_name_position_and_mask(categorical_features, table):
    X, y = table
    expected = make().fit(X, y).predict_proba(X)
    clf = make(categorical_features=categorical_features)
    assert np.array_equal(clf.fit(X, y).predict_proba(X), expected)
    if categorical_features != ["colour", "town"]:
        array = X.to_numpy(dtype=object)
        assert np.array_equal(clone(clf).fit(array, y).predict_proba(array), expected)


def test_categories_of_a_numeric_array():
    rng = np.random.RandomState(0)
    X = rng.randint(0, 6, size=(200, 2)).astype(float)
    y = np.isin(X[:, 0], (0, 3, 4))
    X[:5, 0] = np.nan
    clf = make(categorical_features=[0], max_iter=20).fit(X, y)
    assert clf.encoder_.categories_[0] == [0, 1, 2, 3, 4, 5, None]
    assert clf.score(X, y) > 0.95 > make(max_iter=20).fit(X, y).score(X, y) - 0.2


@pytest.mark.parametrize(
    "categorical_features, message",
    [
        (["price"], "'price', but the columns of X are"),
        ([7], "positions from 0 to 4"),
        ([True, False], "mask of shape"),
        ([1.5], "names or of positions"),
        ("dtype", "'categorical_features' parameter"),
    ],
)
def test_wrong_categorical_features(categorical_features, message, table):
    with pytest.raises(ValueError, match=message):
        make(categorical_features=categorical_features).fit(*table)


def test_what_has_no_encoder_says_what_to_do(table, digits):
    X, y = table
    with pytest.raises(ValueError, match=r"'colour' of X holds '.*'. .* Leave encoder='auto'"):
        make(encoder=None).fit(X[["colour"]], y)
    with pytest.raises(ValueError, match=r"string to float: .*'blue'.*Leave encoder='auto'"):
        make(encoder=None).fit(np.array([["blue"], ["1"]]), [0, 1])
    with pytest.raises(ValueError, match="categorical_features needs a table and encoder"):
        make(encoder=None, categorical_features=[0]).fit(X[["size"]], y)
    with pytest.raises(ValueError, match="'table' is for tables, got images"):
        make(encoder="table").fit(digits[0].reshape(-1, 8, 8), digits[1])
    times = X.assign(since=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match=r"Column 'since' of X holds .*make numbers of times"):
        make().fit(times, y)
    with pytest.raises(ValueError, match=r"data frame of shape \(0, 5\)"):
        make().fit(X[:0], y[:0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make().fit(X, y[:-1])
    with pytest.raises(ValueError, match="'max_categories' parameter of TableEncoder"):
        make(encoder=TableEncoder(max_categories=1)).fit(X, y)


def test_unseen_and_missing_values_at_predict(table):
    X, y = table
    clf = make().fit(X[["colour", "rooms"]], y)
    odd = pd.DataFrame({"colour": ["violet", None, "red"], "rooms": [1, np.nan, 2.5]})
    assert np.isfinite(clf.predict_proba(odd)).all()
    encoded = clf.encoder_.transform(odd)
    assert (encoded[:2, -3:] == 0).all() and encoded[2, -3:].sum() == 1
    mean = X["rooms"].mean()
    filled = odd.assign(rooms=[1, mean, 2.5])
    np.testing.assert_allclose(clf.encoder_.transform(filled), encoded, atol=1e-6)


def test_outliers_and_offsets_do_no_harm():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 3))
    y = X[:, 0] > 0
    plain = make(max_iter=20).fit(X, y)
    shifted = X * [1e-6, 1e3, 1] + [1e3, -1e9, 0]
    assert np.mean(make(max_iter=20).fit(shifted, y).predict(shifted) == plain.predict(X)) > 0.98
    X[0, 1] = 1e12
    assert np.isfinite(make().fit(X, y).predict_log_proba(X)).all()
    assert np.abs(plain.encoder_.transform(X * 1e6)).max() <= 3


def test_hat_functions_by_hand():
    X = np.repeat(np.linspace(0, 7, 141), 4)[:, None]
    clf = make(encoder=TableEncoder(n_knots=8), max_iter=1).fit(X, X[:, 0] > 3)
    encoded = clf.encoder_.transform(np.array([[0.0], [2.25], [7.0], [9.0]]))
    expected = np.zeros((4, 8))
    expected[0, 0] = expected[2:, 7] = 1  # beyond the ends as at the ends
    expected[1, 2:4] = 0.75, 0.25
    np.testing.assert_allclose(encoded[:, 1:], expected, atol=0.03)  # outliers are drawn in


@pytest.mark.parametrize(
    "n_samples, n_columns, n_hats", [(150, 3, 21), (149, 3, 0), (5050, 101, 0), (5000, 100, 700)]
)
def test_automatic_hat_functions(n_samples, n_columns, n_hats):
    X = np.random.RandomState(0).normal(size=(n_samples, n_columns))
    with_few = np.c_[X, np.arange(n_samples) % 4]  # a column of four values never has any
    clf = make(max_iter=1).fit(with_few, X[:, 0] > 0)
    assert clf.encoder_.transform(with_few).shape[1] == n_columns + 1 + n_hats
    none = make(encoder=TableEncoder(n_knots=None), max_iter=1).fit(with_few, X[:, 0] > 0)
    assert none.encoder_.transform(with_few).shape[1] == n_columns + 1


def test_hat_functions_help_where_a_column_oscillates():
    rng = np.random.RandomState(0)
    X = rng.uniform(size=(1500, 2))
    y = (np.sin(20 * X[:, 0]) > 0) ^ (X[:, 1] > 0.5)
    score = {
        n_knots: make(encoder=TableEncoder(n_knots=n_knots), max_iter=20)
        .fit(X[:1000], y[:1000])
        .score(X[1000:], y[1000:])
        for n_knots in (None, 16)
    }
    assert score[16] > 0.9 and score[16] > score[None] + 0.1


def test_only_what_is_trained_on_is_looked_at(table):
    X, y = table
    weight = np.ones(300)
    weight[:50] = 0
    odd = X.copy()
    odd.loc[:49, "size"] = 1e12
    odd.loc[:49, "town"] = "Rome"
    expected = make().fit(X[50:], y[50:]).predict_proba(X)
    assert np.array_equal(make().fit(odd, y, sample_weight=weight).predict_proba(X), expected)
    validated = make().fit(X[50:], y[50:], X_val=odd[:50], y_val=y[:50])
    assert np.array_equal(validated.predict_proba(X), expected)
    assert len(make(early_stopping=True).fit(X, y).validation_loss_curve_) > 0


def test_weights_count_as_repetitions(iris):
    X, y = iris
    weight = 1 + np.arange(150) % 3
    rows = np.repeat(np.arange(150), weight)
    clf = make(encoder=TableEncoder(n_knots=5), batch_size=1000)
    weighted = clone(clf).fit(X, y, sample_weight=weight).predict_proba(X)
    repeated = clone(clf).fit(X[rows], y[rows]).predict_proba(X)
    np.testing.assert_allclose(weighted, repeated, atol=1e-4)


def test_the_raw_frame_is_as_good_as_a_pipeline(table):
    X, y = table
    columns = make_column_transformer(
        (OneHotEncoder(), ["colour", "town"]), remainder="passthrough"
    )
    by_hand = make_pipeline(columns, make(max_iter=20))
    raw = cross_val_score(make(max_iter=20), X, y, cv=3).mean()
    assert raw > cross_val_score(by_hand, X, y, cv=3).mean() - 0.03


def test_a_chunk_keeps_the_encoder_of_the_first(table):
    X, y = table
    clf = make().partial_fit(X[:100], y[:100], classes=["no", "yes"])
    before = clf.encoder_.transform(X)
    clf.partial_fit(X[100:], y[100:])
    assert np.array_equal(clf.encoder_.transform(X), before)
    clf = make(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="cannot change encoder"):
        clf.set_params(encoder=None).fit(X, y)


def test_rare_classes(table):
    X = table[0]
    y = np.where(np.arange(300) < 5, "rare", table[1])
    clf = make(early_stopping=True).fit(X, y)
    assert clf.predict_proba(X).shape == (300, 3)
    assert np.isfinite(cross_validate(make(), X, y, cv=3)["test_score"]).all()


def test_helpers_take_frames(table):
    X, y = table
    teacher = make(gate="attentive").fit(X, y)
    student = distill(teacher, X, y)
    assert student.score(X, y) > teacher.score(X, y) - 0.1
    search = tune(make(), X, y, n_trials=2, cv=2, random_state=0)
    assert search.predict(X).shape == (300,)


def naive_encoding(encoder, X):
    """Encode a frame value by value, as the documentation of the encoder says."""
    columns = {"numbers": [], "missing": [], "hats": [], "categories": []}
    names = {kind: [] for kind in columns}
    numbers = [name for name, no in zip(X, encoder.is_categorical_, strict=True) if not no]
    for j, name in enumerate(numbers):
        value = X[name].to_numpy(dtype=float, na_value=np.nan)
        z = (value - encoder.mean_[j]) / encoder.scale_[j]
        squashed = np.where(np.isnan(value), 0, z / np.sqrt(1 + (z / 3) ** 2))
        columns["numbers"].append(squashed)
        names["numbers"].append(name)
        if encoder.has_missing_[j]:
            columns["missing"].append(np.isnan(value))
            names["missing"].append(f"{name}_missing")
        knots = encoder.knots_[j]
        for k in range(len(knots)):
            columns["hats"].append(np.interp(squashed, knots, np.eye(len(knots))[k]))
            names["hats"].append(f"{name}_hat{k}")
    categorical = [name for name, yes in zip(X, encoder.is_categorical_, strict=True) if yes]
    for name, levels in zip(categorical, encoder.categories_, strict=True):
        for level in levels:
            is_it = X[name].isna() if level is None else X[name].astype(str) == str(level)
            columns["categories"].append(is_it)
            names["categories"].append(f"{name}_{'missing' if level is None else level}")
    stacked = [column for kind in columns.values() for column in kind]
    return np.column_stack(stacked), [name for kind in names.values() for name in kind]


def test_the_layer_is_what_the_documentation_says(mixed_table):
    X, y = mixed_table
    clf = make(encoder=TableEncoder(n_knots=5)).fit(X, y)
    expected, names = naive_encoding(clf.encoder_, X)
    encoded = clf.encoder_.transform(X)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, expected, atol=1e-5)
    assert clf.encoder_.get_feature_names_out(X.columns).tolist() == names
    with torch.no_grad():
        seen = clf.module_.encode(torch.as_tensor(clf.encoder_.read(X)))
    assert np.array_equal(seen, encoded)
    with pytest.raises(ValueError, match="must hold 6 names"):
        clf.encoder_.get_feature_names_out(["a"])


def floats():
    X = np.random.RandomState(0).normal(size=(600, 6))
    return X, X[:, 0] > X[:, 1]


def test_names_of_a_table_without_names():
    X, y = floats()
    clf = make().fit(X, y)
    names = clf.encoder_.get_feature_names_out()
    assert names[0] == "x0" and names[6] == "x0_hat0" and len(set(names)) == len(names)
    assert len(names) == clf.encoder_.transform(X).shape[1] > 40


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_of_floats_is_read_in_place(dtype):
    X, y = floats()
    X = X.astype(dtype)
    clf = make().fit(X, y)
    assert np.shares_memory(clf.reader_.read(X, clf), X)


def test_sparse_rows_become_dense_in_batches(digits, monkeypatch):
    X, y = digits
    dense = make(batch_size=100).fit(X, y)
    sizes = []
    to_array = SparseRows.__getitem__

    def noted(self, rows):
        part = to_array(self, rows)
        sizes.append(len(part) if isinstance(part, np.ndarray) else 0)
        return part

    monkeypatch.setattr(SparseRows, "__getitem__", noted)
    monkeypatch.setattr("sklearn_moe.tables.NUMBERS_OF_PIECE", 6400)
    clf = make(batch_size=100).fit(csr_array(X), y)
    proba = clf.predict_proba(csr_array(X))
    assert np.array_equal(proba, dense.predict_proba(X))
    assert max(sizes) < len(X)
    with pytest.raises(ValueError, match="Column 3 of X contains infinity"):
        broken = X.copy()
        broken[0, 3] = np.inf
        make().fit(csr_array(broken), y)


@pytest.mark.parametrize("max_samples", [50, 20000])
def test_clusters_of_sparse_rows(max_samples, digits):
    X, y = digits[0][:600], digits[1][:600]
    clf = make(gate=KMeansGate(max_samples=max_samples), max_iter=2)
    expected = clf.fit(X, y).predict_proba(X)
    assert np.array_equal(clf.fit(csr_array(X), y).predict_proba(X), expected)
