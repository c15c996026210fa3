"""Jobs in worker processes: answers, crashes, hangs."""

import pytest
from decodetax.harness.core.worker_processes import Crash, run_jobs

WORKER = """
import os, time
from decodetax.harness.core.worker_processes import serve_jobs

def answer(job):
    if "exit" in job:
        print("the last words")
        os._exit(job["exit"])
    time.sleep(job.get("sleep_s", 0))
    return {"double": 2 * job.get("number", 0)}

serve_jobs(answer)
"""


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Runs jobs in a worker, one at a time; gives the answers in order."""
    (tmp_path / "worker_of_the_tests.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(*jobs, **options):
        found = {}
        run_jobs("worker_of_the_tests", jobs, found.__setitem__, processes=1, **options)
        return [found[at] for at in range(len(jobs))]

    return run


def test_worker_that_ends_fails_one_job_and_the_next_are_answered(answers):
    first, crash, last = answers({"number": 1}, {"exit": 7}, {"number": 3})
    assert (first, last) == ({"double": 2}, {"double": 6})
    assert crash == Crash("its process ended with 7: the last words")


def test_worker_that_hangs_times_out_and_the_next_jobs_are_answered(answers):
    hung, last = answers({"sleep_s": 60}, {"number": 3}, limit_s=iter([1.0, 30.0]).__next__)
    assert hung == Crash("timed out after 1 s")
    assert last == {"double": 6}


def test_files_of_the_current_folder_do_not_take_the_place_of_modules(answers, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("queue", "json", "subprocess", "worker_of_the_tests"):
        (tmp_path / "here" / f"{name}.py").write_text("open('RAN', 'w'); raise SystemExit", encoding="utf-8")
    assert answers({"number": 2}) == [{"double": 4}]
    assert not (tmp_path / "here" / "RAN").exists()


def test_no_processes_are_a_mistake():
    with pytest.raises(ValueError, match="processes is 0"):
        run_jobs("json", [{}], print, processes=0)
