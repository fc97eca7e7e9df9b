"""Storages of studies: files and databases, with heartbeats of the trials that run.

Imported when a study is opened, because importing Optuna takes long.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import warnings
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

# Seconds between two heartbeats of a trial, and seconds without one until it counts as dead.
HEARTBEAT, GRACE = 10, 30

# Seconds that processes wait for one another if they share an SQLite file.
PATIENCE = 60

BEGIN_OF_JOURNAL = b'{"op_code"'
SQLITE_SUFFIXES = {".db", ".sqlite", ".sqlite3"}


def open_storage(storage: str | os.PathLike | BaseStorage | None) -> BaseStorage:
    """Open the storage at an address or in a file; None means in memory.

    The content of a file says whether it is an SQLite file or a journal. For a new file, the
    suffix decides: without one of those for SQLite it is a journal.
    """
    if storage is None:
        return InMemoryStorage()
    if not isinstance(storage, (str, os.PathLike)):
        return storage
    if isinstance(storage, str) and "://" in storage:
        if is_in_memory(storage):
            return InMemoryStorage()
        shares_file = storage.startswith("sqlite")
        return _data_base(storage, {"connect_args": {"timeout": PATIENCE}} if shares_file else {})
    path = Path(storage).absolute()
    content = b""
    if path.exists():
        with path.open("rb") as file:
            content = file.read(16)
    is_new = not content
    if content.startswith(b"SQLite format 3") or (is_new and path.suffix in SQLITE_SUFFIXES):
        # Not by an address, because some characters of a path have another meaning there.
        connect = partial(sqlite3.connect, path, timeout=PATIENCE, check_same_thread=False)
        return _data_base("sqlite:///file", {"creator": connect})
    if BEGIN_OF_JOURNAL.startswith(content[: len(BEGIN_OF_JOURNAL)]):  # it may have been cut
        return Journal(JournalFile(os.fspath(path)))
    raise ValueError(f"the file {path} is neither an SQLite file nor a journal of Optuna")


def _data_base(address, engine_kwargs):
    return DataBase(address, engine_kwargs, heartbeat_interval=HEARTBEAT, grace_period=GRACE)


def is_in_memory(address: str) -> bool:
    """Whether an address is that of an SQLite database without a file."""
    if not re.match(r"sqlite(\+\w+)?://", address):
        return False
    url = make_url(address)
    return url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"


class DataBase(RDBStorage):
    """A database in which a trial goes on if one of its heartbeats fails."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # From Python 3.13 on, SQLite warns of connections that nobody closes.
        weakref.finalize(self, self.engine.dispose)

    def record_heartbeat(self, trial_id):
        with suppress(StorageInternalError):
            super().record_heartbeat(trial_id)


class Journal(JournalStorage, BaseHeartbeat):
    """A journal with heartbeats, whose times are those of each machine's clock."""

    def record_heartbeat(self, trial_id):
        with suppress(StorageInternalError, RuntimeError):  # also if the trial is finished
            self.set_trial_system_attr(trial_id, "heartbeat", time.time())

    def _get_stale_trial_ids(self, study_id):
        return [
            trial._trial_id
            for trial in self.get_all_trials(study_id, deepcopy=False)
            if trial.state == TrialState.RUNNING
            and trial.system_attrs.get("heartbeat", trial.datetime_start.timestamp())
            < time.time() - GRACE
        ]

    def get_heartbeat_interval(self):
        return HEARTBEAT

    def get_heartbeat_stale_trial_callback(self):
        return None

    get_failed_trial_callback = get_heartbeat_stale_trial_callback  # its name before Optuna 4.9


class JournalFile(JournalFileBackend):
    """The file of a journal. It ends with a complete line, even after the disk was full."""

    def __init__(self, path: str):
        self.lock = JournalFileSymlinkLock(path)
        super().__init__(path, self.lock)
        self.path = path
        if self._cut():
            warnings.warn(
                f"The journal {path} ended within a line, as after a full disk. The study "
                "continues without this line.",
                stacklevel=2,
            )

    def append_logs(self, logs):
        try:
            super().append_logs(logs)
        except OSError as error:
            with suppress(OSError):
                self._cut()
            raise StorageInternalError(str(error)) from error

    def _cut(self):
        """Remove everything after the last complete line; return whether there was anything."""
        if self._is_whole():
            return False
        self.lock.acquire()  # another process may be writing
        try:
            if self._is_whole():
                return False
            with open(self.path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
            return True
        finally:
            self.lock.release()

    def _is_whole(self):
        with open(self.path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
