"""Graph stores that are no longer what was written: every damage is refused, and told with its file."""

import json

import numpy as np
import pytest
from graph_samples import META, encoded, export, predictor
from safetensors.numpy import load_file, save_file

from glomo_dist.graphs.export import export_graphs
from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.graphs.store import GraphStore
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.files import sha256_file


def test_missing_folder(tmp_path):
    with pytest.raises(
        GraphStoreError, match=r"nothing: no index\.json, .* Make one with `glomo export`, or check"
    ):
        GraphStore.open(tmp_path / "nothing")


def test_other_format_version(tmp_path):
    export(tmp_path / "store")
    path = tmp_path / "store" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "version": 1}))
    with pytest.raises(GraphStoreError, match="format version 1, this program reads version 2"):
        GraphStore.open(tmp_path / "store")
    path.write_text(json.dumps({**index, "format": "glomo-shards"}))
    with pytest.raises(GraphStoreError, match="not the index of a graph store"):
        GraphStore.open(tmp_path / "store")
    path.write_text(json.dumps({**index, "keeep": 3}))
    with pytest.raises(GraphStoreError, match="'keeep'"):
        GraphStore.open(tmp_path / "store")


@pytest.mark.parametrize("name", ["unknown_words", "predictor", "random_seed"])
def test_an_index_that_does_not_say_all_is_refused_until_it_is_exported_again(tmp_path, name):
    """The export keeps the chunks, and makes the index whole."""
    export(tmp_path / "store")
    path = tmp_path / "store" / "index.json"
    whole = path.read_text()
    path.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != name}))
    with pytest.raises(
        GraphStoreError, match=rf"index\.json: missing key '{name}'.* run `glomo export` again"
    ):
        GraphStore.open(tmp_path / "store")
    export(tmp_path / "store")
    assert path.read_text() == whole


@pytest.mark.parametrize("damage", ["no dictionary", "a chunk less", "first", "order", "examples"])
def test_damaged_index(tmp_path, damage):
    export(tmp_path / "store")
    path = tmp_path / "store" / "index.json"
    index = json.loads(path.read_text())
    train = index["splits"]["train"]
    if damage == "no dictionary":
        index["splits"] = []
    elif damage == "a chunk less":
        train["chunks"].pop(1)
    elif damage == "first":
        train["chunks"][1]["first"] += 1
    elif damage == "order":
        train["chunks"].reverse()
    else:
        train["examples"] += 1
    path.write_text(json.dumps(index))
    with pytest.raises(GlomoError, match=r"index\.json: .*splits|index\.json: the chunks of split 'train'"):
        GraphStore.open(tmp_path / "store")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"layers": 1}, r"split 'train': its chunks do not have the 4\d units in 2 graphs"),
        ({"heads": 3}, "in 6 graphs"),
        ({"layers": 0}, "0 layers and 2 heads"),
        ({"layers": -2, "heads": -2}, "-2 layers and -2 heads"),
        ({"unknown_words": float("nan")}, "unknown_words is nan"),
        ({"units": 1}, r"its chunks do not have the 1 units"),
        ({"edges": 1}, r"and 1 edges that are said"),
        ({"moved": 1}, r"chunk-train-00000\.safetensors is said to have \d examples .* but has"),
        ({"chunk edges": 1}, r"is said to have \d examples and 1 edges, but has"),
    ],
)
def test_an_index_that_the_chunks_do_not_fit(tmp_path, damage, named):
    """Refused when the store is opened, not by each job in the middle of its training."""
    export(tmp_path / "store")
    path = tmp_path / "store" / "index.json"
    index = json.loads(path.read_text())
    train = index["splits"]["train"]
    if "moved" in damage:
        train["chunks"][0]["examples"] += 1
        train["chunks"][1]["first"] += 1
        train["chunks"][1]["examples"] -= 1
    elif "chunk edges" in damage:
        train["chunks"][0]["edges"] = 1
    else:
        (train if damage.keys() <= {"units", "edges"} else index).update(damage)
    path.write_text(json.dumps(index))
    with pytest.raises(GraphStoreError, match=rf"index\.json: .*{named}.* The index is damaged\. Delete"):
        GraphStore.open(tmp_path / "store")


