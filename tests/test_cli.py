"""The program as a person meets it: help that teaches, refusals that help, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from road_samples import Raw, Road
from setuptools.config.pyprojecttoml import read_configuration

from glomo_dist import recipes
from glomo_dist.cli import COMMANDS, doctor, main
from glomo_dist.cli.plan import activation_bytes, cost, state_bytes
from glomo_dist.evaluate import executor
from glomo_dist.model import Glomo
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.runtime.errors import ConfigError

Capture = pytest.CaptureFixture[str]


def run(argv: Sequence[str | Path]) -> int:
    """Exit code of the program, also where the argument parser exits by itself."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as e:
        return int(e.code or 0)


def refused(argv: Sequence[str | Path], capfd: Capture, *words: str | Path) -> str:
    """The program ends with 2 and one line on stderr that has all `words`; returns it."""
    capfd.readouterr()
    assert run(argv) == 2
    error = capfd.readouterr().err
    line = next((line for line in error.splitlines() if line.startswith("glomo: ")), "")
    assert line, f"no message in: {error}"
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"
    assert "Traceback" not in error
    return line


def nothing_at(*paths: Path) -> None:
    """None of the outputs exists, and no temporary folder is left beside them."""
    for path in paths:
        assert not path.exists()
        marks = (".tmp", f".{path.name}")
        left = [
            p.name for p in path.parent.iterdir() if p.name.endswith(marks[0]) or p.name.startswith(marks[1])
        ]
        assert not left, f"left behind: {left}"


# --- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_bare_program_teaches(argv: list[str], capfd: Capture) -> None:
    assert run(argv) == 0
    text = capfd.readouterr().out
    for name, (purpose, example) in COMMANDS.items():
        assert name in text and purpose in text and example in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_worked_example(name: str, capfd: Capture) -> None:
    assert run([name, "--help"]) == 0
    text = capfd.readouterr().out
    assert f"\n  glomo {name}" in text
    assert "Example" in text


