"""What users pass as X: any container, any type, and what cannot be read."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from sklearn_moe import MoEClassifier
from sklearn_moe.quantiles import choose_knots, inner_range


def make(**params):
    defaults = {"n_experts": 3, "max_iter": 2, "batch_size": 200, "random_state": 0}
    return MoEClassifier(**{**defaults, **params})


NAMES = list("abcdef")


@pytest.fixture(scope="module")
def halves(table):
    """Values that float16 holds exactly, many enough for hat functions."""
    X, y = table
    return np.round(X * 4) / 4, y


@pytest.fixture(scope="module")
def expected(halves):
    clf = make().fit(*halves)
    assert sum(map(len, clf.encoder_.knots_)) > 6 * 5  # the default path is on
    return clf.predict_proba(halves[0])


def strided(X):
    wide = np.zeros((2 * len(X), 2 * X.shape[1]))
    wide[::2, ::2] = X
    return wide[::2, ::2]


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


CONTAINERS = {
    "list": np.ndarray.tolist,
    "F": np.asfortranarray,
    "strided": strided,
    "read-only": read_only,
    "float16": lambda X: X.astype(np.float16),
    "float32": lambda X: X.astype(np.float32),
    "float32, F": lambda X: np.asfortranarray(X, dtype=np.float32),
    "longdouble": lambda X: X.astype(np.longdouble),
    "big-endian": lambda X: X.astype(">f8"),
    "object": lambda X: X.astype(object),
    "CSR": sparse.csr_array,
    "CSC, float32": lambda X: sparse.csc_matrix(X.astype(np.float32)),
    "pandas": lambda X: pd.DataFrame(X, columns=NAMES),
    "pandas, float32": lambda X: pd.DataFrame(X, columns=NAMES, dtype=np.float32),
    "pandas, one float16": lambda X: pd.DataFrame(X, columns=NAMES).astype({"a": "float16"}),
    "pandas, nullable": lambda X: pd.DataFrame(X, columns=NAMES).astype("Float64"),
    "pandas, pyarrow": lambda X: pd.DataFrame(X, columns=NAMES).astype("double[pyarrow]"),
    "pandas, object": lambda X: pd.DataFrame(X, columns=NAMES).astype(object),
    "pandas, sparse": lambda X: pd.DataFrame.sparse.from_spmatrix(
        sparse.csr_array(X), columns=NAMES
    ),
    "polars": lambda X: pl.DataFrame(X, schema=NAMES),
    "polars, float32": lambda X: pl.DataFrame(X.astype(np.float32), schema=NAMES),
    "polars, lazy": lambda X: pl.LazyFrame(X, schema=NAMES),
    "pyarrow": lambda X: pa.table(dict(zip(NAMES, X.T, strict=True))),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_equal_values_give_equal_mixtures(container, halves, expected):
    X, y = halves
    held = CONTAINERS[container](X)
    proba = make().fit(held, y).predict_proba(held)
    np.testing.assert_allclose(proba, expected, atol=1e-6)
    if proba.dtype == np.float64:
        assert np.array_equal(proba, expected)


def test_memory_maps_and_dask(halves, expected, tmp_path):
    X, y = halves
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.array_equal(make().fit(mapped, y).predict_proba(mapped), expected)
    dask = pytest.importorskip("dask.dataframe")
    frame = dask.from_pandas(pd.DataFrame(X, columns=NAMES), npartitions=2)
    clf = make().fit(frame, y)
    assert np.array_equal(clf.predict_proba(frame), expected)
    assert clf.feature_names_in_.tolist() == NAMES


@pytest.mark.parametrize("kind", ["int8", "int64", "uint8", "bool", "Int64", "boolean"])
def test_whole_numbers(kind, table):
    X, y = table
    X = np.clip(np.round(X * 3), 0, 1 if "bool" in kind else 9)
    expected = make().fit(X, y).predict_proba(X)
    held = pd.DataFrame(X).astype(kind) if kind[0] in "Ib" and kind != "bool" else X.astype(kind)
    if isinstance(held, pd.DataFrame):
        held.columns = NAMES
    proba = make().fit(held, y).predict_proba(held)
    assert proba.dtype == np.float64 and np.array_equal(proba, expected)


@pytest.mark.parametrize("encoder", ["auto", None])
def test_precision_of_probabilities(encoder, table):
    X, y = table
    clf = make(encoder=encoder).fit(X, y)
    single = X.astype(np.float32)
    for given, kind in [(X, np.float64), (X.tolist(), np.float64), (single, np.float32)]:
        proba, gate_proba = clf.predict_proba(given), clf.gate_proba(given)
        assert proba.dtype == gate_proba.dtype == clf.predict_log_proba(given).dtype == kind
        of_experts = clf.expert_proba(given)
        assert of_experts.dtype == kind
        np.testing.assert_allclose(
            np.einsum("ne,nec->nc", gate_proba, of_experts), proba, atol=1e-6
        )
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=0, atol=1e-15)
    assert proba.max() <= 1
    np.testing.assert_allclose(clf.predict_log_proba(X), np.log(proba), atol=1e-5)


def test_a_sure_mistake_costs_what_it_should():
    X = np.repeat([[-1.0], [1.0]], 200, axis=0)
    y = np.repeat([0, 1], 200)
    clf = make(max_iter=40, learning_rate=0.5, weight_decay=0, regularization=None).fit(X, y)
    assert log_loss(1 - y, clf.predict_proba(X)) > 20


# Categories


@pytest.fixture(scope="module")
def coloured():
    rng = np.random.RandomState(0)
    colour = rng.choice(["red", "green", "blue"], 200).astype(object)
    size = rng.choice([1.0, 2.0, 7.0], 200)
    y = (colour == "red") ^ (size > 1)
    colour[::9] = None
    number = rng.normal(size=200)
    return pd.DataFrame({"colour": colour, "number": number, "size": size}), y


COLOURED = {
    "object": lambda X: X.astype(object),
    "string": lambda X: X.astype({"colour": "string"}),
    "pyarrow": lambda X: X.astype({"colour": "string[pyarrow]"}),
    "category": lambda X: X.astype({"colour": "category"}),
    "ordered": lambda X: X.assign(colour=pd.Categorical(X["colour"], ordered=True)),
    "polars": pl.from_pandas,
    "polars, categorical": lambda X: pl.from_pandas(X).with_columns(
        pl.col("colour").cast(pl.Categorical)
    ),
    "pyarrow, dictionary": lambda X: pa.Table.from_pandas(X.astype({"colour": "category"})),
    "array": lambda X: X.astype(object).to_numpy(),
    "array with NA": lambda X: X.astype(object).fillna(pd.NA).to_numpy(),
    "list": lambda X: X.astype(object).to_numpy().tolist(),
}


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("container", COLOURED)
def test_equal_categories_give_equal_mixtures(container, coloured):
    X, y = coloured
    clf = make().fit(X, y)
    expected = clf.predict_proba(X)
    held = COLOURED[container](X)
    assert np.array_equal(make().fit(held, y).predict_proba(held), expected)
    assert np.array_equal(clf.predict_proba(held), expected)  # asked for in another container


@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names")
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_numbers_as_categories_whatever_holds_them(missing):
    rng = np.random.RandomState(0)
    kind = rng.randint(0, 3, 120)
    number = rng.normal(size=120)
    objects = np.c_[kind, number].astype(object)
    objects[::7, 0] = missing
    floats = np.where(
        np.arange(120)[:, None] % 7 * [1, 0] + [0, 1] > 0, np.c_[kind, number], np.nan
    )
    frame = pd.DataFrame({"k": pd.array(kind, dtype="Int64"), "x": number})
    frame.loc[::7, "k"] = pd.NA
    with_nulls = pl.DataFrame(
        {"k": [None if i % 7 == 0 else k for i, k in enumerate(kind.tolist())], "x": number}
    )
    clf = make(categorical_features=[0])
    expected = clf.fit(floats, kind == 1).predict_proba(floats)
    dictionary = with_nulls.to_arrow()
    dictionary = dictionary.set_column(0, "k", dictionary["k"].dictionary_encode())
    for held in (objects, frame, frame.astype({"k": "category"}), with_nulls, dictionary):
        assert np.array_equal(clf.predict_proba(held), expected)
        other = make(categorical_features=[0]).fit(held, kind == 1)
        assert np.array_equal(other.predict_proba(floats), expected)


def test_numbers_of_less_precision_are_the_same_categories():
    kind = np.random.RandomState(0).choice([0.1, 0.2, 0.7, np.nan], 120)
    X, y = np.c_[kind, np.zeros(120)], (kind > 0.15).astype(int)
    clf = make(max_iter=30, categorical_features=[0]).fit(X, y)
    expected = clf.predict_proba(X)
    assert clf.score(X, y) == 1
    for first in (np.float64, np.float32, np.float16):
        clf.fit(X.astype(first), y)
        assert clf.encoder_.categories_[0] == [0.1, 0.2, 0.7, None]
        for later in (X, X.astype(np.float32)):
            np.testing.assert_allclose(clf.predict_proba(later), expected, atol=1e-6)
            for frame in (pd.DataFrame(later), pl.DataFrame(later)):
                assert np.array_equal(clf.encoder_.transform(frame), clf.encoder_.transform(X))


def test_thirds_and_long_numbers_as_categories():
    X = np.array([[1 / 3], [2 / 3], [123456789.0], [123456792.0]] * 20)
    clf = make(categorical_features=[0]).fit(X, [0, 1, 1, 0] * 20)
    encoded = clf.encoder_.transform(X[:4])
    assert np.array_equal(encoded, np.eye(4))
    assert np.array_equal(clf.encoder_.transform(X[:2].astype(np.float32)), encoded[:2])
    assert clf.encoder_.transform([[123456791.0]]).sum() == 0


def test_text_that_is_a_number():
    y = np.arange(60) % 2
    text = pd.DataFrame({"k": ["1", "2", "x", None] * 15})
    numbers = pd.DataFrame({"k": [1, 2, 3] * 20})
    of_text = make().fit(text, y)
    of_numbers = make(categorical_features=["k"]).fit(numbers, y)
    expected = of_text.encoder_.transform(text)
    for later in ([1, 2], [1.0, 2.0], np.array([1, 2], dtype=np.float32), ["1.0", "2.0"]):
        frame = pd.DataFrame({"k": later})
        assert np.array_equal(of_text.encoder_.transform(frame), expected[:2])
    new = pd.DataFrame({"k": ["y", "nan", 3, None]})
    assert of_text.encoder_.transform(new).sum(axis=1).tolist() == [0, 0, 0, 1]
    expected = of_numbers.encoder_.transform(numbers)
    for later in (["1", "2"], ["1.0", "2.0"], [np.float32(1), "2"]):
        frame = pd.DataFrame({"k": later})
        assert np.array_equal(of_numbers.encoder_.transform(frame), expected[:2])
    with pytest.warns(UserWarning, match="has the category 'nan' for the first time"):
        of_numbers.partial_fit(pd.DataFrame({"k": ["1", "nan"] * 30}), y)
    both = make().fit(pd.DataFrame({"k": [1, "1", "01"] * 20}), y)
    assert both.encoder_.categories_ == [[1.0, "01", "1"]]
    later = pd.DataFrame({"k": [1, "1", "01", "1.0"]})
    assert both.encoder_.transform(later).argmax(axis=1).tolist() == [0, 2, 1, 0]


def test_mixed_columns_are_categories(coloured):
    X, y = coloured
    mixed = X.assign(size=[int(size) if size < 5 else "many" for size in X["size"]])
    clf = make(max_iter=40).fit(mixed, y)
    assert clf.encoder_.is_categorical_.tolist() == [True, False, True]
    assert clf.encoder_.categories_[1] == [1.0, 2.0, "many"]
    assert clf.score(mixed, y) > 0.8
    bins = X.assign(size=pd.cut(X["size"], [0, 1, 5, 9]))
    assert len(make().fit(bins, y).encoder_.categories_[1]) == 3


@pytest.mark.parametrize(
    "column, message",
    [
        (pd.period_range("2020", periods=60, freq="D"), r"'odd' .*Period"),
        (pd.interval_range(0, 60), r"'odd' .*Interval"),
        ([datetime.date(2020, 1, 1)] * 60, r"'odd' .*datetime.date"),
        (pd.date_range("2020", periods=60), r"'odd' of X holds Datetime.*make numbers of times"),
        (pd.to_timedelta(range(60)), r"'odd' of X holds Duration"),
        ([[1, 2]] * 60, r"'odd' .*\[1, 2\]"),
        ([1j] * 60, r"'odd' .*1j"),
        ([*range(59), np.inf], "'odd' of X contains infinity"),
        ([*range(59), object()], "'odd' .*<object object"),
    ],
)
def test_columns_that_cannot_be_read_are_named(column, message):
    X = pd.DataFrame({"fine": np.arange(60.0), "odd": column})
    with pytest.raises(ValueError, match=f"Column {message}"):
        make().fit(X, np.arange(60) % 2)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_text_in_a_column_of_numbers(table):
    X = pd.DataFrame(table[0][:, :2], columns=["a", "b"])
    clf = make(max_iter=1).fit(X, table[1])
    with pytest.raises(ValueError, match="Column 'b' of X is a column of numbers and holds 'x'"):
        clf.predict(pd.DataFrame({"a": [1.0], "b": ["x"]}))
    with pytest.raises(ValueError, match="Column 1 of X is a column of numbers and holds 'x'"):
        clf.predict([[1.0, "x"]])
    assert np.array_equal(clf.predict_proba([["1", "2.5"]]), clf.predict_proba([[1.0, 2.5]]))
    with pytest.raises(ValueError, match=r"Complex data not supported.*features of their own"):
        clf.predict(np.array([[1.0, 1j]]))


@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names")
def test_meta_estimators_that_make_arrays_of_frames(coloured):
    X, y = coloured
    bagging = BaggingClassifier(make(max_iter=20), n_estimators=2, random_state=0).fit(X, y)
    assert bagging.score(X, y) > 0.8


# Sparse matrices


def test_sparse_parts_of_pipelines(coloured):
    X, y = coloured
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=True), ["colour", "size"]), sparse_threshold=1.0
    )
    assert make_pipeline(columns, make(max_iter=20)).fit(X, y).score(X, y) > 0.8
    words = X["colour"].fillna("grey") + X["size"].map({1: " small", 2: " middling", 7: " large"})
    texts = words.tolist()
    clf = make_pipeline(TfidfVectorizer(), make(max_iter=20)).fit(texts, y)
    assert clf.score(texts, y) > 0.8
    images_not = sparse.csr_array(np.eye(4))
    assert make(encoder=None).fit(images_not, [0, 1, 0, 1]).predict(images_not).shape == (4,)


# Extreme values


def test_huge_values_stay_at_the_end(table):
    X = table[0]
    clf = make(max_iter=40).fit(X, X[:, 0] > 0)
    far = np.zeros((4, 6))
    far[:, 0] = 1e3, 1e20, 1e200, 1.7e308
    proba = clf.predict_proba(far)[:, 1]
    assert proba.min() > 0.9 and np.ptp(proba) < 0.01
    assert clf.predict_proba(-far)[:, 1].max() < 0.1


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e155, 1e300])
def test_columns_of_any_scale(scale, table):
    X, y = table
    expected = make(max_iter=10).fit(X, y).predict(X)
    assert np.mean(make(max_iter=10).fit(X * scale, y).predict(X * scale) == expected) > 0.98
    single = np.clip(scale, 1e-44, 1e30) * X
    assert np.isfinite(make().fit(single.astype(np.float32), y).predict_proba(X)).all()


def test_small_differences_of_large_numbers(table):
    X, y = table
    expected = make(max_iter=10, batch_size="auto").fit(X, y).predict_proba(X)
    shifted = X + 1e9
    np.testing.assert_allclose(
        make(max_iter=10, batch_size="auto").fit(shifted, y).predict_proba(shifted),
        expected,
        atol=1e-3,
    )


def test_columns_without_values_are_silent(table):
    X, y = table[0].copy(), table[1]
    X[:, 0], X[:, 1] = np.nan, 3.0
    clf = make().fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()
    assert clf.encoder_.has_missing_.tolist() == [True] + 5 * [False]


@pytest.mark.parametrize("share_of_zeros", [0.3, 0.6, 0.9, 0.97])
def test_hat_functions_are_continuous_at_ties(share_of_zeros):
    rng = np.random.RandomState(0)
    X = np.where(rng.uniform(size=(1000, 2)) < share_of_zeros, 0, rng.exponential(size=(1000, 2)))
    clf = make().fit(X, X[:, 0] > 0.1)
    knots = clf.encoder_.knots_[0]
    assert len(knots) >= 2 and (np.diff(knots) > 0).all()
    encoded = clf.encoder_.transform(np.c_[[0, 1e-12, -1e-12, 1, 1 + 1e-12], np.zeros(5)])
    np.testing.assert_allclose(encoded[[0, 0, 3]], encoded[[1, 2, 4]], atol=1e-6)
    grid = np.linspace(-1, 5, 2001)
    hats = clf.encoder_.transform(np.c_[grid, np.zeros(2001)])[:, 2 : 2 + len(knots)]
    np.testing.assert_allclose(hats.sum(axis=1), 1, atol=1e-6)
    single = X.astype(np.float32)
    np.testing.assert_allclose(
        clf.encoder_.transform(single), clf.encoder_.transform(X), atol=1e-4
    )


HEAVY = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "t 1.5": lambda rng, shape: rng.standard_t(1.5, shape),
    "t 1": lambda rng, shape: rng.standard_t(1, shape),
    "t 0.5": lambda rng, shape: rng.standard_t(0.5, shape),
    "lognormal": lambda rng, shape: np.exp(8 * rng.normal(size=shape)),
    "with zeros": lambda rng, shape: np.where(
        rng.uniform(size=shape) < 0.7, 0, np.exp(8 * rng.normal(size=shape))
    ),
    "outliers": lambda rng, shape: np.r_[[[1e12] * shape[1]], rng.normal(size=shape)],
}


@pytest.mark.parametrize("kind", HEAVY)
def test_heavy_tails_in_single_and_double_precision(kind):
    X = HEAVY[kind](np.random.RandomState(0), (600, 3))
    single = X.astype(np.float32)
    y = X[:, 0] > np.median(X[:, 0])
    one, other = make(max_iter=1).fit(X, y), make(max_iter=1).fit(single, y)
    np.testing.assert_allclose(one.encoder_.scale_, other.encoder_.scale_, rtol=1e-6)
    assert list(map(len, one.encoder_.knots_)) == list(map(len, other.encoder_.knots_))
    encoded = one.encoder_.transform(X)
    np.testing.assert_allclose(encoded, other.encoder_.transform(single), atol=1e-4)
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(X), atol=1e-4)
    one, other = make(max_iter=10).fit(X, y), make(max_iter=10).fit(single, y)
    proba = one.predict_proba(X)
    np.testing.assert_allclose(one.predict_proba(single), proba, atol=1e-4)
    assert one.score(X, y) > 0.85
    # Long trainings magnify the rounding of the data, also where columns are normal.
    assert np.abs(other.predict_proba(single) - proba).mean() < 1e-4
    for column in range(3):
        order = np.argsort(X[:, column])
        z = (X[order, column] - one.encoder_.mean_[column]) / one.encoder_.scale_[column]
        squashed, risen = z / np.hypot(1, z / 3), encoded[order, column].astype(float)
        assert (np.diff(risen) >= -1e-6).all()
        assert (np.diff(risen)[np.diff(squashed) > 1e-6] > 0).all()


@pytest.fixture(scope="module", params=[100, 600])
def normal(request):
    """Normal samples, the first of which are for the training, and the score of the others."""
    n_samples, X = request.param, np.random.RandomState(0).normal(size=(2000, 6))
    y = X[:, 0] > 0
    clf = make(max_iter=10).fit(X[:n_samples], y[:n_samples])
    return n_samples, X, y, clf.score(X[n_samples:], y[n_samples:])


@pytest.mark.parametrize("outlier", [1e3, -1e8, 1e100, 1e154, -1e200, 1.7e308])
def test_one_outlier_in_training_leaves_a_column_alone(outlier, normal):
    n_samples, X, y, expected = normal
    train, test = slice(n_samples), slice(n_samples, None)
    Z = X.copy()
    Z[5, 0] = outlier
    clf = make(max_iter=10).fit(Z[train], y[train])
    assert clf.score(X[test], y[test]) > expected - 0.04
    if abs(outlier) < 1e300:
        clf.fit(Z[train] * 1e-200, y[train])
        assert clf.score(X[test] * 1e-200, y[test]) > expected - 0.04


@pytest.mark.parametrize(
    "ordinary",
    [
        lambda rng, n: rng.normal(size=n) + 1e4,
        lambda rng, n: np.where(rng.uniform(size=n) < 0.95, 0, rng.exponential(size=n)),
        lambda rng, n: (rng.uniform(size=n) < 0.4).astype(float),
        lambda rng, n: rng.randint(0, 4, n).astype(float),
    ],
)
@pytest.mark.parametrize("weight", [None, 3.0])
def test_an_outlier_does_not_count_in_the_scale(ordinary, weight):
    column = ordinary(np.random.RandomState(0), 600)
    with_outlier = np.r_[column, 1e12][:, None]
    weight = None if weight is None else np.full(601, weight)
    one = make(max_iter=1).fit(column[:, None], np.arange(600) % 2).encoder_
    other = make(max_iter=1).fit(with_outlier, np.arange(601) % 2, weight).encoder_
    assert 0.5 < other.scale_[0] / one.scale_[0] < 2
    assert abs(other.mean_ - one.mean_) < 0.1 * one.scale_


def test_rare_values_and_rounding_are_no_outliers():
    rare = np.zeros(1000)
    rare[:10] = np.arange(10) + 5.0  # a hundredth of the rows
    rounded = np.where(np.arange(1000) % 3 == 0, 0.1 + 0.2, 0.3)
    rounded[:5] = 1.0
    far = np.where(np.arange(1000) % 10 == 0, 1e6, np.arange(1000.0))  # a code of its own
    X = np.c_[rare, rounded, far]
    encoder = make(max_iter=1).fit(X, np.arange(1000) % 2).encoder_
    np.testing.assert_allclose(encoder.scale_, X.std(axis=0))


def test_outliers_in_the_first_chunk_of_a_stream():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(3000, 3))
    y = X[:, 0] > 0
    first = X[:100].copy()
    first[[1, 2, 3], [0, 1, 2]] = 1e12
    clf = make().partial_fit(first, y[:100], classes=[False, True])
    for start in range(100, 2000, 100):
        clf.partial_fit(X[start : start + 100], y[start : start + 100])
    assert clf.score(X[2000:], y[2000:]) > 0.9


def test_inner_range_by_hand():
    values = np.arange(1000.0)
    assert inner_range(values, np.ones(1000)) == (10, 989)
    assert inner_range(values[:20], np.ones(20)) == (1, 18)
    assert inner_range(values[:20], np.full(20, 0.5), 0.5) == (1, 18)
    assert inner_range(values[:3], np.ones(3)) == (0, 2)
    assert inner_range(np.array([0, 1, 2, 1e9]), np.array([900, 50, 49, 1])) == (0, 2)


def test_knots_by_hand():
    values = np.arange(100.0)
    assert choose_knots(values, np.ones(100), 5).tolist() == [0, 24, 49, 74, 99]
    assert choose_knots(values, np.r_[1000, np.ones(99)], 5)[:2].tolist() == [0, 33]
    for least, n_knots in ((30, 4), (40, 3), (60, 2), (200, 2)):
        assert len(choose_knots(values, np.r_[1000, np.ones(99)], 5, least / 1099)) == n_knots
    assert choose_knots(values[:4], np.ones(4), 5).tolist() == [0, 1, 2, 3]
    assert choose_knots(np.array([0, 1e-10, 1.0]), np.ones(3), 5).tolist() == [0, 1]


# Images


def test_images_have_the_scale_of_the_training(digits):
    X = (digits[0].reshape(-1, 8, 8)[:200] * 16).astype(np.uint8)
    y = digits[1][:200]
    clf = make(max_iter=5).fit(X, y)
    expected = clf.predict_proba(X)
    for held in (X.tolist(), X.astype(np.int64), X / 255):
        np.testing.assert_allclose(clf.predict_proba(held), expected, atol=1e-6)
    with pytest.raises(ValueError, match="floats up to 16, but the mixture was fitted on bytes"):
        clf.predict(X.astype(float))
    floats = make(max_iter=5).fit(X.astype(float), y)
    np.testing.assert_allclose(
        floats.predict_proba(X), floats.predict_proba(X.astype(float)), atol=1e-6
    )
    fractions = make(max_iter=1).fit(X / 16, y)
    with pytest.raises(ValueError, match=r"whole numbers up to 16.*fitted on numbers from 0 to 1"):
        fractions.predict(X)


def test_masks_are_the_same_in_any_type(digits):
    X = digits[0].reshape(-1, 8, 8) > 0.5
    y = digits[1]
    train, test = slice(500), slice(500, 700)
    kinds = (np.uint8, np.float32, np.int64, bool)
    expected = (
        make(max_iter=10, batch_size="auto")
        .fit(X[train].astype(float), y[train])
        .predict_proba(X[test])
    )
    for kind in kinds:
        clf = make(max_iter=10, batch_size="auto").fit(X[train].astype(kind), y[train])
        assert clf.score(X[test], y[test]) > 0.8
        for other in kinds:
            proba = clf.predict_proba(X[test].astype(other))
            np.testing.assert_allclose(proba, expected, atol=1e-6)
        with pytest.raises(ValueError, match=r"whole numbers up to 255.*fitted on .*from 0 to 1"):
            clf.predict(X[test].astype(np.uint8) * 255)
    flat = make(max_iter=10, batch_size="auto", input_shape=(8, 8)).fit(
        X[train].reshape(-1, 64).astype(np.uint8), y[train]
    )
    assert flat.score(X[test].reshape(-1, 64), y[test]) > 0.8
    # A dark batch of bytes stays one of bytes.
    shades = (digits[0].reshape(-1, 8, 8) * 255).astype(np.uint8)
    clf = make(max_iter=1).fit(shades[train], y[train])
    expected = clf.predict_proba(X[test] / 255)
    for kind in (np.uint8, np.int64):
        np.testing.assert_allclose(clf.predict_proba(X[test].astype(kind)), expected, atol=1e-6)


# What numpy, torch and data frames say of it in words of their own


@pytest.mark.parametrize(
    "column, message",
    [
        (pl.Series([{"a": 1}] * 60), r"{'a': 1}"),
        (pl.Series([[1.0]] * 60, dtype=pl.Array(pl.Float64, 1)), r"\[1.0\]"),
        (pl.Series([b"\xff"] * 60), "b'.xff'"),
    ],
)
def test_columns_of_polars_that_cannot_be_read_are_named(column, message):
    X = pl.DataFrame({"fine": np.arange(60.0), "odd": column})
    with pytest.raises(ValueError, match=f"Column 'odd' of X .*{message}"):
        make().fit(X, np.arange(60) % 2)


@pytest.mark.parametrize("kind", [getattr(pl, "Int128", pl.Int64), pl.Decimal(10, 2)])
def test_numbers_that_numpy_does_not_have(kind, table):
    X = np.round(table[0])
    expected = make().fit(X, table[1]).predict_proba(X)
    held = pl.DataFrame(X, schema=NAMES).with_columns(pl.col("a").cast(kind))
    assert np.array_equal(make().fit(held, table[1]).predict_proba(held), expected)
    objects = X.astype(object)
    objects[0, 0] = Decimal("sNaN")
    assert make().fit(objects, table[1]).encoder_.has_missing_[0]


@pytest.mark.parametrize(
    "make_odd, message",
    [
        (lambda X: pd.DataFrame(X, columns=["a"] * 6), "X is not valid: .* unique column names"),
        (lambda X: torch.tensor(X).to_sparse(), "X is not valid: .*to_dense"),
        (lambda X: torch.tensor(X, requires_grad=True), "X is not valid: .*grad"),
        (lambda X: [[1.0, [2.0]]] * len(X), "X is not valid: "),
        (lambda X: pd.DataFrame(X)[:0], "X is a data frame of shape .* at least one row"),
        (lambda X: pd.DataFrame, "X is not valid: "),
    ],
)
def test_what_cannot_be_read_is_named(make_odd, message, table):
    X, y = table
    with pytest.raises((ValueError, TypeError), match=message):
        make().fit(make_odd(X), y)


@pytest.mark.parametrize("value", [pd.NA, 10**400, [1]])
def test_odd_values_without_an_encoder(value, table):
    X = table[0].astype(object)
    X[0, 0] = value
    with pytest.raises((ValueError, TypeError), match="X is not valid"):
        make(encoder=None).fit(X, table[1])


@pytest.mark.parametrize(
    "column, message",
    [
        ([*range(59), pd.NA], "'odd' of X holds <NA>, which is no number. Leave encoder='auto'"),
        (pd.array([*range(59), None], dtype="Int64"), "'odd' .* Leave encoder='auto'"),
        ([*range(59), np.nan], "'odd' of X holds nan"),
        ([*range(59), "x"], "'odd' of X holds 'x'"),
        (["x", "y"] * 30, "'odd' of X holds 'x'"),
        (pd.Categorical(["x", "y"] * 30), "'odd' of X holds 'x'"),
        (pd.period_range("2020", periods=60, freq="D"), "'odd' .*Period.* numbers of it first"),
        (pd.date_range("2020", periods=60), "'odd' of X holds Datetime.*make numbers of times"),
        (pd.interval_range(0, 60), "'odd' .*Interval"),
        ([[1, 2]] * 60, r"'odd' .*\[1, 2\]"),
        ([1j] * 60, "'odd' .*1j"),
    ],
)
def test_odd_columns_of_frames_without_an_encoder_are_named(column, message):
    X = pd.DataFrame({"fine": np.arange(60.0), "odd": column})
    with pytest.raises(ValueError, match=f"Column {message}"):
        make(encoder=None).fit(X, np.arange(60) % 2)
    clf = make(encoder=None, max_iter=1).fit(X.assign(odd=1.0), np.arange(60) % 2)
    with pytest.raises(ValueError, match=f"Column {message}"):
        clf.predict(X)


def test_sparse_frames_without_an_encoder(halves):
    X, y = halves
    held = pd.DataFrame(X, columns=NAMES).astype(pd.SparseDtype(float))
    expected = make(encoder=None).fit(X, y).predict_proba(X)
    assert np.array_equal(make(encoder=None).fit(held, y).predict_proba(held), expected)


def test_columns_of_objects_without_a_value_are_numbers(table):
    X, y = table[0].copy(), table[1]
    X[:, 1] = np.nan
    expected = make().fit(X, y).predict_proba(X)
    frame = pd.DataFrame(X, columns=NAMES)
    for held in (X.astype(object), frame.astype(object), frame.assign(b=pd.NA), X.tolist()):
        assert np.array_equal(make().fit(held, y).predict_proba(held), expected)


def test_sums_of_the_largest_numbers_are_silent():
    X = np.array([[1.0, -1.0], [-1.0, 1.0]] * 20) * np.finfo(float).max
    assert make(max_iter=40).fit(X, [0, 1] * 20).score(X, [0, 1] * 20) == 1
    single = np.clip(X, *np.array([-1, 1]) * np.finfo(np.float32).max).astype(np.float32)
    assert np.isfinite(make().fit(single, [0, 1] * 20).predict_proba(single)).all()
    with pytest.raises(ValueError, match="infinity"):
        make(encoder=None).fit(X, [0, 1] * 20)


def test_same_bits_for_any_order_in_memory(table):
    X, y = table
    expected = make().fit(X, y, X[:, 0] ** 2).predict_proba(X)
    for held in (np.asfortranarray(X), strided(X), np.ascontiguousarray(X[:, ::-1])[:, ::-1]):
        assert np.array_equal(make().fit(held, y, X[:, 0] ** 2).predict_proba(held), expected)
    weight = np.where(np.arange(600) % 3 > 0, X[:, 0] ** 2, 0)
    rows = weight > 0
    for clf in (make(), make(categorical_features=[1])):
        proba = clf.fit(X.round(1), y, weight).predict_proba(X.round(1))
        removed = clf.fit(X.round(1)[rows], y[rows], weight[rows])
        assert np.array_equal(proba, removed.predict_proba(X.round(1)))


def test_features_of_what_only_becomes_an_array():
    class Table:
        def __array__(self, dtype=None, copy=None):
            return np.arange(80.0, dtype=dtype).reshape(20, 4) % 7

    clf = MoEClassifier(2, encoder=None, gate_features=[0, 2], max_iter=1, random_state=0)
    assert clf.fit(Table(), np.arange(20) % 2).gate_columns_ == [0, 2]
