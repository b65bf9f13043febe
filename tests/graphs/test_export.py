import dataclasses
import fcntl
import shutil
from pathlib import Path

import numpy as np
import pytest
from graph_samples import META, encoded, export, predictor

from glomo_dist.graphs.chunks import chunk_ranges
from glomo_dist.graphs.export import export_graphs
from glomo_dist.graphs.index import NO_IDENTITY, GraphStoreError
from glomo_dist.graphs.live import LiveGraphs
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo
from glomo_dist.runtime.errors import CheckpointError, ConfigError, DataError, GlomoError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.json_files import read_json
from glomo_dist.runtime.progress import bar


def chunks(folder):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.glob("*.safetensors"))}


def test_interrupted_export_keeps_good_chunks_and_mends_bad_ones(tmp_path):
    store = tmp_path / "store"
    export(store)
    before = chunks(store)
    assert len(before) >= 5
    (store / "index.json").unlink()
    with pytest.raises(GraphStoreError, match="run the same `glomo export` again"):
        GraphStore.open(store)
    damaged, strange, copied, lost = (sorted(before)[i] for i in (0, 1, 2, -1))
    (store / damaged).write_bytes(before[damaged][1][:-1] + b"x")
    for suffix in (".json", ".safetensors"):
        shutil.copy((store / strange).with_suffix(suffix), (store / copied).with_suffix(suffix))
    (store / strange).with_suffix(".json").write_text("{}")
    (store / lost).with_suffix(".json").unlink()  # killed between the chunk and its sidecar
    export(store)
    after = chunks(store)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    kept = {name for name in before if before[name][0] == after[name][0]}
    assert kept == set(before) - {damaged, strange, copied, lost}
    GraphStore.open(store)


def test_exporting_again_by_other_code_is_the_same_store(tmp_path, monkeypatch):
    """Its identity is in the names of the jobs that used it; the code that is named made the chunks."""
    export(tmp_path / "store")
    before = (tmp_path / "store" / "index.json").read_bytes()
    identity = GraphStore.open(tmp_path / "store").info.fingerprint
    monkeypatch.setattr("glomo_dist.graphs.export.code_version", lambda: "0.9.0+later")
    export(tmp_path / "store")
    assert (tmp_path / "store" / "index.json").read_bytes() == before
    (tmp_path / "store" / "index.json").write_text("{")
    export(tmp_path / "store")
    export(tmp_path / "anew")
    for store in ("store", "anew"):
        info = GraphStore.open(tmp_path / store).info
        assert (info.code, info.fingerprint) == ("0.9.0+later", identity)


def test_other_settings_are_refused(tmp_path):
    model, splits = export(tmp_path / "store")
    other = {**splits, "test": [ids[::-1] for ids in splits["test"]]}
    with pytest.raises(GraphStoreError, match="the fingerprint of the examples is"):
        export_graphs(model, other, tmp_path / "store", meta=META, keep=3, chunk_units=20, batch_units=40)
    with pytest.raises(GraphStoreError, match="keep is 3 there and 4 now"):
        export(tmp_path / "store", keep=4)
    with pytest.raises(GraphStoreError, match="chunk_units is 20 there and 30 now"):
        export(tmp_path / "store", chunk_units=30)
    with pytest.raises(GraphStoreError, match="the fingerprint of the predictor is 'mmmm"):
        export(tmp_path / "store", meta=dataclasses.replace(META, model="other"))


def test_a_model_in_training_is_exported_without_its_dropout(tmp_path):
    model, splits = export(tmp_path / "evaluated")
    for direction in (model.forwards, model.backwards):
        direction.graph_predictor.dropout.rate = 0.5
    export_graphs(
        model.train(), splits, tmp_path / "store", meta=META, keep=3, chunk_units=20, batch_units=40
    )
    contents = [
        [content for _, content in chunks(tmp_path / name).values()] for name in ("evaluated", "store")
    ]
    assert contents[0] == contents[1] and model.training


def test_chunks_of_other_batches_are_not_mixed_into_a_store(tmp_path):
    """Their weights are rounded otherwise."""
    out = tmp_path / "store"
    model, splits = export(out)
    (out / "index.json").unlink()
    other = {"meta": META, "keep": 3, "chunk_units": 20, "batch_units": 7}
    with pytest.raises(GraphStoreError, match="batch_units is 40 there and 7 now"):
        export_graphs(model, splits, out, **other)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    with pytest.raises(GlomoError, match="not empty"):
        export(tmp_path / "store")
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["thesis.txt"]


def test_two_exports_into_one_folder_are_refused(tmp_path):
    """Also in the first moment, when there is only the lock: chunks of both could be in one store."""
    store = tmp_path / "store"
    store.mkdir()
    with open(store / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(GlomoError, match=r"another process is exporting into .*store\. Wait for it"):
            export(store)
    assert [p.name for p in store.iterdir()] == [".lock"]


def test_an_export_that_was_killed_before_its_settings_were_written_goes_on(tmp_path):
    (tmp_path / ".settings.json.0123abcd.tmp").touch()
    export(tmp_path)
    GraphStore.open(tmp_path)


def test_temporary_files_of_killed_exports_are_removed(tmp_path):
    export(tmp_path)
    for name in ("settings.json", "index.json", "chunk-train-00000.safetensors", "chunk-test-00001.json"):
        (tmp_path / f".{name}.0123abcd.tmp").touch()
    (tmp_path / ".command.json.0123abcd.tmp").touch()  # of a program that does not hold the lock
    export(tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".command.json.0123abcd.tmp"]


def test_chunks_and_batch_sizes_do_not_change_the_graphs(tmp_path):
    model, tokenizer = predictor()
    splits = encoded(tokenizer)
    export_graphs(model, splits, tmp_path / "a", meta=META, keep=2, chunk_units=1, batch_units=1)
    export_graphs(model, splits, tmp_path / "b", meta=META, keep=2, chunk_units=10**6, batch_units=10**6)
    a, b = (GraphStore.open(tmp_path / name).batch("train", range(6)) for name in "ab")
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.dense(), other.dense(), atol=5e-4)


