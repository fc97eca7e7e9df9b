"""Run tasks of joblib under a progress bar."""

from __future__ import annotations

from collections.abc import Iterator

from joblib import Parallel


def run_all(
    tasks: Iterator, n_jobs: int | None, *, total: int | None, name: str, unit: str = "fit"
) -> Iterator:
    """Run tasks of joblib, and yield their results in order.

    With a ``total`` number of tasks, there is a progress bar of this name, which counts units.
    """
    results = Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
    shown = results
    try:
        if total is not None:
            from tqdm.auto import tqdm  # only here, as it warns in notebooks without ipywidgets

            shown = tqdm(results, total=total, unit=unit, desc=name)
        yield from shown
    finally:
        results.close()  # ends the workers if one has failed
