"""Predict in chunks that fit into the cache, padded so that no row depends on its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_moe.containers import SparseRows
from sklearn_moe.convolution import convolutions, multiply_adds
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.batches import as_tensor
from sklearn_moe.training.defaults import usual_defaults
from sklearn_moe.training.threads import intra_op_threads, threads_given

if TYPE_CHECKING:
    from sklearn_moe.training.net import MoENet

# Predictions are made in chunks of at most this many rows, whatever the batch size of the training
# was. Chunks are smaller if a layer of all experts would have more outputs than the next limits,
# because numbers that do not fit into the processor's cache are slow.
CHUNK_SIZE = 8192
CHUNK_OF_LAYER = 2**18
CHUNK_OF_TABLE = 2**25  # encoded columns
CHUNK_OF_CONVOLUTION = {"cpu": 2**20, "cuda": 2**28}

# Vectorised loops compute the last few rows of a batch in another way, which rounds differently.
# So batches are padded to a multiple of 16 rows, which fill the vectors of any processor. Then no
# rows are left over, and a prediction does not depend on its place in the batch.
ROWS_AT_ONCE = 16

# A single row that takes more multiply-adds than this is not padded, as sixteen rows would take at
# least twice the time. Its probabilities may then differ by 1e-7 from those in a batch.
WORK_TO_PAD_A_ROW = 6e4

# A second thread pays if a batch takes at least this many multiply-adds and the process may have
# one. In training that is less, as all that follows the products is divided, too. Two threads add
# in another order, which rounds differently. So that results can be repeated, the choice depends
# on the work and on what the process was given, never on how busy the machine is.
WORK_FOR_TWO_THREADS = {"training": 1.2e7, "prediction": 2e8}


class Work(NamedTuple):
    """How much work a mixture has to do. Counting takes a while, so a net keeps the result.

    Attributes
    ----------
    training, prediction : float
        Multiply-adds for a sample in training and in prediction.
    chunk_size : int
        Largest number of rows that a prediction takes at once.
    """

    training: float
    prediction: float
    chunk_size: int

    @classmethod
    def of(cls, module: MixtureOfExperts, device: str) -> Work:
        """Count the work of a mixture on a device."""
        experts = multiply_adds(module.experts)
        in_layers = sum(sum(layer.experts.costs) for layer in module.layers)
        others = multiply_adds(module.gate) + max(multiply_adds(module.encoder), in_layers)
        is_conditional = module.is_conditional
        n_experts = len(module.experts.costs)
        n_answers: Any = module.gate.n_answers
        running = experts * n_answers / n_experts if is_conditional else experts
        return cls(experts + others, running + others, _chunk_size(module, device))


def _chunk_size(module, device):
    on_cpu = torch.device(device).type == "cpu"
    limit = CHUNK_OF_LAYER
    width = max(
        len(each.experts.costs) * (each.experts.widest or each.experts.hidden_size or 1)
        for each in (module, *module.layers)
    )
    if stacks := convolutions(module):
        limit = CHUNK_OF_CONVOLUTION["cpu" if on_cpu else "cuda"]
        width = max(width, *(stack.n_networks * stack.widest for stack in stacks))
    elif module.is_conditional or not on_cpu:
        width = 1
    n_encoded = getattr(module.table, "n_out", 1)
    n_rows = min(limit / width, CHUNK_OF_TABLE / n_encoded)
    return min(max(2 ** int(math.log2(n_rows)), ROWS_AT_ONCE), CHUNK_SIZE)


def threads_for(
    net: MoENet, n_rows: int, *, predicting: bool = False
) -> AbstractContextManager[None]:
    """Return a context in which torch uses the right number of threads for batches of n_rows."""
    if net.n_threads != "auto":
        return intra_op_threads(net.n_threads)
    purpose = "prediction" if predicting else "training"
    work = n_rows * getattr(net.work, purpose)
    n_threads = 2 if work >= WORK_FOR_TWO_THREADS[purpose] else 1
    return intra_op_threads(n_threads, within_limits=True)


def evaluate(
    net: MoENet,
    X: np.ndarray | SparseRows | Tensor,
    function: Callable[[MixtureOfExperts, Tensor], Tensor],
    dtype: type | None = None,
) -> np.ndarray:
    """Apply a function of a net's mixture and a batch to all rows of X.

    ``dtype`` is the type of the result; by default it is that of torch's output.
    """
    module, device, chunk_size = net.module_, net.device, net.work.chunk_size

    def part(start):
        with torch.inference_mode():
            x = as_tensor(X[start : start + chunk_size], device)
            return run_padded(net, module, function, x).cpu().numpy()

    starts = range(0, len(X), chunk_size)
    with threads_for(net, min(chunk_size, len(X)), predicting=True):
        if not _runs_in_two_threads(net, module, len(starts)):
            return _gathered(map(part, starts), starts, len(X), dtype)
        # Two threads with one chunk each are faster than two threads for each product of a chunk,
        # and they lose less time if another process uses one of the cores.
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return _gathered(pool.map(part, starts), starts, len(X), dtype)


def _gathered(parts, starts, n_rows, dtype):
    """Write the parts into one array as they come, so that there is never a second copy."""
    out = None
    for start, part in zip(starts, parts, strict=True):
        if out is None:
            out = np.empty((n_rows, *part.shape[1:]), dtype or part.dtype)
        out[start : start + len(part)] = part
    return out


def _runs_in_two_threads(net, module, n_chunks):
    return (
        n_chunks > 3
        and net.n_threads == "auto"
        and torch.get_num_threads() == 1
        and threads_given() > 1
        and torch.device(net.device).type == "cpu"
        and module.experts.runs_at_once
    )


def run_padded(
    net: MoENet,
    module: MixtureOfExperts,
    function: Callable[[MixtureOfExperts, Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """Apply a function to a batch that is padded to a multiple of ``ROWS_AT_ONCE`` rows."""
    n_missing = -len(x) % ROWS_AT_ONCE
    is_dear = len(x) == 1 and net.work.training > WORK_TO_PAD_A_ROW
    with usual_defaults(net.device):
        if n_missing == 0 or is_dear:
            return function(module, x)
        padded = F.pad(x, (0, 0) * (x.dim() - 1) + (0, n_missing))
        return function(module, padded)[: len(x)]
