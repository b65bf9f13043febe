"""Markers that skip with a reason, the count of skipped tests, and one tiny road for the tests of the program.

What only the road needs is imported by its fixtures: the tests of the kernels run where the project's other
dependencies are missing.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest

from glomo_dist.runtime import threads

# Before torch is imported: the tests and the programs that they start share the cores.
threads.wait_briefly(os.environ)
# A shell's script starts what it sends to the background (`pytest &`) with SIGINT ignored, `nohup` with SIGHUP. The
# programs that tests start and interrupt would inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

import torch  # noqa: E402
from road_samples import Raw, Road  # noqa: E402

# A Ray cluster is found by every program of the machine, so the tests that start one must not meet.
ONE_AFTER_ANOTHER = ("tests", "tests/evaluate", "tests/cluster")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes of pytest-xdist, one gets all tests of a file, which share what its fixtures make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "programs" if str(PurePosixPath(file).parent) in ONE_AFTER_ANOTHER else file

    config.option.loadscopereorder = False  # the files with the most tests are not those that take longest
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu or multi_gpu are skipped, saying why, where the devices are missing."""
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for item in items:
        needed = 2 if item.get_closest_marker("multi_gpu") else 1 if item.get_closest_marker("gpu") else 0
        if needed > here:
            item.add_marker(
                pytest.mark.skip(reason=f"needs {needed} CUDA device(s), this machine has {here}")
            )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"{skipped} tests skipped" + (" (reasons above)" if skipped else ""))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache folder stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    from pydoc_data.topics import topics

    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("raw")
    made = Raw(folder, folder / "text.jsonl", folder / "docstrings.jsonl", folder / "digits.npz")
    chapters = [(name, topics[name]) for name in sorted(topics, key=lambda n: -len(topics[n]))[:24]]
    made.text.write_text("".join(json.dumps({"text": text[:4000]}) + "\n" for _, text in chapters))
    rows = []
    for label, text in chapters[:2]:
        paragraphs = [p for p in text.split("\n\n") if len(p.split()) > 8][:30]
        for number, paragraph in enumerate(paragraphs):
            split = ("train", "train", "train", "dev", "test")[number % 5]
            rows.append(
                json.dumps({"text": " ".join(paragraph.split()), "label": label, "split": split}) + "\n"
            )
    made.docstrings.write_text("".join(rows))
    digits = load_digits()
    images = np.round(digits.images[:200] * (255 / 16)).astype(np.uint8)
    np.savez(made.digits, images=images, labels=digits.target[:200])
    return made


@pytest.fixture(scope="session")
def road(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """prepare and pretrain, for words on two ranks and for pixels on one, through the real program."""
    from glomo_dist.cli import main

    at = tmp_path_factory.mktemp("road")
    made = Road(raw, at / "shards-text", at / "shards-digits", at / "run-text", at / "run-digits")
    text, digits = str(made.text_shards), str(made.digit_shards)
    assert main(["prepare", "text", str(raw.text), "--out", text, "--vocab-size", "500"]) == 0
    assert (
        main(["prepare", "images", str(raw.digits), "--out", digits, "--bits", "2", "--max-images", "100"])
        == 0
    )
    assert main(["pretrain", text, "--out", str(made.text_run), "--recipe", "tiny", "--ranks", "2"]) == 0
    command = ["pretrain", digits, "--out", str(made.digit_run), "--recipe", "tiny", "--window", "64"]
    assert main([*command, "--model.image", "8", "8", "--steps", "2", "--model.sparsity", "relu"]) == 0
    yield made
