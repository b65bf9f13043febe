"""Result folders that are damaged or none: errors that name the file."""

from __future__ import annotations

import json
import math

import pytest
from result_folders import NONE, id_of, job, scores, write

from glomo_dist.report import read_results
from glomo_dist.report.provenance import Fact, facts
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.transfer.result import Result


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("result.json", {"job": {}}),
        ("result.json", {"job": None}),
        ("result.json", {"fingerprints": None}),
        ("result.json", {"test": math.nan}),
        ("result.json", {"test": 1e300}),
        ("result.json", {"seconds": math.inf}),
        ("result.json", {"curve": [{"epoch": 1, "train_loss": 0.5, "dev": math.nan, "seconds": 1.0}]}),
        ("result.json", {"mixtures": [{"direction": "forward", "scale": 1.0, "weights": [math.inf]}]}),
        ("result.json", {"mixtures": [{"direction": "forward", "scale": 1.0, "weights": [0.5]}]}),
        ("error.json", {"error": ...}),
        ("plan.json", {"jobs": None}),
        ("plan.json", {"jobs": [{"id": "x", "job": {}}]}),
        ("plan.json", {"jobs": [{"id": 5, "job": vars(job("none", 1))}]}),
        ("plan.json", {"jobs": [{"id": ["x"], "job": vars(job("none", 1))}]}),
        ("plan.json", {"command": ["glomo", "evaluate"]}),
        ("plan.json", {"command": 5}),
    ],
)
def test_json_that_is_none_of_ours_is_named(tmp_path, name, changes):
    """Changes of ... leave the key out."""
    folder = write(tmp_path / "out", scores("none", NONE), failed={job("none", 7): "ValueError"})
    here = folder / "results" / id_of(job("none", 7 if name == "error.json" else 1))
    path = folder / name if name == "plan.json" else here / name
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    with pytest.raises(GlomoError, match=name.replace(".", r"\.")):
        read_results([folder])


@pytest.mark.parametrize(
    "content, message",
    [
        (
            '{"format": "glomo-result", "vers',
            r"result.json, line 1: not valid JSON .* Run the same `glomo evaluate` again",
        ),
        ("[]", r"result.json: not a result file"),
        ('{"format": "glomo-result", "version": 7}', r"result.json: format version 7"),
    ],
)
def test_damaged_result_is_named(tmp_path, content, message):
    folder = write(tmp_path / "out", scores("none", NONE))
    (folder / "results" / id_of(job("none", 1)) / "result.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_results([folder])


@pytest.mark.parametrize("name", ["plan.json", "result.json"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("task", {"a": 1}), ("task", -1), ("arm", ["a"]), ("seed", {"a": 1}), ("train_size", "all"), ("graphs", ["x"]),
     ("features", 5), ("task_source", {"a": 1}), ("max_examples", "all")],
)  # fmt: skip
def test_a_field_of_another_type_is_named(tmp_path, name, field, value):
    folder = write(tmp_path / "out", scores("none", NONE))
    path = folder / name if name == "plan.json" else folder / "results" / id_of(job("none", 1)) / name
    content = json.loads(path.read_text())
    (content["jobs"][0] if name == "plan.json" else content)["job"][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{name}: .*{field} of the job is .*damaged"):
        read_results([folder])
    if name == "result.json":  # `glomo evaluate` then runs the job again
        with pytest.raises(DataError, match=f"{field} of the job is"):
            Result.read(path)


def test_folders_without_an_evaluation(tmp_path):
    with pytest.raises(DataError, match=r"absent does not exist or is no folder"):
        read_results([tmp_path / "absent"])
    with pytest.raises(DataError, match=r"holds no evaluation \(no plan.json\)"):
        read_results([tmp_path])
    with pytest.raises(DataError, match=r"out: no job of the plan has a result. Wait for"):
        read_results([write(tmp_path / "out", [], missing=[job("none", 0)])])
    (tmp_path / "plan.json").write_text('{"format": "glomo-evaluation", "version": 2}')
    with pytest.raises(DataError, match=r"plan.json: format version 2"):
        read_results([tmp_path])


@pytest.mark.parametrize("content", ['{"machine": 5}', "[]", "{"])
def test_a_damaged_record_of_the_machine_costs_nothing_else(tmp_path, content):
    folder = write(tmp_path / "out", scores("none", NONE))
    (folder / "results" / id_of(job("none", 1)) / "job.json").write_text(content)
    assert [done.machine for done in read_results([folder]).finished] == [{}, {}, {}]


def test_a_machine_is_shown_whatever_is_recorded_of_it(tmp_path):
    folder = write(tmp_path / "out", scores("none", NONE))
    content = '{"machine": {"gpu": 5, "cpu": ["x"], "cores": "many"}}'
    (folder / "results" / id_of(job("none", 1)) / "job.json").write_text(content)
    found = [fact for fact in facts(read_results([folder]), [], {}) if fact.what == "machine"]
    assert found == [Fact("machine", "5 and ['x'], many cores, Python ?, torch ?", "", "1 job")]
