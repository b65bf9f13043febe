"""What `make setup` takes for done, asked with `make -n`: nothing is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def wanted(folder: Path, *arguments: str) -> str:
    """The commands that would run; "" if everything is there."""
    run = subprocess.run(
        ["make", "-n", "setup", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return "" if "Nothing to be done" in run.stdout else run.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout, its name with a space, in which `make setup` has run."""
    folder = tmp_path / "a checkout"
    for name in ("constraints.txt", "pyproject.toml", "setup.py", "kernels/build_cuda.py", ".venv/.made-in",
                 "kernels/glomo_kernels/_cpu.so", ".venv/.dependencies", ".venv/.stamp"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{folder}\n")
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (folder / ".venv/bin").mkdir()
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def test_a_finished_setup_is_one(checkout):
    assert not wanted(checkout)
    assert not wanted(checkout, f"PYTHON={sys.executable}")


def test_another_interpreter_on_the_command_line(checkout, tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho another one\n")
    other.chmod(0o755)
    assert f"{other} -m venv --clear .venv" in wanted(checkout, f"PYTHON={other}")
    assert "CPython 3.10 or newer is needed" in wanted(checkout, "PYTHON=/nowhere/python")


def test_a_checkout_that_was_moved(checkout):
    moved = checkout.rename(checkout.with_name("moved"))
    assert "-m venv --clear .venv" in wanted(moved)


def test_an_extension_that_is_gone(checkout):
    (checkout / "kernels/glomo_kernels/_cpu.so").unlink()
    commands = wanted(checkout)
    assert "-e '.[dev]'" in commands
    assert "venv --clear" not in commands


def test_the_extension_is_built_again_where_any_of_its_files_has_changed():
    """A header that was not named kept an old extension in its place."""
    pytest.importorskip("pybind11")
    code = """
import setuptools
from distutils.core import run_setup
cpu = run_setup("setup.py", stop_after="init").ext_modules[0]
print(*cpu.sources, *cpu.depends)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {f"kernels/csrc/{file.name}" for file in (ROOT / "kernels/csrc").iterdir() if file.is_file()}
    assert set(run.stdout.split()) == files
