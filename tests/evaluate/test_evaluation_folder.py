"""The folder of an evaluation: what a rerun keeps, what a killed program left, and whose folder it is."""

from __future__ import annotations

import errno
import fcntl
import os

import evaluate_jobs
import pytest
from evaluate_jobs import Work, job

from glomo_dist.evaluate.attempt import Job, is_finished, job_folder
from glomo_dist.evaluate.executor import InProcess, evaluate
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.runtime.json_files import read_json


def test_what_a_killed_program_left_in_the_folder_of_a_job_goes(tmp_path, marks):
    out = tmp_path / "out"
    folder = job_folder(out, "double-1")
    folder.mkdir(parents=True)
    (folder / ".result.json.abcdefgh.tmp").write_text("{")
    (out / "plan.json").write_text("{}")
    assert evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess()).finished == 1
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "result.json"]
    # killed right after the result was written, and at the plan
    (out / ".plan.json.01234567.tmp").write_text("{")
    for name in ("running.json", "error.json"):
        (folder / name).write_text("{}")
    assert evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess()).finished_before == 1
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "result.json"]
    assert sorted(path.name for path in out.iterdir()) == [".lock", "plan.json", "results"]


def test_a_disk_that_becomes_read_only_during_a_job(tmp_path, marks, monkeypatch):
    """There not even a file that is not there can be deleted."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def run(work):
        if work.kind == "double":
            for operation in ("os.replace", "pathlib.Path.unlink"):
                monkeypatch.setattr(operation, refuse)
        return {"a": 1}

    jobs, out = [job("first", marks), job("double", marks)], tmp_path / "out"
    with pytest.raises(GlomoError, match=rf"cannot write {out}/results/double-0.*: Read-only file system"):
        evaluate(jobs, run, out, InProcess())
    monkeypatch.undo()
    assert evaluate(jobs, evaluate_jobs.run, out, InProcess()).finished_before == 1


def test_our_own_error_is_said_without_its_class(tmp_path, marks):
    def run(work):
        raise DataError("sst2/ has no train.tsv. Check the path.")

    (failed,) = evaluate([job("any", marks)], run, tmp_path / "out", InProcess()).failed
    assert failed.error == "sst2/ has no train.tsv. Check the path."


def test_a_result_that_is_none_runs_again_and_does_not_stay(tmp_path, marks):
    """Valid JSON, but not what the job function returns."""

    def whole(path):
        if "double" not in read_json(path):
            raise DataError(f"{path}: no result")

    out = tmp_path / "out"
    evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess())
    result = job_folder(out, "double-1") / "result.json"
    result.write_text("{}")
    failing = Job("double-1", Work("raise", str(marks)))
    assert evaluate([failing], evaluate_jobs.run, out, InProcess(), read=whole).failed
    assert not result.exists(), "the failure is what counts"
    assert result.with_name("result.json.unreadable").read_text() == "{}"
    assert evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess(), read=whole).finished == 1
    assert (
        evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess(), read=whole).finished_before
        == 1
    )


def test_results_that_the_new_plan_leaves_out_are_counted_before_it_is_written(tmp_path, marks, capfd):
    out = tmp_path / "out"
    jobs = [job("double", marks, 1), job("double", marks, 2), job("raise", marks)]
    evaluate(jobs, evaluate_jobs.run, out, InProcess())
    evaluate(jobs, evaluate_jobs.run, out, InProcess())
    evaluate([*jobs, job("double", marks, 3)], evaluate_jobs.run, out, InProcess())
    assert "not of this plan" not in capfd.readouterr().err
    before = (out / "plan.json").read_bytes()

    def refuses(*_):
        raise DataError("other data")

    with pytest.raises(DataError, match="other data"):
        evaluate(jobs[:1], evaluate_jobs.run, out, InProcess(), check=refuses)
    assert (out / "plan.json").read_bytes() == before and "not of this plan" not in capfd.readouterr().err
    evaluate(jobs[:1], evaluate_jobs.run, out, InProcess())
    said = capfd.readouterr().err
    assert f"earlier results in {out} that are not of this plan: 2. `glomo report` leaves them out" in said


def test_success_removes_the_old_error(tmp_path, marks):
    out = tmp_path / "out"
    evaluate([job("raise", marks)], evaluate_jobs.run, out, InProcess())
    assert (job_folder(out, "raise-0") / "error.json").exists()
    mended = Job("raise-0", Work("double", str(marks), 4))
    evaluate([mended], evaluate_jobs.run, out, InProcess())
    assert is_finished(out, "raise-0") and not (job_folder(out, "raise-0") / "error.json").exists()


def test_foreign_folder_and_file_are_refused(tmp_path, marks):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("dear")
    with pytest.raises(GlomoError, match=r"full is not empty and holds no evaluation"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "full", InProcess())
    with pytest.raises(GlomoError, match=r"thesis.tex is a file"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "full" / "thesis.tex", InProcess())
    with pytest.raises(GlomoError, match=r"cannot write .*thesis.tex/below: Not a directory"):
        evaluate(
            [job("double", marks)], evaluate_jobs.run, tmp_path / "full" / "thesis.tex/below", InProcess()
        )
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["thesis.tex"]


def test_an_evaluation_that_ended_before_its_plan_was_written(tmp_path, marks):
    (tmp_path / "lost+found").mkdir()  # ext4 makes it at the top of a disk
    for name in (".lock", ".plan.json.0123abcd.tmp"):
        (tmp_path / name).touch()
    with pytest.raises(GlomoError, match="holds no evaluation"):  # the folder of marks is not one's own
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path, InProcess())
    marks.rmdir()
    assert evaluate([job("no_json", tmp_path)], evaluate_jobs.run, tmp_path, InProcess()).failed


def test_a_plan_that_is_lost_costs_no_result(tmp_path, marks):
    out = tmp_path / "out"
    evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess())
    written = (out / "plan.json").read_bytes()
    (out / "plan.json").unlink()
    assert evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess()).finished_before == 1
    assert (out / "plan.json").read_bytes() == written


def test_two_programs_in_one_folder_are_refused(tmp_path, marks):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        (tmp_path / "out" / "plan.json").write_text("{}")
        with pytest.raises(GlomoError, match="another process is evaluating into"):
            evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", InProcess())
