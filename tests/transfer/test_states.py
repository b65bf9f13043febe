"""Features from a contextual encoder: words and sub-words, windows, the cache on disk, and training on them."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from encoder_samples import write_bert, write_gpt2
from safetensors.numpy import save
from transfer_samples import job, planted_store, write_sst2, write_vectors

from glomo_dist.graphs.mapped import map_with_metadata
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError
from glomo_dist.transfer.features import states
from glomo_dist.transfer.features.encoder import Encoder
from glomo_dist.transfer.features.encoder_files import encoder_fingerprint, locate
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.features.text_windows import windows
from glomo_dist.transfer.finetune import run

TEXTS = [["a", "film", "with", "intentions"], [], ["timing"], ["good", "actors", "xyz", "bad"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("encoders") / "bert")


def by_hand(folder: str, text: list[str], layer: int = -1) -> tuple[torch.Tensor, list[int | None]]:
    """Hidden states of one text in one pass, and the word of each token."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(text, is_split_into_words=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**encoded, output_hidden_states=True).hidden_states[layer][0]
    return hidden, encoded.word_ids(0)


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_words_are_joined_from_their_sub_words(bert, layer, pool):
    found = Encoder(locate(bert), layer, pool).states(TEXTS).astype(np.float32)
    assert found.shape == (9, 16)
    at = 0
    for text in filter(None, TEXTS):
        hidden, word_of = by_hand(bert, text, layer)
        for word in range(len(text)):
            tokens = [t for t, w in enumerate(word_of) if w == word]
            expected = hidden[tokens].mean(0) if pool == "mean" else hidden[tokens[0]]
            np.testing.assert_allclose(found[at], expected, atol=4e-3, rtol=1e-3)
            at += 1
    assert len([w for w in by_hand(bert, ["intentions"])[1] if w == 0]) == 3  # in ##ten ##tions


@pytest.mark.parametrize("kind", [{}, {"generic": True}, {"generic": True, "eos": None}])
def test_byte_level_words_keep_their_space(tmp_path, kind):
    """A decoder without padding or special tokens; its words are those of running text."""
    folder = write_gpt2(tmp_path / "gpt2", **kind)
    found = Encoder(locate(folder)).states([["film", "with", "good"], ["bad"]]).astype(np.float32)
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    space = "\u0120"  # how byte-level tokens write the space before a word
    ids = [tokenizer.get_vocab()[space + word] for word in ("film", "with", "good")]
    with torch.inference_mode():
        hidden = (
            transformers.AutoModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
        )
    np.testing.assert_allclose(found[:3], hidden, atol=4e-3, rtol=1e-3)


def test_long_texts_go_through_in_windows(tmp_path):
    """Every word is there, far words do not matter, and a text that fits is one window."""
    folder = write_bert(tmp_path / "short", positions=12)
    encoder = Encoder(locate(folder))
    assert encoder.most == 10
    long = ["film", "good", "bad", "with"] * 10
    before = encoder.states([long]).astype(np.float32)
    assert (np.abs(before).sum(1) > 0).all()
    changed = [*long[:-1], "us"]
    after = encoder.states([changed]).astype(np.float32)
    np.testing.assert_array_equal(before[:30], after[:30])
    assert np.abs(before[-1] - after[-1]).max() > 0.01
    # the first window of 8 words alone gives its first half
    np.testing.assert_allclose(encoder.states([long[:8]])[:4], before[:4], atol=4e-3)
    giant = encoder.states([["intentions" + "ing" * 10, "film"]])  # as many sub-words and more
    assert giant.shape == (2, 16)


@pytest.mark.parametrize("sizes", [[], [1], [9], [1, 9, 1], [3] * 7, [1] * 40, [2, 1, 5, 5, 1, 7, 1, 1, 1]])
def test_windows_cover_every_word_once_and_fit(sizes):
    found = windows(sizes, 6)
    assert [w for window in found for w in range(window.begin, window.end)] == list(range(len(sizes)))
    for window in found:
        assert window.first <= window.begin <= window.end <= window.last
        assert sum(sizes[window.first : window.last]) <= 6 or window.last - window.first == 1
    if sizes == [1] * 40:  # in the middle every word has at least one neighbour on both sides in its window
        assert all(w.begin > w.first for w in found[1:]) and all(w.end < w.last for w in found[:-1])


