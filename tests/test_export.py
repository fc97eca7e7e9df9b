"""Exported mixtures give what the fitted ones give."""

import json
import math
import re
import sqlite3
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_moe import (
    EXPERTS,
    GATES,
    AttentiveGate,
    ComplexityConvExperts,
    ComplexityExperts,
    ConvExperts,
    CosineGate,
    MixtureEnsemble,
    MLPExperts,
    MoEClassifier,
    MPOExperts,
    OrthogonalExperts,
    SoftmaxGate,
    TableEncoder,
    ZeroComputationExperts,
    distill,
    export,
    grow,
    prune_experts,
)

pytestmark = [
    pytest.mark.usefixtures("short_polish"),
    # So early, gates collapse.
    pytest.mark.filterwarnings("ignore:The gate has collapsed"),
]

SMALL = MLPExperts((5,))
PAGE = Path(__file__).parents[1] / "docs" / "shipping.rst"


def fit(X, y, n_experts=4, **params):
    params = {"experts": SMALL, "max_iter": 1, "n_init": 1, "random_state": 0, **params}
    return MoEClassifier(n_experts, **params).fit(X, y)


@cache
def make_fresh(n_rows):
    """Rows with missing and unseen categories and values; two columns had none in training."""
    rng = np.random.RandomState(1)
    X = pd.DataFrame(
        {
            "size": rng.normal(1e3, 10, n_rows),
            "age": rng.exponential(5, n_rows),
            "rooms": rng.randint(1, 20, n_rows).astype(float),
            "new": rng.uniform(size=n_rows) < 0.5,
            "town": rng.choice(["Bonn", "Trier", "Ulm", "it's", 'a"b'], n_rows),
            "colour": rng.choice(["blue", "green", "red", "pink"], n_rows),
        }
    )
    X.loc[1:3, "size"] = [1e300, -1e300, 1e4]
    for column in ("size", "rooms", "town", "colour"):
        X.loc[rng.uniform(size=n_rows) < 0.1, column] = None
    return X


@pytest.fixture(scope="module")
def fresh():
    return make_fresh(1000)


def inputs_for(clf, X):
    """The inputs of a graph, as the mixture itself reads X."""
    if clf.encoder_ is None:
        return [np.asarray(X, dtype=np.float32)]
    read, n_numbers = clf.encoder_.read(X).astype(np.float64), len(clf.encoder_.mean_)
    parts = [read[:, :n_numbers], read[:, n_numbers:].astype(np.int64)]
    return [np.ascontiguousarray(part) for part in parts if part.shape[1]]


def wanted(clf, X):
    return clf.predict_proba(X), clf.gate_proba(X), clf.apply(X)


def assert_same(got, wanted):
    proba, gate_proba, expert = map(np.asarray, got)
    np.testing.assert_allclose(proba, wanted[0], atol=1e-5)
    np.testing.assert_allclose(gate_proba, wanted[1], atol=1e-5)
    largest = np.sort(wanted[1], axis=1)
    is_clear = len(largest.T) == 1 or largest[:, -1] - largest[:, -2] > 1e-5
    np.testing.assert_array_equal(np.where(is_clear, expert, 0), np.where(is_clear, wanted[2], 0))


def check_torch(clf, X, path):
    export(clf, path / "mixture.pt2", format="torch")
    program = torch.export.load(path / "mixture.pt2").module()
    for n_rows in (1, 2, len(X)):
        got = program(*map(torch.from_numpy, inputs_for(clf, X[:n_rows])))
        assert got[2].dtype == torch.int64
        assert_same(got, wanted(clf, X[:n_rows]))


def check_onnx(clf, X, path):
    export(clf, path / "mixture.onnx")
    session = onnxruntime.InferenceSession(path / "mixture.onnx")
    names = [each.name for each in session.get_inputs()]
    assert [each.name for each in session.get_outputs()] == ["proba", "gate_proba", "expert"]
    for n_rows in (1, 2, len(X)):
        inputs = dict(zip(names, inputs_for(clf, X[:n_rows]), strict=True))
        got = session.run(None, inputs)
        assert got[2].dtype == np.int64
        assert_same(got, wanted(clf, X[:n_rows]))


