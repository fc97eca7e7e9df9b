"""What the speed benchmarks share: fits and predictions that take turns, and tables of ratios."""

import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits


def with_threads(n_threads, function):
    """Return the function, run with so many threads in torch and in numpy's libraries."""

    def run():
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            with threadpool_limits(n_threads):
                function()
        finally:
            torch.set_num_threads(before)

    return run


def ratios(ours, peers, *, n_pairs, repeat=1):
    """Return the median over pairs of our time divided by that of each peer.

    Parameters
    ----------
    ours : callable
        It chooses its threads itself.
    peers : dict of callables
        Each runs with one and with two threads, and the smaller median counts.
    n_pairs : int
        How often all of them run, one after the other.
    repeat : int, default=1
        How often each is called for one time.
    """
    runs = {None: ours}
    for name, peer in peers.items():
        runs |= {(name, n_threads): with_threads(n_threads, peer) for n_threads in (1, 2)}
    seconds = {key: [] for key in runs}
    for run in runs.values():
        run()
    for _ in range(n_pairs):
        for key, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            seconds[key].append(time.perf_counter() - start)
    our_seconds = np.array(seconds[None])
    return {
        name: max(np.median(our_seconds / seconds[name, n_threads]) for n_threads in (1, 2))
        for name in peers
    }


def markdown(header, rows):
    """Print a Markdown table whose first column is text and whose others are numbers."""
    print(f"| {' | '.join(header)} |")
    print(f"|---|{'---:|' * (len(header) - 1)}", flush=True)
    for row in rows:
        cells = [cell if isinstance(cell, str) else f"{cell:.2f}" for cell in row]
        print(f"| {' | '.join(cells)} |", flush=True)