def test_states_are_computed_once(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "CHUNK_WORDS", 4)
    spec = FeatureSpec.parse(f"hf:{bert}")
    columns = {"train.text": TEXTS, "dev.text": TEXTS[:1]}
    content = encoder_fingerprint(spec)
    found = states.column_states(spec, content, columns, tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3 and not list(tmp_path.rglob("*.lock"))  # 4 + 0, 5; the first is dev's too
    numbers = np.array([3, 1, 0])
    batch = found["train.text"].batch(numbers, torch.tensor([4, 0, 4]), 5)
    whole = Encoder(locate(bert)).states(TEXTS).astype(np.float32)
    np.testing.assert_allclose(batch[0, :4], whole[5:], atol=4e-3)
    assert not batch[0, 4].any() and not batch[1].any()
    np.testing.assert_allclose(batch[2, :4], whole[:4], atol=4e-3)

    # an interrupted run: what is there stays, what is missing or cut off is made again, and nothing else
    kept = files[0].stat().st_mtime_ns
    content_before = files[1].read_bytes()
    files[1].write_bytes(content_before[:-3])
    files[2].unlink()
    calls = []
    made = Encoder.states
    monkeypatch.setattr(Encoder, "states", lambda self, texts: calls.append(len(texts)) or made(self, texts))
    states.column_states(spec, content, columns, tmp_path)
    assert len(calls) == 2 and files[0].stat().st_mtime_ns == kept
    assert files[1].read_bytes() == content_before
    monkeypatch.setattr(states, "Encoder", None)  # all is there: the encoder is not even loaded
    states.column_states(spec, content, columns, tmp_path)


def changed(path, array, name="states"):
    """The file with another array under the digest that it has."""
    arrays, metadata = map_with_metadata(path)
    return save({name: array(arrays["states"].copy())}, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.read_bytes()[:-40] + bytes(40),
        lambda path: changed(path, lambda states: states[:, ::2].copy()),
        lambda path: changed(path, lambda states: states.view(np.int16)),
        lambda path: changed(path, lambda states: states.reshape(-1)),
        lambda path: changed(path, lambda states: states, name="other"),
        lambda path: save({"states": map_with_metadata(path)[0]["states"]}),  # before there was a digest
        lambda path: (2).to_bytes(8, "little") + b"[]" + path.read_bytes(),
        lambda path: (16).to_bytes(8, "little") + b'{"states": null}' + path.read_bytes(),
    ],
)
def test_a_file_with_something_else_in_it_is_made_again(bert, tmp_path, damage):
    spec, columns = FeatureSpec.parse(f"hf:{bert}"), {"train.text": TEXTS}
    states.column_states(spec, "content", columns, tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damage(path))
    states.column_states(spec, "content", columns, tmp_path)
    assert path.read_bytes() == whole


def test_a_file_of_another_encoder_is_made_again(bert, tmp_path):
    """Copied under its name; one rewritten with another width, digest and all, is refused beside others."""
    specs = [FeatureSpec.parse(f"hf:{f}") for f in (bert, write_bert(tmp_path / "other", layers=1))]
    for name, spec in zip("ab", specs, strict=True):
        states.column_states(spec, name, {"train.text": TEXTS}, tmp_path / "cache")
    one, other = (next((tmp_path / "cache" / name).glob("*.safetensors")) for name in "ab")
    whole = other.read_bytes()
    other.write_bytes(one.read_bytes())
    states.column_states(specs[1], "b", {"train.text": TEXTS}, tmp_path / "cache")
    assert other.read_bytes() == whole
    half = map_with_metadata(one)[0]["states"][:, ::2].copy()
    one.write_bytes(save({"states": half}, {"sha256": states._digest(one, half)}))
    with pytest.raises(GlomoError, match=r"a: states of different widths, \[8, 16\], .* Delete the folder"):
        states.column_states(specs[0], "a", {"train.text": TEXTS, "dev.text": TEXTS[:1]}, tmp_path / "cache")


def test_a_column_without_texts_has_no_states(bert, tmp_path):
    spec = FeatureSpec.parse(f"hf:{bert}")
    found = states.column_states(spec, "key", {"dev.text": []}, tmp_path)["dev.text"]
    assert found.chunks == [] and len(found.first) == len(found.starts) == 0


