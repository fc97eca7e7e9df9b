"""How many threads torch takes for an operation, for a while.

torch counts for each thread on its own, and a thread that is new to torch begins with the number
that any thread has set last. OpenMP, whose threads they are, does not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController


class _Here(threading.local):
    """What the calling thread may use, while :func:`intra_op_threads` sets something else."""

    given: int | None = None


_here = _Here()
_lock = threading.Lock()
_n_users = 0  # threads in whose place something else is set
_default = 0  # what threads that are new to torch should begin with, meanwhile
_is_forked = False


@contextmanager
def intra_op_threads(n_threads: int, *, within_limits: bool = False) -> Iterator[None]:
    """Set torch's intra-op threads in the calling thread for a while.

    Parameters
    ----------
    n_threads : int
        The number.
    within_limits : bool, default=False
        Whether to take fewer where the thread was given fewer (see :func:`threads_given`), as a
        forked child always does.
    """
    global _n_users
    outermost = _here.given is None
    if outermost:
        with _lock:
            _here.given = _count()
            _n_users += 1
    before = torch.get_num_threads()
    try:
        if (within_limits or _is_forked) and n_threads > 1:
            n_threads = min(n_threads, threads_given())
        torch.set_num_threads(n_threads)
        yield
    finally:
        if outermost:
            with _lock:
                torch.set_num_threads(_here.given)
                _n_users -= 1
                _here.given = None
        else:
            torch.set_num_threads(before)


def threads_given() -> int:
    """Return how many threads the calling thread may use, within :func:`intra_op_threads`.

    It is what torch would use of its own, which follows ``OMP_NUM_THREADS``,
    ``torch.set_num_threads``, ``threadpool_limits`` and what joblib gives its workers, and not
    more than the processors that this process was given.
    """
    return min(_here.given, _n_processors())


def _count():
    """Return torch's count for the calling thread, as if nobody were setting another here."""
    global _default
    if _n_users == 0:
        _default = torch.get_num_threads()
        return _default
    library = _openmp()
    before = library and library.num_threads
    count = torch.get_num_threads()
    # If torch changed it, the thread is new to torch and has begun with what others have set here.
    return count if before == count else _default


_n_processors = cache(cpu_count)  # which reads files each time


@cache
def _openmp():
    """Return the library that torch counts its threads with, or None if it is not known."""
    libraries = ThreadpoolController().select(user_api="openmp").lib_controllers
    return next((each for each in libraries if "torch" in each.filepath), None)


def _after_fork():
    """Leave one thread to a child: OpenMP would wait forever for those of its parent."""
    global _lock, _n_users, _default, _is_forked
    _lock = threading.Lock()
    _default, _is_forked = 1, True
    _n_users = 0
    if _here.given is not None:  # forked by a callback, say
        _n_users = _here.given = 1
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
