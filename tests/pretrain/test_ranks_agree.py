"""Ranks, accumulation and ZeRO stages are ways to compute one and the same thing, and to resume it to the bit.

Where sums are formed in another order, losses may differ by rel=1e-5: docs/reliability.md, "How equal is equal".
All runs of this file happen in three groups of ranks (fixtures): starting one takes longer than the tiny runs.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rank_jobs
from pretrain_samples import PLAIN, TINY, job, losses, rows, run_ranks, weights_hash, without_times
from safetensors.torch import load_file

from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.settings.config import accumulation

pytestmark = pytest.mark.slow

CONFIGS = {
    "zero0": dataclasses.replace(PLAIN, zero_stage=0),
    "zero1": dataclasses.replace(PLAIN, zero_stage=1),
    "zero2": TINY,  # alone with readers and a tracker: they change nothing
    "zero3": dataclasses.replace(PLAIN, zero_stage=3),
    "accumulated": dataclasses.replace(PLAIN, micro_batch=2),
    "bf16": dataclasses.replace(PLAIN, precision="bf16"),
    "bf16_zero1": dataclasses.replace(PLAIN, precision="bf16", zero_stage=1),
    "bf16_zero3": dataclasses.replace(PLAIN, precision="bf16", zero_stage=3),
    "again": dataclasses.replace(PLAIN, activation_checkpointing=True),
    "again_zero3": dataclasses.replace(PLAIN, zero_stage=3, activation_checkpointing=True),
    # everything that has state of its own: momentum, plateau, dropout, running statistics
    "stateful": dataclasses.replace(
        PLAIN,
        model=dataclasses.replace(TINY.model, dropout=0.2, norm="batch", sparsity="topk"),
        optimizer="sgd", momentum=0.2, weight_decay=0.0, lr=8.0, clip=0.25, zero_stage=1,
        schedule="plateau", valid_every=1, valid_batches=2, plateau_patience=1,
    ),
}  # fmt: skip
CONFIGS["stateful_again"] = dataclasses.replace(CONFIGS["stateful"], activation_checkpointing=True)
RESUMED = ("zero0", "zero1", "zero2", "zero3", "bf16", "bf16_zero1", "bf16_zero3", "stateful")
# one not finite number, in every stage and precision; two backward passes, and one
POISONED = {
    f"{precision}_zero{stage}_{micro}": dataclasses.replace(
        PLAIN, zero_stage=stage, precision=precision, micro_batch=micro
    )
    for precision in ("fp32", "bf16")
    for stage in range(4)
    for micro in (2, 4)
    if (precision, stage) != ("bf16", 0) and (micro == 2 or stage == 3)
}
DIVERGING = dataclasses.replace(
    PLAIN,
    optimizer="sgd",
    weight_decay=0.0,
    lr=1e30,
    clip=None,
    schedule="constant",
    max_bad_steps=3,
    steps=50,
)
# a loss that is not finite from the first step on, and fewer steps than would be given up after
NO_STEP = dataclasses.replace(
    PLAIN, model=dataclasses.replace(TINY.model, threshold_init=5.0, empty_row_penalty=1e38), steps=2
)


def shards_for(config: PretrainConfig, tiny_shards: Path, split_shards: Path) -> Path:
    return split_shards if config.valid_every else tiny_shards


@pytest.fixture(scope="module")
def two_ranks(tiny_shards: Path, split_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    jobs = [job(c, shards_for(c, tiny_shards, split_shards), folder / name) for name, c in CONFIGS.items()]
    jobs += [job(config, tiny_shards, folder / name, "poison") for name, config in POISONED.items()]
    # ZeRO-3 that really frees every parameter after its use: by default those below 100,000 numbers stay whole
    nothing_stays = folder / "zero3.json"
    nothing_stays.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    for name in ("zero3", "again_zero3"):
        config = dataclasses.replace(CONFIGS[name], deepspeed=str(nothing_stays))
        jobs.append(job(config, tiny_shards, folder / f"{name}_freed"))
    jobs.append(job(DIVERGING, tiny_shards, folder / "diverging"))
    jobs.append(job(NO_STEP, tiny_shards, folder / "no_step"))
    run_ranks(folder, jobs, 2)
    return folder


@pytest.fixture(scope="module")
def one_rank(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run_ranks(folder, [job(TINY, tiny_shards, folder / "zero2")], 1)
    return folder


@pytest.fixture(scope="module")
def resumed(
    two_ranks: Path, tiny_shards: Path, split_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Copies of the runs, as they were some steps after their first checkpoint, then continued; and what was said.

    "damaged" has its newest checkpoint cut short instead, "lost" has none that is whole.
    """
    folder = tmp_path_factory.mktemp("resumed")
    jobs = []
    for name in RESUMED:
        shutil.copytree(two_ranks / name, folder / name)
        shutil.rmtree(folder / name / "model")
        shutil.rmtree(folder / name / "checkpoints" / "step-000006")
        lines = (folder / name / "log.jsonl").read_bytes().splitlines(keepends=True)
        (folder / name / "log.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
        (folder / name / "checkpoints" / ".step-000006.0123abcd.tmp").mkdir()
        config = CONFIGS[name]
        jobs.append(job(config, shards_for(config, tiny_shards, split_shards), folder / name))
    for name in ("damaged", "lost"):
        shutil.copytree(two_ranks / "zero2", folder / name)
        shutil.rmtree(folder / name / "model")
        checkpoints = folder / name / "checkpoints"
        for checkpoint in ("step-000006", "step-000003") if name == "lost" else ("step-000006",):
            file = checkpoints / checkpoint / "state" / "rank-00001.safetensors"
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        jobs.append(job(CONFIGS["zero2"], tiny_shards, folder / name))
    return folder, run_ranks(folder, jobs, 2)


def test_rows_are_complete(two_ranks: Path) -> None:
    run = two_ranks / "zero2"
    log = rows(run)
    assert [row["step"] for row in log] == list(range(1, TINY.steps + 1))
    for row in log:
        assert row["applied"] and row["targets"] > 0 and row["units"] > row["step"]
        assert row["grad_norm"] > 0 and 0 < row["lr"] <= TINY.lr
        parts = sum(value for key, value in row.items() if key.endswith("_seconds"))
        assert parts == pytest.approx(row["seconds"]) and row["forward_seconds"] > 0
        for name in ("empty_rows", "edges_per_row", "entropy"):
            assert len(row[name]) == TINY.model.layers and len(row[name][0]) == TINY.model.heads
        assert all(0 <= share <= 1 for layer in row["empty_rows"] for share in layer)


def test_one_rank_equals_two(one_rank: Path, two_ranks: Path) -> None:
    assert losses(one_rank / "zero2") == pytest.approx(losses(two_ranks / "zero2"), rel=1e-5)
    assert [r["targets"] for r in rows(one_rank / "zero2")] == [
        r["targets"] for r in rows(two_ranks / "zero2")
    ]
    norms = [[r["grad_norm"] for r in rows(folder / "zero2")] for folder in (one_rank, two_ranks)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    # of all rows together, though the ranks have unequal numbers of them
    first = [rows(folder / "zero2")[0] for folder in (one_rank, two_ranks)]
    for name in ("empty_rows", "edges_per_row", "entropy"):
        np.testing.assert_allclose(first[0][name], first[1][name], rtol=1e-5)


def test_accumulated_equals_single_batch(two_ranks: Path) -> None:
    assert accumulation(CONFIGS["accumulated"], 2) == (2, 2)
    assert losses(two_ranks / "accumulated") == pytest.approx(losses(two_ranks / "zero2"), rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stages_agree(two_ranks: Path, stage: int) -> None:
    assert losses(two_ranks / f"zero{stage}") == pytest.approx(losses(two_ranks / "zero2"), rel=1e-5)
    ours = load_file(two_ranks / f"zero{stage}" / "model" / "model.safetensors")
    theirs = load_file(two_ranks / "zero2" / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].sub(theirs[name]).abs().max() < 1e-3, name


@pytest.mark.parametrize(
    ("name", "like"),
    [("again", "zero2"), ("again_zero3", "zero3"), ("stateful_again", "stateful"), ("zero3_freed", "zero3"),
     ("again_zero3_freed", "zero3")],
)  # fmt: skip
def test_activation_checkpointing_and_freed_parameters_change_no_bit(
    two_ranks: Path, name: str, like: str
) -> None:
    assert [without_times(row) for row in rows(two_ranks / name)] == [
        without_times(row) for row in rows(two_ranks / like)
    ]
    assert weights_hash(two_ranks / name) == weights_hash(two_ranks / like)


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_stages_agree(two_ranks: Path, stage: int) -> None:
    assert losses(two_ranks / f"bf16_zero{stage}") == pytest.approx(losses(two_ranks / "bf16"), rel=1e-2)


def test_bf16_is_near_and_exports_float32(two_ranks: Path) -> None:
    assert losses(two_ranks / "bf16") == pytest.approx(losses(two_ranks / "zero2"), rel=2e-2)
    weights = load_file(two_ranks / "bf16" / "model" / "model.safetensors")
    assert all(str(value.dtype) == "torch.float32" for value in weights.values())
    embedding = weights["embedding.weight"]
    assert not embedding.equal(embedding.bfloat16().float()), "the master weights, not their bf16 copy"


def test_plateau_divides_the_rate(two_ranks: Path) -> None:
    log = rows(two_ranks / "stateful")
    best, divided = float("inf"), 0
    for row in log:
        assert row["lr"] == 8.0 / 2.0**divided
        divided += row["valid_loss"] >= best
        best = min(best, row["valid_loss"])


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted_to_the_bit(
    two_ranks: Path, resumed: tuple[Path, str], name: str
) -> None:
    folder, said = resumed
    assert f"continuing {folder / name} from step 3 of 6" in said
    ours, theirs = rows(folder / name), rows(two_ranks / name)
    assert [without_times(row) for row in ours] == [without_times(row) for row in theirs]
    assert weights_hash(folder / name) == weights_hash(two_ranks / name)
    assert not list((folder / name / "checkpoints").glob(".*"))


def test_damaged_checkpoint_falls_back_loudly(two_ranks: Path, resumed: tuple[Path, str]) -> None:
    folder, said = resumed
    assert f"WARNING: checkpoint {folder / 'damaged' / 'checkpoints' / 'step-000006'} is damaged" in said
    assert f"continuing {folder / 'damaged'} from step 3 of 6" in said
    assert losses(folder / "damaged") == losses(two_ranks / "zero2")
    assert weights_hash(folder / "damaged") == weights_hash(two_ranks / "zero2")
    names = {p.name for p in (folder / "damaged" / "checkpoints").iterdir()}
    assert {"damaged-step-000006", "step-000003", "step-000006"} <= names


def test_no_good_checkpoint_is_an_error_not_a_new_start(resumed: tuple[Path, str]) -> None:
    folder, _ = resumed
    error = (folder / "lost.error").read_text()
    assert error.startswith("CheckpointError: no checkpoint in") and "damaged-step-" in error
    assert not (folder / "lost" / "model").exists()


@pytest.mark.parametrize("name", POISONED)
def test_one_number_that_is_not_finite_reaches_no_weight(two_ranks: Path, name: str) -> None:
    result = json.loads((two_ranks / f"{name}.json").read_text())
    wanted = [what == "" for what in rank_jobs.POISONED]
    assert result["applied"] == wanted and result["changed"] == wanted and result["finite"]
    first_pass = list(range(POISONED[name].micro_batch or 0))
    for what, (first_rank, last_rank) in zip(rank_jobs.POISONED, result["suspects"], strict=True):
        assert first_rank == [] and last_rank == (first_pass if what.endswith("loss") else [])


def test_diverging_run_gives_up_and_says_what_to_do(two_ranks: Path) -> None:
    error = (two_ranks / "diverging.error").read_text()
    assert error.startswith("GlomoError: 3 steps in a row") and "Lower lr" in error
    log = rows(two_ranks / "diverging")
    assert [row["applied"] for row in log[-3:]] == [False] * 3 and log[-1]["loss"] is None
    assert all(re.fullmatch(r"shard-\d+\.tar/\d{9}", name) for name in log[-1]["samples"])
    assert 0 < len(log[-1]["samples"]) <= TINY.global_batch and "samples" not in log[0]


def test_a_run_without_any_update_is_not_finished(two_ranks: Path) -> None:
    assert (two_ranks / "no_step.error").read_text().startswith("GlomoError: 2 steps in a row")
    assert [row["applied"] for row in rows(two_ranks / "no_step")] == [False] * 2
    assert not (two_ranks / "no_step" / "model").exists()


def test_checkpoints_kept_and_latest(two_ranks: Path) -> None:
    checkpoints = two_ranks / "zero2" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["latest", "step-000003", "step-000006"]
    assert (checkpoints / "latest").read_text() == "step-000006\n"
    manifest = json.loads((checkpoints / "step-000006" / "manifest.json").read_text())
    on_disk = {
        p.relative_to(checkpoints / "step-000006").as_posix()
        for p in (checkpoints / "step-000006").rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert set(manifest["files"]) == on_disk and "model/model.safetensors" in on_disk
