"""`make gpu` without a GPU: its dry run in a short form, and what it does when parts fail or take too long."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "kernels" / "benchmarks"))
command = importlib.import_module("gpu.__main__")
gpu_tests = importlib.import_module("gpu.tests")
wheels = importlib.import_module("gpu.wheels")
work = importlib.import_module("gpu.work")
bench = importlib.import_module("gpu.bench")
report = importlib.import_module("gpu.report")
part = importlib.import_module("gpu.part")

MOST_FILES, MOST_BYTES = 8, 16 << 20


def gpu(*arguments, out):
    done = subprocess.run(
        [sys.executable, "-m", "gpu", *arguments, "--out", str(out)],
        cwd=ROOT, env=command.environment("--dry" in arguments), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_short_dry_run(tmp_path):
    code, said = gpu("build", "bench", "profile", "tune", "--dry", out=tmp_path)
    assert code == 0, said[-4000:]
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.strip() in said, "the short table comes last"
    assert all(f"{name:9} ok" in summary for name in ("build", "bench", "profile", "tune"))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) <= MOST_FILES and all(file.stat().st_size < MOST_BYTES for file in files)
    rows = part.read_table(tmp_path / "bench.csv")
    ours = [row for row in rows if row["way"] == "ours"]
    assert {row["op"] for row in ours} == {"affinity_mix", "affinity_graph", "graph_mix", "decoder_loss"}
    for row in ours:
        assert not row["failure"] and float(row["ms"]) > 0 and float(row["error"]) < 1e-4, row
    assert part.read_table(tmp_path / "profile.csv")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_parts_that_fail_are_reported_and_the_others_run(tmp_path):
    code, said = gpu("sanitize", "train", "--seconds", "300", out=tmp_path)
    assert code == 1 and f"exit code {part.KERNELS_FAILED}, see log.txt" in said
    summary = (tmp_path / "summary.txt").read_text()
    assert "sanitize  FAILED, exit code 1" in summary and "train     FAILED, exit code 1" in summary
    assert "holds no shards: name a folder" in said and "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_part_is_stopped_at_its_time_with_all_it_started(tmp_path, monkeypatch):
    """Stopped after 4 s although it knows of 60: within a shorter time of its own it may end by itself."""
    monkeypatch.setattr(command, "GRACE_SECONDS", -56)
    options = argparse.Namespace(out=str(tmp_path), dry=True)
    outcome, took = command.run("tests", options, 60, tmp_path)
    assert outcome == "STOPPED at its time" and took < 30
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running
    assert "==> tests: STOPPED" in (tmp_path / "log.txt").read_text()


PART_OF_STEPS = """
import os, signal, sys, time, torch
from pathlib import Path
from gpu.part import Part

def broken(): raise RuntimeError("CUDA error: an illegal memory access was encountered")

out, first = Path(sys.argv[1]), int(sys.argv[2])
part = Part(out, out / "notes", False, 60, first)
with part.table("sample", ["what"]) as table:
    for what in part.steps(["good", "spoils", "crashes", "behind", "fails", "hangs", "last"]):
        if what == "spoils":
            torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, broken
        elif what == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "fails":
            broken()
        elif what == "hangs":
            time.sleep(100)
        else:
            table.add(what=what)
