"""What the program says of the machine, its kernels and its threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_samples import Capture, nothing_at, refused, run
from road_samples import Road
from setuptools.config.pyprojecttoml import read_configuration

from glomo_dist.cli import doctor
from glomo_dist.evaluate import executor
from glomo_dist.runtime import threads
from glomo_dist.runtime.processes import import_path


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

    monkeypatch.setattr("glomo_dist.evaluate.evaluate", no_jobs)
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


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "17"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_threads_wait_as_the_user_says(given: dict[str, str]) -> None:
    environment = dict(given)
    threads.wait_briefly(environment)
    assert environment == given


def test_threads_wait_briefly() -> None:
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
    environment = {**ours, "OMP_DISPLAY_ENV": "verbose"}
    environment["PYTHONPATH"] = import_path()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "GOMP_" not in done.stderr:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '3000'" in done.stderr
