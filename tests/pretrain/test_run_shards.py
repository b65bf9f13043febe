"""Shards and run must fit together: vocabulary, damage, validation shards, the size of images."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_samples import TINY, begun, write_text

from glomo_dist.data import Reading, prepare_images, prepare_text
from glomo_dist.data.shards.writing import ShardFolder
from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.pretrain import loop, pretrain
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime.errors import CheckpointError, ConfigError, DataError, ShardError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_vocabulary_comes_from_the_shards(tiny_shards: Path, tmp_path: Path) -> None:
    job = resolve(TINY, tiny_shards, tmp_path / "run")
    assert job.config.model.vocab_size == job.tokenizer.vocab_size > 0
    wrong = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, vocab_size=999))
    with pytest.raises(
        ConfigError, match=r"vocab_size 999 does not fit .*tokenizer\.json, which has 41 units"
    ):
        pretrain(wrong, tiny_shards, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()


def test_vocabulary_that_does_not_fit_the_checkpoint(tiny_shards: Path, tmp_path: Path) -> None:
    run = begun(TINY, tiny_shards, tmp_path / "run")
    text = write_text(tmp_path / "other.jsonl", seed=1)
    other = prepare_text([str(text)], tmp_path / "other", vocab_size=20)
    before = contents(run)
    with pytest.raises(CheckpointError, match=r"data\.tokenizer.*does not fit the checkpoint"):
        pretrain(TINY, other, run, 2)
    assert contents(run) == before


def test_shards_that_are_missing_or_of_another_version(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere"):
        pretrain(TINY, tmp_path / "nowhere", tmp_path / "run", 2)
    copy = shutil.copytree(tiny_shards, tmp_path / "copy")
    value = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**value, "version": 99}))
    with pytest.raises(ShardError, match="version 99"):
        pretrain(TINY, copy, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()


def test_as_many_missing_or_cut_shards_as_may_be_set_aside(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl")
    shards = prepare_text([str(text)], tmp_path / "shards", vocab_size=50, shard_bytes=16_384)
    (shards / "shard-00000.tar").unlink()
    os.truncate(shards / "shard-00001.tar", 600)

    def with_limit(limit: int) -> None:
        reading = dataclasses.replace(TINY.reading, max_bad_shards=limit)
        resolve(dataclasses.replace(TINY, reading=reading), shards, tmp_path / "run")

    with_limit(2)
    with pytest.raises(ShardError, match=r"2 bad shards, max_bad_shards allows 1\..*00000\.tar is missing"):
        with_limit(1)
    with pytest.raises(ShardError, match=r"^shard .*00000\.tar is missing"):
        with_limit(0)


def test_validation_shards(tiny_shards: Path, split_shards: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, valid_every=2)
    with pytest.raises(ConfigError, match="needs validation shards"):
        pretrain(config, tiny_shards, tmp_path / "run", 2)
    with pytest.raises(ConfigError, match="valid nowhere needs valid_every"):
        pretrain(TINY, tiny_shards, tmp_path / "run", 2, valid="nowhere")
    job = resolve(config, split_shards, tmp_path / "run")
    assert job.data.name == "train" and job.valid_index is not None and job.valid_index.samples == 15
    other = prepare_text([str(write_text(tmp_path / "o.jsonl", seed=1))], tmp_path / "o", vocab_size=9)
    with pytest.raises(ConfigError, match="another tokenizer"):
        resolve(config, split_shards, tmp_path / "run", valid=other)
    changed = shutil.copytree(split_shards, tmp_path / "changed")
    index = changed / "valid" / "index.json"
    index.write_text(index.read_text().replace('"kind": "words"', '"kind": "pixels"'))
    with pytest.raises(ShardError, match=r"valid/index\.json: kind is 'pixels', that of the tokenizer"):
        resolve(config, changed, tmp_path / "run")


@pytest.mark.parametrize("remote", ["data", "valid"])
def test_no_rank_is_ended_as_hung_while_it_still_tries_to_read(remote: str, tiny_shards: Path) -> None:
    patient = dataclasses.replace(TINY, valid_every=1, hang_timeout=60.0, reading=Reading(retry_seconds=60.0))
    places: dict[str, Any] = {"data": tiny_shards, "valid": tiny_shards, "out": "run"}
    assert resolve(patient, **places).config.hang_timeout == 60, "files on disks are read once"
    with pytest.raises(ConfigError, match=r"retry_seconds 60 .* than hang_timeout 60.*Lower it, or raise"):
        resolve(patient, **{**places, remote: "https://localhost/shards"})


def test_image_model_must_fit_the_images(tiny_shards: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", images=np.arange(120, dtype=np.uint8).reshape(4, 5, 6))
    pixels = prepare_images([str(tmp_path / "i.npz")], tmp_path / "pixels", bits=2)
    model = dataclasses.replace(TINY.model, image=(5, 6))
    config = dataclasses.replace(TINY, window=30, model=model)
    assert resolve(config, pixels, tmp_path / "run").config.model.vocab_size == 4
    with pytest.raises(ConfigError, match="is for pixels"):
        resolve(config, tiny_shards, tmp_path / "run")
    flat = dataclasses.replace(TINY.model, distance="rotary_2d")
    with pytest.raises(ConfigError, match=r"rotary_2d is for pixels"):
        resolve(dataclasses.replace(TINY, model=flat), tiny_shards, tmp_path / "run")
    for model in (TINY.model, flat):  # the size comes from the shards, and no window may cut an image
        untold = dataclasses.replace(TINY, window=30, model=model)
        assert resolve(untold, pixels, tmp_path / "run").config.model.image == (5, 6)
        with pytest.raises(ConfigError, match=r"cut images of 5 x 6 pixels\. Set window 30"):
            resolve(dataclasses.replace(untold, window=29), pixels, tmp_path / "run")
    turned = dataclasses.replace(config, model=dataclasses.replace(config.model, image=(6, 5)))
    with pytest.raises(ConfigError, match="does not fit the images"):
        resolve(turned, pixels, tmp_path / "run")


def test_documents_of_one_unit_end_all_ranks_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the same error; were it one rank's own, it would be taken for one that died (70)."""
    shards = ShardFolder(tmp_path / "shards", WordTokenizer(("<unk>", "one")), 1 << 20)
    for row in range(9):
        shards.add(np.ones(1, np.int32), {"source": "text.tokens", "row": row})
    shards.close()
    job = resolve(TINY, tmp_path / "shards", tmp_path / "run")
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    with pytest.raises(DataError, match=r"no sample has two units or more, .* Prepare the data again") as e:
        loop._stream(job.config, job.index, Ranks(0, 1, torch.device("cpu")), "fixed", 0)
    assert e.value.everywhere
