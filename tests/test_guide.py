"""The code blocks of the user guide run, page by page."""

import re
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.rst"))
BLOCK = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks(page, monkeypatch, tmp_path, capsys):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)  # some blocks write files
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) == page.read_text().count(".. code-block:: python")
    namespace = {}
    try:
        for _, code in blocks:
            exec(compile(textwrap.dedent(code), page.name, "exec"), namespace)
    finally:
        plt.close("all")
