"""What users of the installed package rely on, beside what it computes."""

import inspect
import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest

import sklearn_moe
from sklearn_moe import documentation

PUBLIC = [
    (name, value)
    for name, value in ((name, getattr(sklearn_moe, name)) for name in sklearn_moe.__all__)
    if callable(value)
]

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {sklearn_moe.__version__}\n" in citation


def test_html_links_to_the_guide_once_it_has_an_address(monkeypatch):
    estimators = [
        sklearn_moe.MoEClassifier(gate=sklearn_moe.AttentiveGate()),
        sklearn_moe.MixtureEnsemble([]),
        sklearn_moe.MoESearchCV(sklearn_moe.MoEClassifier()),
        sklearn_moe.SparseGate(),
        sklearn_moe.ConvEncoder(),
        sklearn_moe.MLPExperts(),
    ]
    documentation.address_of_guide.cache_clear()
    for address in ("", "https://address.local/guide"):
        project_urls = Message()
        project_urls["Project-URL"] = "Source, https://address.local/code"
        if address:
            project_urls["Project-URL"] = f"Documentation, {address}/"
        monkeypatch.setattr(documentation, "metadata", lambda name, found=project_urls: found)
        for each in estimators:
            page = f"{address}/generated/sklearn_moe.{type(each).__name__}.html"
            assert each._get_doc_link() == (page if address else "")
            assert (page in each._repr_html_()) == bool(address)
            assert "address.local/code" not in each._repr_html_()
        documentation.address_of_guide.cache_clear()


def _functions(value):
    """Yield a function, or the constructor and the public methods that a class defines."""
    if not inspect.isclass(value):
        yield value
        return
    for owner in value.__mro__:
        if owner.__module__.startswith("sklearn_moe"):
            for name, method in vars(owner).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                if inspect.isfunction(method) and (name == "__init__" or name[0] != "_"):
                    yield method


@pytest.mark.parametrize("name, value", PUBLIC, ids=[name for name, _ in PUBLIC])
def test_the_public_surface_has_annotations(name, value):
    for function in _functions(value):
        is_ours = function.__module__.startswith("sklearn_moe")
        if not (is_ours and function.__code__.co_filename.endswith(".py")):  # or by dataclass
            continue
        signature = inspect.signature(function)
        missing = [
            each.name
            for each in signature.parameters.values()
            if each.annotation is each.empty and each.name not in ("self", "cls")
        ]
        assert not missing, function.__qualname__
        returns = signature.return_annotation is not inspect.Signature.empty
        assert returns or function.__name__ == "__init__", function.__qualname__


# What only some functions need, and what takes a tenth of the time of the whole import.
OPTIONAL = (
    "dask, distributed, ipywidgets, matplotlib, onnx, onnxruntime, onnxscript, optuna, pandas, "
    "polars, psycopg, pyarrow, shap, skops, sqlalchemy"
).split(", ")
LONG = ("sklearn.cluster", "sklearn.ensemble", "sklearn.inspection", "sklearn.tree")


def _run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.smoke
def test_optional_libraries_are_optional():
    """A mixture is fitted, searched and read without them, as if they were not installed."""
    code = """if True:
        import sys
        from importlib.machinery import PathFinder
        find = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *_: None if name in sys.argv else find(name, *_)
        from sklearn.datasets import load_iris
        from sklearn_moe import MoEClassifier, MoESearchCV, decomposition_report, gate_rules
        X, y = load_iris(return_X_y=True)
        clf = MoEClassifier(2, max_iter=2, random_state=0).fit(X, y)
        repr(decomposition_report(clf, X, y)), repr(gate_rules(clf, X)), clf._repr_html_()
        MoESearchCV(clf)
        """
    _run(code, *OPTIONAL)


def test_import_loads_nothing_that_takes_long_and_only_some_need():
    loaded = _run("import sys, sklearn_moe; print(*sys.modules)")
    by_others = _run("import sys, skorch, torch, narwhals; print(*sys.modules)")
    assert "sklearn_moe.estimator" in loaded
    assert not {*OPTIONAL, *LONG}.intersection(loaded).difference(by_others)
