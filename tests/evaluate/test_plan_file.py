"""A plan from its file: YAML and JSON, and what is wrong in it named."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate_jobs
import pytest

from glomo_dist.evaluate.executor import InProcess, evaluate
from glomo_dist.evaluate.plan import EvaluationPlan
from glomo_dist.evaluate.plan_file import read_plan
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import ConfigError, DataError


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_file_and_back(tmp_path, suffix):
    plan = EvaluationPlan(
        tasks=("digits",),
        arms={"none": "none"},
        train_sizes=(None, 9),
        settings={"lr": 0.01},
        time_limit_seconds=60.0,
    )
    path = tmp_path / f"plan.{suffix}"
    path.write_text(json.dumps(to_dict(plan)))  # JSON is YAML too
    assert read_plan(path) == plan


def test_what_an_evaluation_left_is_its_plan(tmp_path):
    plan = EvaluationPlan(tasks=("digits",), arms={"none": "none", "window3": "window3"}, seeds=(4, 5))
    evaluate([], evaluate_jobs.run, tmp_path / "out", InProcess(), plan=to_dict(plan))
    assert read_plan(tmp_path / "out" / "plan.json") == plan


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "tasks: [digits]\narms: {none: none}\nsedes: [1]",
            r"plan.yaml: unknown key 'sedes'. Did you mean 'seeds'",
        ),
        ("tasks: [digit]\narms: {none: none}", r"unknown task 'digit'. Did you mean 'digits'"),
        ("tasks: [digits]", r"plan.yaml: missing key 'arms'"),
        ('tasks: ["a\\0.py"]\narms: {none: none}', r"a\\x00\.py: ValueError: (stat: )?embedded null "),
        ("tasks: []\narms: {none: none}", r"tasks is empty"),
        ("tasks: [digits]\narms: {none: none}\nseeds: [1, 1]", r"seeds has an entry twice"),
        (
            "tasks: [sst2]\narms: {none: none}\nfeatures: ['learned:64', 'learned:064']",
            r"features has an entry twice: learned:64, learned:064",
        ),
        (
            "tasks: [sst2]\narms: {none: none}\nfeatures: ['hf:enc', 'hf:enc@-1']",
            r"features has an entry twice: hf:enc, hf:enc@-1",
        ),
        ("tasks: [digits]\narms: {none: uniform}", r"arm 'none' is 'uniform'"),
        (
            "tasks: [digits]\narms: {'': graphs/pretrained}",
            r"plan: an arm of 'graphs/pretrained' has no name\.",
        ),
        (
            "tasks: [digits]\narms: {' ': graphs/pretrained}",
            r"plan: an arm of 'graphs/pretrained' has no name\.",
        ),
        ("tasks: [digits]\narms: {mine: window3}", r"arm 'mine' is 'window3'"),
        ("tasks: [digits]\narms: {window3: window4}", r"arm 'window3' is 'window4'"),
        ("tasks: [digits]\narms: {window3: graphs/x}", r"arm 'window3' is 'graphs/x'"),
        (
            "tasks: [digits]\narms: {none: none}\nsettings: {epoch: 3}",
            r"unknown key 'epoch' in settings. Did you mean",
        ),
        ("tasks: [digits]\narms: {none: none}\nsettings: {cores: 2}", r"unknown key 'cores' in settings"),
        ("tasks: [digits]\narms: {none: none}\nsettings: {seed: 3}", r"'seed' cannot be in settings"),
        (
            "tasks: [digits]\narms: {none: none}\ntask_settings: {digits: {epoch: 3}}",
            r"unknown key 'epoch' in task_settings.digits. Did you mean",
        ),
        ("tasks: [digits]\narms: {none: none}\nsources: {imdb: x}", r"sources names 'imdb'"),
        ("tasks: [sst2]\narms: {none: none}\nsources: {sst2: ''}", r"the source of task 'sst2' is empty"),
        ("tasks: [digits\narms: {", r"plan.yaml, line 2: not valid YAML"),
        (
            "tasks: [digits, sst2]\narms: {none: none}\nfeatures: [learned, pixels]",
            r"features 'pixels' do not fit task 'sst2', whose units are words",
        ),
        ("- digits", r"expected an object"),
        ("tasks: [digits]\narms:\n  # none: none", r"plan.yaml: arms must map names to values, got None"),
        ("tasks: [digits]\narms: 5", r"plan.yaml: arms must map names to values, got 5"),
        ("tasks: [digits]\narms: none", r"plan.yaml: arms must map names to values, got 'none'"),
        ("tasks: [digits]\narms: {no: graphs/x}", r"arms: the name False is not text. Put it in quotes"),
        ("tasks: [digits]\narms: {2024: graphs/x}", r"arms: the name 2024 is not text"),
        ("tasks: [digits]\narms: {mine: 5}", r"arms.mine must be str, got 5"),
        ("tasks: [digits]\narms: {none: none}\ntask_settings: {digits: }", r"task_settings.digits must map"),
        (
            "tasks: [digits]\narms: {none: none}\ntask_settings: {digits: [epochs]}",
            r"task_settings.digits must",
        ),
        (
            "tasks: [digits]\narms: {none: none}\nsources: {digits: 5}",
            r"sources.digits must be str or none, got 5",
        ),
        ("tasks: [digits]\narms: {none: none}\n1: 2", r"unknown key 1"),
        ("tasks: [digits]\narms: {none: none}\nsettings: {1: 2}", r"settings: the name 1 is not text"),
        (
            "tasks: [digits]\narms:\n  none: none\n  mine: a\n  mine: b",
            r"line 5: not valid YAML .*'mine' is there twice",
        ),
        *(
            (
                f"tasks: [digits]\narms: {{none: none}}\n{value}",
                rf"line 3: not valid YAML \('{shown}.* cannot be read",
            )
            for value, shown in (
                ("features: [2024-02-30]", "2024-02-30"),
                ("cores: !!int abc", "abc"),
                ("cores: !!int ''", "'"),
                ("cores: 0x_", "0x_"),
                (f"cores: {'9' * 5000}", "999"),
                ("memory_gb: !!float x", "x"),
                ("settings: {shuffle: !!bool maybe}", "maybe"),
                ("sources: {digits: !!timestamp today}", "today"),
            )
        ),
        (
            f"tasks: [digits]\narms: {{none: none}}\nmemory_gb: {'9' * 400}",
            r"memory_gb is larger than any float",
        ),
        ("tasks: " + "[" * 3000, r"plan.yaml: YAML that is nested too deeply"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError if "YAML" not in message else DataError, match=message):
        read_plan(path)


def test_a_key_given_twice_in_json(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"tasks": ["digits"], "arms": {"mine": "a", "none": "none", "mine": "b"}}')
    with pytest.raises(DataError, match=r"plan\.json: .*the key 'mine' is there twice"):
        read_plan(path)


def test_what_yaml_merges_is_no_key_given_twice(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "task_settings:\n  digits: &small {<<: &tiny {epochs: 1, hidden: 2}, epochs: 3}\n"
        "  docstring: {<<: *small, lr: 0.1}\n"
        "tasks: [digits, docstring]\narms: {none: none}\nsources: {digits: null}\n"
    )
    plan = read_plan(path)
    assert plan.task_settings["docstring"] == {"epochs": 3, "hidden": 2, "lr": 0.1}
    assert plan.sources == {"digits": None}


def test_unreadable_plans(tmp_path):
    (tmp_path / "empty.yaml").write_text("# tasks: [sst2]\n")
    with pytest.raises(DataError, match=r"empty.yaml is empty. A plan has at least tasks and arms"):
        read_plan(tmp_path / "empty.yaml")
    with pytest.raises(DataError, match=r"absent.yaml does not exist"):
        read_plan(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("tasks: [\xe9]".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.yaml is not UTF-8"):
        read_plan(tmp_path / "latin.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(DataError, match=r"folder.yaml cannot be read"):
        read_plan(tmp_path / "folder.yaml")
    with pytest.raises(ConfigError, match=r"a plan is a .yaml, .yml or .json file"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize("name", ["claim", "ablations", "encoder", "images", "mnist", "recurrent"])
def test_the_plans_of_the_docs_can_be_read(name):
    assert read_plan(Path(__file__).parents[2] / f"docs/plans/{name}.yaml").tasks
