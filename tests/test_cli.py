"""The program as a person meets it: help that teaches, and names, keys and settings that it refuses with advice."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from cli_samples import Capture, nothing_at, refused, run
from road_samples import Road

from glomo_dist import recipes
from glomo_dist.cli import COMMANDS
from glomo_dist.model.ancestor_options import config_from_options


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_bare_program_teaches(argv: list[str], capfd: Capture) -> None:
    assert run(argv) == 0
    text = capfd.readouterr().out
    for name, (purpose, example) in COMMANDS.items():
        assert name in text and purpose in text and example in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_worked_example(name: str, capfd: Capture) -> None:
    assert run([name, "--help"]) == 0
    text = capfd.readouterr().out
    assert f"\n  glomo {name}" in text
    assert "Example" in text


def test_settings_of_nested_parts_are_explained(capfd: Capture) -> None:
    assert run(["pretrain", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "--model.sparsity" in text and "--global-batch" in text
    assert "Sequences per optimizer step" in text  # from the docstring of PretrainConfig
    assert "Convolutions in the CNN of the keys" in text.replace("│ │ ", "")


def test_every_recipe_says_what_it_is(capfd: Capture) -> None:
    assert run(["pretrain", "--help"]) == 0
    page = capfd.readouterr().out
    for name, recipe in recipes.RECIPES.items():
        said = re.search(rf"^  {name} +(\S.*)$", page, flags=re.MULTILINE)
        assert said and (recipe.__doc__ or "").startswith(said[1].split(":")[0])


@pytest.mark.parametrize("name", ["ancestor_text", "ancestor_text_paper"])
def test_the_recipes_of_the_authors_have_the_settings_of_their_command_line(name: str) -> None:
    recipe = recipes.get(name)
    expected = dict(
        optimizer="sgd", lr=8.0, momentum=0.2, clip=0.25, weight_decay=0.0, graph_lr_share=1.0, warmup_steps=0,
        schedule="plateau", plateau_patience=3, plateau_divisor=2.0, valid_every=4000, positions_per_sequence=20,
    )  # fmt: skip
    assert {setting: getattr(recipe, setting) for setting in expected} == expected
    theirs = {"nlayers": 3, "nlayers_key": 4, "nlayers_query": 4, "sparse_mode": 4}
    assert recipe.model == config_from_options({**theirs, "ntokens": recipe.model.vocab_size})


@pytest.mark.parametrize(
    "command",
    [*(name for name in COMMANDS if name != "prepare"), "prepare text", "prepare images", "prepare demo"],
)
def test_every_setting_says_what_it_is(command: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """In more than its default, and in full lines: one that ends early was broken in the source."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*command.split(), "--help"]) == 0
    page = capfd.readouterr().out
    text = "\n".join(line[2:-2] for line in page.splitlines() if line.startswith("│"))
    settings = re.split(r"^(?=-|[A-Z[]{2})", text, flags=re.MULTILINE)[1:]
    assert settings and "(default: )" not in page, "an empty list is no default that says anything"
    for setting in settings:
        name, *said = re.split(r" {2,}|\n +", setting.split("─")[0].rstrip())
        assert re.match(r"[^(]", " ".join(said)), f"{name}: nothing but {said}"
        for line, following in itertools.pairwise(setting.split("\n")[1:]):
            if following.startswith("  ") and following.strip():
                word = following.split()[0]
                assert len(line.rstrip()) + 1 + len(word) > 76, f"{name}: broken before {word!r}"


@pytest.mark.parametrize("kind", ["text", "images", "demo"])
def test_prepare_explains_each_kind(kind: str, capfd: Capture) -> None:
    assert run(["prepare", kind, "--help"]) == 0
    assert f"glomo prepare {kind}" in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["corpus.txt", "txt"])
def test_prepare_asks_for_the_kind(kind: str, tmp_path: Path, capfd: Capture) -> None:
    refused(["prepare", kind, "--out", tmp_path / "out"], capfd, repr(kind), "glomo prepare text")


