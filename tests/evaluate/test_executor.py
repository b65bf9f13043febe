"""Both executors keep the same promises; one real local Ray is shared by all tests of this file."""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import evaluate_jobs
import pytest
import torch
from evaluate_jobs import Work, job, read, starts

from glomo_dist.evaluate.attempt import Job, is_finished, job_folder, log_tail
from glomo_dist.evaluate.executor import InProcess, evaluate, time_limit_error
from glomo_dist.evaluate.plan import EvaluationPlan
from glomo_dist.runtime.errors import ConfigError


@pytest.fixture(params=["in process", "ray"])
def executor(request):
    return InProcess() if request.param == "in process" else request.getfixturevalue("local_ray")


def test_results_and_a_raising_job(executor, tmp_path, marks):
    out = tmp_path / "out"
    jobs = [job("double", marks, value) for value in range(3)] + [job("raise", marks, 5)]
    summary = evaluate(jobs, evaluate_jobs.run, out, executor, plan={"seeds": [0, 1, 2]})

    assert (summary.jobs, summary.finished, summary.finished_before) == (4, 3, 0)
    assert [failed.id for failed in summary.failed] == ["raise-5"]
    assert [read(out, f"double-{value}")["double"] for value in range(3)] == [0, 2, 4]
    record = read(out, "double-1", "job")
    assert record["job"] == {"kind": "double", "folder": str(marks), "value": 1}
    assert record["seconds"] >= 0 and record["code"] and record["machine"]["cores"] >= 1
    error = read(out, "raise-5", "error")
    assert error["error"] == "ValueError: a job with value 5 cannot work"
    assert "in run" in error["traceback"] and error["job"]["value"] == 5
    assert not (job_folder(out, "raise-5") / "result.json").exists()
    assert not list(out.rglob("running.json"))
    plan = json.loads((out / "plan.json").read_text())
    assert plan["plan"] == {"seeds": [0, 1, 2]}
    assert [entry["id"] for entry in plan["jobs"]] == [j.id for j in jobs]


