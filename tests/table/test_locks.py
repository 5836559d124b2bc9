"""Locks on file systems that treat them in their own way: NFS, and one that has none."""

import errno
import fcntl

import pytest

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.table import locks
from tritonmoe_bench.experiments.table.run import SAME_RUN, Run


@pytest.fixture
def nfs(monkeypatch):
    """flock as NFSv4 has it: a lock on a range of bytes, shared only on a file that is open for reading."""
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)


def test_a_lock_is_taken_on_nfs(nfs, tmp_path):
    for shared in (True, False):
        with locks.take(tmp_path / "a.lock", shared=shared) as held:
            assert held is not None


def test_a_run_is_opened_on_nfs(nfs, tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), dict.fromkeys(SAME_RUN, "1") | {"device": "made-up-gpu"})
    assert run.path.with_suffix(".json").exists()


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_host_holds_is_not_waited_for(code, monkeypatch, tmp_path):
    def held(*_):
        raise OSError(code, "held")

    monkeypatch.setattr(fcntl, "flock", held)
    assert locks.take(tmp_path / "a.lock", wait=False) is None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
def test_without_locks_the_message_names_the_lock_and_what_to_do(code, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(code, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "rows.lock"
    with pytest.raises(locks.NoLocks) as raised:
        locks.take(path)
    assert checkout.one_line(raised.value) == (
        f"cannot lock {path}: No locks available; its file system needs locks, so that no row is lost: "
        "give results=... a folder on another one"
    )
