"""The tiling cache: entries are found and merged, files written atomically and used for their GPU only."""

import contextlib
import dataclasses
import json
import threading
from pathlib import Path

import pytest
from decodetax.harness.bench import tiling_cache
from decodetax.harness.bench.tiling_cache import (
    TilingCache,
    default_folder,
    entry_name,
    open_cache,
    tuned_tilings,
)
from decodetax.harness.bench.tilings import TUNABLE
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.own_file import locked
from decodetax.kernels import gpu_limits
from fakes import FakeDevice
from small_cases import CPU, decode_case, matmul_case

CASE, OTHER = decode_case(), decode_case(context=99)
DECODE = TUNABLE["decode_attention"]


@pytest.fixture
def cache(tmp_path):
    return open_cache("NVIDIA H100 80GB HBM3", "3.9.0", tmp_path)


def default_of(case):
    return DECODE.default(case, gpu_limits(CPU))


def update(case, **changes):
    """An entry for a case whose tiling differs from the default by one stage."""
    default = default_of(case)
    entry = {
        "kernel": case.operation,
        "key": DECODE.key(case),
        "tiling": dataclasses.asdict(dataclasses.replace(default, num_stages=default.num_stages + 1)),
        "default": dataclasses.asdict(default),
        **changes,
    }
    return {entry_name(case.operation, DECODE.key(case)): entry}


def tuned(cache, case):
    return tuned_tilings(cache, FakeDevice(kind="cuda"))(case)


def test_cached_tiling_is_found(cache):
    cache.merge(update(CASE))
    default = default_of(CASE)
    assert tuned(cache, CASE) == dataclasses.replace(default, num_stages=default.num_stages + 1)


def test_other_cases_and_kernels_have_no_tiling(cache):
    cache.merge(update(CASE))
    assert tuned(cache, OTHER) is None
    assert tuned(cache, matmul_case()) is None


def test_no_file_is_an_empty_cache(cache):
    assert cache.read() == {}
    assert tuned(cache, CASE) is None


def test_merge_replaces_an_entry_and_keeps_others(cache):
    cache.merge(update(CASE, date="first"))
    cache.merge(update(OTHER))
    cache.merge(update(CASE, date="second"))
    entries = cache.read()
    assert len(entries) == 2
    assert {entry.get("date") for entry in entries.values()} == {None, "second"}


def test_merge_writes_through_a_link(cache, tmp_path):
    cache.path.symlink_to(tmp_path / "elsewhere.json")
    cache.merge(update(CASE))
    assert cache.path.is_symlink()
    assert tuned(cache, CASE) is not None


def test_none_removes_an_entry_only(cache):
    cache.merge({**update(CASE), **update(OTHER)})
    cache.merge(dict.fromkeys(update(CASE)))
    assert tuned(cache, CASE) is None
    assert tuned(cache, OTHER) is not None


def test_the_same_entries_give_the_same_file_in_any_order(cache):
    cache.merge(update(CASE))
    cache.merge(update(OTHER))
    text = cache.path.read_bytes()
    cache.path.unlink()
    cache.merge(update(OTHER))
    cache.merge(update(CASE))
    assert cache.path.read_bytes() == text


def test_entry_of_another_default_is_not_used(cache):
    default = dataclasses.asdict(default_of(CASE))
    cache.merge(update(CASE, default={**default, "num_warps": 2 * default["num_warps"]}))
    assert tuned(cache, CASE) is None
    cache.merge(update(CASE, default={**default, "a_field_of_old": 1}))
    assert tuned(cache, CASE) is None


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda tiling: tiling.pop("block_n"), id="a field too few"),
        pytest.param(lambda tiling: tiling.update(extra=1), id="a field too many"),
        pytest.param(lambda tiling: tiling.update(block_n=3), id="no power of two"),
    ],
)
def test_entry_that_is_no_tiling_is_not_used(cache, edit):
    [(name, entry)] = update(CASE).items()
    edit(entry["tiling"])
    cache.merge({name: entry})
    assert tuned(cache, CASE) is None


def test_file_of_another_gpu_or_triton_is_another(tmp_path):
    mine = open_cache("NVIDIA A100", "3.9.0", tmp_path)
    others = [open_cache("NVIDIA A100-SXM", "3.9.0", tmp_path), open_cache("NVIDIA A100", "3.8.0", tmp_path)]
    mine.merge(update(CASE))
    assert len({cache.path for cache in (mine, *others)}) == 3
    assert [tuned(cache, CASE) for cache in others] == [None, None]


