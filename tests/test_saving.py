"""Files of ``save``: mixtures come back the same, and tampered files do not come back."""

import json
import pickle
import random
import zipfile
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from kinds import OF_TABLES
from safetensors import safe_open
from safetensors.numpy import save as serialize
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EarlyStopping
from test_persistence import IMAGES, OTHERS, data, images, linear, make
from torch import nn

from sklearn_moe import (
    GATES,
    REGULARIZERS,
    AttentiveGate,
    FittedExpert,
    MixtureEnsemble,
    MoEClassifier,
    MoESearchCV,
    grow,
    load,
    prune_experts,
    save,
)
from sklearn_moe.encoders import Encoder
from sklearn_moe.experts import ConvExperts, MLPExperts
from sklearn_moe.model_selection import suggest_parameters
from sklearn_moe.persistence.files import CHECKSUM_KEY, CONTENT_KEY, FORM, FORM_KEY, checksum
from sklearn_moe.plain import CLASS


def through_file(clf, path, custom=None):
    save(clf, path, custom=custom)
    return load(path, custom=custom)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clf.safetensors"


@pytest.fixture(scope="module")
def table():
    """A frame with numbers, categories and missing values, and labels as text."""
    X, y = data()
    X = pd.DataFrame(X, columns=list("abcd"))
    X["c"] = np.where(X["c"] > 0, "high", None)
    X["d"] = X["d"].round().astype("category")
    X.loc[3, "a"] = np.nan
    return X, np.array(["setosa", "versicolor", "virginica"])[y]


@pytest.fixture(scope="module")
def fitted(table):
    return MoEClassifier(n_experts=3, max_iter=2, random_state=0).fit(*table)


# What comes back


def assert_same(clf, twin, X):
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))
    assert np.array_equal(twin.gate_proba(X), clf.gate_proba(X))
    assert np.array_equal(twin.predict(X), clf.predict(X))
    assert twin.net_.history == clf.net_.history
    if not isinstance(clf.random_state, np.random.RandomState):  # shows its address
        assert repr(twin) == repr(clf)
    assert repr(twin.report_) == repr(clf.report_)


