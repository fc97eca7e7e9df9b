"""The code blocks of the user guide run, page by page."""

import ast
import re
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.rst"))
BLOCK = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)


def code_blocks(page):
    blocks = [textwrap.dedent(code) for _, code in BLOCK.findall(page.read_text())]
    assert len(blocks) == page.read_text().count(".. code-block:: python")
    return blocks


def statements(code):
    """What a block of code does, imports name by name."""
    for each in ast.parse(code).body:
        if isinstance(each, ast.ImportFrom):
            yield from (f"from {each.module} import {alias.name}" for alias in each.names)
        else:
            yield ast.unparse(each)


def test_the_first_page_shows_what_the_readme_shows():
    """Which test_readme.py runs."""
    (shown,) = code_blocks(ROOT / "docs" / "index.rst")
    first = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert set(statements(shown)) <= set(statements(first))


# So early, gates collapse and restarts disagree.
@pytest.mark.filterwarnings(
    "ignore:The gate has collapsed", "ignore:(With . experts. )?The best of"
)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.stem
)
def test_code_blocks(page, monkeypatch, tmp_path, short_trainings, capsys):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)  # some blocks write files
    namespace = {}
    try:
        for code in code_blocks(page):
            exec(compile(code, page.name, "exec"), namespace)
    finally:
        plt.close("all")
