from pathlib import Path

import numpy as np
import pytest
import torch
from glomo_kernels import dispatch
from transfer_samples import WORDS, job, word_model, write_sst2

from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.data.tokenizers.tokenizer import load_tokenizer
from glomo_dist.graphs.export import require_graph_kernels
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo
from glomo_dist.model.io import load_model, save_model
from glomo_dist.runtime.errors import CheckpointError, ConfigError, DataError
from glomo_dist.transfer.export import export_task, live_graphs
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.predictor import Predictor, require_seed
from glomo_dist.transfer.registry import get_task


def test_exported_graphs_are_those_of_the_texts(tmp_path):
    source = Path(write_sst2(tmp_path / "data", sizes=(30, 10, 10)))
    folder = word_model(tmp_path / "model")
    store = GraphStore.open(  # a finished run is as good as its model
        export_task("sst2", tmp_path, tmp_path / "store", source=source, max_units=6, keep=None)
    )
    model, meta = load_model(folder)
    assert store.info.model == meta["fingerprint"]
    assert store.info.tokenizer == load_tokenizer(folder).fingerprint
    assert store.info.max_units == {"text": 6}
    words = (tmp_path / "data" / "dev.tsv").read_text().splitlines()[4].split("\t")[0].split()[:6]
    ids = {"film": 1, "good": 2, "voice": 3, "script": 4, "the": 5}
    tokens = torch.tensor([[ids.get(word, 0) for word in words]])  # unknown to the predictor: <unk>
    with torch.inference_mode():
        expected = model.graphs(tokens, torch.tensor([len(words)]))
    for got, exact in zip(store.batch("dev.text", [3]), expected, strict=True):
        np.testing.assert_allclose(got.dense(), exact.dense(), atol=5e-4)


def test_random_predictors_are_other_predictors(tmp_path):
    source = write_sst2(tmp_path / "data", sizes=(30, 10, 10))
    folder = word_model(tmp_path / "model")
    stores = {
        seed: GraphStore.open(
            export_task("sst2", folder, tmp_path / f"store{seed}", source=source, random_seed=seed)
        )
        for seed in (None, 1, 2, 0)
    }
    assert len({store.info.model for store in stores.values()}) == 4
    kinds = [(store.info.predictor, store.info.random_seed) for store in stores.values()]
    assert kinds == [("trained", None), ("random", 1), ("random", 2), ("random", 0)]
    dense = [store.batch("dev.text", [0])[0].dense() for store in stores.values()]
    assert not torch.allclose(dense[0], dense[1])
    assert not torch.allclose(dense[1], dense[2])
    a_job = job(source, arm="random", graphs=str(tmp_path / "store1"), epochs=1)
    assert run(a_job).fingerprints["model"] == stores[1].info.model
    other = Predictor(word_model(tmp_path / "other", layers=1), random_seed=1)
    assert other.fingerprint != stores[1].info.model  # the seed is not all that decides the parameters


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({"random_seed": 1.5}, "random_seed must be int or none, got 1.5"),
        (
            {"random_seed": 2**64},
            r"random_seed must be from -2\*\*63 to 2\*\*64 - 1, got 18446744073709551616",
        ),
        ({"random_seed": -(2**63) - 1}, "random_seed must be from"),
        ({"keep": 2.5}, "keep must be int or none, got 2.5"),
        ({"keep": 0}, "keep must be at least 1 or none, got 0"),
        ({"max_units": 1.5}, "max_units must be int"),
        ({"max_units": 0}, "max_units must be at least 1"),
        ({"max_examples": 0}, "max_examples must be at least 1"),
        ({"max_examples": "8"}, "max_examples must be int or none, got '8'"),
        ({"batch_units": 0}, "batch_units must be at least 1, got 0"),
    ],
)
def test_numbers_that_no_store_could_be_made_of(tmp_path, numbers, named):
    """Before anything is read."""
    with pytest.raises(ConfigError, match=f"export: {named}"):
        export_task("sst2", tmp_path / "model", tmp_path / "store", **numbers)


def test_numbers_of_any_size_and_of_numpy(tmp_path):
    source = write_sst2(tmp_path / "data", sizes=(8, 4, 4))
    folder = word_model(tmp_path / "model")
    require_seed(-(2**63))
    graphs = []
    for keep, seed in ((None, 2**64 - 1), (10**23, np.uint64(2**64 - 1))):
        store = export_task(
            "sst2", folder, tmp_path / f"keep{keep}", source=source, keep=keep, random_seed=seed
        )
        graphs.append(GraphStore.open(store).batch("dev.text", [0, 1])[0].dense())
    assert torch.equal(*graphs)
    run(job(source, arm="live", graphs=str(folder), keep=10**23, epochs=1))