# Each gate and each kind of experts once, as an export takes seconds.
PAIRS = {
    "softmax": ("mlp", SMALL),
    "top_k": ("zero_computation", ZeroComputationExperts((5,))),
    "noisy_top_k": ("mpo", MPOExperts((5,), dropout=0.1)),
    "hard": ("complexity", ComplexityExperts(2, 5, activation="gelu")),
    "attentive": ("orthogonal", OrthogonalExperts((5,))),
    "cosine": ("linear", "linear"),
    "constant": ("mlp", SMALL),
    "kmeans": ("linear", "linear"),
    "basis": ("mlp", SMALL),
    "tree": ("mlp", SMALL),
    "gumbel": ("mlp", SMALL),
    "sparsemax": ("mlp", SMALL),
    "balanced": ("mlp", SMALL),
    "shared_expert": ("mlp", SMALL),
}

# Both formats are made from one trace, and the others have all of the operations.
ONLY_AS_TORCH = {"softmax", "noisy_top_k", "hard", "constant", "gumbel"}


def test_all_gates_and_experts_are_here():
    assert PAIRS.keys() == GATES.keys()
    # Those of images are below, and "strong" cannot be exported.
    assert {name for name, _ in PAIRS.values()} | {
        "conv",
        "complexity_conv",
        "strong",
    } == EXPERTS.keys()


@pytest.mark.parametrize("gate", PAIRS)
def test_graphs_of_tables(gate, mixed_table, fresh, tmp_path):
    clf = fit(*mixed_table, gate=gate, experts=PAIRS[gate][1])
    check = check_torch if gate in ONLY_AS_TORCH else check_onnx
    check(clf, fresh, tmp_path)


