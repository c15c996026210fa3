"""Cache folders where the home folder cannot be written to."""

import getpass
import os
import stat
import subprocess
import sys
import tempfile

import pytest
from decodetax.harness.core import cache_folders
from decodetax.harness.core.cache_folders import (
    own_temporary_folder,
    triton_cache_folder,
    use_writable_caches,
)
from decodetax.harness.core.errors import UsageError
from hand_made import decodetax

NAMES = ("TRITON_CACHE_DIR", "TRITON_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CONFIG_HOME")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of this user's own; no cache folder is named, and the home folder is one in a test's."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / f"decodetax-{os.getuid()}"


def set_variables():
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.parametrize("home", ["/proc/nope", "~", "a file"])
def test_home_that_cannot_be_written_gives_own_folders(own, monkeypatch, home):
    (own.parent / "a file").write_text("", encoding="utf-8")
    monkeypatch.setenv("HOME", str(own.parent / home) if home == "a file" else home)
    use_writable_caches()
    assert set_variables() == {
        "TRITON_CACHE_DIR": str(own / "triton"),
        "MPLCONFIGDIR": str(own / "matplotlib"),
    }
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_writable_home_changes_nothing(own):
    use_writable_caches()
    assert set_variables() == {}
    assert not own.exists()


def test_user_without_a_name_gets_a_folder_for_compiled_graphs(own, monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    use_writable_caches()
    assert set_variables() == {"TORCHINDUCTOR_CACHE_DIR": str(own / "inductor")}


def test_folders_that_are_named_stay(own, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nope")
    named = {name: str(own.parent / name) for name in NAMES if name.endswith("DIR")}
    for name, folder in named.items():
        monkeypatch.setenv(name, folder)
    use_writable_caches()
    assert set_variables() == named


def test_folder_that_another_may_write_to_is_not_used(own):
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    other = own_temporary_folder()
    assert other != own
    assert stat.S_IMODE(other.stat().st_mode) == 0o700


@pytest.mark.parametrize("command", ["inspect", "count", "run", "tune"])
@pytest.mark.usefixtures("own")
def test_named_folder_that_cannot_be_written_is_reported_in_one_line(monkeypatch, command):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/nope/cache")
    outcome = decodetax(command)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("decodetax: TRITON_CACHE_DIR: '/proc/nope/cache' cannot be written (")
    assert len(outcome.err.splitlines()) == 1


def test_no_temporary_folder_is_reported_in_one_line(own, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nope")
    outcome = decodetax("inspect", "--gpu", "a100")
    assert (outcome.code, outcome.out) == (2, "")
    [line] = outcome.err.splitlines()
    assert line.startswith("decodetax: TRITON_CACHE_DIR: '/proc/nope/.triton/cache' cannot be written (")
    assert not own.exists()


@pytest.mark.usefixtures("own")
def test_commands_that_compile_nothing_need_no_cache_folder(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/nope/cache")
    assert decodetax("models").code == 0
    assert "TRITON_CACHE_DIR" not in decodetax("report", "no.json").err
    with pytest.raises(UsageError, match="TRITON_CACHE_DIR"):
        cache_folders.use_writable_caches()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("name", ["TRITON_CACHE_DIR", "TRITON_HOME"])
def test_cache_folder_is_where_triton_keeps_it(monkeypatch, name):
    from triton import knobs  # noqa: PLC0415  (heavy)

    monkeypatch.setenv(name, "/a/b")
    assert str(triton_cache_folder()) == knobs.cache.dir


def test_cache_folder_is_in_the_home_folder_else(own):
    assert triton_cache_folder() == own.parent / "home" / ".triton" / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("inspect", "--gpu", "a100"), ("count", "--seed", "0")], ids=str)
def test_home_and_folder_of_a_user_change_no_row(tmp_path, arguments):
    hostile, empty = tmp_path / "hostile", tmp_path / "empty"
    hostile.mkdir()
    empty.mkdir()
    for name in ("queue", "json", "torch", "triton", "numpy", "tempfile"):
        (hostile / f"{name}.py").write_text("open('RAN', 'w'); raise SystemExit", encoding="utf-8")
    code = "from decodetax.harness.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment.pop("TRITON_INTERPRET", None)
    rows = []
    for folder, home in ((hostile, "/proc/nope"), (empty, str(tmp_path))):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments,
             "--kernel", "prefill_matmul", "--dtype", "fp16"],
            cwd=folder, env=environment | {"HOME": home}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rows.append(done.stdout)
    assert rows[0] == rows[1]
    assert not (hostile / "RAN").exists()
