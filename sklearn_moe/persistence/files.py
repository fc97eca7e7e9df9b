"""The form of saved files: one safetensors file, with all but the arrays as JSON in its header."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# The JSON may have so many characters. Reading it takes about forty times as much memory.
MOST_TEXT = 2**24

# The version of the form. A later one has to read files of all former ones.
FORM = 1

# Where the header has the form, the JSON and a checksum.
FORM_KEY, CONTENT_KEY, CHECKSUM_KEY = "sklearn_moe.form", "sklearn_moe", "sklearn_moe.sha256"

# A dictionary with this key is no dictionary in JSON, but what the key says.
KIND = "kind"

# Kinds of numpy's types that safetensors can hold.
NUMERIC = "biuf"


def named_classes() -> dict[str, type]:
    """Return the classes of torch that ``net_params`` may hold, by name."""
    rooms: tuple[tuple[Any, type], ...] = (
        (torch.optim, torch.optim.Optimizer),
        (torch.nn.modules.loss, torch.nn.modules.loss._Loss),
    )
    return {
        f"{room.__name__}.{name}": value
        for room, base in rooms
        for name, value in vars(room).items()
        if isinstance(value, type) and issubclass(value, base)
    }


def checksum(content: str, arrays: Mapping[str, NDArray]) -> str:
    """Return a checksum of all that a file says."""
    found = hashlib.sha256(content.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of a new file beside ``path``, and put it in its place at the end.

    If anything fails, what was at ``path`` stays.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r} is in a directory that is not there.")
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a directory. Pass the name of a file.")
    path = path.resolve()  # a link stays one
    # In a directory of its own, so that the new file gets the usual permissions.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as directory:
        new = Path(directory, path.name)
        yield new
        os.replace(new, path)