@pytest.mark.parametrize(
    ("lengths", "ranges"),
    [
        ([], []),
        ([0], [(0, 1)]),
        ([0, 0, 3, 4, 2, 0], [(0, 2), (2, 3), (3, 4), (4, 6)]),
        ([9, 9], [(0, 1), (1, 2)]),
        ([1, 1], [(0, 2)]),
    ],
)
def test_chunks_hold_every_sequence_once(lengths, ranges):
    assert chunk_ranges(np.array(lengths, np.int64), 3) == ranges


def test_ids_outside_the_vocabulary(tmp_path):
    model, _ = predictor()
    ids = {"train": [np.array([1, model.config.vocab_size], np.int32)]}
    with pytest.raises(CheckpointError, match=r"^export: train example 0 .* vocabulary is 0"):
        export_graphs(model, ids, tmp_path / "store", meta=META)
    assert not (tmp_path / "store").exists()
    below = {"train": [], "dev": [np.array([0]), np.array([1, -1])]}
    with pytest.raises(CheckpointError, match=r"^export: dev example 1 has unit ids -1\.\.1, the model's"):
        export_graphs(model, below, tmp_path / "store", meta=META)
    with pytest.raises(CheckpointError, match=r"^graphs of run/model: train example 0 .* vocabulary is 0"):
        LiveGraphs(model, ids, meta=META, keep=8, folder=Path("run/model"))


def test_images_of_another_size(tmp_path):
    model = Glomo(GlomoConfig(vocab_size=16, width=8, heads=2, image=(3, 4)))
    for pixels in (9, 16):
        with pytest.raises(DataError, match=f"{pixels} pixels, the model is for images of 3 x 4"):
            export_graphs(model, {"train": [np.zeros(pixels, np.int32)]}, tmp_path / "store", meta=META)


def test_numbers_that_no_store_could_be_made_of(tmp_path):
    model, tokenizer = predictor()
    for numbers, named in (
        ({"keep": 0}, "keep must be at least 1 or none, got 0"),
        ({"keep": 2.5}, "keep must be int or none, got 2.5"),
        ({"batch_units": 0}, "batch_units must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=f"^export: {named}"):
            export_graphs(model, encoded(tokenizer), tmp_path / "store", meta=META, **numbers)
    assert not (tmp_path / "store").exists()


def test_training_mode_is_put_back(tmp_path, monkeypatch):
    model, tokenizer = predictor()
    model.train()
    export_graphs(model, encoded(tokenizer), tmp_path / "store", meta=META)
    assert model.training
    monkeypatch.setattr("glomo_dist.graphs.export.predict_chunk", None)
    with pytest.raises(TypeError):
        export_graphs(model, encoded(tokenizer), tmp_path / "other", meta=META)
    assert model.training


def test_the_bar_ends_at_the_number_of_units(tmp_path, monkeypatch):
    """Whether chunks are computed or found."""
    bars = []
    monkeypatch.setattr(
        "glomo_dist.graphs.export.bar", lambda **options: bars.append(bar(**options)) or bars[-1]
    )
    _, splits = export(tmp_path / "store")
    next((tmp_path / "store").glob("chunk-train-*.safetensors")).unlink()
    export(tmp_path / "store")
    units = sum(len(ids) for examples in splits.values() for ids in examples)
    assert [(bar.n, bar.total) for bar in bars] == [(units, units)] * 2


def test_meta_is_in_the_index(tmp_path):
    export(tmp_path / "store")
    info = GraphStore.open(tmp_path / "store").info
    assert {name: getattr(info, name) for name in vars(META)} == vars(META)
    assert (info.layers, info.heads, info.keep) == (2, 2, 3)


def test_what_follows_from_the_rest_is_no_identity(tmp_path):
    """Else the jobs of every store would get other names."""
    export(tmp_path / "one", meta=dataclasses.replace(META, unknown_words=0.25))
    export(tmp_path / "other", meta=dataclasses.replace(META, predictor="random", random_seed=7))
    one, other = (GraphStore.open(tmp_path / name).info for name in ("one", "other"))
    assert (one.unknown_words, other.predictor, other.random_seed) == (0.25, "random", 7)
    others = {*NO_IDENTITY, "code"}
    identity = {k: v for k, v in read_json(tmp_path / "one" / "index.json").items() if k not in others}
    assert one.fingerprint == other.fingerprint == fingerprint(identity)


def test_what_follows_from_the_rest_is_no_setting(tmp_path):
    out = tmp_path / "store"
    export(out)
    (out / "index.json").unlink()
    export(out, meta=dataclasses.replace(META, unknown_words=0.25))
    assert GraphStore.open(out).info.unknown_words == 0.25
