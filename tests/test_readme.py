"""What README.md shows works."""

import re
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from sklearn_moe import MoEClassifier

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:The gate has collapsed")  # so early
def test_python_blocks_of_the_readme_run(short_trainings, capsys):
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "H_s" in capsys.readouterr().out


def test_readme_has_two_set_up_commands():
    commands = re.findall(r"^python -m venv .*", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert "examples/plot_quickstart.py" in commands[0] and "pytest" in commands[1]


def test_quick_start(few_digits, capsys, monkeypatch, tmp_path):
    matplotlib.use("agg")
    monkeypatch.setitem(MoEClassifier.__init__.__kwdefaults__, "max_iter", 15)
    monkeypatch.setattr(sys, "argv", ["plot_quickstart.py", str(tmp_path / "picture.png")])
    runpy.run_path(str(ROOT / "examples" / "plot_quickstart.py"), run_name="__main__")
    plt.close("all")
    printed = capsys.readouterr().out
    accuracies = [
        float(found) for found in re.findall(r"accuracy of the .*mixture +(\S+)", printed)
    ]
    assert len(accuracies) == 4 and min(accuracies) > 0.9
    assert "The experts are used evenly, and the gate is sure" in printed
    assert (tmp_path / "picture.png").stat().st_size > 10_000
