"""Faults put into runs of two ranks, a few of each; `make faults` does many (faults.py)."""

from __future__ import annotations

import dataclasses
import pickle
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import fault_runs
import pytest
import torch
from fault_runs import SHORT, assert_close, assert_same, with_stage
from nursery import Nursery, nursery
from pretrain_samples import Canary

from glomo_dist.pretrain.output import checkpoint
from glomo_dist.runtime import files, json_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


@pytest.fixture(scope="module")
def references(
    ranks: Nursery, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Runs that nothing happened to, by ZeRO stage."""
    folder = tmp_path_factory.mktemp("references")
    return {s: ranks.run(with_stage(SHORT, s), tiny_shards, folder / f"zero{s}") for s in range(4)}


@pytest.mark.parametrize("stage", range(4))
def test_killed_at_random_steps(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path, stage: int
) -> None:
    config = with_stage(SHORT, stage)
    run, draw = tmp_path / "run", random.Random(stage)
    fault_runs.kill_at_random_steps(ranks, config, tiny_shards, run, 1, draw, references[stage])


def test_killed_while_saving(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    run, draw = tmp_path / "run", random.Random(0)
    partial = fault_runs.kill_while_saving(ranks, SHORT, tiny_shards, run, 3, draw, references[2])
    assert partial, "no kill came while a checkpoint was being written"


def test_killed_and_full_disk_at_a_file_operation(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(SHORT, checkpoint_every=4, keep_checkpoints=1)
    total = fault_runs.count_file_operations(ranks, config, tiny_shards, tmp_path / "count", 0)
    for number in random.Random(0).sample(range(1, total + 1), 2):
        run = tmp_path / f"killed{number}"
        fault_runs.kill_at_file_operation(ranks, config, tiny_shards, run, 0, number)
        assert_same(run, references[2])
    for rank, number in ((0, total // 2), (1, 3)):
        run = tmp_path / f"full{rank}"
        fault_runs.fill_disk_at(ranks, config, tiny_shards, run, rank, number)
        assert_same(run, references[2])


@pytest.mark.parametrize("how", ["stop one", "data", "lock", "unwatched"])
def test_hung_rank_is_shown_and_ended(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path, how: str
) -> None:
    fault_runs.hang(ranks, SHORT, tiny_shards, tmp_path / "run", how, timeout=2.0)
    assert_same(tmp_path / "run", references[2])


def test_a_slow_first_step_is_no_hang(ranks: Nursery, tiny_shards: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, steps=2, hang_timeout=1.0)
    fault = {"kind": "slow_step", "rank": 1, "step": 1, "seconds": 3.0}
    group = ranks.start(config, tiny_shards, tmp_path / "run", fault=fault)
    assert group.wait() == [0, 0], group.log.read_text()[-3000:]


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_signal_to_one_rank_saves_and_stops_all(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path, number: int, rank: int
) -> None:
    fault_runs.stop_by_signal(ranks, SHORT, tiny_shards, tmp_path / "run", rank, number, at=5)
    assert_same(tmp_path / "run", references[2])


@pytest.mark.parametrize(
    ("stage", "worlds"), [(0, [2, 1]), (1, [1, 2]), (2, [2, 1, 2]), (3, [2, 1]), (3, [1, 2])]
)
def test_another_number_of_ranks(
    ranks: Nursery,
    references: dict[int, Path],
    tiny_shards: Path,
    tmp_path: Path,
    stage: int,
    worlds: list[int],
) -> None:
    config = with_stage(SHORT, stage)
    fault_runs.change_ranks(ranks, config, tiny_shards, tmp_path / "run", worlds, [3, 7])
    assert_close(tmp_path / "run", references[stage])


def test_what_one_rank_cannot_read_ends_all_in_its_words(
    ranks: Nursery, tiny_shards: Path, tmp_path: Path
) -> None:
    group = ranks.start(
        SHORT, tiny_shards, tmp_path / "run", fault={"kind": "bad_data", "rank": 1, "step": 5}
    )
    assert group.wait() == [2, 2], group.log.read_text()[-3000:]
    said = group.log.read_text()
    assert said.count("ShardError: shard-00000.tar is damaged") == 2 and "Traceback" not in said
    kept = checkpoint.existing(tmp_path / "run" / "checkpoints")
    assert [checkpoint.verify(path)["step"] for path in kept] == [4, 2], "what was being written was finished"


def test_a_checkpoint_that_one_rank_cannot_read_ends_all_in_its_words(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(references[2], tmp_path / "run")
    shutil.rmtree(run / "model")
    group = ranks.start(SHORT, tiny_shards, run, fault={"kind": "no_checkpoint", "rank": 1})
    assert group.wait() == [2, 2], group.log.read_text()[-3000:]
    said = group.log.read_text()
    assert said.count(".safetensors cannot be read: Permission denied") == 2 and "Traceback" not in said


def test_a_checkpoint_with_a_pickle_in_it_is_refused_and_nothing_runs(
    ranks: Nursery, references: dict[int, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    """Somebody who can write the folder changed a file, and its SHA-256 in the manifest, too."""
    run, canary = shutil.copytree(references[2], tmp_path / "run"), tmp_path / "executed"
    shutil.rmtree(run / "model")
    folder = checkpoint.existing(run / "checkpoints")[0]
    file = folder / "state" / "rank-00001.safetensors"
    torch.save({"weights": Canary(canary)}, file)
    manifest = json_files.read_json(folder / "manifest.json")
    manifest["files"]["state/rank-00001.safetensors"] = {
        "bytes": file.stat().st_size, "sha256": files.sha256_file(file),
    }  # fmt: skip
    json_files.write_json(folder / "manifest.json", checkpoint.sealed(manifest))
    (folder / "state" / "rank-00002.pt").write_bytes(pickle.dumps(Canary(canary)))
    group = ranks.start(SHORT, tiny_shards, run)
    assert group.wait() == [2, 2], group.log.read_text()[-3000:]
    assert "not a readable safetensors file" in group.log.read_text() and not canary.exists()
