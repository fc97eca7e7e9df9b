"""Searches over several processes: in a file, on a PostgreSQL server and on a dask cluster."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.datasets import load_iris
from test_search import states

from sklearn_moe import MoEClassifier, MoESearchCV, cross_validate, tune
from sklearn_moe.model_selection import storages


def postgres_programs():
    """The folder of PostgreSQL's programs, which Debian does not put on the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else Path("/usr/lib/postgresql").glob("*/bin")
    return max((folder for folder in folders if (folder / "initdb").exists()), default=None)


@pytest.fixture(scope="module")
def postgres():
    """The address of a server on loopback, run by a user who is not root."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pwd = pytest.importorskip("pwd", reason="Windows has no users of this kind")
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp()
    if os.getuid() == 0:
        shutil.chown(folder, user)

    def run(program, *args):
        subprocess.run(
            [programs / program, "-D", f"{folder}/data", *args],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            user=user if os.getuid() == 0 else None,
        )

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("initdb", "--auth=trust", "--username=moe")
    try:
        run("pg_ctl", "start", "--wait", f"--log={folder}/log", "-o", options)
        yield f"postgresql+psycopg://moe@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "stop", "--mode=immediate")
        shutil.rmtree(folder)


WORKER = """
    import sys, threading, time
    from sklearn.datasets import load_iris
    from sklearn_moe import MoEClassifier, tune

    MoEClassifier(max_iter=1).fit(*load_iris(return_X_y=True))  # the first fit takes longer
    print("ready", flush=True)

    def score(*args):
        folds_before_the_end[threading.current_thread().name] -= 1
        if folds_before_the_end[threading.current_thread().name] < 0:
            print("late", flush=True)
            time.sleep(600)
        return 0.5

    def go(storage):
        tune(MoEClassifier(max_iter=1, random_state=0), *load_iris(return_X_y=True),
             n_trials=8, cv=2, study_name="shared", storage=storage, pruner=None,
             scoring=score, verbose=0)
        print("done", storage, flush=True)  # also if another process made all trials

    folds_before_the_end = {}
    for line in sys.stdin:
        storage, n_folds = line.strip().rsplit(maxsplit=1)
        folds_before_the_end[storage] = int(n_folds)
        threading.Thread(target=go, args=(storage,), name=storage).start()
"""


def score(*args):
    return 0.5


@pytest.fixture(scope="module")
def other():
    """A process, which takes seconds to start. It fills a study in each storage that it is told.

    After so many folds it hangs.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    MoEClassifier(max_iter=1).fit(*load_iris(return_X_y=True))  # warm, as the other is
    assert process.stdout.readline() == "ready\n", process.communicate()
    yield process
    process.kill()
    process.communicate()


def go(process, n_folds):
    """Let a process begin with these storages, and hang in each after so many folds."""
    process.stdin.writelines(f"{storage} {number}\n" for storage, number in n_folds.items())
    process.stdin.flush()


def wait_for(process, line, count=1):
    """Read what a process says, until it has said a line so often."""
    lines = []
    while lines.count(line) < count:
        lines.append(process.stdout.readline())
        assert lines[-1], (lines, process.communicate())


def shared_search(**params):
    """Do in this process what a worker does."""
    clf, data = MoEClassifier(max_iter=1, random_state=0), load_iris(return_X_y=True)
    params.update(study_name="shared", pruner=None, scoring=score, verbose=0)
    return tune(clf, *data, cv=2, **params)


def check_shared(study, n_trials, n_extra=0):
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert n_trials <= len(complete) <= n_trials + n_extra
    assert len({str(trial.params) for trial in complete}) == len(complete)  # none twice
    # Exactly one begins with what the estimator is.
    (first,) = (trial for trial in complete if trial.user_attrs["begins"])
    assert first.params["regularization"] == "competence" and first.params["dropout"] == 0
    return complete


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("server", [False, True])
def test_two_processes_fill_a_study(server, other, request, tmp_path):
    """From another process and from this one, which start together."""
    storage = request.getfixturevalue("postgres") if server else str(tmp_path / "shared.db")
    go(other, {storage: 99})
    study = shared_search(storage=storage, n_trials=8).study_
    check_shared(study, 8, n_extra=1)
    wait_for(other, f"done {storage}\n")
    if server:
        study._storage.remove_session()
        study._storage._backend.engine.dispose()  # before the server stops
        del study
        gc.collect()  # Optuna's threads leave their connections open, as no later test should hear


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_searches_go_on(other, tmp_path, monkeypatch):
    # Two are killed in their first trial.
    paths = {tmp_path / "study.db": 0, tmp_path / "journal.log": 1, tmp_path / "later.db": 5}
    go(other, paths)
    wait_for(other, "late\n", len(paths))
    other.send_signal(signal.SIGKILL)
    errors = other.communicate()[1]  # Optuna may log there, as its level is that of all threads
    assert "Traceback" not in errors, errors
    monkeypatch.setattr(storages, "HEARTBEAT", 1)
    monkeypatch.setattr(storages, "GRACE", 1)
    time.sleep(3)  # until its last signs of life, in whole seconds, are older than that
    for path, n_folds in paths.items():
        before = n_folds // 2  # complete trials
        study = shared_search(storage=path, n_trials=before + 2).study_
        assert states(study) == ["COMPLETE"] * before + ["FAIL"] + ["COMPLETE"] * 2
        check_shared(study, before + 2)


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    local = distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None)
    with local, distributed.Client(local) as client:
        yield client


@pytest.mark.filterwarnings("ignore")  # of dask and of its event loop
def test_dask(cluster, digits, monkeypatch):
    X, y = digits[0][:600], digits[1][:600]
    clf = MoEClassifier(n_experts=3, max_iter=1, random_state=0)
    search = MoESearchCV(clf, n_trials=3, cv=2, n_jobs=2, random_state=0, pruner=None)
    expected = cross_validate(clf, X, y, cv=3)
    sent, scatter = [], type(cluster).scatter

    def spy(client, data, *args, **kwargs):
        sent.extend([data] if np.shape(data) == X.shape else [])
        return scatter(client, data, *args, **kwargs)

    monkeypatch.setattr(type(cluster), "scatter", spy)
    with parallel_config(backend="dask"):
        result = cross_validate(clf, X, y, cv=3, n_jobs=2)
        assert len(sent) == 1  # once, not with every fold
        search.fit(X, y)
        assert len(sent) == 2  # once for all trials
    for name in ("test_score", "test_usage_entropy"):
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-5)
    assert [trial.state.name for trial in search.study_.trials] == ["COMPLETE"] * 3
    assert len({str(trial.params) for trial in search.study_.trials}) == 3
    assert search.predict(X).shape == y.shape
