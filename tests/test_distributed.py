"""Searches over several processes: a PostgreSQL server and a dask cluster."""

import gc
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from joblib import parallel_config
from test_search import share_the_work, worker

from sklearn_moe import MoEClassifier, MoESearchCV, cross_validate


def postgres_programs():
    """The folder of PostgreSQL's programs, which Debian does not put on the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else Path("/usr/lib/postgresql").glob("*/bin")
    return max((folder for folder in folders if (folder / "initdb").exists()), default=None)


@pytest.fixture
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_fill_a_study_on_a_server(postgres):
    other = worker({postgres: 99})
    storage = share_the_work(other, postgres)._storage
    out, err = other.communicate()
    assert "done" in out and not err, (out, err)
    storage.remove_session()
    storage._backend.engine.dispose()  # before the server stops
    del storage
    gc.collect()  # Optuna's threads leave their connections open; no later test should hear of it


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
