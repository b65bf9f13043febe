from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
from cluster_samples import Network
from pretrain_samples import write_text

from glomo_dist.data import prepare_text

PREFIX = "glomo-test-"


@pytest.fixture(scope="session")
def reason_against_hosts() -> str | None:
    """Why no network of local hosts can be had here, or None. Clears what killed test runs have left."""
    if os.geteuid() == 0:
        for name in hosts.networks():
            owner = name.removeprefix(PREFIX).split("-")[0]
            if name.startswith(PREFIX) and not Path("/proc", owner).exists():
                hosts.down(name)
    return hosts.why_not()


@pytest.fixture
def network(reason_against_hosts: str | None, tmp_path: Path) -> Iterator[Network]:
    """Two hosts of their own address; gone after the test with all that runs on them."""
    if reason_against_hosts:
        pytest.skip(f"no local hosts: {reason_against_hosts}")
    name = f"{PREFIX}{os.getpid()}-{time.monotonic_ns() % 10**9}"
    hosts.up(name, 2)
    made = Network(name, tmp_path)
    try:
        yield made
    finally:
        made.end(signal.SIGKILL)
        hosts.down(name)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    return prepare_text([str(write_text(folder / "tiny.jsonl"))], folder / "shards", vocab_size=50)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--host-faults", type=int, default=0, metavar="N",
        help="tests/cluster: the long set of faults across hosts, each N times at other moments",
    )  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`round_number`: of the long set; none of it without the option."""
    if "round_number" in metafunc.fixturenames:
        count = metafunc.config.getoption("--host-faults", 0)
        none = pytest.param(
            0, marks=pytest.mark.skip(reason="of the long set: pytest tests/cluster --host-faults N")
        )
        metafunc.parametrize("round_number", range(count) if count else [none])
