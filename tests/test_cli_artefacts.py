"""What earlier commands have written and does not fit, and evaluations of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_samples import Capture, nothing_at, refused, run
from road_samples import Road

from glomo_dist.cli import main
from glomo_dist.data import prepare_text
from glomo_dist.evaluate import executor
from glomo_dist.graphs import export
from glomo_dist.graphs.predict import predict_chunk


def test_shards_of_another_format_version(road: Road, tmp_path: Path, capfd: Capture) -> None:
    shards, out = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(road.text_shards, shards)
    index = json.loads((shards / "index.json").read_text())
    (shards / "index.json").write_text(json.dumps({**index, "version": 2}))
    refused(["pretrain", shards, "--out", out, "--recipe", "tiny"], capfd, shards / "index.json", "version 2")
    nothing_at(out)


def test_missing_shard(road: Road, tmp_path: Path, capfd: Capture) -> None:
    shards, out = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(road.text_shards, shards)
    (shards / "shard-00000.tar").unlink()
    refused(["pretrain", shards, "--out", out, "--recipe", "tiny"], capfd, "shard-00000.tar")
    nothing_at(out)


def test_folder_without_shards(tmp_path: Path, capfd: Capture) -> None:
    refused(["pretrain", tmp_path, "--out", tmp_path / "run"], capfd, tmp_path / "index.json")
    refused(["plan", "--data", tmp_path], capfd, tmp_path / "index.json")


def test_vocabulary_that_does_not_fit_the_checkpoint(road: Road, tmp_path: Path, capfd: Capture) -> None:
    """Other shards for a run that has begun; another tokenizer beside a model; words for a model of pixels."""
    other = tmp_path / "other"
    assert run(["prepare", "text", road.raw.text, "--out", other, "--vocab-size", "300"]) == 0
    before = (road.text_run / "config.json").read_bytes()
    refused(
        ["pretrain", other, "--out", road.text_run, "--recipe", "tiny", "--ranks", "2"],
        capfd, road.text_run, "vocabulary",
    )  # fmt: skip
    assert (road.text_run / "config.json").read_bytes() == before

    model, graphs = tmp_path / "model", tmp_path / "graphs"
    shutil.copytree(road.text_run / "model", model)
    shutil.copy(other / "tokenizer.json", model / "tokenizer.json")
    command = ["export", "--task", "docstring", "--source", road.raw.folder, "--out", graphs]
    refused([*command, model], capfd, model, "500", "300")
    refused([*command, road.digit_run], capfd, road.digit_run, "words", "pixels")
    nothing_at(graphs)


def test_damaged_model(road: Road, tmp_path: Path, capfd: Capture) -> None:
    model = tmp_path / "model"
    shutil.copytree(road.text_run / "model", model)
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    command = ["export", model, "--task", "docstring", "--source", road.raw.folder]
    refused([*command, "--out", tmp_path / "graphs"], capfd, weights)


def test_labels_out_of_range(road: Road, tmp_path: Path, capfd: Capture) -> None:
    file, graphs = tmp_path / "digits.npz", tmp_path / "graphs"
    with np.load(road.raw.digits) as archive:
        images, labels = archive["images"], archive["labels"].copy()
    labels[3] = 10
    np.savez(file, images=images, labels=labels)
    refused(
        ["export", road.digit_run, "--task", "digits", "--source", file, "--out", graphs],
        capfd, file, "label 10", "image 3",
    )  # fmt: skip
    nothing_at(graphs)


def test_a_failed_job_is_reported_and_the_exit_code_says_so(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "digits.npz"
    np.savez(file, images=np.zeros((20, 8, 8), np.uint8), labels=np.full(20, 11))
    out = tmp_path / "results"
    command = [
        "evaluate",
        "--tasks",
        "digits",
        "--sources",
        f"digits={file}",
        "--arms",
        "none",
        "--seeds",
        "0",
    ]
    refused(
        [*command, "--out", out, "--executor", "process"], capfd, "1 of 1 jobs failed", file, "error.json"
    )
    (error,) = (out / "results").glob("*/error.json")
    assert "label 11" in json.loads(error.read_text())["error"]


def test_a_train_size_beyond_the_set_is_refused_before_a_job_runs(tmp_path: Path, capfd: Capture) -> None:
    command = ["evaluate", "--tasks", "digits", "--arms", "none", "uniform", "--seeds", "0", "1"]
    command += ["--train-sizes", "20", "9999", "--epochs", "1", "--hidden", "2", "--executor", "process"]
    refused([*command, "--out", tmp_path / "results"], capfd, "train_size 9999, but task 'digits' has")
    assert not list((tmp_path / "results").glob("*.json"))


def test_an_evaluation_of_data_that_have_changed_is_refused(
    road: Road, tmp_path: Path, capfd: Capture
) -> None:
    source, out = tmp_path / "docstrings.jsonl", tmp_path / "results"
    lines = road.raw.docstrings.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join(lines), encoding="utf-8")
    command = ["evaluate", "--tasks", "docstring", "--sources", f"docstring={source}", "--arms", "none"]
    command += ["--seeds", "0", "--train-sizes", "20", "--epochs", "1", "--hidden", "2"]
    command += ["--executor", "process", "--out", str(out)]
    assert run(command) == 0
    source.write_text("".join(lines[:-1]), encoding="utf-8")
    refused(command, capfd, out, source, "have changed", "another --out")


def test_tasks_on_the_command_line_narrow_a_plan_with_sources_of_others(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "results"
    plan.write_text(
        "tasks: [digits, sst2]\narms: {none: none}\nseeds: [0]\ntrain_sizes: [50]\n"
        "sources: {sst2: nowhere}\nsettings: {epochs: 1, hidden: 2}\n"
        "task_settings: {sst2: {epochs: 9}, digits: {batch_size: 10}}\n"
    )
    assert run(["evaluate", plan, "--tasks", "digits", "--out", out, "--executor", "process"]) == 0
    kept = json.loads((out / "plan.json").read_text())["plan"]
    assert (kept["sources"], kept["task_settings"]) == ({}, {"digits": {"batch_size": 10}})
    assert len(list((out / "results").glob("*/result.json"))) == 1
    sizes = ["--train-sizes", "all", "20"]
    again = tmp_path / "all"
    assert run(["evaluate", plan, "--tasks", "digits", *sizes, "--out", again, "--executor", "process"]) == 0
    assert json.loads((again / "plan.json").read_text())["plan"]["train_sizes"] == [None, 20]


def test_flags_change_a_plan_for_all_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the plan sets for one task; a source on the command line leaves the others."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "tasks: [digits, sst2, docstring]\narms: {none: none}\nseeds: [0]\nsources: {sst2: here, docstring: there}\n"
        "settings: {epochs: 1}\ntask_settings: {sst2: {epochs: 9, hidden: 8, cores: 4}, digits: {batch_size: 10}}\n"
    )
    jobs: list[Any] = []

    def no_jobs(planned: Sequence[Any], *_: object, **__: object) -> executor.Summary:
        jobs.extend(planned)
        return executor.Summary(len(planned), 0, len(planned), (), 0.0)

    monkeypatch.setattr("glomo_dist.evaluate.evaluate", no_jobs)
    flags = ["--epochs", "3", "--job-cores=2", "--sources", "sst2=elsewhere"]
    assert run(["evaluate", plan, *flags, "--out", tmp_path / "out", "--executor", "process"]) == 0
    found = {job.work.task: job for job in jobs}
    assert {job.work.epochs for job in jobs} == {3} and {job.cores for job in jobs} == {2}
    assert (found["sst2"].work.hidden, found["digits"].work.batch_size) == (8, 10)
    sources = {task: Path(job.work.task_source or "none").name for task, job in found.items()}
    assert sources == {"digits": "none", "sst2": "elsewhere", "docstring": "there"}
    jobs.clear()  # --cores is about Ray, not about the jobs
    assert run(["evaluate", plan, "--cores", "3", "--out", tmp_path / "out", "--executor", "process"]) == 0
    assert [(job.work.task, job.cores) for job in jobs] == [("digits", 1), ("sst2", 4), ("docstring", 1)]


def test_report_of_nothing(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "report.html"
    refused(["report", tmp_path / "absent", "--out", out], capfd, tmp_path / "absent")
    refused(["report", "--out", out], capfd, "no results")
    nothing_at(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_when_the_shards_are_there_changes_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it removes what was written; afterwards the same command would be refused the folder."""
    (tmp_path / "a.txt").write_text("one two one two three")
    out, original = tmp_path / "out", os.replace

    def then_signal(source: Path, target: Path) -> None:
        original(source, target)
        if Path(target).name in ("out", "command.json"):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "replace", then_signal)
    assert main(["prepare", "text", str(tmp_path / "a.txt"), "--out", str(out), "--min-count", "1"]) == 0
    assert json.loads((out / "command.json").read_text())["command"] == "prepare text"
    assert not list(tmp_path.glob(".*")) and not list(out.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_an_export_that_a_scheduler_stops_goes_on(
    number: signal.Signals, road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", road.text_run, "--task", "docstring", "--source", road.raw.docstrings]
    out, before = tmp_path / "graphs", signal.signal(number, lambda *_: None)

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return predict_chunk(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(export, "predict_chunk", stopped)
            assert run([*command, "--out", out]) == 130
    finally:
        signal.signal(number, before)
    assert not (out / "index.json").exists() and not list(out.glob("*.tmp"))
    assert run([*command, "--out", out]) == 0


def test_the_record_of_the_command_is_there_as_soon_as_the_shards_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """Killed just then, the program is told apart from one that never ran."""
    (tmp_path / "a.txt").write_text("one two one two three")
    out, original, seen = tmp_path / "out", os.replace, []

    def then_look(source: Path, target: Path) -> None:
        original(source, target)
        if target == out:
            seen.extend(path.name for path in out.iterdir())

    monkeypatch.setattr(os, "replace", then_look)
    command = ["prepare", "text", str(tmp_path / "a.txt"), "--out", str(out)]
    assert main(command) == 0
    assert sorted(seen) == ["command.json", "index.json", "shard-00000.tar", "tokenizer.json"]
    refused(command, capfd, out, "was written by this very command already")
    refused([*command, "--min-count", "2"], capfd, out, "is not empty")


def test_a_stop_before_anything_is_written_leaves_a_folder_of_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    monkeypatch.setattr(
        "glomo_dist.cli.prepare.prepare_text", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
    )
    assert main(["prepare", "text", "a.txt", "--out", str(tmp_path / "out")]) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]


def test_a_stop_of_a_command_whose_folder_another_filled_meanwhile_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is of other input: nobody may go on with it as if this command had made it."""
    (tmp_path / "a.txt").write_text("one two one two three")
    command, original = (
        ["prepare", "text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")],
        prepare_text,
    )

    def stopped(*_: object, **__: object) -> None:
        monkeypatch.setattr("glomo_dist.cli.prepare.prepare_text", original)
        assert main([*command, "--min-count", "2"]) == 0
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("glomo_dist.cli.prepare.prepare_text", stopped)
    assert main(command) == 130


def test_an_output_folder_that_may_not_be_looked_at_is_named(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who is not root."""

    def forbidden(path: object = ".") -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "a.txt").write_text("one two")
    (tmp_path / "out").mkdir()
    for name in ("listdir", "scandir"):  # one of them is under Path.iterdir
        monkeypatch.setattr(os, name, forbidden)
    monkeypatch.setattr(Path, "iterdir", forbidden)  # before 3.11 it has kept its own
    assert main(["prepare", "text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out: Permission denied" in capfd.readouterr().err
