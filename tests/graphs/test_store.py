import dataclasses

import numpy as np
import pytest
import torch
from glomo_kernels import SparseGraph, graph_mix
from graph_samples import META, dense_of, encoded, export, predictor
from privileges import public_folder, without_privileges

from glomo_dist.graphs.export import export_graphs
from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.graphs.live import LiveGraphs
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.config import GlomoConfig
from glomo_dist.runtime.errors import GlomoError


@pytest.mark.parametrize("keep", [3, None])
def test_batches_are_the_predictors_graphs(tmp_path, keep):
    model, splits = export(tmp_path / "store", keep=keep)
    store = GraphStore.open(tmp_path / "store")
    order = [4, 0, 3, 1, 4, 2, 5]  # any order, repeated, an empty text among them
    T = 25
    live = 0
    for direction, graph in enumerate(store.batch("test", order, T)):
        assert graph.shape == (len(order), 4, T)
        assert (graph.offsets.dtype, graph.columns.dtype) == (torch.int64, torch.int32)
        assert graph.weights.dtype == torch.float32
        dense = graph.dense().numpy()
        for b, index in enumerate(order):
            n = len(splits["test"][index])
            expected = dense_of(model, splits["test"][index], direction, keep)
            np.testing.assert_allclose(dense[b, :, :n, :n], expected, atol=5e-4)
            assert not dense[b, :, n:].any()
            assert not dense[b, :, :, n:].any()
            i, j = np.nonzero(dense[b].sum(0))
            assert (j < i).all() if direction == 0 else (j > i).all()
            live += len(i)
    assert live > 50  # the comparison was not between empty graphs


def test_graphs_that_are_computed_when_asked_for_are_those_of_a_store(tmp_path, monkeypatch):
    """Each text has its own, in whatever chunk it is, and only the chunks that are asked for are computed, once."""
    model, tokenizer = predictor(layers=3)
    splits = encoded(tokenizer)
    stored = GraphStore.open(export_graphs(model, splits, tmp_path / "store", meta=META, keep=3))
    for direction in (model.forwards, model.backwards):
        direction.graph_predictor.dropout.rate = 0.5
    monkeypatch.setattr("glomo_dist.graphs.live.CHUNK_UNITS", 20)
    computed, load = [], LiveGraphs._load
    monkeypatch.setattr(
        LiveGraphs, "_load", lambda self, entry: computed.append(entry.examples) or load(self, entry)
    )
    texts = {"dev.two-parts": splits["train"], "test.two-parts": splits["test"]}
    live = LiveGraphs(model.train(), texts, meta=META, keep=3, folder=tmp_path)
    assert dataclasses.replace(live.info, splits={}) == dataclasses.replace(stored.info, splits={})
    order = [4, 0, 3, 1, 5, 2]
    for ours, theirs in (("dev.two-parts", "train"), ("test.two-parts", "test")):
        live.batch(ours, [5])
        assert computed[-1] < 6
        for found, expected in zip(live.batch(ours, order), stored.batch(theirs, order), strict=True):
            assert expected.columns.numel() > 20
            np.testing.assert_allclose(found.dense(), expected.dense(), atol=5e-4)
    assert len(computed) >= 6 and sum(computed) == 2 * 6


class Given(torch.nn.Module):
    """A predictor whose graphs are the same two, of one component each."""

    config = GlomoConfig(vocab_size=2, layers=1, heads=1)

    def __init__(self, pair):
        super().__init__()
        self.pair = pair

    def graphs(self, tokens, lengths, keep=None):
        return self.pair


@pytest.mark.parametrize(("n", "edges", "keep"), [(300, 256, 256), (301, 299, None), (2**15 + 2, 5, 8)])
def test_long_texts_and_rows_of_many_edges(tmp_path, n, edges, keep):
    """Beyond what 16 bits of a column and 8 of a count hold; an edge of no weight in float16 is none."""

    def graph(row, columns, weights):
        offsets = torch.where(torch.arange(n + 1) > row, len(columns), 0)
        return SparseGraph(offsets, columns.int(), weights, (1, 1, n))

    weights, columns = torch.full((edges,), 1 / edges), torch.arange(n - 1 - edges, n - 1)
    forward, backward = graph(n - 1, columns, weights), graph(0, columns + 1, weights)
    faint = torch.cat([torch.zeros(1), columns]), torch.cat([torch.full((1,), 1e-9), weights])
    model, splits = Given((graph(n - 1, *faint), backward)), {"train": [np.zeros(n, np.int32)]}
    export_graphs(model, splits, tmp_path / "store", meta=META, keep=keep)
    stored = GraphStore.open(tmp_path / "store").batch("train", [0])
    for found, expected in zip(stored, (forward, backward), strict=True):
        assert torch.equal(found.offsets, expected.offsets) and torch.equal(found.columns, expected.columns)
        torch.testing.assert_close(found.weights, expected.weights, atol=0, rtol=1e-3)


