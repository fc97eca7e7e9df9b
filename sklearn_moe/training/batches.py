"""Batches: slices of tensors that already live on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from skorch.utils import data_from_dataset
from torch import Tensor

from sklearn_moe.containers import SparseRows

# Rows that are read from a file are shuffled in blocks of this many rows, and this many blocks at
# a time, because reading single rows in random order is slow.
ROWS_OF_BLOCK = 1024
BLOCKS_OF_WINDOW = 64


class TensorBatches:
    """Batches as slices of tensors that already live on the device.

    skorch uses it instead of torch's ``DataLoader``, which would collect single rows. The rows are
    divided into batches of at most ``batch_size`` rows, as equal in size as possible.

    Parameters
    ----------
    dataset : skorch.dataset.Dataset
        Holds a tensor, or a dict of tensors, and the targets.
    batch_size : int
        Largest number of rows of a batch.
    generator : torch.Generator, default=None
        Shuffles the rows of each epoch; None keeps their order.
    in_windows : bool, default=False
        Whether to shuffle blocks of neighbouring rows, and the rows of 64 blocks at a time, so
        that a file that is larger than the memory is read in long pieces.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        generator: torch.Generator | None = None,
        in_windows: bool = False,
    ):
        self.X, self.y = data_from_dataset(dataset)
        self.in_windows = in_windows
        self.n_samples = len(dataset)
        self.n_batches = -(-self.n_samples // batch_size)
        self.generator = generator
        # All rows of a group are in one batch.
        self.group = self.X.get("group") if isinstance(self.X, dict) else None

    def __len__(self) -> int:
        return self.n_batches

    def rows(self) -> Iterator[slice | Tensor]:
        """Divide the rows of one epoch into batches."""
        if self.generator is None or self.n_batches == 1:
            bounds = np.linspace(0, self.n_samples, self.n_batches + 1).astype(int)
            return (slice(*pair) for pair in pairwise(bounds))
        if self.group is not None:
            return iter(self._whole_groups())
        return iter(self._shuffle().to(self.y.device).tensor_split(self.n_batches))

    def _whole_groups(self):
        """Return batches of whole groups in random order, of about equal size."""
        sizes = self.group.bincount()
        place = self._permutation(len(sizes)).to(self.group.device)
        rows = place[self.group].argsort(stable=True)
        ends = sizes[place.argsort()].cumsum(0)
        wanted = torch.arange(1, self.n_batches, device=ends.device) / self.n_batches * len(rows)
        bounds = ends[torch.searchsorted(ends, wanted.long())].unique()
        return [part for part in rows.tensor_split(bounds.cpu()) if len(part)]

    def _shuffle(self):
        if not self.in_windows or self.n_samples <= ROWS_OF_BLOCK * BLOCKS_OF_WINDOW:
            return self._permutation(self.n_samples)
        n_blocks = math.ceil(self.n_samples / ROWS_OF_BLOCK)
        blocks = self._permutation(n_blocks)
        places = torch.arange(ROWS_OF_BLOCK, device=blocks.device)
        windows = []
        for window in blocks.split(BLOCKS_OF_WINDOW):
            rows = (window.unsqueeze(1) * ROWS_OF_BLOCK + places).flatten()
            rows = rows[rows < self.n_samples]
            windows.append(rows[self._permutation(len(rows))])
        return torch.cat(windows)

    def _permutation(self, n):
        return torch.randperm(n, generator=self.generator, device=self.generator.device)

    def take(self, rows: slice | Tensor) -> Any:
        """Return the batch of these rows."""

        def of(values):
            if isinstance(rows, slice):
                return as_tensor(values[rows], getattr(values, "device", "cpu"))
            return values.index_select(0, rows)

        X = {name: of(x) for name, x in self.X.items()} if isinstance(self.X, dict) else of(self.X)
        return X, (None if self.y is None else of(self.y))

    def __iter__(self) -> Iterator:
        return map(self.take, self.rows())


def as_tensor(
    array: np.ndarray | Tensor | SparseRows, device: torch.device | str
) -> Tensor | SparseRows:
    """Return an array as a tensor on a device, not copied if possible; sparse rows stay as is."""
    if isinstance(array, Tensor):
        return array.to(device)
    if not isinstance(array, np.ndarray):
        return array
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:  # torch would warn, but nothing here writes to it
        array = np.asarray(_Writeable(array))
    return torch.from_numpy(array).to(device)


class _Writeable:
    """A view on the memory of a read-only array, which numpy takes for writeable."""

    def __init__(self, array):
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def is_memory_map(array: Any) -> bool:
    """Whether an array reads its values from a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def evenly(n_rows: int, n_samples: int) -> slice:
    """Return a slice of at most ``n_samples`` evenly spaced rows."""
    return slice(None, None, -(-n_rows // n_samples))


def spaced(weight: Tensor, n_samples: int) -> tuple[slice | Tensor, Tensor]:
    """Return at most ``n_samples`` rows, evenly spaced along their summed weights, and weights."""
    if len(weight) <= n_samples:
        return slice(None), weight
    reached = weight.double().cumsum(0)
    places = (torch.arange(n_samples, device=weight.device) + 0.5) / n_samples * reached[-1]
    return torch.searchsorted(reached, places, right=True).unique(return_counts=True)
