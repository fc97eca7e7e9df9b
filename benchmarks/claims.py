"""What the examples print, over several seeds: what their texts claim has to hold on them.

Each example runs once per seed, with its own seeds shifted. Of each line that it prints every
time with the same words, the numbers come as mean and standard deviation. An example that takes
the mean over seeds itself runs once, over so many.

    python benchmarks/claims.py [--seeds 5] [plot_collapse ...]
"""

import argparse
import contextlib
import io
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"
LOOP = re.compile(r"for seed in range\(\d+\)")
SEED = re.compile(r"(random_state=|RandomState\(|default_rng\(|make_\w+\(\d+, )(\d+)\b")
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?\b")


def run(path, source, seed):
    """Return the lines that an example prints with its seeds shifted."""
    source = SEED.sub(lambda match: f"{match[1]}{int(match[2]) + 10 * seed}", source)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source, path.name, "exec"), {"__name__": "__main__"})
    plt.close("all")
    return out.getvalue().splitlines()


def keyed(lines):
    """Return each line by its words and how often they came before."""
    keys, seen = {}, Counter()
    for line in lines:
        words = re.sub(r"\s+", " ", NUMBER.sub("#", line))
        keys[words, seen[words]] = line
        seen[words] += 1
    return keys


def summarize(runs):
    """Yield the lines that all runs have in common, with mean and deviation of their numbers."""
    runs = [keyed(lines) for lines in runs]
    for key, first in runs[0].items():
        if not all(key in run for run in runs):
            continue
        numbers = [[float(each.replace(",", "")) for each in NUMBER.findall(r[key])] for r in runs]
        cells = iter(zip(np.mean(numbers, axis=0), np.std(numbers, axis=0, ddof=1), strict=True))
        yield NUMBER.sub(lambda _, cells=cells: "{:.4g} ± {:.2g}".format(*next(cells)), first)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("examples", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    matplotlib.use("agg")
    sys.argv = sys.argv[:1]
    names = args.examples or sorted(path.stem for path in EXAMPLES.glob("plot_*.py"))
    for name in names:
        path = EXAMPLES / f"{name}.py"
        source, n_loops = LOOP.subn(f"for seed in range({args.seeds})", path.read_text())
        if n_loops:
            lines = run(path, source, 0)
        else:
            lines = summarize([run(path, source, seed) for seed in range(args.seeds)])
        print(f"== {name}, {args.seeds} seeds", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