def test_an_index_of_other_settings_than_those_beside_it(tmp_path):
    """Layers and heads that were exchanged fit the chunks, and the graphs were taken for those of other layers."""
    folder = tmp_path / "store"
    model, tokenizer = predictor(layers=4)
    export_graphs(model, encoded(tokenizer), folder, meta=META)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "layers": 2, "heads": 4}))
    with pytest.raises(
        GraphStoreError, match=r"index\.json: layers is 2, but 4 in settings\.json.* Delete the"
    ):
        GraphStore.open(folder)
    (folder / "settings.json").unlink()  # of the index and the chunks alone one cannot tell
    assert GraphStore.open(folder).info.layers == 2


def test_a_chunk_that_is_no_safetensors_file(tmp_path):
    export(tmp_path / "store")
    chunk = tmp_path / "store" / "chunk-train-00001.safetensors"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"\x08" + bytes(7) + bytes(chunk.stat().st_size - 8))
    unread = r"chunk-train-00001\.safetensors: no graphs can be read of it"
    with pytest.raises(GraphStoreError, match=rf"{unread} .*The file is damaged: {ON}"):
        GraphStore.open(tmp_path / "store")
    export(tmp_path / "store")
    assert chunk.read_bytes() == whole


CHUNK = "chunk-train-00001.safetensors"
ON = "run the same `glomo export` again, which keeps"  # not: delete all of it


def test_damaged_chunks(tmp_path):
    export(tmp_path / "store")
    chunk = tmp_path / "store" / "chunk-train-00001.safetensors"
    whole = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(GraphStoreError, match=rf"chunk-train-00001\.safetensors is missing .*{ON}"):
        GraphStore.open(tmp_path / "store")
    chunk.write_bytes(whole[:-5])
    with pytest.raises(GraphStoreError, match=rf"damaged: {ON}"):
        GraphStore.open(tmp_path / "store")
    for at in (-1, 20):  # a weight, the header
        flipped = bytearray(whole)
        flipped[at] ^= 1
        chunk.write_bytes(flipped)
        store = GraphStore.open(tmp_path / "store")
        store.batch("train", [0])  # of another chunk
        with pytest.raises(
            GraphStoreError, match=rf"chunk-train-00001\.safetensors: its SHA-256 .* damaged: {ON}"
        ):
            store.batch("train", range(6))


def rewrite(store, change):
    """Changes the arrays of a chunk, and its entry in the index so that nothing but its content tells."""
    arrays = load_file(store / CHUNK)
    change(arrays)
    save_file(arrays, store / CHUNK)
    index = json.loads((store / "index.json").read_text())
    entry = index["splits"]["train"]["chunks"][1]
    entry |= {"bytes": (store / CHUNK).stat().st_size, "sha256": sha256_file(store / CHUNK)}
    (store / "index.json").write_text(json.dumps(index))


def shifted(name, by):
    return lambda arrays: arrays.update({name: (arrays[name] + by).astype(arrays[name].dtype)})


def swapped(name):
    return lambda arrays: arrays.update({name: arrays[name][::-1].copy()})