def test_words_that_the_encoder_does_not_know(bert, tmp_path, monkeypatch):
    """A text of them, in a chunk of its own, may be; a whole data set is a mistake."""
    monkeypatch.setattr(states, "CHUNK_WORDS", 4)
    spec = FeatureSpec.parse(f"hf:{bert}")
    unknown = [[f"x{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]]
    found = states.column_states(spec, "key", {"a": unknown + TEXTS, "b": unknown}, tmp_path)
    assert len(found["a"].chunks) > 1
    with pytest.raises(
        DataError, match=r"knows none of 26 words \(\['xa', 'xb', 'xc'\] …\)\. Wrong language"
    ):
        states.column_states(spec, "other", {"a": unknown, "b": unknown}, tmp_path)


def test_the_fingerprint_is_of_weights_layer_and_pooling(bert, tmp_path):
    specs = [
        f"hf:{bert}",
        f"hf:{bert}@0",
        f"hf:{bert}@-1,first",
        f"hf:{write_bert(tmp_path / 'x', layers=1)}",
    ]
    assert len({encoder_fingerprint(FeatureSpec.parse(spec)) for spec in specs}) == 4
    same = f"hf:{write_bert(tmp_path / 'copy')}"
    assert encoder_fingerprint(FeatureSpec.parse(same)) == encoder_fingerprint(FeatureSpec.parse(specs[0]))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    source = write_sst2(folder / "data", sizes=(60, 20, 20))
    return {
        "source": source,
        "vectors": write_vectors(folder / "vectors.npz"),
        "store": planted_store(folder / "planted", source),
        "cache": str(folder / "cache"),
    }


def test_graphs_on_an_encoder(sample, bert, tmp_path):
    """The run that computes the states, and the one that finds them, give the same numbers."""
    fields = {"arm": "planted", "graphs": sample["store"], "state_cache": str(tmp_path), "epochs": 2}
    cold = run(job(sample["source"], f"hf:{bert}", **fields))
    assert list(tmp_path.glob("*/*.safetensors"))
    warm = run(job(sample["source"], f"hf:{bert}", **fields))
    without_time = [dataclasses.replace(e, seconds=0) for e in cold.curve]
    assert without_time == [dataclasses.replace(e, seconds=0) for e in warm.curve]
    assert cold.test == warm.test
    assert cold.fingerprints["features"] == encoder_fingerprint(FeatureSpec.parse(f"hf:{bert}"))


@pytest.mark.parametrize("below", ["learned:6", "vectors", "hf"])
def test_graphs_on_the_states_of_the_tasks_own_network(sample, bert, below):
    features = {"vectors": sample["vectors"], "hf": f"hf:{bert}"}.get(below, below)
    fields = {"graphs": sample["store"], "state_cache": sample["cache"], "epochs": 1}
    results = [
        run(job(sample["source"], f"trnn:{features}", arm=arm, **fields)) for arm in ("none", "planted")
    ]
    assert results[0].parameters == results[1].parameters
    plain = run(job(sample["source"], features, arm="none", **fields))
    assert results[0].parameters > plain.parameters
    assert results[0].curve[0].train_loss != results[1].curve[0].train_loss


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("hf:{none}", r"no such folder, and not on the hub"),
        ("hf:~nobody-here/encoder", r"no such folder, and not on the hub"),
        ("hf:{bert}@1,last", r"expected hf:ENCODER\[@LAYER\[,first\]\]"),  # taken for a part of the name
        ("hf:{empty}", r"expected config.json and weights as \.safetensors"),
        ("hf:{pickled}", r"Pickled weights can run code"),
        ("hf:{bert}@7", r"has the layers 0 to 2 .* asked for 7"),
    ],
)
def test_encoders_that_cannot_be_used(sample, bert, tmp_path, monkeypatch, spec, named):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    def offline(*arguments, **keywords):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    names = {name: str(tmp_path / name) for name in ("none", "empty", "pickled")}
    with pytest.raises(ConfigError, match=named):
        run(job(sample["source"], spec.format(bert=bert, **names), state_cache=str(tmp_path / "cache")))


def test_transformers_missing(bert, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'glomo-dist\[hf\]'"):
        Encoder(locate(bert))