@pytest.mark.parametrize(
    "gpu", ["../../etc/passwd", "a/b", "..", "x" * 300, "GPU (R) 2 | $HOME", "\N{GREEK SMALL LETTER MU}"]
)
def test_name_of_the_file_stays_in_its_folder(tmp_path, gpu):
    cache = open_cache(gpu, "3.9.0", tmp_path)
    assert cache.path.parent == tmp_path
    assert set(cache.path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    cache.merge(update(CASE))
    assert tuned(cache, CASE) is not None


def test_renamed_file_of_another_gpu_is_refused(cache, tmp_path):
    other = open_cache("NVIDIA A100", "3.9.0", tmp_path)
    other.merge(update(CASE))
    other.path.rename(cache.path)
    with pytest.raises(UsageError, match=r"has gpu 'NVIDIA A100', can be 'NVIDIA H100 80GB HBM3'"):
        cache.read()


BROKEN = {
    "half": ("{", "is not JSON"),
    "empty": ("", "is not JSON"),
    "binary": ("\x00\x01", "is not JSON"),
    "deep": ("[" * 100_000, "is nested too deeply"),
    "a list": ("[]", "holds no JSON object"),
    "no version": ("{}", "schema_version None, can be 1"),
    "a newer version": ('{"schema_version": 2}', "schema_version 2, can be 1"),
    "no entries": ({"entries": None}, "not a valid cache (must be a list, was null)"),
    "an entry that is a number": (
        {"entries": [1]},
        "not a valid cache ([0]: must be an object, was an integer)",
    ),
    "an entry without a key": ({"entries": [{"kernel": "decode_attention"}]}, "[0]: lacks key"),
    "a tiling beyond any file of a run": (
        {"entries": [{"kernel": "k", "key": {}, "tiling": {"num_stages": 10**30}, "default": {}}]},
        "must be at most 9223372036854775807",
    ),
    "a tiling of lists": (
        {"entries": [{"kernel": "k", "key": {}, "tiling": {"block_n": [1]}, "default": {}}]},
        "must be true or false or an integer or text or null, was a list",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_invalid_file_is_named_and_never_overwritten(cache, name):
    content, problem = BROKEN[name]
    if isinstance(content, dict):
        content = json.dumps({"schema_version": 1, "gpu": cache.gpu, "triton": cache.triton, **content})
    cache.path.write_text(content, encoding="utf-8")
    for use in (cache.read, lambda: cache.merge(update(CASE)), lambda: tuned(cache, CASE)):
        with pytest.raises(UsageError) as caught:
            use()
        assert str(cache.path) in str(caught.value)
        assert problem in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert cache.path.read_text(encoding="utf-8") == content


def test_folder_in_the_place_of_the_file_is_named(cache):
    cache.path.mkdir()
    with pytest.raises(UsageError, match="is not a regular file"):
        cache.read()


def test_failed_write_leaves_the_file_as_it_was(cache, monkeypatch):
    cache.merge(update(CASE))
    before = cache.path.read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.merge(update(OTHER))
    assert cache.path.read_bytes() == before
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


def test_searches_that_write_at_once_keep_the_entries_of_both(cache, monkeypatch):
    """Each reads the file, and writes it with its own entries only when the other has written."""
    read, both_read = TilingCache.read, threading.Barrier(2)

    def slow_read(self):
        found = read(self)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_read.wait(timeout=0.2)  # breaks where one waits for the other
        return found

    monkeypatch.setattr(TilingCache, "read", slow_read)
    threads = [threading.Thread(target=cache.merge, args=(update(case),)) for case in (CASE, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(cache)) == 2


def test_result_is_kept_though_another_search_holds_the_file(cache, monkeypatch):
    monkeypatch.setattr(tiling_cache, "LOCK_WAIT_S", 0.0)
    with locked(cache.path):
        cache.merge(update(CASE))
    assert len(cache.read()) == 1


def test_folder_is_made_and_one_that_cannot_be_is_named(tmp_path):
    cache = open_cache("gpu", "3.9.0", tmp_path / "a" / "b")
    cache.require_writable()
    cache.merge(update(CASE))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        open_cache("gpu", "3.9.0", tmp_path / "file" / "b").require_writable()


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DECODETAX_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/decodetax"),
        ({"DECODETAX_CACHE": "", "XDG_CACHE_HOME": "relative"}, "/home/me/.cache/decodetax"),
        ({}, "/home/me/.cache/decodetax"),
    ],
    ids=["own variable", "XDG", "empty and relative", "neither"],
)
def test_folder_follows_the_environment(environment, folder, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert default_folder(environment) == Path(folder)


def test_missing_home_names_the_variable(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="DECODETAX_CACHE"):
        default_folder({})


def test_cache_is_named_by_its_gpu_and_triton(tmp_path):
    cache = open_cache("NVIDIA H100 80GB HBM3", "3.9.0", tmp_path)
    assert cache == TilingCache(
        path=tmp_path / "NVIDIA-H100-80GB-HBM3--triton-3.9.0.json",
        gpu="NVIDIA H100 80GB HBM3",
        triton="3.9.0",
    )
