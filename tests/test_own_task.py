"""A task in a file outside of the package, through the commands that take one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from cli_samples import Capture, nothing_at, refused, run

from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.evaluate.plan import EvaluationPlan, plan_jobs
from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.transfer.export import export_task
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.registry import find_task, get_task

# With a reader of its own, and a dataclass, which looks its module up.
TASK_FILE = """
from __future__ import annotations

from dataclasses import dataclass

from glomo_dist.transfer.datasets.dataset import SPLITS, Published, Row, Task
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.readers.models import TextReader


@dataclass(frozen=True)
class Topic:
    name: str
    word: str


TOPICS = (Topic("sport", "goal"), Topic("trade", "price"))


class Reader(TextReader):
    pass


def load(source, max_examples=None):
    rows = {
        split: [
            Row({"text": f"the {TOPICS[i % 2].word} of day {i} {source is not None}"}, i % 2, f"row {i}")
            for i in range(12)
        ]
        for split in SPLITS
    }
    return text_data("topics", rows, tuple(topic.name for topic in TOPICS), max_examples)


TASK = Task(
    name="topics",
    version=3,
    unit="words",
    load=load,
    columns={"text": 16},
    model=Reader,
    data_source="made up",
    published=(Published(0.875, "a coin that knows", "Nobody 1900, table 0"),),
)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with own/topics.py and a model of words."""
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("own/topics.py").write_text(TASK_FILE)
    tokenizer = WordTokenizer(("<unk>", "the", "goal", "price", "of", "day"))
    torch.manual_seed(0)
    config = GlomoConfig(width=8, heads=2, layers=2, vocab_size=tokenizer.vocab_size)
    save_model("run/model", Glomo(config), tokenizer.to_json())
    return tmp_path


@pytest.mark.parametrize("executor", ["process", "ray"])
def test_a_task_of_a_file_through_all_commands(here: Path, capfd: Capture, executor: str) -> None:
    """By its path, relative to where the command runs; everywhere else it is called as its TASK is."""
    task = "own/topics.py"
    assert run(["export", "run", "--task", task, "--source", "own", "--out", "graphs/topics"]) == 0
    assert f"next: glomo evaluate --tasks {task} --arms" in (said := capfd.readouterr().err)
    assert "--sources topics=own" in said
    command = [
        "evaluate",
        "--tasks",
        task,
        "--sources",
        "topics=own",
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--hidden",
        "2",
    ]
    command += [
        "--arms",
        "none",
        "pretrained=graphs/{task}",
        "--executor",
        executor,
        "--cores",
        "1",
        "--out",
        "results",
    ]
    assert run(command) == 0, capfd.readouterr().err
    assert f"next: glomo report results --tasks {here / task} --out" in capfd.readouterr().err
    results = [json.loads(path.read_text()) for path in Path("results/results").glob("topics-*/result.json")]
    assert [(r["task"], r["task_version"], r["job"]["task"]) for r in results] == [
        ("topics", 3, "topics")
    ] * 2
    assert {r["job"]["task_file"] for r in results} == {str(here / task)}

    assert run(["report", "results", "--tasks", task]) == 0
    page = Path("report.html").read_text()
    assert "topics, test example" in page and "Nobody 1900" in page and "Not drawn" not in page
    assert "made up: " in page  # its data
    capfd.readouterr()
    assert run(["report", "results"]) == 0  # the code of a file that a result names is not run unasked
    assert "graphs of task 'topics', which is not of the package: give its file" in capfd.readouterr().err
    page = Path("report.html").read_text()
    assert "topics, learned vectors" in page and "Nobody 1900" not in page


def test_a_plan_names_a_task_of_a_file_by_its_name(here: Path) -> None:
    plan = EvaluationPlan(
        tasks=("own/topics.py", "digits"),
        arms={"none": "none"},
        seeds=(0,),
        sources={"topics": "own"},
        task_settings={"topics": {"epochs": 1}},
    )
    jobs = {job.work.task: job for job in plan_jobs(plan)}
    assert jobs["topics"].id.startswith("topics-none-learned-nall-s0-")
    assert jobs["topics"].work.task_file == str(here / "own/topics.py") and jobs["topics"].work.epochs == 1
    assert jobs["digits"].work.task_file is None
    os.rename("own", "moved")
    moved = EvaluationPlan(**{**vars(plan), "tasks": ("./moved/topics.py",), "sources": {"topics": "own"}})
    assert plan_jobs(moved)[0].id == jobs["topics"].id  # where the file lies does not count


def test_results_of_a_file_that_has_changed_are_not_taken_as_finished(here: Path, capfd: Capture) -> None:
    """What it loads is the same: its limits, reader and metrics are of no other fingerprint."""
    command = ["evaluate", "--tasks", "own/topics.py", "--seeds", "0", "--epochs", "1", "--hidden", "2"]
    command += ["--executor", "process", "--out", "results", "--arms", "none"]
    assert run(command) == 0, capfd.readouterr().err
    Path("own/topics.py").write_text(TASK_FILE.replace('"text": 16', '"text": 1'))
    capfd.readouterr()
    refused(
        [*command, "uniform"], capfd, f"{here / 'own/topics.py'} has changed since", "Choose another --out"
    )
    assert len(list(Path("results/results").iterdir())) == 1
    (path,) = Path("results/results").glob("*/result.json")
    result = json.loads(path.read_text())
    del result["fingerprints"]["task_file"]  # as of an older program, which did not say it
    path.write_text(json.dumps(result))
    assert run([*command, "uniform"]) == 0
    assert "1 of 2 jobs are finished already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        ("TASKS = ()\n", "has no TASK"),
        ("TASK = 'topics'\n", "has no TASK"),
        ("x = 1\nimport not_there_at_all\n", "line 2: ModuleNotFoundError"),
        ("def load(:\n", "SyntaxError: .*line 1"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        (TASK_FILE.replace('"topics"', '"sst2"'), "'sst2' is the name of a task of the package"),
        (TASK_FILE.replace('name="topics"', 'name="a/b"'), "'a/b' stands in names of files"),
        (TASK_FILE.replace("model=", "model=None and "), "model must be a function or a class, got None"),
    ],
)
def test_a_file_that_is_no_task_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"task {file}.*{words}"):
        find_task(str(file))
    with pytest.raises(ConfigError, match=f"task {file}.*{words}"):
        export_task(str(file), tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "said"), [("{}['Title']", "KeyError: 'Title'"), ("raise SystemExit(0)", "SystemExit: 0")]
)
def test_an_error_in_its_own_code_is_named_with_its_line(
    here: Path, capfd: Capture, wrong: str, said: str
) -> None:
    """And ends a command as bad data do, not with a traceback, nor with success."""
    Path("own/topics.py").write_text(TASK_FILE.replace("    rows = {", f"    {wrong}\n    rows = {{", 1))
    line = Path("own/topics.py").read_text().splitlines().index(f"    {wrong}") + 1
    command = [
        "evaluate",
        "--tasks",
        "own/topics.py",
        "--arms",
        "none",
        "--train-sizes",
        "5",
        "--out",
        "results",
    ]
    refused(command, capfd, f"task {here / 'own/topics.py'}: line {line}: {said}")
    nothing_at(here / "results" / "plan.json")


def test_a_job_may_name_the_file_from_the_folder_or_from_home(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors have their lines all the same, and what another folder has under that name is another task."""
    monkeypatch.setenv("HOME", str(here))
    for name in ("own/topics.py", "~/own/topics.py"):
        assert get_task("topics", name) is find_task("own/topics.py")[0]
    other = here / "other" / "own" / "topics.py"
    other.parent.mkdir(parents=True)
    other.write_text(TASK_FILE.replace("    rows = {", "    {}['Title']\n    rows = {", 1))
    changed = Path("own/topics.py").stat().st_mtime_ns
    os.utime(other, ns=(changed, changed))
    monkeypatch.chdir(here / "other")
    with pytest.raises(DataError, match=rf"task {other}: line \d+: KeyError: 'Title'"):
        get_task("topics", "own/topics.py").load(None, None)


