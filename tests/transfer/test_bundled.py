"""Predictors that come with the package, and how a run's model is kept as one."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from transfer_samples import word_model, write_sst2

from glomo_dist import recipes
from glomo_dist.cli import main
from glomo_dist.evaluate.plan import EvaluationPlan, plan_jobs
from glomo_dist.model import bundled, load_model, save_model
from glomo_dist.model.io import read_meta
from glomo_dist.model.keep import MOST_BYTES, keep
from glomo_dist.model.keep import main as keep_command
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import CheckpointError, ConfigError
from glomo_dist.transfer.predictor import Predictor

SENTENCE = (
    "the river rises in the hills to the north of the town , and flows to the south through the valley until it "
    "reaches the sea . in the war of 1812 the army of the united states was defeated near the city , and the king "
    "was killed by one of his own men ."
)


def test_there_is_one():
    assert bundled.names() == ["wiki_small"]


@pytest.mark.parametrize("name", bundled.names())
def test_each_is_small_whole_and_described(name):
    folder = bundled.FOLDER / name
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    predictor = Predictor(f"glomo:{name}")
    assert predictor.folder == folder and not predictor.model.training
    assert {parameter.dtype for parameter in predictor.model.parameters()} == {torch.float32}
    meta, recipe = read_meta(folder), recipes.RECIPES[name]()
    assert meta["step"] == recipe.steps and meta["pretrain"]["lr"] == recipe.lr
    assert meta["model"]["distance"] == recipe.model.distance and meta["model"]["width"] == recipe.model.width


def test_what_it_predicts_is_far_better_than_chance():
    predictor = Predictor("glomo:wiki_small")
    words = predictor.tokenizer.encode([*SENTENCE.split(), "qxz"])
    assert (words[:-1] == words[-1]).mean() < 0.1  # are unknown
    ids = torch.from_numpy(words[:-1]).long()[None]
    at = torch.arange(ids.shape[1] - 3).repeat(2, 1, 1)
    with torch.no_grad():
        loss, targets, _ = predictor.model(ids, torch.tensor([ids.shape[1]]), at)
    assert float(loss) / int(targets) < 0.65 * math.log(predictor.model.config.vocab_size)


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"glomo:wiki: no such predictor .*glomo:wiki_small.* run folder"
    ):
        Predictor("glomo:wiki")
    with pytest.raises(CheckpointError, match="no such predictor"):
        load_model("glomo:../model")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """glomo:tiny, the only one."""
    keep(word_model(tmp_path / "model"), tmp_path / "predictors" / "tiny")
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "predictors")
    return "glomo:tiny"


def test_the_commands_take_one_in_the_place_of_a_run(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sst2(tmp_path / "sst2")
    main(["draw", tiny, "the good film", "--out", "graphs.html"])
    assert "the good film" in (tmp_path / "graphs.html").read_text()
    main(["export", tiny, "--task", "sst2", "--source", "sst2", "--out", "graphs"])
    assert "glomo evaluate" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    places = {}
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        arms = {"pretrained": tiny}
        (job,) = plan_jobs(
            EvaluationPlan(tasks=("sst2",), arms=arms, sources={"sst2": str(tmp_path / "sst2")}, seeds=(0,))
        )
        places[job.id] = job.work.graphs
    assert list(places.values()) == [tiny]
    main(["evaluate", "--tasks", "sst2", "--sources", f"sst2={tmp_path / 'sst2'}", "--arms", f"pretrained={tiny}",
          "--seeds", "0", "--epochs", "1", "--executor", "process", "--out", "results"])  # fmt: skip
    assert len(list((tmp_path / "elsewhere" / "results").rglob("result.json"))) == 1


def test_a_model_is_kept_in_half_precision_with_what_is_known_of_it(tmp_path):
    folder = word_model(tmp_path / "model")
    facts = {"data": "d", "step": 7, "pretrain": {"lr": 1.0}, "code": "c"}
    meta = json_files.read_json(folder / "config.json")
    json_files.write_json(folder / "config.json", {**meta, **facts})
    before, meta = load_model(folder)
    after, kept = load_model(keep(folder, tmp_path / "kept"))
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor.half().float(), rtol=0, atol=0)
    assert kept["model"] == meta["model"] and kept["tokenizer"] == meta["tokenizer"]
    assert kept["fingerprint"] != meta["fingerprint"]
    assert {name: kept[name] for name in facts} == facts


def test_what_is_too_large_to_keep_is_not_written(tmp_path, monkeypatch):
    model = word_model(tmp_path / "model")
    size = sum(2 * tensor.numel() for tensor in load_file(model / "model.safetensors").values())
    monkeypatch.setattr("glomo_dist.model.keep.MOST_BYTES", size - 1)
    with pytest.raises(ConfigError, match=rf"the weights take {size} bytes in float16, more than {size - 1}"):
        keep(model, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr("glomo_dist.model.keep.MOST_BYTES", size)
    keep(model, tmp_path / "kept")


def test_what_half_precision_cannot_hold_is_not_written(tmp_path):
    """It was written as infinity, and no command could read the model."""
    model, _ = load_model(word_model(tmp_path / "model"))
    with torch.no_grad():
        model.embedding.weight[3, 1] = 65520.0  # float16 ends at 65504
    large = save_model(tmp_path / "large", model, {"kind": "words"})
    with pytest.raises(
        CheckpointError, match=r"large: embedding\.weight in float16: 1 of \d+ values .* infinite"
    ):
        keep(large, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_model_without_its_tokenizer_is_not_kept(tmp_path):
    folder = word_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"model/tokenizer\.json is missing.*Copy the whole folder"):
        keep(folder, tmp_path / "kept")


def test_a_model_with_a_damaged_tokenizer_is_not_kept(tmp_path, capsys):
    folder = word_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"kind": "words",\n "words"')
    assert keep_command([str(folder), str(tmp_path / "kept")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"keep: {folder}/tokenizer.json, line 2: not valid JSON") and "\n" not in error
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("other", ["[]", '{"kind": "words", "fingerprint": "0f"}'])
def test_a_model_with_another_tokenizer_is_not_kept(other, tmp_path):
    """It was, with the other one for its own, which no command refused from then on."""
    folder = word_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text(other)
    with pytest.raises(
        CheckpointError, match=r"model/tokenizer\.json is not the tokenizer that the model was"
    ):
        keep(folder, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_command_that_keeps_one_says_what_is_wrong_in_a_line(tmp_path, capsys):
    assert keep_command([str(word_model(tmp_path / "model")), str(tmp_path / "kept")]) == 0
    assert "kept: weights of 0.0 MB" in capsys.readouterr().err
    assert keep_command([str(tmp_path / "nothing"), str(tmp_path / "other")]) != 0
    said = capsys.readouterr().err
    assert "nothing holds no model" in said and said.count("\n") == 1