@pytest.mark.parametrize(
    "params",
    [
        *({"gate": gate} for gate in GATES),
        *({"experts": experts} for experts in OF_TABLES),
        *({"regularization": regularization} for regularization in REGULARIZERS),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The best of")
def test_mixtures_by_name(params, path):
    X, y = data()
    gate = {"complexity": "hard", "load": "noisy_top_k"}.get(params.get("regularization"))
    clf = make(**{"gate": gate or "softmax", **params}).fit(X, y)
    twin = through_file(clf, path)
    assert_same(clf, twin, X)
    assert twin.partial_fit(X, y).n_iter_ == clf.n_iter_ + 1


@pytest.mark.parametrize("kind", sorted({*OTHERS} - {"dropout"}))
def test_other_mixtures(kind, path):
    X, _ = data()
    clf = OTHERS[kind]()
    twin = through_file(clf, path)
    assert_same(clf, twin, X)
    if len(clf.expert_costs_) > 2:
        pruned = [
            prune_experts(each, X=X, n_experts=2, method="similarity") for each in (clf, twin)
        ]
        assert np.array_equal(*(each.predict_proba(X) for each in pruned))


@pytest.mark.parametrize("kind", IMAGES)
def test_mixtures_of_images(kind, path):
    X, y = images()
    clf = make(**IMAGES[kind]).fit(X, y)
    assert_same(clf, through_file(clf, path), X)


def test_grown_mixture(path):
    X, y = data()
    clf = make(experts=MLPExperts((8,))).fit(X[y < 2], y[y < 2])
    grown = grow(clf, X[y == 2], y[y == 2], n_new=1, random_state=0)
    assert_same(grown, through_file(grown, path), X)


def test_default_mixture_of_a_table(fitted, table, path):
    X, y = table
    twin = through_file(fitted, path)
    assert_same(fitted, twin, X)
    assert np.array_equal(twin.feature_importances_, fitted.feature_importances_)
    assert twin.reader_.table is twin.net_.table is twin.encoder_
    for name in ("classes_", "feature_names_in_", "expert_usage_"):
        mine, other = getattr(fitted, name), getattr(twin, name)
        assert np.array_equal(mine, other) and mine.dtype == other.dtype
    assert twin.set_params(warm_start=True).fit(X, y).n_iter_ == 4


def test_labels_of_all_kinds(path):
    X, y = data()
    for labels in (y > 0, y.astype(np.uint8), y + 1.0, y.astype(">i4"), np.array(list("äβ😀"))[y]):
        clf = make(max_iter=1, n_experts=2).fit(X, labels)
        twin = through_file(clf, path)
        assert np.array_equal(twin.classes_, clf.classes_)
        assert twin.classes_.dtype == clf.classes_.dtype


def test_ensemble_of_a_search(path):
    X, y = data()
    options = {"n_trials": 2, "cv": 2, "refit": "ensemble", "random_state": 0}
    search = MoESearchCV(make(), suggest_parameters, **options).fit(X, y)
    ensemble = search.best_estimator_
    twin = through_file(ensemble, path)
    assert type(twin) is MixtureEnsemble
    assert np.array_equal(twin.predict_proba(X), ensemble.predict_proba(X))
    assert np.array_equal(twin.weights_, ensemble.weights_)


def test_a_file_is_small(path):
    """A fifth more than the weights, and 20 kB."""
    rng = np.random.RandomState(0)
    X, y = rng.randn(1500, 20), rng.randint(26, size=1500)
    clf = MoEClassifier(max_iter=1, random_state=0).fit(X, y)
    save(clf, path)
    assert path.stat().st_size <= 1.2 * 4 * clf.n_parameters_ + 20_000


def test_net_params(path):
    X, y = data()
    params = {"optimizer": torch.optim.SGD, "criterion__weight": torch.tensor([1.0, 2.0, 3.0])}
    clf = make(net_params=params).fit(X, y)
    twin = through_file(clf, path)
    assert isinstance(twin.net_.optimizer_, torch.optim.SGD)
    assert torch.equal(twin.net_.criterion_.weight, params["criterion__weight"])
    with pytest.raises(TypeError, match=r"pass custom={'my_function': my_function}"):
        save(make(experts=lambda shape, n: linear(shape, n)).fit(X, y), path)
    clf.set_params(experts=partial(linear, width=2))
    with pytest.raises(TypeError, match=r"Pass this object itself, custom={'my_partial'"):
        save(clf, path)
    clf = make(net_params={"callbacks": [EarlyStopping("train_loss", patience=2)]}).fit(X, y)
    with pytest.raises(TypeError, match=r"callbacks\[0\] is <.*pass custom={'EarlyStopping'"):
        save(clf, path)
    twin = through_file(clf, path, {"EarlyStopping": EarlyStopping, "print": print})
    assert twin.net_params["callbacks"][0].patience == 2
    assert_same(clf.set_params(net_params=None), twin.set_params(net_params=None), X)
    twin.partial_fit(X, y)


def test_random_states_stay(fitted, table, path):
    torch_state, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    through_file(fitted, path)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_loads_without_its_device(fitted, table, path, monkeypatch):
    clf = deepcopy(fitted)
    clf.net_.device = "cuda:7"
    save(clf, path)
    assert load(path).device_ == load(path, device="cpu").device_ == "cpu"
    assert_same(fitted, load(path), table[0])
    with pytest.raises(ValueError, match="device='gpu' must be"):
        load(path, device="gpu")


# What a user has written


class PlusOne(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.n_out = width

    def forward(self, x):
        return self.layer(x) + 1


class WideEncoder(Encoder):
    def __init__(self, width=3):
        self.width = width

    def build(self, input_shape, generator):
        return PlusOne(self.width)


def test_custom_parts(path):
    X, y = data()
    clf = make(experts=linear, gate=AttentiveGate(encoder=WideEncoder(width=5))).fit(X, y)
    with pytest.raises(TypeError, match=r"experts is <function linear.*custom={'linear': linear}"):
        save(clf, path)
    custom = {"mine": linear, "wide": WideEncoder}
    save(clf, path, custom=custom)
    with pytest.raises(ValueError, match=r"as custom: \['mine', 'wide'\]"):
        load(path)
    twin = load(path, custom=custom)
    assert twin.experts is linear and twin.gate.encoder.width == 5
    assert np.array_equal(twin.predict_proba(X), clf.predict_proba(X))
    assert b"test_saving" not in path.read_bytes()


def test_a_file_does_not_choose_arguments_of_functions(fitted, path):
    save(fitted, path)
    content, arrays = content_of(path)
    content["mixture"]["state"]["random_state"] = {"kind": "custom", "value": "f", "params": {}}
    write(path, content, arrays)
    with pytest.raises(ValueError, match="'f' in custom is no class"):
        load(path, custom={"f": pytest.fail})


def test_options_that_name_programs(fitted, path):
    clf = deepcopy(fitted).set_params(net_params={"compile__options": {"cpp.cxx": ["g++"]}})
    with pytest.raises(TypeError, match=r"net_params has the options \['compile__options'\]"):
        save(clf, path)
    clf.set_params(net_params={"compile__mode": "default"})
    assert through_file(clf, path).net_params == clf.net_params


def test_a_mixture_without_your_parts_needs_none(fitted, path):
    save(fitted, path, custom={"linear": linear})
    load(path)
    with pytest.raises(TypeError, match="custom must be a dict"):
        save(fitted, path, custom=[linear])


# What can't be saved


def test_refusals(fitted, table, path):
    X, y = data()
    path.write_text("former")
    pipeline = make_pipeline(StandardScaler(), make()).fit(X, y)
    search = GridSearchCV(make(), {"n_experts": [2]}, cv=2).fit(X, y)
    trees = make(experts=[("trees", HistGradientBoostingClassifier(max_iter=2)), ("mlp", "mlp")])
    trees.fit(X, y)
    former = FittedExpert(make().fit(X, y), 0)
    reused = make(experts=[("old", former), ("mlp", "mlp")]).fit(X, y)
    for value, error, message in (
        (pipeline, TypeError, r"save\(pipeline\[-1\], path\)"),
        (search, TypeError, r"save\(search.best_estimator_, path\)"),
        (MoEClassifier, TypeError, "got the class MoEClassifier"),
        (HistGradientBoostingClassifier(), TypeError, "HistGradientBoostingClassifier is not a"),
        (None, TypeError, "NoneType is not a mixture"),
        (make(), NotFittedError, "not fitted"),
        (trees, TypeError, "is HistGradientBoostingClassifier.*Pickle"),
        (reused, TypeError, r"The expert 'old' is FittedExpert\("),
    ):
        with pytest.raises(error, match=message):
            save(value, path)
        assert path.read_text() == "former"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_places_that_are_not_there(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="in a directory that is not there"):
        save(fitted, tmp_path / "no" / "clf")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        save(fitted, tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load(tmp_path / "no")


# Damaged and hostile files


def content_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()[CONTENT_KEY]), {
            name: file.get_tensor(name) for name in file.keys()
        }


def write(path, content, arrays, form=FORM):
    """Write a file with a right checksum."""
    text = content if isinstance(content, str) else json.dumps(content)
    header = {FORM_KEY: str(form), CONTENT_KEY: text, CHECKSUM_KEY: checksum(text, arrays)}
    path.write_bytes(serialize(arrays, metadata=header))


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "clf"
    save(fitted, path)
    return path


def test_other_files(saved, path):
    content = saved.read_bytes()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clf", content)
    zipped = path.read_bytes()
    for other in (b"", b"{}", zipped, pickle.dumps([1]), bytes(100), b"\xff" * 100, content[:-1]):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="is damaged, or save did not write it"):
            load(path)
    path.write_bytes(serialize({"a": np.zeros(2)}))
    with pytest.raises(ValueError, match="not one of a mixture"):
        load(path)


def test_a_newer_file(saved, path):
    write(path, *content_of(saved), form=FORM + 1)
    with pytest.raises(ValueError, match="A newer version wrote it: pip install --upgrade"):
        load(path)
    write(path, *content_of(saved), form="one")
    with pytest.raises(ValueError, match="its form is 'one'"):
        load(path)


def test_damaged_files(saved, path):
    """Whatever bytes change, an error says so."""
    rng = random.Random(0)
    content = saved.read_bytes()
    for _ in range(200):
        damaged = bytearray(content)
        place = rng.choice([rng.randrange(len(content)), rng.randrange(2000)])
        change = rng.randrange(3)
        if change == 0:
            damaged[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            damaged[place:place] = rng.randbytes(9)
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|changed|not one of a mixture"):
            load(path)


def net_of(content):
    return content["mixture"]["state"]["net_"]["state"]


def nodes(value, key, wanted):
    """Yield the dictionaries in a file that have this value for a key."""
    if isinstance(value, dict) and value.get(key) == wanted:
        yield value
    inner = value.values() if isinstance(value, dict) else value if type(value) is list else ()
    for each in inner:
        yield from nodes(each, key, wanted)


# A random state of which numpy would read numbers beyond the end.
BEYOND = {"kind": "random_state", "value": ["MT19937", [0] * 624, 10**9, 0, 0.0]}

HUGE = {
    "experts": lambda content: net_of(content)["params"].update(n_experts=10**9),
    "classes": lambda content: net_of(content)["params"].update(n_classes=10**12),
    "inputs": lambda content: net_of(content)["params"]["input_shape"].update(value=[10**12]),
    "steps": lambda content: net_of(content)["steps"]["gate"].__setitem__(0, ["build", 10**10]),
    "keep": lambda content: net_of(content)["steps"]["experts"].append(["keep", [0] * 10**6]),
    "layers": lambda content: net_of(content)["params"].update(
        experts={
            "class of sklearn_moe": "MLPExperts",
            "state": {"hidden_layer_sizes": [2**23] * 4},
        }
    ),
    "threads": lambda content: net_of(content)["params"].update(n_threads=10**9),
    "class": lambda content: content["mixture"].update({"class of sklearn_moe": "os.system"}),
    "other class": lambda content: content["mixture"].update(
        {"class of sklearn_moe": "SoftmaxGate", "state": {}}
    ),
    "method": lambda content: content["mixture"]["state"].update(predict_proba="x"),
    "code": lambda content: content["mixture"]["state"].update(
        net_params={"kind": "class", "value": "builtins.eval"}
    ),
    "cycle": lambda content: content["mixture"]["state"].update(net_={"same as object": 0}),
    "text": lambda content: content["mixture"]["state"].update(
        classes_={"kind": "items", "value": ["a"], "dtype": "<U1000000000", "shape": [1]}
    ),
    "array": lambda content: content["mixture"]["state"].update(
        classes_={"kind": "items", "value": [1], "dtype": "O", "shape": [10**12]}
    ),
    "type": lambda content: next(nodes(content, "dtype", "<f8")).update(dtype="<U1000000"),
    "array twice": lambda content: content["mixture"]["state"].update(
        classes_=[next(nodes(content, "kind", "array"))] * 2
    ),
    "long text": lambda content: content["mixture"]["state"].update(
        classes_={
            "kind": "items",
            "value": ["a" * 10**5, *"b" * 1000],
            "dtype": "<U100000",
            "shape": [1001],
        }
    ),
    "program": lambda content: net_of(content)["params"].update(
        compile=True, compile__options={"cpp.cxx": ["rm"]}
    ),
    "program of the next fit": lambda content: content["mixture"]["state"].update(
        net_params={"compile__backend": "x"}
    ),
    "rare categories": lambda content: next(nodes(content, CLASS, "TableTransformer"))[
        "state"
    ].update(has_infrequent_=[10**9] * 2),
    "random state": lambda content: content["mixture"]["state"].update(random_state=BEYOND),
    "parameter": lambda content: content["mixture"]["state"].update(max_iter=-1),
    "nothing": lambda content: content.pop("mixture"),
}


@pytest.mark.parametrize("change", HUGE)
def test_hostile_files(change, saved, path):
    """Even with a right checksum."""
    content, arrays = content_of(saved)
    HUGE[change](content)
    write(path, content, arrays)
    with pytest.raises(ValueError, match=r"can be built|damaged or was changed"):
        load(path)


def test_a_file_with_a_large_image(path):
    clf = make(experts=ConvExperts((64,), pooling=8), gate="constant").fit(*images())
    save(clf, path)
    content, arrays = content_of(path)
    net_of(content)["params"]["input_shape"]["value"] = [1500, 1500]
    for each in nodes(content, CLASS, "ConvExperts"):
        each["state"]["pooling"] = 1500
    write(path, content, arrays)
    with pytest.raises(ValueError, match="images are too large for its convolutions"):
        load(path)


def test_a_deep_file(saved, path):
    for depth in (500, 100_000):
        write(path, "[" * depth + "]" * depth, {})
        with pytest.raises(ValueError, match="damaged or was changed"):
            load(path)


def test_a_long_file(saved, fitted, path, monkeypatch):
    for module in ("loading", "saving"):
        monkeypatch.setattr(f"sklearn_moe.persistence.{module}.MOST_TEXT", 1000)
    with pytest.raises(ValueError, match="its header is too long"):
        load(saved)
    with pytest.raises(ValueError, match="and a file can hold 1000"):
        save(fitted, path)


def test_mutated_files(saved, path):
    """Any value may be another one: nothing else than a mixture or a ValueError comes out."""
    rng = random.Random(0)
    content, arrays = content_of(saved)
    junk = [None, True, -1, 10**12, "x", [], {}, {"same as object": 1}, 1e308, float("nan")]
    n_refused = 0
    for _ in range(200):
        changed = deepcopy(content)
        place = changed["mixture"]
        while True:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
                break
            place = inner
        if key == "compile":
            continue  # is slow, and nothing else
        place[key] = rng.choice(junk)
        write(path, changed, arrays)
        try:
            assert isinstance(load(path), MoEClassifier)
        except ValueError:
            n_refused += 1
    assert n_refused > 50


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("loading a file must not unpickle anything")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load(saved)
