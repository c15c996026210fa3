"""Locks between processes, and files that notice what others write there."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest
from decodetax.harness.core import own_file
from decodetax.harness.core.own_file import LockedError, OwnFile, free_name, locked

HOLDER = """
import sys
from pathlib import Path
from decodetax.harness.core.own_file import locked

with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other_process(path):
    """A process that holds the lock of a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def is_locked(path):
    try:
        with locked(path):
            return False
    except LockedError:
        return True


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_lock_holds_until_it_is_given_back_and_leaves_no_file(tmp_path):
    path = tmp_path / "run.json"
    with locked(path):
        assert is_locked(path)
        assert not is_locked(tmp_path / "other.json")
    assert not is_locked(path)
    assert names(tmp_path) == []


def test_stopped_process_keeps_its_lock_and_a_killed_one_does_not(tmp_path):
    path = tmp_path / "run.json"
    with other_process(path) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(LockedError, match=rf"^process {process.pid}$"), locked(path):
            pass
        process.kill()
        process.wait()
        assert names(tmp_path) == [".run.json.decodetax-lock"]  # left behind
        assert not is_locked(path)


@pytest.mark.parametrize("link", ["to the file", "to its folder", "that dangles"])
def test_links_share_the_lock_of_what_they_point_to(tmp_path, link):
    folder, path = tmp_path / "folder", tmp_path / "folder" / "run.json"
    folder.mkdir()
    if link == "to the file":
        path.write_text("", encoding="utf-8")
    other = tmp_path / "link"
    other.symlink_to(folder if link == "to its folder" else path)
    with locked(path):
        assert is_locked(other / "run.json" if link == "to its folder" else other)


def test_lock_is_waited_for(tmp_path):
    path, begun, order = tmp_path / "cache.json", threading.Event(), []

    def hold():
        with locked(path):
            begun.set()
            threading.Event().wait(0.1)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    with locked(path, wait_s=30.0):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_lock_of_a_file_that_is_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """Else a third process could lock a new lock file of the same name."""
    path, flock, removed = tmp_path / "run.json", fcntl.flock, []

    def flock_after_removal(handle, operation):
        if not removed:
            removed.append((tmp_path / ".run.json.decodetax-lock").unlink())
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    with locked(path):
        assert is_locked(path)


@pytest.mark.parametrize("name", ["x" * 255, "missing/run.json"], ids=["too long a name", "no folder"])
def test_nothing_is_locked_where_no_lock_file_can_be_made(tmp_path, name):
    with locked(tmp_path / name), locked(tmp_path / name):
        assert names(tmp_path) == []


def test_nothing_is_locked_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    handles = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (only counted)
    with locked(tmp_path / "run.json"), locked(tmp_path / "run.json"):
        pass
    assert len(os.listdir("/proc/self/fd")) == handles  # noqa: PTH208


def test_lock_is_held_on_a_full_disk(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(own_file.os, "write", refuse)
    with (
        locked(tmp_path / "run.json"),
        pytest.raises(LockedError, match=r"^another process$"),
        locked(tmp_path / "run.json"),
    ):
        pass


@pytest.fixture(params=["new", "older", "link"])
def own(request, tmp_path):
    path = tmp_path / "run.json"
    if request.param != "new":
        path.write_text("older", encoding="utf-8")
    if request.param == "link":
        (tmp_path / "link").symlink_to(path)
        return OwnFile(tmp_path / "link")
    return OwnFile(path)


def test_own_file_is_written_again_and_again(own, tmp_path):
    for text in ("first", "second"):
        own.write(text)
        assert (tmp_path / "run.json").read_text(encoding="utf-8") == f"{text}\n"
    assert own.moved_from is None
    assert own.path == tmp_path / "run.json"


@pytest.mark.parametrize("written_before", [False, True])
def test_what_something_else_wrote_is_kept(own, tmp_path, written_before):
    if written_before:
        own.write("first")
    (tmp_path / "run.json").write_text("by an editor", encoding="utf-8")
    for text in ("second", "third"):
        own.write(text)
    beside = tmp_path / f"run-{os.getpid()}.json"
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == "by an editor"
    assert beside.read_text(encoding="utf-8") == "third\n"
    assert (own.path, own.moved_from) == (beside, tmp_path / "run.json")


def test_file_that_is_touched_or_removed_is_written(own, tmp_path):
    path = tmp_path / "run.json"
    own.write("first")
    os.utime(path, ns=(1, 1))
    own.write("second")
    path.unlink()
    own.write("third")
    assert path.read_text(encoding="utf-8") == "third\n"
    assert own.moved_from is None


def test_only_the_own_file_is_removed(tmp_path):
    path = tmp_path / "run.json.partial"
    own = OwnFile(path)
    own.write("first")
    own.remove()
    assert names(tmp_path) == []
    own.remove()
    own.write("second")
    path.write_text("by an editor", encoding="utf-8")
    own.remove()
    assert names(tmp_path) == ["run.json.partial"]


def test_free_name_is_that_of_no_file_and_no_link(tmp_path):
    found = []
    for _ in range(3):
        found.append(free_name(tmp_path / "run.json"))
        found[-1].symlink_to("nothing")
    number = os.getpid()
    assert [path.name for path in found] == [f"run-{number}{again}.json" for again in ("", "-2", "-3")]
