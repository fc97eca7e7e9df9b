"""Peak memory of fit and predict beyond a process that has the data already.

    python benchmarks/memory.py                     # 581k rows of 54 features, as covertype has
    python benchmarks/memory.py --rows 50000000     # 10.8 GB in a file that is never loaded

The default path comes first: tables that the mixture encodes itself, with hat functions. Then the
same with ``encoder=None``, which reads X as it is. Each case runs in a process of its own, after a
small fit that loads all libraries, and reports the growth of the peak resident memory as a
multiple of X. The pages of a mapped file do not count: the system keeps them in its cache, and
drops them when it needs the room.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from timing import markdown

CASES = [
    f"{container}, {path}"
    for path in ("default", "encoder=None")
    for container in ("float64 array", "float32 array", "memory map")
]


def resident():
    """Return the bytes of this process that are in memory and in no file."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


class Peak:
    """The highest value of ``resident`` while a function runs."""

    def of(self, function):
        from threading import Event, Thread

        done, seen = Event(), [resident()]

        def look():
            while not done.wait(0.002):
                seen.append(resident())

        watcher = Thread(target=look)
        watcher.start()
        function()
        done.set()
        watcher.join()
        return max(seen) - seen[0]


def measure(case, n_rows, n_features):
    from sklearn_moe import MoEClassifier

    container, path = case.split(", ")
    rng = np.random.default_rng(0)
    y = rng.integers(7, size=n_rows)
    with tempfile.TemporaryDirectory() as folder:
        if container == "memory map":
            X = np.lib.format.open_memmap(
                f"{folder}/X.npy", "w+", np.float32, (n_rows, n_features)
            )
        else:
            X = np.empty((n_rows, n_features), container.split()[0])
        for start in range(0, n_rows, 100_000):
            part = X[start : start + 100_000]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        if container == "memory map":
            X.flush()
            X = np.load(f"{folder}/X.npy", mmap_mode="r")
        options = {"max_iter": 1, "device": "cpu", "random_state": 0}
        clf = MoEClassifier(encoder="auto" if path == "default" else None, **options)
        clf.fit(X[:4096], y[:4096]).predict_proba(X[:4096])
        predict = Peak().of(lambda: clf.predict_proba(X))
        fit = Peak().of(lambda: clf.fit(X, y))
        print(fit / X.nbytes, predict / X.nbytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=581_012)
    parser.add_argument("--features", type=int, default=54)
    parser.add_argument("--case", choices=CASES, help="measure one case in this process")
    options = parser.parse_args()
    if options.case:
        measure(options.case, options.rows, options.features)
    else:
        cases = CASES if options.rows == 581_012 else [CASES[2], CASES[-1]]
        sizes = ["--rows", str(options.rows), "--features", str(options.features)]
        rows = []
        for case in cases:
            command = [sys.executable, __file__, *sizes, "--case", case]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append((case, *map(float, output.split())))
        markdown(["peak beyond X, as a multiple of X", "fit", "predict_proba"], rows)
