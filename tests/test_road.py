"""The whole road in small, through the program's own commands: raw files to report.html."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from road_samples import Road

from glomo_dist.cli import main
from glomo_dist.data import ShardIndex, load_tokenizer
from glomo_dist.graphs.store import GraphStore
from glomo_dist.report import read_results

SETTINGS = ["--epochs", "1", "--hidden", "8", "--max-examples", "20", "--max-units", "12"]


def test_pretraining_left_a_whole_run(road: Road) -> None:
    config = json.loads((road.text_run / "config.json").read_text())
    index = ShardIndex.read(road.text_shards)
    tokenizer = load_tokenizer(road.text_run / "model")
    assert config["ranks"] == 2
    assert config["config"]["steps"] == 4 and config["config"]["zero_stage"] == 2
    assert config["config"]["model"]["vocab_size"] == tokenizer.vocab_size == 500
    assert config["data"]["fingerprint"] == index.fingerprint
    rows = [json.loads(line) for line in (road.text_run / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(0 < row["loss"] < 10 for row in steps)  # log(500) is 6.2
    assert (road.text_run / "checkpoints" / "latest").exists()


def test_a_finished_run_is_left_alone(road: Road, capfd: pytest.CaptureFixture[str]) -> None:
    before = (road.text_run / "log.jsonl").read_bytes()
    command = [
        "pretrain",
        str(road.text_shards),
        "--out",
        str(road.text_run),
        "--recipe",
        "tiny",
        "--ranks",
        "2",
    ]
    assert main(command) == 0
    assert "finished already" in capfd.readouterr().err
    assert (road.text_run / "log.jsonl").read_bytes() == before


@pytest.mark.slow
def test_text_to_report(road: Road, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Four arms, two seeds, on a real local Ray; every number in the report leads back to the shards."""
    graphs, results, page = tmp_path / "graphs", tmp_path / "results", tmp_path / "report.html"
    source = str(road.raw.folder)
    export = ["export", str(road.text_run), "--task", "docstring", "--source", source, *SETTINGS[4:]]
    assert main([*export, "--out", str(graphs / "docstring-pretrained")]) == 0
    assert main([*export, "--out", str(graphs / "docstring-random"), "--random-seed", "1"]) == 0
    command = [
        "evaluate", "--tasks", "docstring", "--sources", f"docstring={source}", "--features", "learned:8",
        "--arms", "none", "uniform", f"random={graphs}/{{task}}-random", f"pretrained={graphs}/{{task}}-pretrained",
        "--seeds", "0", "1", "--out", str(results), *SETTINGS,
    ]  # fmt: skip
    assert main(command) == 0
    plan = json.loads((results / "plan.json").read_text())
    assert plan["plan"]["settings"]["hidden"] == 8 and len(plan["jobs"]) == 8

    written = sorted((results / "results").glob("*/result.json"))
    assert len(written) == 8
    stamps = [path.stat().st_mtime_ns for path in written]
    assert main(command) == 0  # everything is there: nothing is computed again
    assert [path.stat().st_mtime_ns for path in written] == stamps

    model = json.loads((road.text_run / "model" / "config.json").read_text())["fingerprint"]
    arms = read_results([results]).groups[0].arms
    assert set(arms) == {"none", "uniform", "random", "pretrained"}
    for arm, seeds in arms.items():
        assert set(seeds) == {0, 1}
        for job in seeds.values():
            assert 0 <= job.result.test <= 1
            assert (job.result.fingerprints["model"] == model) == (arm == "pretrained")
    parameters = {job.result.parameters for seeds in arms.values() for job in seeds.values()}
    assert len(parameters) == 1, "all arms have the same number of parameters"

    capfd.readouterr()
    assert main(["report", str(results), "--runs", str(road.text_run), "--out", str(page)]) == 0
    table = capfd.readouterr().out
    assert "docstring" in table and "pretrained" in table and "±" in table
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html and model in html and 'src="http' not in html


def test_pixels_to_results(road: Road, tmp_path: Path) -> None:
    graphs, results = tmp_path / "graphs", tmp_path / "results"
    source = str(road.raw.digits)
    export = ["export", str(road.digit_run), "--task", "digits", "--source", source, "--max-examples", "20"]
    assert main([*export, "--out", str(graphs)]) == 0
    info = GraphStore.open(graphs).info
    assert (info.layers, info.heads) == (2, 2)
    command = [
        "evaluate", "--tasks", "digits", "--sources", f"digits={source}", "--arms", "none", f"pretrained={graphs}",
        "--seeds", "0", "--out", str(results), "--epochs", "1", "--hidden", "8", "--max-examples", "20",
        "--executor", "process",
    ]  # fmt: skip
    assert main(command) == 0
    assert set(read_results([results]).groups[0].arms) == {"none", "pretrained"}