@pytest.mark.smoke
def test_graphs_of_images(tmp_path):
    rng = np.random.RandomState(0)
    X, y = rng.randint(256, size=(60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    experts = ConvExperts((2,), (5,), normalization="batch", dropout=0.1)
    clf = fit(X, y, gate=AttentiveGate((4,), encoder="conv"), experts=experts)
    fresh = rng.randint(256, size=(50, 8, 8), dtype=np.uint8)
    fractions = fresh / np.float32(255)
    np.testing.assert_allclose(clf.predict_proba(fractions), clf.predict_proba(fresh), atol=1e-6)
    check_onnx(clf, fractions, tmp_path)
    check_torch(clf, fractions, tmp_path)
    (about,) = metadata(tmp_path / "mixture.onnx")["inputs"]
    assert about == {"name": "images", "dtype": "float32", "shape": [8, 8], "range": [0, 1]}


def test_graph_of_experts_of_growing_kernel(tmp_path):
    rng = np.random.RandomState(0)
    X, y = rng.uniform(size=(60, 5, 5)).astype(np.float32), np.arange(60) % 3
    experts = ComplexityConvExperts(1, 3, n_convolutions=1, hidden_layer_sizes=(5,))
    check_onnx(fit(X, y, 3, gate="hard", experts=experts), X, tmp_path)


@pytest.fixture(scope="module")
def plain(mixed_table):
    return fit(*mixed_table)


@pytest.mark.filterwarnings("ignore:.*for the first time")
@pytest.mark.parametrize("kind", ["merged", "kept", "distilled", "grown"])
def test_graphs_of_changed_mixtures(kind, plain, mixed_table, fresh, tmp_path):
    X, y = mixed_table
    if kind == "merged":
        clf = prune_experts(plain, method="similarity", n_experts=2, X=X, reduce="merge")
    elif kind == "kept":
        clf = prune_experts(plain, method="similarity", n_experts=2, X=X, reduce="keep")
    elif kind == "distilled":
        clf = distill(fit(X, y, gate="attentive"), X, y, max_iter=1)
    else:
        y = np.where(X["age"] > 5, "old", y)
        clf = grow(fit(X, y[::-1] == "yes", gate="top_k"), X, X["age"] > 3, max_iter=1)
    check_torch(clf, fresh, tmp_path)
    if kind in ("merged", "grown"):  # the only ones with new operations
        check_onnx(clf, fresh, tmp_path)


@pytest.mark.parametrize(
    "params",
    [
        {"mixing": "logit", "gate": SoftmaxGate((4,), top_k=2), "calibrate": True},
        {"gate_features": ["size", "town"], "expert_features": ["age", "new"]},
        {"encoder": TableEncoder(squash=False, max_categories=2)},
        {"experts": [("own", "mlp"), ("line", "linear")], "n_experts": 2},
        {"experts": lambda shape, n_outputs: torch.nn.Linear(*shape, n_outputs)},
    ],
    ids=lambda params: next(iter(params)),
)
def test_graphs_of_parameters(params, mixed_table, fresh, tmp_path):
    check_torch(fit(*mixed_table, **params), fresh, tmp_path)


@pytest.mark.parametrize("columns", [["town", "colour"], ["size", "age"]])
def test_graphs_of_one_kind_of_columns(columns, mixed_table, fresh, tmp_path):
    clf = fit(mixed_table[0][columns], mixed_table[1])
    check_torch(clf, fresh[columns], tmp_path)


def test_graphs_without_encoder(table, tmp_path):
    clf = fit(*table, encoder=None)
    check_torch(clf, table[0].astype(np.float32), tmp_path)


def test_graphs_of_single_precision(table, tmp_path):
    """Predictions for float32 are those for the same numbers as float64."""
    X = (table[0] * 1e6).astype(np.float32)
    check_torch(fit(X, table[1]), X, tmp_path)


def test_default_type_of_tensors_does_not_matter(plain, fresh, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        check_torch(plain, fresh, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)


def metadata(path):
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {len(each.external_data) for each in model.graph.initializer} == {0}
    shape = model.graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "rows"
    return json.loads({each.key: each.value for each in model.metadata_props}["sklearn_moe"])


@pytest.mark.smoke
def test_metadata(mixed_table, tmp_path):
    clf = fit(*mixed_table, encoder=TableEncoder(max_categories=3))
    export(clf, tmp_path / "mixture.onnx")
    about = metadata(tmp_path / "mixture.onnx")
    assert about["classes"] == ["no", "perhaps", "yes"]
    assert about["experts"] == [0, 1, 2, 3]
    numbers, codes = about["inputs"]
    assert numbers["columns"] == ["size", "age", "rooms", "new"]
    town, colour = codes["columns"]
    assert [town["name"], colour["name"]] == ["town", "colour"]
    for column in (town, colour):  # three towns and a missing one are more than three
        assert len(column["categories"]) == column["unknown"] == 2
    export(clf, tmp_path / "mixture.pt2", format="torch")
    extra = {"sklearn_moe.json": ""}
    torch.export.load(tmp_path / "mixture.pt2", extra_files=extra)
    assert json.loads(extra["sklearn_moe.json"]) == about


def reader_of_guide():
    """The function of the guide that reads rows for a session."""
    blocks = re.findall(
        r"\.\. code-block:: python\n\n((?: {3}.*\n|\n)+)", PAGE.read_text(encoding="utf-8")
    )
    (block,) = (block for block in blocks if "def inputs_of" in block)
    namespace = {}
    functions = re.sub(r"^ {3}", "", block, flags=re.MULTILINE).split("session =")[0]
    exec(functions.replace("import onnxruntime\n", ""), namespace)
    return namespace["inputs_of"]


def test_the_reader_of_the_guide(mixed_table, fresh):
    from sklearn_moe.persistence.graphs import describe

    inputs_of = reader_of_guide()
    X, y = mixed_table
    clf = fit(X, y)
    about = json.loads(json.dumps(describe(clf)))
    for rows in (X, fresh):
        got = inputs_of(rows.to_dict("records"), about)
        for own, expected in zip(got.values(), inputs_for(clf, rows), strict=True):
            np.testing.assert_array_equal(own, expected)
    # Categories of several types, in columns without names.
    X = np.array(
        [[1, "1.5", None, True], ["1", 2.5, "b", False], ["x", "a", "b", "c"]] * 9, object
    )
    clf = fit(X, np.arange(27) % 3, categorical_features=[0, 1, 2, 3])
    about = json.loads(json.dumps(describe(clf)))
    rows = [*X.tolist(), [1.0, 1.5, float("nan"), 1], [np.float32(1), "2.5", pd.NA, "nan"]]
    (codes,) = inputs_of(rows, about).values()
    np.testing.assert_array_equal(codes, inputs_for(clf, np.array(rows, object))[0])


# Plain forms

# Gates whose scores have no short formula.
WITHOUT_FORMULA = ["attentive", "basis", "tree", "balanced", "shared_expert", "sparsemax"]


def by_python(path, X):
    functions = {}
    source = path.read_text(encoding="utf-8")
    assert "import" not in re.sub(r'"""[\s\S]*?"""', "", source)
    exec(compile(source, path.name, "exec"), functions)
    rows = X.to_dict("records")
    assert functions["predict_proba"](rows[0]) == functions["predict_proba"]([*rows[0].values()])
    names = ("predict_proba", "gate_proba", "apply")
    return [np.array([functions[name](row) for row in rows]) for name in names]


def by_sql(path, X, classes, n_experts):
    with sqlite3.connect(":memory:") as database:
        for name, function in (("EXP", math.exp), ("SQRT", math.sqrt), ("POWER", math.pow)):
            database.create_function(name, -1, function)
        X.assign(x_1=range(len(X))).to_sql('my "rows"', database, index=False)
        found = pd.read_sql(path.read_text(encoding="utf-8"), database).sort_values("x_1")
    # The key has the name of a column that the query computes.
    assert list(found["x_1"]) == list(range(len(X)))
    proba = found[[f"proba_{label}" for label in classes]].to_numpy()
    gate_proba = found[[f"gate_proba_{e}" for e in range(n_experts)]].to_numpy()
    return proba, gate_proba, found["expert"].to_numpy()


@pytest.mark.filterwarnings("ignore:.*restarts")
@pytest.mark.parametrize(
    "params",
    [
        *({"gate": gate} for gate in GATES if gate not in WITHOUT_FORMULA),
        {"mixing": "logit", "gate": "top_k", "calibrate": True},
        {"gate_features": ["age", "town"], "expert_features": ["size", "rooms"]},
        {"encoder": TableEncoder(max_categories=2, squash=True), "n_experts": 1},
        {"gate": CosineGate(top_k=2, temperature=0.1), "encoder": TableEncoder(n_knots=None)},
    ],
    ids=lambda params: "-".join(f"{name}" for name in (*params, params.get("gate", ""))),
)
def test_plain_forms(params, mixed_table, fresh, tmp_path):
    X, y = mixed_table
    # Quotes in the names of columns and categories, and in the labels.
    names = {} if "gate_features" in params else {"size": 'the "size"', "town": "town's"}
    X, fresh = X.rename(columns=names), fresh.rename(columns=names)
    X.loc[X.index[:99], X.columns[4]] = "it's"
    y = np.where(y == "perhaps", 'it\'s "y"', y)
    clf = fit(X, y, **{"n_experts": 3, "experts": "linear", **params})
    export(clf, tmp_path / "mixture.py", format="python")
    export(clf, tmp_path / "mixture.sql", format="sql", table='my "rows"', key="x_1")
    expected = wanted(clf, fresh)
    assert_same(by_python(tmp_path / "mixture.py", fresh), expected)
    n_experts = len(clf.expert_costs_)
    assert_same(by_sql(tmp_path / "mixture.sql", fresh, clf.classes_, n_experts), expected)


def test_plain_forms_without_encoder_or_names(table, tmp_path):
    X, y = table
    clf = fit(X, y, experts="linear", encoder=None)
    export(clf, tmp_path / "mixture.py", format="python")
    export(clf, tmp_path / "mixture.sql", format="sql", table='my "rows"', key=["x_1"])
    named = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    assert_same(by_sql(tmp_path / "mixture.sql", named, clf.classes_, 4), wanted(clf, X))
    assert_same(by_python(tmp_path / "mixture.py", pd.DataFrame(X)), wanted(clf, X))


def test_plain_forms_with_text_that_is_a_number(table, tmp_path):
    X = pd.DataFrame(
        {"a": table[0][:, 0], "b": np.resize(["inf", "-inf", "nan", "1"], len(table[0]))}
    )
    clf = fit(X, table[1], experts="linear")
    export(clf, tmp_path / "mixture.py", format="python")
    export(clf, tmp_path / "mixture.sql", format="sql", table='my "rows"', key="x_1")
    assert_same(by_python(tmp_path / "mixture.py", X), wanted(clf, X))
    assert_same(by_sql(tmp_path / "mixture.sql", X, clf.classes_, 4), wanted(clf, X))


# Refusals


@pytest.mark.parametrize("format", ["python", "sql"])
@pytest.mark.parametrize(
    "params, message",
    [
        ({}, "needs linear experts, experts='linear', got MLPExperts. Pass format='onnx'"),
        *(
            ({"experts": "linear", "gate": gate}, "needs a gate with a short formula")
            for gate in WITHOUT_FORMULA
        ),
        ({"experts": "linear", "gate": SoftmaxGate((3,))}, "without hidden layers"),
        ({"experts": "linear", "gate": CosineGate((3,))}, "without hidden layers"),
        ({"experts": "linear", "input_shape": (2, 3)}, "read without a backbone"),
    ],
)
def test_plain_forms_say_what_they_need(format, params, message, table, tmp_path):
    clf = fit(*table, **params)
    with pytest.raises(ValueError, match=message):
        export(clf, tmp_path / "mixture", format=format)


def test_says_what_cannot_be_exported(plain, table, tmp_path):
    X, y = table
    path = tmp_path / "mixture"
    with pytest.raises(TypeError, match=r"Export the last step: export\(pipeline\[-1\], path\)"):
        export(make_pipeline(StandardScaler(), plain), path)
    search = GridSearchCV(MoEClassifier(), {})
    search.best_estimator_ = plain
    with pytest.raises(TypeError, match=r"clf is a search.*best_estimator_"):
        export(search, path)
    ensemble = MixtureEnsemble([MoEClassifier(2, max_iter=1)]).fit(X, y)
    with pytest.raises(TypeError, match=r"ensemble of 1 mixtures. Export each of clf.members_"):
        export(ensemble, path)
    with pytest.raises(TypeError, match="must be a fitted MoEClassifier, got DummyClassifier"):
        export(DummyClassifier(), path)
    with pytest.raises(NotFittedError):
        export(MoEClassifier(), path)
    with pytest.raises(ValueError, match=r"format must be one of \['onnx', 'torch', .*'pmml'"):
        export(plain, path, format="pmml")
    with pytest.raises(ValueError, match=r"format must be one of .*, got \['onnx'\]"):
        export(plain, path, format=["onnx"])
    with pytest.raises(TypeError, match=r"key must be the name of a column, or .* got 5"):
        export(plain, path, format="sql", key=5)
    with pytest.raises(ValueError, match="table and key are for format='sql', got format='onnx'"):
        export(plain, path, key="id")
    with pytest.raises(FileNotFoundError, match="in a directory that is not there"):
        export(plain, tmp_path / "nowhere" / "mixture")
    experts = [("own", "mlp"), ("most", DummyClassifier())]
    with pytest.raises(ValueError, match=r"The experts \['most'\] are classifiers"):
        export(fit(X, y, experts=experts, n_experts=2), path)
    assert not list(tmp_path.iterdir())


def test_says_what_is_not_installed(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-moe\[export\]"'):
        export(plain, tmp_path / "mixture.onnx")


def test_says_what_is_too_large_for_onnx(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("sklearn_moe.persistence.graphs.LARGEST_ONNX", 100)
    with pytest.raises(ValueError, match=r"must have less than 100. Export with format='torch'"):
        export(plain, tmp_path / "mixture.onnx")


class Unsteady(torch.nn.Linear):
    """Its forward pass depends on the values, which no graph can."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


def test_a_failed_export_leaves_the_former_file(table, tmp_path):
    clf = fit(*table, experts=lambda shape, n_outputs: Unsteady(*shape, n_outputs))
    path = tmp_path / "mixture"
    path.write_text("former")
    with pytest.raises(ValueError, match=r"cannot make a graph of this mixture. Modules of yours"):
        export(clf, path, format="torch")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(plain, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    export(plain, tmp_path / "link", format="torch")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").is_file()


def test_an_export_does_not_change_the_mixture(plain, fresh, tmp_path):
    before = plain.predict_proba(fresh)
    export(plain, tmp_path / "mixture", format="torch")
    np.testing.assert_array_equal(plain.predict_proba(fresh), before)
    assert all(parameter.requires_grad for parameter in plain.module_.parameters())
