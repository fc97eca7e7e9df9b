"""Every example runs and ends in a picture."""

import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
EXAMPLES = [path for path in EXAMPLES if path.stem != "plot_quickstart"]  # in test_readme.py


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, monkeypatch, capsys):
    matplotlib.use("agg")
    monkeypatch.setattr("sys.argv", [str(path)])
    try:
        runpy.run_path(str(path), run_name="__main__")
        assert plt.get_fignums()
    finally:
        plt.close("all")
    title, underline = path.read_text().splitlines()[1:3]
    assert underline == "=" * len(title)  # sphinx-gallery's format
