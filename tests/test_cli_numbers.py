"""Numbers that are refused, and those that `plan` and `export` work with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_samples import Capture, nothing_at, refused, run
from road_samples import Road

from glomo_dist import recipes
from glomo_dist.cli.plan import Plan, describe
from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.model.config import LARGEST_VOCABULARY, WIDEST
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.cost import cost
from glomo_dist.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--units-per-second", "-5"],
            "units_per_second must be",
        ),
        (["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--teraflops", "nan"], "teraflops must be"),
        (
            ["plan", "--recipe", "tiny", "--teraflops", "inf"],
            "teraflops must be positive and finite, got inf",
        ),
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--seed", "-1"],
            "seed must be in 0..2^64 - 1",
        ),
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--weight-decay", "nan"],
            "weight_decay must not be",
        ),
        (["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--lr", "inf"], "lr must be positive"),
        (
            ["plan", "--recipe", "tiny", "--steps", "1" + "0" * 330],
            "steps must be at most 1,000,000,000,000,000",
        ),
        (
            ["plan", "--recipe", "tiny", "--model.width", "1000000000000"],
            "model.width must be at most 1,048,576",
        ),
        (["plan", "--recipe", "tiny", "--model.layers", "1000000"], "model.layers must be at most 1,024"),
        (["plan", "--recipe", "tiny", "--vocabulary", "0"], "(--vocabulary) must be from 2 to 4,294,967,296"),
        (["plan", "--recipe", "tiny", "--vocabulary", "9" * 20], "(--vocabulary) must be from 2 to"),
        (
            ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--vocabulary", "30000"],
            "(--vocabulary) 30000 is for a plan without --data and --model.vocab-size",
        ),
        (["plan", "--recipe", "tiny", "--reading.readers", "1025"], "reading.readers must be at most 1,024"),
        (
            ["plan", "--recipe", "tiny", "--reading.cache-gb", "1e300"],
            "reading.cache_gb must be positive and at most 1,000,000,000,000,000, got 1e+300",
        ),
        (["plan", "--recipe", "tiny", "--reading.cache", ""], "reading.cache is empty"),
        (["bench", "--rounds", "0"], "rounds must be at least 1"),
    ],
)
def test_numbers_that_are_none_are_refused(argv: list[str], words: str, capfd: Capture) -> None:
    refused(argv, capfd, words)


@pytest.mark.parametrize("flag", ["--max-units", "--max-examples", "--batch-units", "--keep"])
def test_export_of_less_than_one_is_refused(flag: str, road: Road, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "graphs"
    name = flag.strip("-").replace("-", "_")
    command = ["export", road.text_run, "--task", "docstring", "--source", road.raw.docstrings, "--out", out]
    for value in ("0", "-1"):
        refused([*command, flag, value], capfd, f"{name} must be at least 1")
    nothing_at(out)


def test_export_of_a_run_that_is_not_there_is_refused(tmp_path: Path, capfd: Capture) -> None:
    command = ["export", tmp_path / "run", "--task", "digits", "--out", tmp_path / "g"]
    refused(command, capfd, tmp_path / "run", "Expected a folder written by `glomo pretrain`")


def test_export_of_a_run_that_is_not_finished_is_refused(road: Road, tmp_path: Path, capfd: Capture) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(road.digit_run, run_folder)
    shutil.rmtree(run_folder / "model")
    refused(
        ["export", run_folder, "--task", "digits", "--out", tmp_path / "g"], capfd, "not finished", "step-N"
    )
    refused(["draw", run_folder, "a.png", "--out", tmp_path / "g.html"], capfd, "not finished", "step-N")


def test_plan_counts_the_real_parameters_and_epochs(road: Road, capfd: Capture) -> None:
    assert run(["plan", "--recipe", "tiny", "--data", road.text_shards, "--ranks", "2"]) == 0
    text = capfd.readouterr().out
    config = json.loads((road.text_run / "model" / "config.json").read_text())["model"]
    assert config["vocab_size"] == 500
    model = Glomo(recipes.get("tiny").model.__class__(**{**config, "image": None}))
    assert f"{sum(p.numel() for p in model.parameters()):,}" in text
    assert "an epoch" in text and "ZeRO 3" in text


def test_plan_of_a_small_run_has_a_number_that_says_something(capfd: Capture) -> None:
    """It was "0.00 PFLOP"."""
    assert run(["plan", "--recipe", "tiny", "--model.vocab-size", "30000"]) == 0
    assert " MFLOP per unit, 1.13 GFLOP in all" in (text := capfd.readouterr().out)
    assert "with ZeRO 2 on 1 rank: " in text, "it was 1 ranks"


def test_plan_reads_the_file_of_deepspeed_as_a_run_does(tmp_path: Path, capfd: Capture) -> None:
    """It was not even opened."""
    settings = tmp_path / "deepspeed.json"
    command = ["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--deepspeed", settings]
    refused(command, capfd, settings)
    settings.write_text('{"zero_optimization": {"stage": 3}}')
    refused(command, capfd, settings, "zero_optimization.stage follows from the run's 'zero_stage'")
    settings.write_text('{"zero_optimization": {"reduce_bucket_size": "auto"}}')
    refused(command, capfd, settings, "reduce_bucket_size must be a number of at least 0, got 'auto'")
    settings.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 7 << 18}}))
    assert run(command) == 0
    assert "bucket 7, " in (text := capfd.readouterr().out) and str(settings) in text


def test_plan_reads_the_file_of_deepspeed_once(capfd: Capture) -> None:
    """A shell's <(...) can be read no second time."""
    reader, writer = os.pipe()
    os.write(writer, b'{"zero_optimization": {"reduce_bucket_size": 1835008}}')
    os.close(writer)
    assert (
        run(["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--deepspeed", f"/dev/fd/{reader}"]) == 0
    )
    os.close(reader)
    assert "bucket 7, " in capfd.readouterr().out


def test_plan_of_the_largest_model() -> None:
    config = PretrainConfig(GlomoConfig(LARGEST_VOCABULARY, width=WIDEST, heads=WIDEST, head_width=WIDEST))
    assert "parameters" in describe(Plan(config), config, cost(config))[0]


def test_every_recipe_is_a_valid_run() -> None:
    for name, recipe in recipes.RECIPES.items():
        config = recipes.get(name)
        assert config == recipe() and isinstance(config, PretrainConfig)
        assert recipe.__doc__
    with pytest.raises(ConfigError, match="tiny"):
        recipes.get("tinny")
