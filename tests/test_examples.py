"""Every example runs and ends in a picture."""

import csv
import runpy
import sys
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
EXAMPLES = [path for path in EXAMPLES if path.stem != "plot_quickstart"]  # in test_readme.py


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
# So early, gates collapse and restarts disagree.
@pytest.mark.filterwarnings("ignore:The gate has collapsed", "ignore:The best of")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, monkeypatch, short_trainings, capsys):
    matplotlib.use("agg")
    monkeypatch.setattr("sys.argv", [str(path)])
    try:
        runpy.run_path(str(path), run_name="__main__")
        assert plt.get_fignums()
    finally:
        plt.close("all")
    title, underline = path.read_text().splitlines()[1:3]
    assert underline == "=" * len(title)  # sphinx-gallery's format


PAPER = Path(__file__).parents[1] / "examples" / "paper"


@pytest.fixture
def paper_data(tmp_path, digits):
    """A folder with small data sets in the files that the scripts read."""
    X, y = digits
    images = np.kron(X[:500].reshape(-1, 8, 8), np.ones((3, 3))) * 255
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    parts = {"X_train": images[:400], "y_train": y[:400], "X_test": images[400:]}
    for name in ("mnist", "fashion_mnist"):
        np.savez(tmp_path / f"{name}.npz", **parts, y_test=y[400:500])
    colored = colored_images(digits)
    for name, rows in {
        "train_0": slice(18),
        "train_1": slice(18, 36),
        "test": slice(36, 46),
    }.items():
        red, green, blue = np.moveaxis(colored[rows], 3, 0)
        planes = np.stack([green, red - green, blue - green])  # of bytes, modulo 256
        zeros = np.pad(planes, ((0, 0), (0, 0), (1, 0), (1, 0)))
        differences = np.diff(np.diff(zeros, axis=2), axis=3)
        np.savez(tmp_path / f"cifar100_{name}.npz", D=differences, y=y[rows])
    return tmp_path


def colored_images(digits):
    images = np.kron(digits[0][:46].reshape(-1, 8, 8), np.ones((4, 4))) * 255
    return np.stack([images, images[:, ::-1], 255 - images], axis=3).astype(np.uint8)


def test_colored_images_are_read_back(paper_data, digits, monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER))
    from experiment import load

    X_train, y_train, X_test, y_test = load("cifar100", paper_data)
    np.testing.assert_array_equal(np.concatenate([X_train, X_test]), colored_images(digits))
    np.testing.assert_array_equal(np.concatenate([y_train, y_test]), digits[1][:46])


@pytest.mark.filterwarnings("ignore:The gate has collapsed")
@pytest.mark.parametrize(
    "script, n_experts, settings",
    [
        ("mnist", 5, "paper"),
        ("mnist", 5, "ours"),
        ("fashion_mnist", 5, "ours"),
        ("fashion_mnist_and_mnist", 6, "paper"),
        ("cifar100", 20, "paper"),
    ],
)
def test_scripts_of_the_paper(script, n_experts, settings, paper_data, monkeypatch, capsys):
    results = paper_data / "results.csv"
    models = ["mixture", "attentive, importance"]
    if script == "cifar100":  # whose networks are large
        models = ["mixture"]
    arguments = ["--data", paper_data, "--results", results, "--settings", settings]
    arguments += ["--epochs", 1, "--seeds", 3, "--samples", 300, "--models", *models]
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(PAPER))
    runpy.run_path(str(PAPER / f"{script}.py"), run_name="__main__")
    with results.open() as file:
        rows = list(csv.DictReader(file))
    students = [f"{name}, distilled" for name in models if name != "mixture"]
    assert [row["model"] for row in rows] == models + students
    for row in rows:
        assert row["data"] == script and row["settings"] == settings and row["seed"] == "3"
        assert row["n_experts"] == str(n_experts) and row["epochs"] == "1"
        assert 0 <= float(row["sample_entropy"]) <= float(row["usage_entropy"])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["make_tables", "--results", str(results)])
    runpy.run_path(str(PAPER / "make_tables.py"), run_name="__main__")
    assert capsys.readouterr().out.count("| attentive, importance") == 2 * len(students)


def test_settings_of_ours_train_the_networks_of_the_paper(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER))
    make_models = runpy.run_path(str(PAPER / "cifar100.py"))["make_models"]
    theirs, ours = make_models("paper"), make_models("ours")
    assert list(theirs) == list(ours)
    for name, model in theirs.items():
        for part in ("experts", "gate", "n_experts", "augmentation"):
            assert repr(getattr(model, part)) == repr(getattr(ours[name], part))
        assert model.learning_rate_schedule == "constant" != ours[name].learning_rate_schedule


def test_networks_of_the_paper_have_its_sizes(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPER))
    for script, of_expert, of_gate in [("mnist", 1382, 26063), ("fashion_mnist", 13300, 709413)]:
        make_models = runpy.run_path(str(PAPER / f"{script}.py"))["make_models"]
        model = make_models("paper")["mixture"].set_params(max_iter=1)
        X = np.random.RandomState(0).rand(20, 28, 28)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = model.fit(X, np.arange(20) % 10).module_
        n_experts, n_gate = (
            sum(parameter.numel() for parameter in part.parameters())
            for part in (module.experts, module.gate)
        )
        assert n_experts == 5 * of_expert and n_gate == of_gate
