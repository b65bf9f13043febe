"""The files of a checkpoint: pieces of parameters, read back in any division; nothing in them executes."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretrain_samples import TINY, Canary
from safetensors.torch import save_file
from torch import Tensor, nn

from glomo_dist.model import Glomo
from glomo_dist.pretrain.output.saving import exporter
from glomo_dist.pretrain.output.state import CheckpointReader, model_state, restore, snapshot
from glomo_dist.runtime.errors import CheckpointError, GlomoError


def write(folder: Path, cuts: list[int]) -> list[Path]:
    """Numbers 0..9 of parameter "a.b", shape [2, 5], in one file per part between two cuts."""
    files = []
    for rank, (start, end) in enumerate(itertools.pairwise(cuts)):
        files.append(folder / f"rank-{rank:05d}.safetensors")
        tensors = {
            f"a.b/fp32/{start}": torch.arange(10.0)[start:end].clone(),
            f"a.b/exp_avg/{start}": -torch.arange(10.0)[start:end].clone(),
            f"a.b/step/{start}": torch.tensor(7.0),
            f"mean/buffer/{rank}": torch.tensor([1.0, 2.0]) * (rank + 1),
            f"seen/buffer/{rank}": torch.tensor(5),
        }
        save_file(tensors, files[-1])
    return files


@pytest.mark.parametrize("cuts", [[0, 10], [0, 3, 10], [0, 1, 2, 9, 10]])
def test_any_range_from_any_division(tmp_path: Path, cuts: list[int]) -> None:
    with CheckpointReader(write(tmp_path, cuts)[::-1]) as reader:  # in whatever order the files are named
        assert reader.states("a.b") == ["exp_avg", "step"]
        for start in range(10):
            for count in range(1, 11 - start):
                assert reader.range("a.b", "fp32", start, count).tolist() == list(
                    map(float, range(start, start + count))
                )
        assert reader.scalar("a.b", "step") == 7.0 and reader.scalar("a.b", "exp_avg") is None
        ranks = len(cuts) - 1
        assert reader.buffer("mean", ranks - 1, ranks).tolist() == [ranks * 1.0, ranks * 2.0]
        mean = (ranks + 1) / 2
        assert reader.buffer("mean", 0, ranks + 1).tolist() == [mean, 2 * mean]
        assert reader.buffer("seen", 0, ranks + 1) == 5


def test_whole_model(tmp_path: Path) -> None:
    like = {"a.b": torch.empty(2, 5, device="meta"), "mean": torch.empty(2), "seen": torch.tensor(0)}
    state = model_state(write(tmp_path, [0, 4, 10]), like, {"a.b"})
    assert torch.equal(state["a.b"], torch.arange(10.0).view(2, 5)) and state["mean"].tolist() == [1.5, 3.0]


def test_a_missing_piece_is_an_error(tmp_path: Path) -> None:
    files = write(tmp_path, [0, 3, 6, 10])
    with (
        CheckpointReader([files[0], files[2]]) as reader,
        pytest.raises(CheckpointError, match="ends at number 3"),
    ):
        reader.range("a.b", "fp32", 0, 10)
    with CheckpointReader(files) as reader, pytest.raises(CheckpointError, match="no buffer of other"):
        reader.buffer("other", 0, 1)


def trained(seed: int, optimizer: str, rank: int = 0, world: int = 2) -> Any:
    """An engine without ZeRO, of a fresh model with parameters, buffers and a counter."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    made = {
        "adamw": lambda: torch.optim.AdamW(module.parameters(), lr=0.1),
        "sgd": lambda: torch.optim.SGD(module.parameters(), lr=0.1),
        "momentum": lambda: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
    }[optimizer]()
    return SimpleNamespace(
        module=module, optimizer=made, global_rank=rank, world_size=world, zero_optimization_stage=lambda: 0
    )


def advance(engine: Any, steps: int) -> dict[str, Tensor]:
    """The state dict after so many steps more; each rank sees other data."""
    for _ in range(steps):
        engine.optimizer.zero_grad()
        engine.module(
            torch.randn(5, 3, generator=torch.Generator().manual_seed(engine.global_rank))
        ).sum().backward()
        engine.optimizer.step()
    return {name: value.clone() for name, value in engine.module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_a_copy_of_the_state_goes_on_as_the_engine_did(tmp_path: Path, optimizer: str) -> None:
    """Without ZeRO, on two ranks: the training that goes on meanwhile does not reach the copy, each rank has running
    statistics of its own, and all else is written once."""
    files, buffers, after = [], [], []
    for rank in (0, 1):
        engine = trained(0, optimizer, rank)
        buffers.append({n: v for n, v in advance(engine, 2).items() if "running" in n or "tracked" in n})
        tensors = snapshot(engine)
        after.append(advance(engine, 3))
        files.append(tmp_path / f"rank-{rank:05d}.safetensors")
        save_file(tensors, files[-1])
    assert {name.split("/", 1)[1] for name in tensors} == {"buffer/1"}
    ranks: Any = SimpleNamespace(on_each=lambda function: function())
    restored = [trained(1, optimizer, rank) for rank in (0, 1)]
    for engine, of_rank in zip(restored, buffers, strict=True):
        restore(engine, files, ranks)
        found = engine.module.state_dict()
        assert len(of_rank) == 3 and all(torch.equal(found[name], value) for name, value in of_rank.items())
    found = advance(restored[0], 3)
    assert all(torch.equal(found[name], value) for name, value in after[0].items())


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_in_the_place_of_a_file_is_refused(tmp_path: Path, how: str) -> None:
    canary, file = tmp_path / "executed", tmp_path / "rank-00000.safetensors"
    if how == "torch":
        torch.save({"a": Canary(canary)}, file)
    else:
        file.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CheckpointError, match="not a readable safetensors file"), CheckpointReader([file]):
        pass
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary is one"


def test_a_disk_that_is_full_when_the_model_is_written_does_not_advise_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(TINY.model, vocab_size=5)
    model = Glomo(config)
    pieces = {f"{name}/fp32/0": tensor.view(-1).clone() for name, tensor in model.state_dict().items()}
    save_file(pieces, tmp_path / "rank-00000.safetensors")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    export = exporter(config, {}, {})
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        GlomoError, match=r"cannot write .*model: No space left on device\. The checkpoints are unt"
    ):
        export(tmp_path / "model", [tmp_path / "rank-00000.safetensors"], 1)