@pytest.mark.parametrize("keep", [2, None])
def test_live_graphs_give_the_numbers_of_the_store(tmp_path, keep):
    """The same graphs to the bit, and so the same training, with other batches and another number of threads."""
    source = write_sst2(tmp_path / "data", sizes=(60, 20, 20))
    folder = word_model(tmp_path / "run" / "model")
    path = export_task("sst2", folder, tmp_path / "store", source=source, keep=keep)
    store, task = GraphStore.open(path), get_task("sst2")
    live = live_graphs(task, folder, task.load(source, None), task.limits(None), keep)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for chosen in ([3], [11, 0, 7, 2]):
            for ours, theirs in zip(
                live.batch("dev.text", chosen), store.batch("dev.text", chosen), strict=True
            ):
                assert ours.shape == theirs.shape
                assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
    finally:
        torch.set_num_threads(threads)

    fields = {"arm": "pretrained", "epochs": 2, "conditioned": True, "keep": keep}
    stored = run(job(source, graphs=str(path), **fields))
    computed = run(job(source, graphs=str(tmp_path / "run"), **fields))
    assert [(e.train_loss, e.dev) for e in computed.curve] == [(e.train_loss, e.dev) for e in stored.curve]
    assert computed.mixtures == stored.mixtures and computed.test == stored.test
    assert computed.components == stored.components
    assert computed.fingerprints["model"] == stored.fingerprints["model"]
    if keep is not None:
        other = run(job(source, graphs=str(tmp_path / "run"), **{**fields, "keep": 1}))
        assert [e.train_loss for e in other.curve] != [e.train_loss for e in computed.curve]


def test_live_graphs_of_a_model_of_other_units(tmp_path):
    source, tokenizer = write_sst2(tmp_path / "data", sizes=(4, 2, 2)), PixelTokenizer(2, 2)
    model = Glomo(GlomoConfig(vocab_size=tokenizer.vocab_size, width=8, heads=2, layers=1))
    save_model(tmp_path / "model", model, tokenizer.to_json())
    with pytest.raises(ConfigError, match=r"'sst2' has words as units, the model in .* trained on pixels"):
        run(job(source, arm="pretrained", graphs=str(tmp_path / "model")))


def test_live_graphs_of_a_model_that_does_not_fit(tmp_path):
    source = write_sst2(tmp_path / "data", sizes=(4, 2, 2))
    folder = word_model(tmp_path / "model", vocab_size=9)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 6 units, the model was trained with 9"):
        run(job(source, arm="pretrained", graphs=str(folder)))


def test_another_tokenizer_of_as_many_units(tmp_path):
    source = write_sst2(tmp_path / "data", sizes=(4, 2, 2))
    folder = word_model(tmp_path / "model")
    strange = word_model(tmp_path / "strange", ("film", "good", "voice", "script", "other"))
    (folder / "tokenizer.json").write_bytes((strange / "tokenizer.json").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json has as many units as the model's, but is another"
    ):
        export_task("sst2", folder, tmp_path / "store", source=source)


def test_a_tokenizer_of_other_images(tmp_path):
    tokenizer = PixelTokenizer(4, 16, bits=2)
    config = GlomoConfig(vocab_size=tokenizer.vocab_size, width=8, heads=2, image=(8, 8), sparsity="relu")
    save_model(tmp_path / "model", Glomo(config), tokenizer.to_json())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is of 4 x 16 images, the model of 8 x 8"):
        export_task("digits", tmp_path / "model", tmp_path / "store", max_examples=10)


@pytest.mark.parametrize("arm", ["none", "uniform", "window2"])
def test_arms_without_graphs_only_take_the_size_of_the_mixture_from_a_model(tmp_path, monkeypatch, arm):
    """It may know no word of theirs; none of its graphs is computed."""
    source = write_sst2(tmp_path / "data", sizes=(12, 4, 4))
    folder = word_model(tmp_path / "model")
    with_graphs = run(job(source, arm="pretrained", graphs=str(folder), epochs=1))
    strange = word_model(tmp_path / "strange", ("слово", "mot"))
    monkeypatch.setattr("glomo_dist.transfer.finetune.live_graphs", None)
    without = run(job(source, arm=arm, graphs=str(strange), epochs=1))
    assert without.parameters == with_graphs.parameters
    assert (without.components, without.fingerprints["graphs"], without.fingerprints["model"]) == (
        (),
        None,
        None,
    )


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"sparsity": "softmax"}, "affinity_graph cannot run here: cpp: kind 'softmax' is not implemented"),
        ({"coupled": True}, "affinity_mix has no such backend; it has reference"),
    ],
)
def test_kernels_that_cannot_compute_the_graphs_are_refused_before_the_data_is_read(
    tmp_path, monkeypatch, sizes, why
):
    """The graphs of a coupled model need the mixed features of the layers below."""
    folder, nowhere = word_model(tmp_path / "model", **sizes), str(tmp_path / "nowhere")
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    monkeypatch.setitem(dispatch.TABLE, "affinity_mix", (dispatch.REFERENCE,))
    with pytest.raises(ConfigError, match=f"GLOMO_KERNELS=cpp: {why}"):
        export_task("sst2", folder, tmp_path / "store", source=nowhere)
    with pytest.raises(ConfigError, match=f"GLOMO_KERNELS=cpp: {why}"):
        run(job(nowhere, arm="pretrained", graphs=str(folder)))
    # of one layer there is none below
    require_graph_kernels(GlomoConfig(vocab_size=4, width=8, heads=2, layers=1, coupled=True))
    with pytest.raises(DataError, match="nowhere"):  # needs none of these
        run(job(nowhere, arm="none", graphs=str(folder)))