@pytest.mark.parametrize("mistake", [["--splt", "line"], ["--shard-mib", "large"]])
def test_prepare_names_the_help_of_the_kind(mistake: list[str], tmp_path: Path, capfd: Capture) -> None:
    """It said "in glomo text --help", a command that is not there, and to run the help that lists no setting."""
    assert run(["prepare", "text", tmp_path, "--out", tmp_path / "out", *mistake]) == 2
    said = " ".join(capfd.readouterr().err.replace("│", "").split())
    assert set(re.findall(r"glomo [a-z ]*--help", said)) == {"glomo prepare text --help"}


def test_unknown_command_is_refused_with_a_suggestion(capfd: Capture) -> None:
    refused(["pretrian"], capfd, "'pretrian'", "Did you mean 'pretrain'")


def test_unknown_key_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "run"
    assert run(["pretrain", tmp_path, "--out", out, "--model.widht", "8"]) == 2
    error = capfd.readouterr().err
    assert "--model.widht" in error and "--model.width" in error
    nothing_at(out)


def test_value_of_the_wrong_type_is_refused(tmp_path: Path, capfd: Capture) -> None:
    assert run(["pretrain", tmp_path, "--out", tmp_path / "run", "--steps", "many"]) == 2
    assert "--steps" in capfd.readouterr().err


def test_unknown_recipe_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    refused(
        ["pretrain", tmp_path, "--out", tmp_path / "run", "--recipe", "wiki_smal"],
        capfd, "'wiki_smal'", "Did you mean 'wiki_small'",
    )  # fmt: skip


def test_unknown_task_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    refused(["export", tmp_path, "--task", "sst", "--out", tmp_path / "g"], capfd, "'sst'", "'sst2'")


def test_typo_in_a_plan_file_is_refused_with_a_suggestion(tmp_path: Path, capfd: Capture) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("tasks: [sst2]\narms: {none: none}\nsede: [0]\n")
    refused(["evaluate", plan, "--out", tmp_path / "results"], capfd, plan, "'sede'", "'seeds'")
    nothing_at(tmp_path / "results")


def test_settings_that_contradict_are_refused(road: Road, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "run"
    command = ["pretrain", road.text_shards, "--out", out, "--recipe", "tiny"]
    refused([*command, "--global-batch", "5", "--ranks", "2"], capfd, "global_batch 5", "2")
    refused([*command, "--precision", "bf16", "--zero-stage", "0"], capfd, "bf16", "zero_stage")
    nothing_at(out)


@pytest.mark.parametrize(
    ("kind", "flag", "shown"),
    [
        ("text", "--vocab-size", "Most frequent words kept, one of them <unk>. (default: 30000)"),
        ("text", "--min-count", "Words seen less often become <unk>. (default: 1)"),
        ("images", "--bits", "(default: 4)"),
    ],
)
def test_a_default_that_is_given_contradicts_too(
    kind: str, flag: str, shown: str, tmp_path: Path, capfd: Capture
) -> None:
    assert run(["prepare", kind, "--help"]) == 0
    assert shown in " ".join(capfd.readouterr().out.replace("│", "").split())
    default = shown.partition("(default: ")[2].rstrip(")")
    command = ["prepare", kind, tmp_path, "--out", tmp_path / "out", "--tokenizer", tmp_path]
    for given in ([flag, default], [f"{flag}={default}"]):
        refused([*command, *given], capfd, flag.strip("-").replace("-", "_"), "Leave them or it out")
    nothing_at(tmp_path / "out")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "--tasks", "sst2", "--arms", "none", "--arms=uniform"], "--arms is given 2 times"),
        (["evaluate", "--train_sizes", "9", "--train-sizes", "8"], "--train-sizes is given 2 times"),
        (["report", "o", "--runs", "a", "--runs", "b", "--runs", "c"], "--runs is given 3 times"),
        (["pretrain", "s", "--trackers", "--out", "o", "--trackers", "wandb"], "--trackers is given 2 times"),
    ],
)  # fmt: skip
def test_values_of_a_list_are_not_forgotten(
    argv: list[str], said: str, tmp_path: Path, capfd: Capture
) -> None:
    refused(argv, capfd, said, "with all its values")