def test_the_gpu_of_a_job_is_recorded_with_it_alone(tmp_path, marks, monkeypatch):
    """Of several in one process, all of which see it."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    jobs = [job("double", marks, 0, gpus=1), job("double", marks, 1)]
    evaluate(jobs, evaluate_jobs.run, tmp_path / "out", InProcess())
    found = [read(tmp_path / "out", one.id, "job")["machine"]["gpu"] for one in jobs]
    assert found == ["NVIDIA H200", None]


def test_nothing_that_is_stored_tells_what_is_secret_in_an_address(tmp_path, monkeypatch):
    address = "https://me:sesame@host/data.txt?token=sesame"
    monkeypatch.setattr(sys, "argv", ["glomo", "evaluate", "--source", address])

    def run(work):
        assert work.folder == address  # the job itself has all of it
        if work.kind == "raise":
            raise ValueError(f"{address} cannot be read")
        return {"kind": work.kind}

    jobs = [Job(kind, Work(kind, address, 0)) for kind in ("double", "raise")]
    evaluate(jobs, run, tmp_path / "out", InProcess(), plan={"sources": {"sst2": address}})
    stored = {path.name: path.read_text() for path in (tmp_path / "out").rglob("*.json")}
    assert not any("sesame" in text for text in stored.values())
    assert all("host/data.txt" in stored[name] for name in ("plan.json", "job.json", "error.json"))


def test_what_cannot_be_written_as_it_is_counts_too(executor, tmp_path):
    """A result that is no JSON, an error and paths that are no text."""
    folder = tmp_path / os.fsdecode(b"\xff")
    out, marks = folder / "out", folder / "marks"
    marks.mkdir(parents=True)
    jobs = [job("no_json", marks), job("no_text", marks), job("double", marks, 1)]
    summary = evaluate(jobs, evaluate_jobs.run, out, executor)
    assert summary.finished == 1 and read(out, "double-1", "job")["job"]["folder"] == str(marks)
    assert {failed.id for failed in summary.failed} == {"no_json-0", "no_text-0"}
    assert "set is not JSON serializable" in read(out, "no_json-0", "error")["error"]
    assert read(out, "no_text-0", "error")["error"] == r"ValueError: no text: \udce9"


@pytest.mark.parametrize("value", [None, "done", [1, 2]])
def test_a_job_function_that_returns_no_result_has_failed(tmp_path, marks, value):
    """As one without its `return`: its file could not be read, and the job would run again each time."""
    jobs = [job("double", marks)]
    failed = evaluate(jobs, lambda work: value, tmp_path / "out", InProcess()).failed
    assert [outcome.error for outcome in failed] == [
        f"TypeError: the job function must return a dataclass or a dictionary, got {value!r}."
    ]
    assert not (job_folder(tmp_path / "out", "double-0") / "result.json").exists()
    assert evaluate(jobs, lambda work: {"a": 1}, tmp_path / "out", InProcess()).finished == 1


def test_the_reason_of_a_failure_is_what_was_raised_in_one_line(executor, tmp_path, marks):
    """Also of sys.exit(), which would end the evaluation without a word, and not the last note of an exception."""
    out = tmp_path / "out"
    jobs = [job("exit", marks, 0), job("exit", marks, 3), job("noted", marks), job("double", marks, 1)]
    summary = evaluate(jobs, evaluate_jobs.run, out, executor)
    assert summary.finished == 1
    assert {failed.id: failed.error for failed in summary.failed} == {
        "exit-0": "SystemExit: 0",
        "exit-3": "SystemExit: 3",
        "noted-0": "ValueError: two lines of reason",
    }
    if sys.version_info >= (3, 11):  # before, Python prints no notes
        assert "Is the batch\nempty?" in read(out, "noted-0", "error")["traceback"]


def test_a_job_that_swallows_its_time_limit_is_asked_again(tmp_path, marks):
    limited, before = job("swallows", marks, time_limit_seconds=0.2), signal.getsignal(signal.SIGALRM)
    (failed,) = evaluate([limited], evaluate_jobs.run, tmp_path / "out", InProcess()).failed
    assert "time limit: still running after 1 s" in failed.error
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_time_limit_beside_other_threads_is_refused(tmp_path, marks):
    """Only Python's main thread can be interrupted."""
    with ThreadPoolExecutor(1) as pool:
        outcomes = InProcess().outcomes(
            evaluate_jobs.run, [job("double", marks, time_limit_seconds=9.0)], tmp_path
        )
        with pytest.raises(ConfigError, match=r"in the main thread only\. Use the Ray executor"):
            pool.submit(list, outcomes).result()


def test_durations_do_not_follow_the_clock(tmp_path, marks, monkeypatch):
    monkeypatch.setattr("time.time", iter(range(10**9, 0, -3600)).__next__)
    summary = evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", InProcess())
    assert 0 <= summary.seconds < 60 and 0 <= read(tmp_path / "out", "double-0", "job")["seconds"] < 60


def test_the_last_words_of_a_job_that_printed_without_end(tmp_path):
    folder = job_folder(tmp_path, "loud")
    folder.mkdir(parents=True)
    (folder / "log.txt").write_bytes(b"first\n" + b"x" * (1 << 20) + b"\nlast\n")
    words = log_tail(tmp_path, "loud")
    assert words.endswith("x\nlast") and len(words) < 1 << 17


def test_an_error_of_many_jobs_is_said_once(executor, tmp_path, marks, capfd):
    jobs = [Job(f"same-{i}", Work("raise", str(marks), 7)) for i in range(3)]
    jobs += [job("raise", marks, 5), job("double", marks, 1)]
    summary = evaluate(jobs, evaluate_jobs.run, tmp_path / "out", executor)
    assert (summary.finished, len(summary.failed)) == (1, 4)
    first, alike = summary.main_reason()
    assert (first.error, alike) == ("ValueError: a job with value 7 cannot work", 3)
    assert first == next(outcome for outcome in summary.failed if outcome.error == first.error)
    said = capfd.readouterr().err
    assert said.count("a job with value 7 cannot work") == said.count("a job with value 5 cannot work") == 1