def test_a_load_that_returns_nothing_is_named(here: Path, capfd: Capture) -> None:
    task = here / "own/topics.py"
    task.write_text(TASK_FILE.replace("return text_data", "text_data"))
    says = f"task {task}: `load` must return TaskData, got None."
    refused(["export", "run", "--task", "own/topics.py", "--out", "graphs"], capfd, says)
    refused(["evaluate", "--tasks", "own/topics.py", "--arms", "none", "--train-sizes", "5", "--out", "results"],
            capfd, says)  # fmt: skip
    nothing_at(here / "graphs")
    # without `checked`
    task.write_text(
        TASK_FILE.replace("return text_data", "data = text_data").replace(
            "\n\nTASK =", "    del data.splits['dev']\n    return data\n\n\nTASK ="
        )
    )
    says = "task 'topics': no dev split, only train, test. Give all of train, dev, test."
    refused(["export", "run", "--task", "own/topics.py", "--out", "graphs"], capfd, says)


def test_two_tasks_of_one_name_and_a_name_that_is_not_there(here: Path, capfd: Capture) -> None:
    Path("other.py").write_text(TASK_FILE)
    command = ["evaluate", "--arms", "none", "--out", "results", "--tasks", "own/topics.py"]
    refused(
        [*command, "other.py"], capfd, here / "own/topics.py", here / "other.py", "both have a task 'topics'"
    )
    refused([*command, "own/../own/topics.py"], capfd, "'topics' is named twice")
    refused([*command, "--sources", "topic=own"], capfd, "'topic'", "Did you mean 'topics'?")
    refused(
        ["evaluate", "--arms", "none", "--out", "results", "--tasks", "topics"], capfd, "its file, PATH.py"
    )
    with pytest.raises(ConfigError, match="has the task 'topics'; 'themes' was asked for"):
        get_task("themes", "own/topics.py")
    nothing_at(here / "results")


def test_each_way_to_name_a_task_says_what_it_takes(here: Path) -> None:
    """A job has the name and the file, all others one of them, or are told so."""
    task, file = find_task(Path("own/topics.py"))
    assert (task.name, file) == ("topics", str(here / "own/topics.py"))
    with pytest.raises(ConfigError, match=r"'own/topics\.py' is the path of a file; .* task_file the path"):
        FinetuneJob("own/topics.py")
    with pytest.raises(ConfigError, match=r"unknown task 'topics'.* the file as task_file"):
        get_task(FinetuneJob("topics").task)
    with pytest.raises(ConfigError, match=r"unknown task 'topics'\. .* the path of its file, PATH\.py\.$"):
        find_task("topics")
    with pytest.raises(ConfigError, match=r"by its name or the path of its \.py file, got Task"):
        export_task(task, "run", "graphs")  # type: ignore[arg-type]
    nothing_at(here / "graphs")


def test_a_file_that_has_changed_is_read_again(here: Path) -> None:
    assert find_task("own/topics.py")[0] is find_task(str(here / "own/topics.py"))[0]  # run once
    Path("own/topics.py").write_text(TASK_FILE.replace("version=3", "version=4"))
    os.utime("own/topics.py", (1, 1))
    assert find_task("own/topics.py")[0].version == 4