@pytest.mark.parametrize("command", ["prepare", "pretrain", "export", "evaluate", "report", "plan"])
def test_a_path_with_a_nul_character_is_refused(command: str, capfd: Capture) -> None:
    """It was a traceback, "embedded null byte"."""
    refused([command, "--out", "a\0b"], capfd, f"{command}: 'a\\x00b' has a NUL character")


def test_of_a_flag_of_one_value_the_last_holds(capfd: Capture) -> None:
    assert run(["plan", "--recipe", "tiny", "--model.vocab-size", "9", "--model.vocab-size", "100"]) == 0
    assert "100" in capfd.readouterr().out


@pytest.mark.parametrize("flag", ["--tasks", "--arms", "--sources", "--features", "--seeds", "--train-sizes"])
def test_a_flag_without_a_value_is_not_its_default(flag: str, tmp_path: Path, capfd: Capture) -> None:
    command = ["evaluate", "--tasks", "digits", "--arms", "none", "--out", tmp_path / "out", flag]
    if flag in command[:-1]:
        command = ["evaluate", flag, "--out", tmp_path / "out"]
    refused(command, capfd, f"evaluate: {flag} has no value")


def test_mistaken_sources(tmp_path: Path, capfd: Capture) -> None:
    command = ["evaluate", "--tasks", "sst2", "--arms", "none", "--out", tmp_path / "out"]
    refused([*command, "--sources", "sst2/"], capfd, "--sources: expected TASK=PATH, got 'sst2/'")


def test_a_plan_behind_a_flag(tmp_path: Path, capfd: Capture) -> None:
    command = ["evaluate", "--out", tmp_path / "out", "--seeds", "0", "plan.yaml"]
    refused(command, capfd, "the plan must come first: glomo evaluate plan.yaml")
    source = f"sst2={tmp_path / 'data.yaml'}"  # of a task whose data have such a name, no plan
    command = [
        "evaluate",
        "--tasks",
        "sst2",
        "--arms",
        "none",
        "--out",
        tmp_path / "out",
        "--sources",
        source,
    ]
    assert "first" not in refused([*command, "--executor", "process"], capfd, "data.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("executor", ["ray", "process"])
def test_gpus_that_are_not_there(executor: str, tmp_path: Path, capfd: Capture) -> None:
    """Before any job, and before Ray is started."""
    command = ["evaluate", "--tasks", "digits", "--arms", "none", "--out", tmp_path / "out"]
    refused(
        [*command, "--executor", executor, "--job-gpus", "0.5"], capfd, "a GPU is asked for", "--job-gpus"
    )
    refused([*command, "--executor", executor, "--job-gpus", "2"], capfd, "gpus must be in [0, 1]")
    nothing_at(tmp_path / "out")


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (["unifrom"], ["expected NAME=STORE, got 'unifrom'. Did you mean 'uniform'?", "window2"]),
        (["window0"], ["got 'window0'", "window1"]),
        (["none", "uniform", "none"], ["'none' is given twice"]),
    ],
)
def test_mistaken_arms(arms: list[str], said: list[str], tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    refused(["evaluate", "--tasks", "sst2", "--arms", *arms, "--out", out], capfd, "--arms", *said)
    nothing_at(out)


def test_a_model_of_other_units_than_a_task(tmp_path: Path, capfd: Capture) -> None:
    """Each job of the task failed."""
    command = [
        "evaluate",
        "--arms",
        "none",
        "p=glomo:wiki_small",
        "--out",
        tmp_path / "out",
        "--tasks",
        "sst2",
    ]
    said = "arm 'p' has a model for words (glomo:wiki_small), the units of task 'digits' are pixels"
    refused([*command, "digits"], capfd, said)
    nothing_at(tmp_path / "out")
