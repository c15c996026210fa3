"""A run is written into its own file, beside what others write, or elsewhere; none is lost silently."""

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path

import pytest
from decodetax.harness.bench import run_writer
from decodetax.harness.bench.run_writer import RunWriter, locked_run
from decodetax.harness.core import own_file
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.run_file import read_run
from hand_made import run_record


@pytest.fixture
def locks():
    with contextlib.ExitStack() as held:
        yield held


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def full(monkeypatch):
    """Folders that are full; the test adds to them."""
    folders, write_text = set(), own_file.write_text

    def write(target, text):
        if target.parent in folders:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_text(target, text)

    for module in (own_file, run_writer):
        monkeypatch.setattr(module, "write_text", write)
    return folders


def run(number):
    return run_record(elapsed_s=float(number), interrupted=False)


def number_in(path):
    return read_run(path).elapsed_s


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".decodetax-lock"))


def test_new_file_holds_the_run_as_saved_last(tmp_path, locks):
    path = tmp_path / "run.json"
    writer = RunWriter(path, None, locks)
    writer(run(1))
    assert number_in(path) == 1
    writer(run(2))
    assert number_in(path) == 2
    assert writer.finish(run(3)) == (str(path), None)
    assert number_in(path) == 3
    assert names(tmp_path) == ["run.json"]


def test_older_file_stays_until_the_end_and_so_does_what_a_killed_run_left(tmp_path, locks):
    path, left = tmp_path / "run.json", tmp_path / "run.json.partial"
    path.write_text("an older run", encoding="utf-8")
    left.write_text("left by a run that was killed", encoding="utf-8")
    writer = RunWriter(path, None, locks)
    writer(run(1))
    assert path.read_text(encoding="utf-8") == "an older run"
    assert number_in(tmp_path / "run.json.2.partial") == 1
    writer.finish(run(2))
    assert number_in(path) == 2
    assert left.read_text(encoding="utf-8") == "left by a run that was killed"
    assert names(tmp_path) == ["run.json", "run.json.partial"]


def test_run_that_continues_is_saved_in_its_own_file(tmp_path, locks):
    path = tmp_path / "run.json"
    path.write_text("interrupted", encoding="utf-8")
    (tmp_path / "link.json").symlink_to(path)
    with locked_run("--resume", path):
        writer = RunWriter(tmp_path / "link.json", path, locks)
    writer(run(1))
    assert number_in(path) == 1
    assert names(tmp_path) == ["link.json", "run.json"]


@pytest.mark.parametrize("older", [False, True], ids=["new file", "file that exists"])
@pytest.mark.parametrize("other", ["run.json", "link.json", "run.json.partial"])
def test_second_run_into_a_file_is_refused_in_one_line(tmp_path, locks, older, other):
    path = tmp_path / "run.json"
    if older:
        path.write_text("an older run", encoding="utf-8")
    (tmp_path / "link.json").symlink_to(path)
    first = RunWriter(path, None, locks)
    first(run(1))
    before = names(tmp_path)
    for ask in (
        lambda: locks.enter_context(locked_run("--resume", tmp_path / other)),
        lambda: RunWriter(tmp_path / other, None, locks),
    ):
        if other == "run.json.partial" and not older:
            continue  # the first run does not use it
        with pytest.raises(UsageError, match=rf"another run \(process \d+\) is writing to '.*{other}'; name"):
            ask()
    assert names(tmp_path) == before
    assert first.finish(run(2)) == (str(path), None)


def test_partial_file_of_another_run_is_not_shared(tmp_path, locks):
    """Its name is taken though the file is not there yet."""
    RunWriter(tmp_path / "run.json.partial", None, locks)
    (tmp_path / "run.json").write_text("an older run", encoding="utf-8")
    writer = RunWriter(tmp_path / "run.json", None, locks)
    writer(run(1))
    assert names(tmp_path) == ["run.json", "run.json.2.partial"]


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("older", [False, True], ids=["new file", "file that exists"])
def test_without_locks_the_run_that_ends_last_keeps_its_result_beside(tmp_path, locks, older):
    path = tmp_path / "run.json"
    if older:
        path.write_text("an older run", encoding="utf-8")
    first = RunWriter(path, None, locks)
    second = RunWriter(path, None, locks)
    first(run(1))
    second(run(2))
    places = [writer.finish(run(number)) for writer, number in ((second, 2), (first, 1))]
    assert {number_in(Path(place)) for place, _ in places} == {1, 2}
    [problem] = [problem for _, problem in places if problem]
    assert (
        "run.json was changed by something else during the run and is left as it is; the run was" in problem
    )
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("older", [False, True], ids=["new file", "file that exists"])
def test_what_an_editor_wrote_during_the_run_stays(tmp_path, locks, older):
    path = tmp_path / "run.json"
    if older:
        path.write_text("an older run", encoding="utf-8")
    writer = RunWriter(path, None, locks)
    writer(run(1))
    path.write_text("by an editor", encoding="utf-8")
    place, problem = writer.finish(run(2))
    assert path.read_text(encoding="utf-8") == "by an editor"
    assert number_in(Path(place)) == 2
    assert place in problem


def test_hard_links_part_and_nothing_is_lost(tmp_path, locks):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text("an older run", encoding="utf-8")
    paths[1].hardlink_to(paths[0])
    writers = [RunWriter(path, None, locks) for path in paths]
    for number, writer in enumerate(writers):
        assert writer.finish(run(number))[1] is None
    assert [number_in(path) for path in paths] == [0, 1]


def test_run_on_a_full_disk_goes_to_the_temporary_folder(tmp_path, locks, full, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    full.add(tmp_path / "disk")
    writer = RunWriter(tmp_path / "disk" / "run.json", None, locks)
    writer(run(1))
    place, problem = writer.finish(run(2))
    assert number_in(Path(place)) == 2
    assert (
        problem
        == f"{tmp_path / 'disk' / 'run.json'}: No space left on device; the run was written to {place}"
    )
    assert Path(place).name == f"decodetax-run-{os.getpid()}.json"


def test_run_that_no_folder_takes_is_lost_in_one_line(tmp_path, locks, full, monkeypatch):
    def no_folder():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    full |= {tmp_path, tmp_path / "home"}
    place, problem = RunWriter(tmp_path / "run.json", None, locks).finish(run(2))
    assert place is None
    assert "No space left on device, and no other folder takes the run either" in problem
    assert "--json" in problem
    assert len(problem.splitlines()) == 1


def test_save_that_failed_is_reported_at_the_end_and_tried_again(tmp_path, locks, full):
    path = tmp_path / "run.json"
    writer = RunWriter(path, None, locks)
    assert writer.unsaved is None
    full.add(tmp_path)
    writer(run(1))
    full.clear()
    writer(run(2))  # at once, though within the same second
    assert number_in(path) == 2
    assert writer.finish(run(3)) == (str(path), None)
    assert (
        writer.unsaved == "the run could not always be saved while it was measured: No space left on device"
    )