"""


def test_what_a_step_does_to_its_process_does_not_take_the_others_along(tmp_path, monkeypatch, capsys):
    def process_of(name, options, seconds, first, notes):
        return [sys.executable, "-c", PART_OF_STEPS, options.out, str(first)]

    monkeypatch.setattr(command, "process_of", process_of)
    monkeypatch.setattr(command, "STUCK_SECONDS", 8.0)
    options = argparse.Namespace(out=str(tmp_path), dry=False)
    outcome, _ = command.run("sample", options, 200, tmp_path)
    lost = "step 2 spoiled the device, step 3 FAILED, exit code -11, step 5 FAILED, exit code 1, step 6 hangs"
    assert outcome == f"FAILED: {lost}"
    assert [row["what"] for row in part.read_table(tmp_path / "sample.csv")] == ["good", "behind", "last"]
    capsys.readouterr()


def test_the_best_configuration_is_that_of_all_processes():
    tune = importlib.import_module("gpu.tune")
    times = [("forward", "a", "3"), ("forward", "b", "2.5"), ("forward", "c", ""), ("query", "d", "")]
    rows = [{"kernel": kernel, "shape": "T1", "config": name, "ms": ms} for kernel, name, ms in times]
    assert tune.best_of(rows) == ["forward T1: best b, 2.500 ms"]


def test_a_process_that_gets_to_no_step_is_the_last(tmp_path, monkeypatch):
    program = "import os, sys; sys.argv[1] == '0' and open(sys.argv[2], 'w').write('0'); os.abort()"

    def process_of(name, options, seconds, first, notes):
        return [sys.executable, "-c", program, str(first), str(tmp_path / "step")]

    monkeypatch.setattr(command, "process_of", process_of)
    outcome, _ = command.run("sample", argparse.Namespace(out=str(tmp_path), dry=False), 200, tmp_path)
    assert outcome == "FAILED: step 1 FAILED, exit code -6, FAILED, exit code -6"


def test_a_signal_ends_the_part_too(tmp_path, monkeypatch):
    """A part has a session of its own, and would keep the GPU."""
    options = argparse.Namespace(out=str(tmp_path), dry=True, seconds=60.0)
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        with pytest.raises(SystemExit) as left:
            command.run_all(["tests"], options)
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running


def test_rows_beside_one_that_was_cut_off_count(tmp_path):
    rows = [{"test": name, "outcome": "passed"} for name in ("a", "b")]
    first, second = map(json.dumps, rows)
    (tmp_path / "rows").write_text(f'{first}\n{{"test": "c", "outc{first}\n{second}\n{{"test": "d')
    assert gpu_tests.read(tmp_path / "rows") == {row["test"]: row for row in rows}


def test_a_picture_that_cannot_be_drawn_does_not_take_the_table_along(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda *_: ("ok", 1.0))
    monkeypatch.setattr(command, "machine", dict)
    monkeypatch.setattr(report, "draw", lambda _: 1 / 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options = argparse.Namespace(out=str(tmp_path), dry=True, seconds=60.0)
    assert command.run_all(["tests"], options) == 1
    said = capsys.readouterr()
    assert "tests     ok, 1 s" in said.out and "ZeroDivisionError" in said.err


def test_unknown_part(tmp_path):
    code, said = gpu("bnech", out=tmp_path)
    assert code == 2 and "no part 'bnech'; there are build, tests" in said


def test_tests_are_dealt_out_whole():
    runs = [[f"f.py::{name}[{n}]" for n in range(gpu_tests.MOST)] for name in "abcd"]
    tests = [test for run in runs for test in run] + ["f.py::e"]
    hands = gpu_tests.deal(tests, 3)
    assert sorted(test for hand in hands for test in hand) == sorted(tests) and len(hands) == 3
    for run in runs:  # those of one function stay together: they share compiled kernels
        assert [run[0] in hand for hand in hands] == [run[-1] in hand for hand in hands]
    assert gpu_tests.deal(["f.py::c"], 6) == [["f.py::c"]]


def test_no_hand_compiles_for_most_of_the_others():
    """All configurations in one process took twice the time that there is for the tests."""
    heavy = [f"test_x_triton_gpu.py::every[{n}]" for n in range(45)]
    light = [f"test_cuda.py::shared[{n}]" for n in range(200)]
    hands = gpu_tests.deal(heavy + light, 6)
    assert sorted(test for hand in hands for test in hand) == sorted(heavy + light)
    assert max(sum(test in heavy for test in hand) for hand in hands) <= 8
    weights = [gpu_tests.weight(hand) for hand in hands]
    assert max(weights) < 1.3 * sum(weights) / 6


def test_every_test_has_a_row_whatever_happened_to_it(tmp_path, monkeypatch):
    """One passes, one fails but not alone, one fails, one ends its process, and the one behind that passes."""
    file = tmp_path / "test_sample.py"
    file.write_text(
        "import os, pathlib\n"
        "def test_good(): pass\n"
        "def test_flaky():\n"
        "    mark = pathlib.Path(__file__ + '.mark')\n"
        "    first = not mark.exists(); mark.touch(); assert not first\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_crash(): os._exit(9)\n"
        "def test_behind(): pass\n"
    )
    monkeypatch.setattr(gpu_tests, "DRY", [str(file), "--rootdir", str(tmp_path), "-c", "/dev/null"])
    monkeypatch.setattr(gpu_tests, "deal", lambda tests, hands: [tests])
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", command.environment(True)["PYTHONPATH"])
    with pytest.raises(SystemExit, match="not all tests passed"):
        gpu_tests.main(part.Part(tmp_path, tmp_path / "notes", True, 60.0))
    found = {row["test"].partition("::")[2]: row for row in part.read_table(tmp_path / "tests.csv")}
    assert found["test_good"]["outcome"] == "passed" and not found["test_good"]["alone"]
    assert (found["test_flaky"]["outcome"], found["test_flaky"]["alone"]) == ("failed", "passed")
    assert found["test_bad"]["alone"] == "failed" and "1 == 2" in found["test_bad"]["message"]
    assert (found["test_crash"]["outcome"], found["test_crash"]["alone"]) == ("not run", "")
    assert (found["test_behind"]["outcome"], found["test_behind"]["alone"]) == ("passed", "")
    assert "failed: " in (tmp_path / "notes").read_text()


def test_a_test_that_spoils_the_device_does_not_take_the_others_along(tmp_path, monkeypatch):
    file = tmp_path / "test_sample.py"
    file.write_text(
        "import torch\n"
        "def broken(): raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "def test_good(): pass\n"
        "def test_spoils():\n"
        "    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, broken\n"
        "    broken()\n"
        "def test_behind(): torch.cuda.is_initialized() and torch.cuda.synchronize()\n"
    )
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", command.environment(True)["PYTHONPATH"])
    names = [f"{file.name}::{name}" for name in ("test_good", "test_spoils", "test_behind")]
    gpu_tests.run([names], tmp_path / "rows", time.monotonic() + 60)
    rows = gpu_tests.read(tmp_path / "rows")
    assert [rows[name]["outcome"] for name in names] == ["passed", "failed", "passed"]
    assert "illegal memory access" in rows[names[1]]["message"]


def test_a_test_that_hangs_does_not_take_the_others_along(tmp_path, monkeypatch):
    program = (
        "import json, sys, time\n"
        "for test in sys.argv[2:]:\n"
        "    time.sleep(100 * (test == 'hangs'))\n"
        "    print(json.dumps({'test': test, 'outcome': 'passed'}), file=open(sys.argv[1], 'a'))\n"
    )

    def start(tests, results):
        return subprocess.Popen([sys.executable, "-c", program, str(results), *tests])

    monkeypatch.setattr(gpu_tests, "start", start)
    monkeypatch.setattr(gpu_tests, "STUCK_SECONDS", 3.0)
    gpu_tests.run([["good", "hangs", "behind"]], tmp_path / "rows", time.monotonic() + 60)
    assert set(gpu_tests.read(tmp_path / "rows")) == {"good", "behind"}


def test_only_modules_with_tests_for_a_gpu_are_collected():
    """Others may import what a machine with a GPU lacks (hypothesis)."""
    names = {Path(path).name for path in gpu_tests.GPU[2:]}
    assert {"test_cuda.py", "test_affinity_mix_triton.py", "test_affinity_mix_triton_gpu.py"} <= names
    assert "test_properties.py" not in names and "test_gpu_command.py" not in names


def test_work_of_the_ops():
    """Counted by hand: causal pairs are T^2 / 2, a multiply-add is 2."""
    forward, backward = work.affinity_mix(1, 1, 100, 30, 20)
    assert forward.flops == 2 * 5000 * 50 and backward.flops == 2 * 5000 * (90 + 40)
    assert forward.done == 2 * 5000 * (50 + 16) and backward.done == 2 * 5000 * (120 + 60)
    assert forward.bytes == 100 * (30 + 30 + 20 + 20) * 2 + 800
    dead, _ = work.affinity_mix(1, 1, 100, 30, 20, live=0.0)
    assert dead.flops == 2 * 5000 * 30
    assert work.decoder_loss(10, 4, 7).flops == 6 * 280
    slow = work.Ceilings(copy=1.0, half=1e-9, single=1e-9)
    assert work.Work(5e6, 1e3, 0).floor_ms(slow) == (5e6, "products")
    assert work.Work(1, 2e6, 0).floor_ms(work.Ceilings(1.0, 1.0, 1.0)) == (2.0, "memory")


def test_the_page_has_the_estimates_and_resources_of_today():
    text = report.PAGE.read_text()
    blocks = {"estimates": report.estimates(), "resources": report.resources()}
    assert report.page(text, blocks) == text, "run `python -m gpu.report` in kernels/benchmarks"
    assert blocks["resources"].count("\n") > 6


def test_results_go_to_the_page_and_a_picture(tmp_path):
    (tmp_path / "summary.txt").write_text("gpu none\nbench     ok, 3 s\n")
    with part.Part(tmp_path, tmp_path / "notes", True, 1.0).table("bench", bench.COLUMNS) as table:
        common = {"op": "affinity_mix", "shape": "B1 T64", "goal": "2x"}
        table.add(**common, way="ours", ms=0.5, tflops=100.0, share=0.25, ratio=1.0)
        table.add(**common, way="eager", ms=2.0, tflops=25.0, share=0.0625, ratio=4.0)
        table.add(**common, way="Liger", failure="ModuleNotFoundError")
    text = report.measured(tmp_path)
    assert "bench     ok, 3 s" in text and "Liger" not in text
    assert "| affinity_mix B1 T64 | eager | 2.000 | 25 | 6% | 4.00x |  |" in text
    report.draw(tmp_path)
    assert (tmp_path / "gpu.svg").stat().st_size > 1000


def test_wheels_are_pinned():
    assert all("==" in wanted for wanted in [*wheels.pinned(), *wheels.EXTRA])
    assert not any(wanted.startswith(("torch==", "numpy==", "triton==")) for wanted in wheels.pinned())