def test_settings_of_nested_parts_are_explained(capfd: Capture) -> None:
    assert run(["pretrain", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "--model.sparsity" in text and "--global-batch" in text
    assert "sequences per optimizer step" in text  # from the docstring of PretrainConfig
    assert "convolutions in the two CNNs" in text.replace("│ │ ", "")
    assert all(name in text for name in recipes.RECIPES)


@pytest.mark.parametrize("kind", ["text", "images", "demo"])
def test_prepare_explains_each_kind(kind: str, capfd: Capture) -> None:
    assert run(["prepare", kind, "--help"]) == 0
    assert f"glomo prepare {kind}" in capfd.readouterr().out


# --- names and keys -------------------------------------------------------------------------------------------


def test_unknown_command_is_refused_with_a_suggestion(capfd: Capture) -> None:
    refused(["pretrian"], capfd, "'pretrian'", "Did you mean 'pretrain'")


def test_unknown_key_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "run"
    assert run(["pretrain", tmp_path, "--out", out, "--model.widht", "8"]) == 2
    error = capfd.readouterr().err
    assert "--model.widht" in error and "--model.width" in error
    nothing_at(out)


def test_value_of_the_wrong_type_is_refused(tmp_path: Path, capfd: Capture) -> None:
    assert run(["pretrain", tmp_path, "--out", tmp_path / "run", "--steps", "many"]) == 2
    assert "--steps" in capfd.readouterr().err


def test_unknown_recipe_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    refused(
        ["pretrain", tmp_path, "--out", tmp_path / "run", "--recipe", "wiki_smal"],
        capfd, "'wiki_smal'", "Did you mean 'wiki_small'",
    )  # fmt: skip


def test_unknown_task_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    refused(["export", tmp_path, "--task", "sst", "--out", tmp_path / "g"], capfd, "'sst'", "'sst2'")


def test_typo_in_a_plan_file_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("tasks: [sst2]\narms: {none: none}\nsede: [0]\n")
    refused(["evaluate", plan, "--out", tmp_path / "results"], capfd, plan, "'sede'", "'seeds'")
    nothing_at(tmp_path / "results")


def test_settings_that_contradict_are_refused(road: Road, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "run"
    command = ["pretrain", road.text_shards, "--out", out, "--recipe", "tiny"]
    refused([*command, "--global-batch", "5", "--ranks", "2"], capfd, "global_batch 5", "2")
    refused([*command, "--precision", "bf16", "--zero-stage", "0"], capfd, "bf16", "zero_stage")
    nothing_at(out)


@pytest.mark.parametrize(
    ("kind", "flag", "shown"),
    [
        ("text", "--vocab-size", "Most frequent words kept, one of them <unk>. (default: 30000)"),
        ("text", "--min-count", "Words seen less often become <unk>. (default: 1)"),
        ("images", "--bits", "(default: 4)"),
    ],
)
def test_a_default_that_is_given_contradicts_too(
    kind: str, flag: str, shown: str, tmp_path: Path, capfd: Capture
) -> None:
    assert run(["prepare", kind, "--help"]) == 0
    assert shown in " ".join(capfd.readouterr().out.replace("│", "").split())
    default = shown.partition("(default: ")[2].rstrip(")")
    command = ["prepare", kind, tmp_path, "--out", tmp_path / "out", "--tokenizer", tmp_path]
    for given in ([flag, default], [f"{flag}={default}"]):
        refused([*command, *given], capfd, flag.strip("-").replace("-", "_"), "Leave them or it out")
    nothing_at(tmp_path / "out")


# --- bad files ------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "absent.txt", tmp_path / "shards"
    refused(["prepare", "text", file, "--out", out], capfd, file)
    refused(["prepare", "images", tmp_path / "absent.npz", "--out", out], capfd, "absent.npz")
    nothing_at(out)


def test_no_source_at_all(tmp_path: Path, capfd: Capture) -> None:
    refused(["prepare", "text", "--out", tmp_path / "shards"], capfd, "no source")


def test_empty_file(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "empty.txt", tmp_path / "shards"
    file.write_text("")
    refused(["prepare", "text", file, "--out", out], capfd, file)
    nothing_at(out)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read every file: be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_unreadable_file(raw: Raw, capfd: Capture) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        file, out = folder / "secret.txt", folder / "shards"
        assert run(["prepare", "text", raw.text, "--out", folder / "warm"]) == 0  # so that all is imported
        file.write_text("words")
        file.chmod(0)
        with without_privileges():
            refused(["prepare", "text", file, "--out", out], capfd, file, "ermission")
        nothing_at(out)


def test_damaged_file(raw: Raw, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "shards"
    file = tmp_path / "cut.txt.gz"
    file.write_bytes(b"\x1f\x8b\x08\x00 this is not gzip")
    refused(["prepare", "text", file, "--out", out], capfd, file)
    archive = tmp_path / "cut.npz"
    archive.write_bytes(raw.digits.read_bytes()[:1000])
    refused(["prepare", "images", archive, "--out", out], capfd, archive)
    nothing_at(out)


def test_wrong_encoding(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "shards"
    file = tmp_path / "latin.txt"
    file.write_bytes("one line\ncaf\u00e9 au lait\n".encode("latin-1"))
    refused(["prepare", "text", file, "--out", out], capfd, file, "UTF-8")
    rows = tmp_path / "latin.jsonl"
    rows.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    refused(["prepare", "text", rows, "--out", out], capfd, rows, "line 2", "UTF-8")
    nothing_at(out)


def test_row_without_the_key(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "shards"
    file.write_text('{"text": "fine"}\n{"body": "elsewhere"}\n')
    refused(["prepare", "text", file, "--out", out], capfd, file, "line 2", "'text'")
    nothing_at(out)


def test_zero_usable_documents(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "blank.jsonl", tmp_path / "shards"
    file.write_text('{"text": " "}\n{"text": ""}\n')
    refused(["prepare", "text", file, "--out", out], capfd, file)
    nothing_at(out)


def test_nan_in_images(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "images.npz", tmp_path / "pixels"
    images = np.zeros((3, 4, 4), np.float32)
    images[1, 2, 2] = np.nan
    np.savez(file, images=images)
    refused(["prepare", "images", file, "--out", out], capfd, file, "image 1")
    nothing_at(out)


def test_output_folder_that_is_not_empty(raw: Raw, road: Road, tmp_path: Path, capfd: Capture) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refused(["prepare", "text", raw.text, "--out", mine], capfd, mine, "not empty")
    refused(["prepare", "images", raw.digits, "--out", mine], capfd, mine, "not empty")
    refused(["prepare", "demo", "--out", mine], capfd, mine, "not empty")
    refused(["pretrain", road.text_shards, "--out", mine, "--recipe", "tiny"], capfd, mine, "not empty")
    export = ["export", road.text_run, "--task", "docstring", "--source", raw.folder]
    refused([*export, "--out", mine], capfd, mine, "not empty")
    refused(["evaluate", "--tasks", "digits", "--arms", "none", "--out", mine], capfd, mine, "not empty")
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


# --- artefacts that do not fit --------------------------------------------------------------------------------


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
    export = ["export", "--task", "docstring", "--source", road.raw.folder, "--out", graphs]
    refused([*export, model], capfd, model, "500", "300")
    refused([*export, road.digit_run], capfd, road.digit_run, "words", "pixels")
    nothing_at(graphs)


def test_damaged_model(road: Road, tmp_path: Path, capfd: Capture) -> None:
    model = tmp_path / "model"
    shutil.copytree(road.text_run / "model", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1"[:1])
    command = [
        "export",
        model,
        "--task",
        "docstring",
        "--source",
        road.raw.folder,
        "--out",
        tmp_path / "graphs",
    ]
    refused(command, capfd, weights)


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


def test_a_train_size_beyond_the_set_is_said_once_with_its_jobs(tmp_path: Path, capfd: Capture) -> None:
    command = ["evaluate", "--tasks", "digits", "--arms", "none", "uniform", "--seeds", "0", "1"]
    command += ["--train-sizes", "20", "9999", "--epochs", "1", "--hidden", "2", "--executor", "process"]
    assert run([*command, "--out", tmp_path / "results"]) == 2
    said = capfd.readouterr().err
    assert "4 of 8 jobs failed, because: " in said
    assert said.count("train_size 9999, but") == 2  # when it came, and in the end


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


def test_flags_change_a_plan_for_all_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the plan sets for one task; a source on the command line leaves the others."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "tasks: [digits, sst2, docstring]\narms: {none: none}\nseeds: [0]\nsources: {sst2: here, docstring: there}\n"
        "settings: {epochs: 1}\ntask_settings: {sst2: {epochs: 9, hidden: 8, cpus: 4}, digits: {batch_size: 10}}\n"
    )
    jobs: list[Any] = []

    def no_jobs(planned: Sequence[Any], *_: object, **__: object) -> executor.Summary:
        jobs.extend(planned)
        return executor.Summary(len(planned), 0, len(planned), (), 0.0)

    monkeypatch.setattr("glomo_dist.cli.evaluate.evaluate", no_jobs)
    flags = ["--epochs", "3", "--job-cpus=2", "--sources", "sst2=elsewhere"]
    assert run(["evaluate", plan, *flags, "--out", tmp_path / "out", "--executor", "process"]) == 0
    found = {job.work.task: job for job in jobs}
    assert {job.work.epochs for job in jobs} == {3} and {job.cpus for job in jobs} == {2}
    assert (found["sst2"].work.hidden, found["digits"].work.batch_size) == (8, 10)
    sources = {task: Path(job.work.task_source or "none").name for task, job in found.items()}
    assert sources == {"digits": "none", "sst2": "elsewhere", "docstring": "there"}


def test_report_of_nothing(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "report.html"
    refused(["report", tmp_path / "absent", "--out", out], capfd, tmp_path / "absent")
    refused(["report", "--out", out], capfd, "no results")
    nothing_at(out)


# --- small commands -------------------------------------------------------------------------------------------


def test_doctor_says_what_is_here(capfd: Capture) -> None:
    assert run(["doctor"]) == 0
    text = capfd.readouterr().out
    for name in ("python", "torch", "deepspeed", "ray", "webdataset", "C++ compiler", "nvcc", "GPU", "triton",
                 "cores", "memory", "disk", "/dev/shm", "affinity_mix", "graph_mix"):  # fmt: skip
        assert name in text
    assert "cpp: usable" in text, "the compiled extension is part of the road"


def test_doctor_names_every_dependency() -> None:
    project = read_configuration(Path(__file__).parents[1] / "pyproject.toml")["project"]
    needed = {requirement.split(">")[0].split("[")[0] for requirement in project["dependencies"]}
    assert needed == {name for name, _, _ in doctor.PACKAGES}


def test_doctor_speaks_where_packages_and_compilers_are_broken(tmp_path: Path) -> None:
    for name in ("torch", "numpy", "tyro", "scipy"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} today')\n")
    (tmp_path / "jinja2.py").write_text("raise AttributeError('of another version')\n")
    (tmp_path / "nvcc").write_text("no program\n")
    (tmp_path / "nvcc").chmod(0o755)
    paths = [str(tmp_path), *(p for p in sys.path if p)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CXX": "no-compiler g++"}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "glomo_dist.cli", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    missing = done.stderr.splitlines()[-1].partition("missing: ")[2].partition(";")[0].split(", ")
    assert {"torch", "numpy", "tyro", "scipy", "jinja2", "glomo_kernels"} <= set(missing)
    assert all(f"no {name} today" in done.stdout for name in ("torch", "numpy", "tyro", "scipy"))
    assert "AttributeError: of another version" in done.stdout
    assert f"Exec format error: '{tmp_path / 'nvcc'}'" in done.stdout
    assert "no-compiler is not on the PATH" in done.stdout


@pytest.mark.parametrize("compiler", ["", "env g++"])
def test_doctor_finds_the_compiler_as_the_build_does(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name, or that of a program that calls it."""
    monkeypatch.setenv("CXX", compiler)
    (found,) = (finding for finding in doctor._compilers() if finding.name == "C++ compiler")
    assert found.here and found.what.startswith("g++"), found


def test_kernels_that_cannot_be_forced_are_named_before_the_work(
    road: Road, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["pretrain", road.text_shards, "--out", tmp_path / "run", "--recipe", "tiny"]
    for name, why in (("xyz", "no such backend"), ("cuda", "affinity_mix has no such backend")):
        monkeypatch.setenv("GLOMO_KERNELS", name)
        refused(["doctor"], capfd, "decoder_loss")
        refused(command, capfd, f"GLOMO_KERNELS={name}", why)
        nothing_at(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "why"), [("xyz", "has no such backend"), ("triton", "has no such backend"), ("cuda", "cuda: ")]
)
def test_kernels_that_cannot_be_forced_on_graphs_are_named_before_the_work(
    name: str, why: str, road: Road, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ["--source", road.raw.docstrings]
    task = ["export", road.text_run, "--task", "docstring", "--max-examples", "4"]
    assert run([*task, *source, "--out", tmp_path / "store"]) == 0
    monkeypatch.setenv("GLOMO_KERNELS", name)
    nowhere = tmp_path / "nowhere"  # the work would begin by reading it
    asked = f"GLOMO_KERNELS={name}: affinity_graph"
    refused([*task, "--source", nowhere, "--out", tmp_path / "graphs"], capfd, asked, why)
    nothing_at(tmp_path / "graphs")
    out = tmp_path / "results"
    sources = ["--sources", f"docstring={nowhere}"]
    evaluate = ["evaluate", "--tasks", "docstring", *sources, "--out", out, "--arms"]
    refused([*evaluate, "none", f"p={tmp_path / 'store'}"], capfd, f"GLOMO_KERNELS={name}: graph_mix", why)
    refused([*evaluate, "none", f"p={road.text_run}"], capfd, f"GLOMO_KERNELS={name}: graph_mix", why)
    nothing_at(out)


def test_kernels_on_a_cluster_are_asked_for_there(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def no_jobs(planned: Sequence[Any], *_: object, **__: object) -> executor.Summary:
        begun.append(len(planned))
        return executor.Summary(len(planned), 0, len(planned), (), 0.0)

    monkeypatch.setattr("glomo_dist.cli.evaluate.evaluate", no_jobs)
    monkeypatch.setenv("GLOMO_KERNELS", "xyz")
    evaluate = ["evaluate", "--tasks", "docstring", "--arms", f"p={road.text_run}", "--out", tmp_path / "out"]
    assert run([*evaluate, "--address", "host:6379"]) == 0 and begun == [3]
    assert run([*evaluate, "--executor", "process", "--address", "host:6379"]) == 2 and begun == [3]


def test_doctor_counts_the_memory_of_a_container(tmp_path: Path) -> None:
    """Its limit, less what is used; what was only read from files can be had again."""
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64000 kB\nMemAvailable: 32000 kB\n")
    assert doctor._memory(tmp_path) == (64000 << 10, 32000 << 10)
    for name, text in (
        ("max", "8192000\n"),
        ("current", "5000000\n"),
        ("stat", "anon 9\ninactive_file 1000000\n"),
    ):
        (group / f"memory.{name}").write_text(text)
    assert doctor._memory(tmp_path) == (8192000, 4192000)
    (group / "memory.max").write_text("max\n")
    assert doctor._memory(tmp_path) == (64000 << 10, 32000 << 10)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "17"}, "17"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(given: dict[str, str], spins: str) -> None:
    """As OpenMP itself says when torch is loaded."""
    ours = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [
        sys.executable,
        "-m",
        "glomo_dist.cli",
        "plan",
        "--recipe",
        "tiny",
        "--model.vocab-size",
        "100",
    ]
    environment = {**ours, **given, "OMP_DISPLAY_ENV": "verbose"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "GOMP_" not in done.stderr:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--tokens-per-second", "-5"],
            "tokens_per_second must be",
        ),
        (["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--teraflops", "nan"], "teraflops must be"),
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--seed", "-1"],
            "seed must be in 0..2^64 - 1",
        ),
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--weight-decay", "nan"],
            "weight_decay must not be",
        ),
        (["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--lr", "inf"], "lr must be positive"),
        (["bench", "--rounds", "0"], "rounds must be at least 1"),
    ],
)
def test_numbers_that_are_none_are_refused(argv: list[str], words: str, capfd: Capture) -> None:
    refused(argv, capfd, words)


@pytest.mark.parametrize("flag", ["--max-units", "--max-examples", "--batch-tokens", "--keep"])
def test_export_of_less_than_one_is_refused(flag: str, road: Road, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "graphs"
    name = flag.strip("-").replace("-", "_")
    command = ["export", road.text_run, "--task", "docstring", "--source", road.raw.docstrings, "--out", out]
    for value in ("0", "-1"):
        refused([*command, flag, value], capfd, f"{name} must be at least 1")
    nothing_at(out)


def test_export_of_a_run_that_is_not_finished_is_refused(road: Road, tmp_path: Path, capfd: Capture) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(road.digit_run, run_folder)
    shutil.rmtree(run_folder / "model")
    refused(
        ["export", run_folder, "--task", "digits", "--out", tmp_path / "g"], capfd, "not finished", "step-N"
    )


def test_plan_counts_the_real_parameters_and_epochs(road: Road, capfd: Capture) -> None:
    assert run(["plan", "--recipe", "tiny", "--data", road.text_shards, "--ranks", "2"]) == 0
    text = capfd.readouterr().out
    config = json.loads((road.text_run / "model" / "config.json").read_text())["model"]
    assert config["vocab_size"] == 500
    model = Glomo(recipes.get("tiny").model.__class__(**{**config, "image": None}))
    assert f"{sum(p.numel() for p in model.parameters()):,}" in text
    assert "an epoch" in text and "ZeRO 3" in text


def with_vocabulary(config: PretrainConfig) -> PretrainConfig:
    return replace(config, model=replace(config.model, vocab_size=1000))


def test_plan_of_memory_follows_the_stages() -> None:
    """16 bytes per parameter in float32 with Adam; each stage shares out one more part over the ranks."""
    sizes = [sum(state_bytes(PretrainConfig(zero_stage=stage), 1000, 4).values()) for stage in (0, 1, 2, 3)]
    assert sizes == [16000, 10000, 7000, 4000]


def test_plan_of_arithmetic_grows_with_the_pairs() -> None:
    """Twice the window and twice the sampled positions leave all else per token as it was: what is added is, forward
    and backward (x3), a multiply-add (x2) for each pair, layer and head, over d_g score and d/K feature entries."""
    short = with_vocabulary(recipes.get("tiny"))
    long = replace(short, window=2 * short.window, positions_per_sequence=2 * short.positions_per_sequence)
    m, pairs = short.model, short.window  # T/2 pairs per unit and direction
    added = 3 * 2 * m.layers * m.heads * (m.graph_width + m.width // m.heads) * pairs
    assert cost(long).flops_per_token - cost(short).flops_per_token == pytest.approx(added)
    assert cost(long).tokens_per_step == 2 * cost(short).tokens_per_step


def test_plan_of_arithmetic_where_the_embedding_is_as_large_as_another_parameter() -> None:
    """A vocabulary of three widths: the GRU's matrices have as many numbers. Each word costs the same."""
    recipe = recipes.get("tiny")
    near = [recipe.model.width * 3 + more for more in (-1, 0, 1)]
    flops = [
        cost(replace(recipe, model=replace(recipe.model, vocab_size=size))).flops_per_token for size in near
    ]
    assert flops[1] - flops[0] == pytest.approx(flops[2] - flops[1])


def test_plan_of_memory_follows_activation_checkpointing() -> None:
    """A layer more is then its scores and its input more, in both directions; the rest is computed again."""
    config = replace(with_vocabulary(recipes.get("base")), global_batch=8, activation_checkpointing=True)
    m, units = config.model, 8 * config.window
    deeper = replace(config, model=replace(m, layers=m.layers + 1))
    added = 2 * (2 * m.heads * m.graph_width + m.width) * units * 4
    assert activation_bytes(deeper, 1) - activation_bytes(config, 1) == added
    batch_norm = replace(config, model=replace(m, norm="batch"))  # its convolutions are not computed again
    sizes = [
        activation_bytes(c, 1) for c in (config, batch_norm, replace(config, activation_checkpointing=False))
    ]
    assert sizes == sorted(set(sizes))


def test_every_recipe_is_a_valid_run() -> None:
    for name, recipe in recipes.RECIPES.items():
        config = recipes.get(name)
        assert config == recipe() and isinstance(config, PretrainConfig)
        assert recipe.__doc__
    with pytest.raises(ConfigError, match="tiny"):
        recipes.get("tinny")