def test_pixels(tmp_path):
    tokenizer = PixelTokenizer(8, 8, bits=2)
    config = GlomoConfig(
        vocab_size=tokenizer.vocab_size, width=8, heads=2, layers=2, image=(8, 8), sparsity="relu"
    )
    save_model(tmp_path / "model", Glomo(config), tokenizer.to_json())
    store = export_task("digits", tmp_path / "model", tmp_path / "store", max_examples=40)
    assert GraphStore.open(store).info.unknown_words is None
    fields = {"features": "pixels", "max_examples": 40, "epochs": 1, "hidden": 8}
    result = run(FinetuneJob("digits", "pretrained", graphs=str(store), **fields))
    assert result.components == ("G0.0", "G0.1", "G1.0", "G1.1", "P1.0", "P1.1")
    assert result.examples == {"train": 40, "dev": 40, "test": 40}


@pytest.mark.parametrize("sizes", [{"height": 8, "width": 4}, {"height": 8, "width": 8, "channels": 3}])
def test_images_of_another_size_than_the_model_knows(tmp_path, sizes):
    tokenizer = PixelTokenizer(**sizes, bits=2)
    config = GlomoConfig(
        vocab_size=tokenizer.vocab_size, width=8, heads=2, layers=2, image=tokenizer.shape, sparsity="relu"
    )
    save_model(tmp_path / "model", Glomo(config), tokenizer.to_json())
    theirs = f"{tokenizer.height} x {tokenizer.width} x {tokenizer.channels}"
    message = rf"pretrained on {theirs} images .* are 8 x 8 x 1\. Pretrain .* --size 8 8 --channels 1\)"
    with pytest.raises(ConfigError, match=message):
        export_task("digits", tmp_path / "model", tmp_path / "store")
    with pytest.raises(ConfigError, match=message):
        run(FinetuneJob("digits", "pretrained", graphs=str(tmp_path / "model"), features="pixels"))
    assert not (tmp_path / "store").exists()


def test_model_and_task_must_fit(tmp_path):
    source = write_sst2(tmp_path / "data", sizes=(4, 2, 2))
    word_model(tmp_path / "model", vocab_size=9)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 6 units, the model was trained with 9"):
        export_task("sst2", tmp_path / "model", tmp_path / "store", source=source)
    with pytest.raises(ConfigError, match=r"has pixels as units, the model .* was trained on words"):
        export_task("digits", tmp_path / "model", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "warned"), [(sorted({*WORDS, "alpha"}), False), (("alpha", "unheard"), True)]
)
def test_words_that_the_predictor_does_not_know(tmp_path, capfd, words, warned):
    """Said after the export, kept in the store, and in the result of who uses it or the model itself."""
    source = write_sst2(tmp_path / "data", sizes=(30, 10, 10))
    folder = word_model(tmp_path / "model", words)
    info = GraphStore.open(export_task("sst2", folder, tmp_path / "store", source=source)).info
    texts = {
        text
        for split in ("train", "dev", "test")
        for text in (tmp_path / "data" / f"{split}.tsv").read_text().splitlines()[1:]
    }
    all_words = [word for text in texts for word in text.split("\t")[0].split()]
    exact = sum(word not in words for word in all_words) / len(all_words)
    assert info.unknown_words == pytest.approx(exact) and (exact > 0.5) == warned
    said = f"{100 * exact:.2f} % of the words of task 'sst2' are not in the predictor's vocabulary"
    error = capfd.readouterr().err
    assert said in error and ("WARNING" in error) == warned
    results = {
        graphs: run(job(source, arm=arm, graphs=str(tmp_path / graphs), epochs=1))
        for graphs, arm in (("store", "pretrained"), ("model", "live"))
    }
    assert {r.unknown_to_predictor for r in results.values()} == {info.unknown_words}
    assert run(job(source, graphs=str(tmp_path / "store"), epochs=1)).unknown_to_predictor is None


def test_a_predictor_that_knows_no_word_is_refused(tmp_path):
    source = write_sst2(tmp_path / "data", sizes=(30, 10, 10))
    folder = word_model(tmp_path / "model", ("слово", "mot"))
    with pytest.raises(DataError, match=r"'sst2': none of its words is in the vocabulary .*model"):
        export_task("sst2", folder, tmp_path / "store", source=source)
    assert not (tmp_path / "store").exists()
    with pytest.raises(DataError, match=r"none of its words"):
        run(job(source, arm="pretrained", graphs=str(folder)))
