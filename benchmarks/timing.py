"""What the speed benchmarks share: fits and predictions that take turns, and tables of ratios."""

import time
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits


@contextmanager
def threads(n_threads):
    """Give torch and numpy's libraries so many threads for a while; None leaves them alone."""
    if n_threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)


def make_data(n_samples, n_features, n_classes):
    """Return random samples, as the time does not depend on what they are."""
    random = np.random.RandomState(0)
    X = random.normal(size=(n_samples, n_features)).astype(np.float32)
    return X, random.randint(n_classes, size=n_samples)


def ratios(ours, peers, *, n_pairs, repeat=1, choose=False):
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
    choose : bool, default=False
        Whether the peers choose their threads, too.
    """
    runs = {(None, None): ours}
    for name, peer in peers.items():
        runs |= {(name, n_threads): peer for n_threads in ((None,) if choose else (1, 2))}
    seconds = {key: [] for key in runs}
    for i_pair in range(n_pairs + 1):
        for key, run in runs.items():
            with threads(key[1]):
                start = time.perf_counter()
                for _ in range(repeat):
                    run()
                if i_pair > 0:  # the first one warms up
                    seconds[key].append(time.perf_counter() - start)
    our_seconds = np.array(seconds[None, None])
    return {
        peer: max(np.median(our_seconds / seconds[key]) for key in runs if key[0] == peer)
        for peer in peers
    }


def markdown(header, rows):
    """Print a Markdown table whose first column is text and whose others are numbers."""
    print(f"| {' | '.join(header)} |")
    print(f"|---|{'---:|' * (len(header) - 1)}", flush=True)
    for row in rows:
        cells = [cell if isinstance(cell, str) else f"{cell:.2f}" for cell in row]
        print(f"| {' | '.join(cells)} |", flush=True)
