"""Set the number of torch's threads within an operation, for a while.

Each thread has its own number in torch, and a thread that is new to torch begins with the number
that any thread has set last. torch uses threads of OpenMP, which does not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController


class _Here(threading.local):
    """The number that the calling thread had before :func:`intra_op_threads` set another."""

    given: Any = None


_here = _Here()
_lock = threading.Lock()
_n_users = 0  # how many threads have another number set here at the moment
_default = 0  # the number with which threads that are new to torch should begin meanwhile
_is_forked = False


@contextmanager
def intra_op_threads(n_threads: int, *, within_limits: bool = False) -> Iterator[None]:
    """Set torch's intra-op threads in the calling thread for a while.

    Parameters
    ----------
    n_threads : int
        Number of threads.
    within_limits : bool, default=False
        Whether to use at most the number that the thread was given (see :func:`threads_given`), as
        a forked child always does.
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

    It is the number that torch would use by itself, which follows ``OMP_NUM_THREADS``,
    ``torch.set_num_threads``, ``threadpool_limits`` and the limits of joblib's workers, but at
    most the number of processors that this process was given.
    """
    return min(_here.given, _n_processors())


def _count():
    """Return torch's number for the calling thread, as if this module had set no other."""
    global _default
    if _n_users == 0:
        _default = torch.get_num_threads()
        return _default
    library = _openmp()
    before = library and library.num_threads
    count = torch.get_num_threads()
    # If torch changed OpenMP's number when asked, the thread is new to torch and has begun with a
    # number that another thread set here.
    return count if before == count else _default


_n_processors = cache(cpu_count)  # cached, as it reads files each time


@cache
def _openmp():
    """Return the library that torch counts its threads with, or None if it is not known."""
    libraries = ThreadpoolController().select(user_api="openmp").lib_controllers
    return next((each for each in libraries if "torch" in each.filepath), None)


def _after_fork():
    """Give a forked child one thread: OpenMP would wait forever for the threads of its parent."""
    global _lock, _n_users, _default, _is_forked
    _lock = threading.Lock()
    _default, _is_forked = 1, True
    _n_users = 0
    if _here.given is not None:  # forked during a training, for example by a callback
        _n_users = _here.given = 1
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