def test_rerun_skips_finished_and_retries_failed_and_damaged(executor, tmp_path, marks):
    out = tmp_path / "out"
    jobs = [job("double", marks, 1), job("double", marks, 2), job("raise", marks)]
    evaluate(jobs, evaluate_jobs.run, out, executor)
    (job_folder(out, "double-2") / "result.json").write_text('{"format": "glomo-res')
    summary = evaluate(jobs, evaluate_jobs.run, out, executor)

    assert (summary.finished_before, summary.finished, len(summary.failed)) == (1, 1, 1)
    assert [starts(marks, "double", 1), starts(marks, "double", 2), starts(marks, "raise")] == [1, 2, 2]
    assert read(out, "double-2")["double"] == 4


def test_time_limit_ends_a_hanging_job_and_the_rest_goes_on(executor, tmp_path, marks):
    out = tmp_path / "out"
    hanging = job("hang", marks, time_limit_seconds=1.0)
    summary = evaluate([hanging, job("double", marks, 3)], evaluate_jobs.run, out, executor)

    assert summary.finished == 1 and len(summary.failed) == 1
    assert "time limit" in summary.failed[0].error and "1 s" in summary.failed[0].error
    assert "time limit" in read(out, "hang-0", "error")["traceback"]
    assert starts(marks, "hang") == 1, "a job over its limit must not be retried"
    assert not list(out.rglob("running.json"))


def test_a_job_that_finished_just_before_it_was_given_up(tmp_path, marks):
    late = job("double", marks, 1, time_limit_seconds=1.0)
    evaluate([late], evaluate_jobs.run, tmp_path / "out", InProcess())
    old = job_folder(tmp_path / "out", late.id) / "error.json"
    old.write_text("{}")
    assert time_limit_error(late, tmp_path / "out", 1.5).error is None
    assert not old.exists() and is_finished(tmp_path / "out", late.id)
    time_limit_error(job("hang", marks, time_limit_seconds=1.0), tmp_path / "out", 1.5, "of its worker")
    trace = read(tmp_path / "out", "hang-0", "error")["traceback"]
    assert trace.startswith("time limit: still running after 2 s, the limit is 1 s") and trace.endswith(
        "worker"
    )


@pytest.mark.parametrize("name", ["memory_gb", "time_limit_seconds"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e12])
def test_limits_are_numbers_that_a_machine_can_have(name, value):
    with pytest.raises(ConfigError, match=f"job j: {name} must be positive, .* got {value}"):
        Job("j", Work("double", ""), **{name: value})


def test_threads_are_those_the_job_asked_for(executor, tmp_path, marks):
    before = torch.get_num_threads()
    evaluate(
        [job("double", marks, 1), job("double", marks, 2, cores=2)],
        evaluate_jobs.run,
        tmp_path / "out",
        executor,
    )
    assert read(tmp_path / "out", "double-1")["threads"] == 1
    assert read(tmp_path / "out", "double-2")["threads"] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "jobs", [EvaluationPlan(("digits",), {"none": "none"}), "jobs", [Work("double", "")]]
)
def test_what_are_no_jobs(tmp_path, jobs):
    with pytest.raises(ConfigError, match=r"jobs must be a list of Job, got \w+\. plan_jobs\(plan\)"):
        evaluate(jobs, evaluate_jobs.run, tmp_path / "out", InProcess())
    assert not (tmp_path / "out").exists()


def test_the_same_id_twice_is_refused(tmp_path, marks):
    with pytest.raises(ConfigError, match="'double-0'"):
        evaluate(
            [job("double", marks), job("double", marks)], evaluate_jobs.run, tmp_path / "out", InProcess()
        )