def cut(name):
    return lambda arrays: arrays.update({name: arrays[name][:-1].copy()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arrays: None, ""),
        (cut("forward.weights"), "the forward arrays do not fit the units, or each other"),
        (cut("backward.edges"), "the backward arrays do not fit the units, or each other"),
        (shifted("forward.columns", 500), "a forward edge is not to an earlier unit of its text"),
        (shifted("forward.columns", -500), "a forward edge is not to an earlier"),
        (shifted("forward.columns", 1), "a forward edge is not to an earlier"),
        (shifted("backward.columns", 1), "a backward edge is not to a later unit of its text"),
        (shifted("backward.columns", -1), "a backward edge is not to a later"),
        (shifted("forward.counts", 1), "the forward edges are not as many as its rows say"),
        (lambda arrays: arrays["forward.counts"].fill(0), "the forward edges are not as many"),
        (shifted("backward.edges", -3), "the backward edges are not as many"),
        (swapped("units"), "the forward edges are not as many"),
        (lambda arrays: arrays["units"].__imul__(-1), "negative numbers of units"),
        (shifted("forward.weights", np.nan), "a forward weight is negative or not finite"),
        (shifted("forward.weights", np.inf), "a forward weight is negative or not"),
        (shifted("backward.weights", -1), "a backward weight is negative or not"),
        (lambda arrays: arrays["forward.weights"].__imul__(3), "a forward weight is .* above 1"),
        (
            lambda arrays: arrays["backward.weights"].fill(0.6),
            "the weights of a backward row sum to more than 1",
        ),
        (lambda arrays: arrays["backward.weights"].__imul__(0.1), ""),
        (lambda arrays: arrays.pop("forward.edges"), r"expected forward\.edges int64 \[n\], there are none"),
        (
            lambda arrays: arrays.update({"units": arrays["units"].astype(np.int32)}),
            r"expected units int64 \[\d\], got",
        ),
    ],
)
def test_chunks_that_were_written_with_something_else(tmp_path, change, named):
    """Their hash is right: a faulty program wrote them, index and all."""
    export(tmp_path / "store", chunk_units=25)
    rewrite(tmp_path / "store", change)
    store = GraphStore.open(tmp_path / "store")
    store.batch("train", [0])
    if not named:
        store.batch("train", range(6))
        return
    with pytest.raises(
        GraphStoreError, match=rf"{CHUNK}: {named}.* no graphs\. The file is damaged\. Delete the"
    ):
        store.batch("train", range(6))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cut("backward.counts"), r"split 'train': its chunks do not have the \d+ units in 4 graphs"),
        (lambda arrays: arrays.pop("units"), r"00001\.safetensors: no graphs can be read of it .*units"),
        (lambda arrays: arrays.update({"units": np.array(3)}), "no graphs can be read of it"),
    ],
)
def test_chunks_whose_headers_tell_it_are_refused_when_the_store_is_opened(tmp_path, change, named):
    """Their hash is right, so that another export would keep them."""
    export(tmp_path / "store")
    rewrite(tmp_path / "store", change)
    with pytest.raises(GraphStoreError, match=f"{named}.* Delete the folder and run"):
        GraphStore.open(tmp_path / "store")


def test_chunks_are_files_of_the_folder(tmp_path):
    for name in ("one", "other"):
        export(tmp_path / name)
    path = tmp_path / "one" / "index.json"
    path.write_text(path.read_text().replace(CHUNK, f"../other/{CHUNK}"))
    with pytest.raises(GraphStoreError, match=rf"'\.\./other/{CHUNK}' is no name of a file in this folder"):
        GraphStore.open(tmp_path / "one")


def test_an_index_that_is_cut_off(tmp_path):
    export(tmp_path / "store")
    path = tmp_path / "store" / "index.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(
        GraphStoreError, match=r"index\.json, line \d+: not valid JSON .*run the same `glomo export` again"
    ):
        GraphStore.open(tmp_path / "store")
    for content in (whole[:-30], b"[]"):
        path.write_bytes(content)
        export(tmp_path / "store")
        assert path.read_bytes() == whole


def test_settings_that_are_damaged(tmp_path):
    """The same message when the store is opened and when the export goes on."""
    export(tmp_path / "store")
    (tmp_path / "store" / "settings.json").write_bytes(b"")
    for use in (GraphStore.open, export):
        with pytest.raises(
            GraphStoreError, match=r"settings\.json, line 1: not valid JSON .* Delete the folder and"
        ):
            use(tmp_path / "store")
    (tmp_path / "store" / "settings.json").write_bytes(b"[]")
    with pytest.raises(GraphStoreError, match=r"was begun with other settings: .* or delete this one"):
        export(tmp_path / "store")
