"""``utils.lock``: who is in a folder, and that nobody is once they are gone."""

import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT

from utils import lock
from utils.lock import LOCK, lock_folder, lock_holder

_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER
HOLD = "import sys, time; from utils.lock import lock_folder\nwith lock_folder(sys.argv[1]):\n    print('held', flush=True)\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)


def start(folder, code):
    """A process that holds ``folder`` and then runs ``code``."""
    command = [sys.executable, "-c", HOLD + code, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_is_there_and_nothing_stays(tmp_path):
    assert lock_holder(tmp_path) is None
    with lock_folder(tmp_path):
        assert f"process {os.getpid()} on " in lock_holder(tmp_path)
        with pytest.raises(OSError, match=rf"{tmp_path}: in use by process {os.getpid()} on .*; wait until") as caught:
            with lock_folder(tmp_path):
                pass
        assert "\n" not in str(caught.value)
    assert lock_holder(tmp_path) is None and not list(tmp_path.iterdir())
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_leaves_no_lock_behind(tmp_path):
    process = start(tmp_path, "    time.sleep(60)")
    assert f"process {process.pid} " in lock_holder(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists() and lock_holder(tmp_path) is None
    partial = tmp_path / f".a.{os.uname().nodename}.{process.pid}.partial.jpg"
    partial.touch()
    for moment in (0, 4e9):  # no clock plays a part
        os.utime(tmp_path / LOCK, (moment, moment)) if (tmp_path / LOCK).exists() else None
        with lock_folder(tmp_path):
            assert not partial.exists()
    assert not list(tmp_path.iterdir())


def test_a_forked_worker_does_not_outlive_its_run_with_the_lock(tmp_path):
    assert ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1) == 0  # some containers kill what loses its parent
    code = "    import os\n    child = os.fork()\n    print(child, flush=True) if child else None\n    time.sleep(60)"
    process = start(tmp_path, code)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with lock_folder(tmp_path):
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 0)
    assert lock_holder(tmp_path) is None


def test_waiting_for_one_that_is_about_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 20)
    process = start(tmp_path, "    time.sleep(0.5)")
    with lock_folder(tmp_path):
        pass
    assert process.wait() == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS, errno.ENOSPC])
def test_where_nothing_can_be_locked_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, capsys, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path):
        assert lock_holder(tmp_path) is None
    expected = f"warning: {tmp_path}: cannot be locked ({os.strerror(number)}); start one run at a time\n"
    assert capsys.readouterr().err == expected


def test_many_runs_at_once_take_turns(tmp_path):
    """Each removes the file that the others wait for, and still no two are inside at once."""
    code = "import sys, time; from utils import lock; lock._PATIENCE = 60\n"
    code += "for _ in range(15):\n  with lock.lock_folder(sys.argv[1]):\n"
    code += "    f = open(sys.argv[1] + '/inside', 'x'); time.sleep(0.002); import os; os.unlink(f.name)\n"
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0] and not list(tmp_path.iterdir())