def test_default_length_is_that_of_the_longest_example(tmp_path):
    _, splits = export(tmp_path / "store")
    store = GraphStore.open(tmp_path / "store")
    forward, _ = store.batch("train", [0, 2])
    assert forward.shape[2] == len(splits["train"][0])
    assert store.units("train").tolist() == [len(ids) for ids in splits["train"]]
    longest = forward.shape[2]
    with pytest.raises(ValueError, match=f"T = {longest - 1}, but an example has {longest} units"):
        store.batch("train", [0], longest - 1)


def test_component_names_are_in_the_order_of_graph_mix(tmp_path):
    export(tmp_path / "store")
    store = GraphStore.open(tmp_path / "store")
    graph, _ = store.batch("train", [4])
    dense = graph.dense()[0].view(2, 2, *graph.dense().shape[2:])  # [layer, head, T, T]
    names = store.info.component_names()
    assert names == ["G0.0", "G0.1", "G1.0", "G1.1", "P1.0", "P1.1"]
    features = torch.randn(1, dense.shape[-1], 3)
    for c, name in enumerate(names):
        layer, head = int(name[1]), int(name[3])
        matrix = dense[layer, head] if name[0] == "G" else dense[layer, head] @ dense[layer - 1, head]
        one = torch.nn.functional.one_hot(torch.tensor(c), len(names)).float()
        mixed = graph_mix(graph, one, features, heads=2)
        torch.testing.assert_close(mixed[0], matrix @ features[0], atol=1e-5, rtol=1e-4)


def test_unknown_split_and_index(tmp_path):
    export(tmp_path / "store")
    store = GraphStore.open(tmp_path / "store")
    with pytest.raises(GraphStoreError, match="no split 'dev'; it has train, test"):
        store.batch("dev", [0])
    with pytest.raises(GraphStoreError, match="no split 'dev'; it has train, test"):
        store.units("dev")
    with pytest.raises(GraphStoreError, match=r"examples 0\.\.5"):
        store.batch("train", [6])
    with pytest.raises(GraphStoreError, match=r"asked for -1\.\.0"):  # no example counts from the end
        store.batch("train", [0, -1])
    store.check_split("train", 6)
    for split, examples in (("train", 5), ("train", 7), ("dev", 1)):
        with pytest.raises(GraphStoreError, match=f"of '{split}', the job's data have {examples}"):
            store.check_split(split, examples)


def test_a_chunk_is_read_once(tmp_path):
    export(tmp_path / "store")
    store = GraphStore.open(tmp_path / "store")
    first = store.batch("train", range(6))[0]
    for path in (tmp_path / "store").glob("chunk-*"):
        path.unlink()
    assert torch.equal(store.batch("train", range(6))[0].columns, first.columns)


@pytest.mark.parametrize(
    "indices", [[True, False, True], np.ones(6, bool), [0.7, 1.9], ["0"], 3, [[0, 1]], None], ids=str
)
def test_indices_that_are_no_numbers_of_examples(tmp_path, indices):
    """A mask or fractions would be the graphs of other examples."""
    export(tmp_path / "store")
    with pytest.raises(ValueError, match="indices must be a list of whole numbers"):
        GraphStore.open(tmp_path / "store").batch("train", indices)


def test_indices_may_be_none_at_all_and_of_any_whole_type(tmp_path):
    export(tmp_path / "store")
    store = GraphStore.open(tmp_path / "store")
    assert store.batch("train", [])[0].shape == (0, 4, 0)
    expected = store.batch("train", [2, 0])[0]
    for indices in (np.array([2, 0], np.uint8), torch.tensor([2, 0]), (2, 0), range(2, -1, -2)):
        assert torch.equal(store.batch("train", indices)[0].columns, expected.columns)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("other", 3, "d" * 16, {"text": 50}), "task is 'sample'"),
        (("sample", 4, "d" * 16, {"text": 50}), "task version is 3"),
        (("sample", 3, "e" * 16, {"text": 50}), "task data fingerprint"),
        (("sample", 3, "d" * 16, {"text": 60}), "max_units is {'text': 50}"),
    ],
)
def test_graphs_of_something_else_are_refused(tmp_path, arguments, named):
    export(tmp_path / "store")
    store = GraphStore.open(tmp_path / "store")
    store.check("sample", 3, "d" * 16, {"text": 50})
    with pytest.raises(GraphStoreError, match=named):
        store.check(*arguments)


def test_what_may_not_be_read_is_not_said_to_be_damaged():
    """Where it is a chunk, the export that is advised makes it again."""
    with public_folder() as above, without_privileges():
        folder = above / "store"
        export(folder)
        folder.chmod(0)
        with pytest.raises(GraphStoreError, match=r"store cannot be read: Permission denied"):
            GraphStore.open(folder)
        with pytest.raises(GlomoError, match=r"cannot write .*store: Permission denied"):
            export(folder)
        folder.chmod(0o700)
        store = GraphStore.open(folder)
        (folder / "chunk-train-00001.safetensors").chmod(0)
        unread = (
            r"00001\.safetensors cannot be read: Permission denied\. Allow it, or run the same `glomo export`"
        )
        for use in (lambda: GraphStore.open(folder), lambda: store.units("train")):
            with pytest.raises(GraphStoreError, match=unread):
                use()
        export(folder)
        assert GraphStore.open(folder).units("train").tolist() == store.units("train").tolist()
