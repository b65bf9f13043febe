import dataclasses
import json

import pytest

from glomo_dist.runtime import config
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.transfer.features.coverage import Unknown
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.result import FORMAT, VERSION, Epoch, MixedGraph, Result

RESULT = Result(
    format=FORMAT,
    version=VERSION,
    job=config.to_dict(FinetuneJob("sst2", "pretrained", graphs="/gone/store", seed=1)),
    task="sst2",
    task_version=1,
    arm="pretrained",
    seed=1,
    metric="accuracy",
    test=0.75,
    metrics={"accuracy": 0.75},
    dev=0.8,
    best_epoch=1,
    curve=(Epoch(1, 0.6, 0.8, 2.5), Epoch(2, 0.5, 0.7, 5.0)),
    seconds=6.0,
    majority=0.5,
    classes=("negative", "positive"),
    examples={"train": 10, "dev": 5, "test": 4},
    skipped={},
    parameters=99,
    components=("G0.0", "G0.1"),
    mixtures=(MixedGraph("forward", 1.5, (0.25, 0.75)), MixedGraph("backward", 1.0, (0.5, 0.5))),
    fingerprints={"data": "abc", "graphs": None},
    code="0.1.0",
    without_vector=Unknown(0.25, 0.5),
    unknown_to_predictor=0.125,
)


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_round_trip(tmp_path, share):
    result = dataclasses.replace(RESULT, test=share, metrics={"accuracy": share})
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"version": 9}, DataError, "format version 9, this program reads version 2"),
        ({"format": "glomo-graphs"}, DataError, "not a result file"),
        ({"tset": 1}, ConfigError, "unknown key 'tset'. Did you mean 'test'"),
        ({"seed": "one"}, ConfigError, "seed must be int"),
    ],
)
def test_wrong_files(tmp_path, change, error, named):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**dataclasses.asdict(RESULT), **change}))
    with pytest.raises(error, match=named) as caught:
        Result.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"curve": [{"epoch": i, "train_loss": 1.0, "dev": i / 4, "seconds": 1.0} for i in (1, 5)]},
            "dev must be",
        ),
        ({"metrics": {"accuracy": 0.75, "f1": 1.5}}, "metrics must be a share"),
        ({"majority": 1.5}, "majority must be a share"),
        ({"unknown_to_predictor": -0.1}, "unknown_to_predictor must be a share"),
        ({"without_vector": {"words": 0.5, "distinct": 2.0}}, "without_vector must be a share"),
        ({"components": ["G0.0", "G0.1", "G1.0"]}, "a mixture has other components than the result"),
    ],
)
def test_numbers_that_no_result_has(tmp_path, change, named):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**dataclasses.asdict(RESULT), **change}))
    with pytest.raises(DataError, match=rf"result\.json: {named}"):
        Result.read(path)


@pytest.mark.parametrize("other", [{"task": "imdb"}, {"arm": "none"}, {"seed": 2}, {"train_size": 5}])
def test_the_result_of_another_job_is_refused(tmp_path, other):
    RESULT.require_of({**RESULT.job, "lr": 7.0}, tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path}: is the result of another job"):
        RESULT.require_of({**RESULT.job, **other}, tmp_path)


def test_missing_and_cut_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Result.read(tmp_path / "result.json")
    RESULT.write(tmp_path / "result.json")
    (tmp_path / "result.json").write_text((tmp_path / "result.json").read_text()[:-40])
    with pytest.raises(DataError, match=r"not valid JSON .* Run the same `glomo evaluate` again"):
        Result.read(tmp_path / "result.json")
