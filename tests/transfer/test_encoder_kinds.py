"""Encoders of many kinds, whole and damaged: what is loaded, and what is refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from encoder_samples import write_bert, write_gpt2, write_with_word_pieces
from safetensors.torch import load_file, save_file

from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.features import encoder as encoders
from glomo_dist.transfer.features.encoder import Encoder
from glomo_dist.transfer.features.encoder_files import locate

TEXTS = [["a", "film", "with", "intentions"], [], ["timing"], ["good", "actors", "xyz", "bad"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("encoders") / "bert")


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "more", "passes"),
    [
        ("Bert", {"num_attention_heads": 2}, 1),
        ("ConvBert", {"num_attention_heads": 2, "embedding_size": 16}, 3),  # convolutions reach over padding
        ("FNet", {}, 3),  # mixes all tokens, and knows no mask
    ],
)
def test_states_do_not_depend_on_the_other_texts(tmp_path, monkeypatch, kind, more, passes):
    """Three lengths go through together where padding changes nothing, and only there."""
    encoder = Encoder(locate(write_with_word_pieces(tmp_path / "x", kind, **SIZES, **more)))
    alone = encoder.states([["film", "good"]])
    calls, hidden = [], encoder._hidden
    monkeypatch.setattr(
        encoder, "_hidden", lambda values: calls.append(len(values["input_ids"])) or hidden(values)
    )
    found = encoder.states([["a"] * 20, ["film", "good"], ["bad"], ["good", "film"]])
    np.testing.assert_allclose(found[20:22], alone, atol=4e-3)
    assert len(calls) == passes and sum(calls) == 4


def test_a_decoder_without_a_token_for_padding_is_padded(tmp_path):
    encoder = Encoder(locate(write_gpt2(tmp_path / "gpt2")))
    alone = encoder.states([["film", "good"]])
    assert encoder.padded
    np.testing.assert_allclose(encoder.states([["a"] * 20, ["film", "good"]])[20:], alone, atol=4e-3)


def test_an_encoder_without_a_number_of_positions(tmp_path):
    """XLNet says -1."""
    folder = write_with_word_pieces(tmp_path / "x", "XLNet", d_model=16, n_layer=2, n_head=2, d_inner=32)
    encoder = Encoder(locate(folder))
    assert encoder.most == encoders.MOST_TOKENS
    assert encoder.states([["film"] * 100]).shape == (100, 16)


@pytest.mark.parametrize("positions", [1, 2, 4])
def test_an_encoder_with_no_room_for_words(tmp_path, positions):
    with pytest.raises(ConfigError, match=r"takes -?\d tokens at once, which leaves none for words"):
        Encoder(locate(write_bert(tmp_path / "x", positions=positions)))


def test_an_encoder_with_a_configuration_of_two_parts(tmp_path):
    part = {"vocab_size": 28, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}  # fmt: skip
    folder = write_with_word_pieces(tmp_path / "x", "T5Gemma", encoder=part, decoder=part)
    assert Encoder(locate(folder), layer=-3).states(TEXTS).shape == (9, 16)


@pytest.mark.parametrize("kind", ["T5", "T5Encoder", "UMT5Encoder"])
def test_the_encoder_of_an_encoder_decoder(tmp_path, kind):
    """Saved with the decoder or alone, as which its configuration says that it is none."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "num_decoder_layers": 1}
    encoder = Encoder(locate(write_with_word_pieces(tmp_path / "x", kind, **sizes)))
    saved = load_file(tmp_path / "x" / "model.safetensors")
    assert any(name.startswith("decoder.") for name in saved) == (kind == "T5")
    assert encoder.states(TEXTS).shape == (9, 16)
    last = encoder.model.state_dict()["block.1.layer.1.DenseReluDense.wo.weight"]
    assert torch.equal(last, saved["encoder.block.1.layer.1.DenseReluDense.wo.weight"])


def test_half_a_surrogate_pair(bert, tmp_path):
    for folder in (bert, write_gpt2(tmp_path / "gpt2")):
        half, mended = (Encoder(locate(folder)).states([["film", w]]) for w in ("x\ud83d", "x\ufffd"))
        np.testing.assert_array_equal(half, mended)
    assert Encoder(locate(bert)).states([["xyz"]]).any()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_machine_without_memory_is_not_blamed_on_the_encoder(bert, monkeypatch, error):
    import transformers

    def fail(*arguments, **keywords):
        raise error

    encoder = Encoder(locate(bert))
    with monkeypatch.context() as patched:
        patched.setattr(transformers.AutoModel, "from_pretrained", fail)
        with pytest.raises(type(error)):
            Encoder(locate(bert))
    monkeypatch.setattr(torch.nn.Embedding, "forward", fail)
    with pytest.raises(type(error)):
        Encoder(locate(bert))
    with pytest.raises(type(error)):
        encoder.states(TEXTS)


def without(*names):
    """Weights whose names begin with one of `names` are taken out."""

    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        kept = {name: w for name, w in weights.items() if not name.startswith(names)}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return damage


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-500])


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def written(config):
    return lambda folder: (folder / "config.json").write_text(config)


def one_more_word(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["zebra"] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (without_tokenizer, "has no files of a tokenizer, or of one without words"),
        (
            without("encoder.layer.1."),
            r"16 weights are not in its .safetensors files, first encoder\.layer\.1",
        ),
        (cut, r"cannot be loaded by transformers: SafetensorError"),
        (written("[]"), r"cannot be loaded by transformers: TypeError"),
        (written('{"model_type": "bert"}'), r"cannot be loaded by transformers: RuntimeError"),
        (one_more_word, r"cannot be run over 7 tokens: IndexError.*the tokenizer that belongs to it"),
    ],
)
def test_damaged_encoders(bert, tmp_path, damage, named):
    """All is tried on the processor: "meta" notices as little of a number beyond the embeddings as a GPU, on which
    all that comes after it fails."""
    shutil.copytree(bert, tmp_path / "x")
    damage(tmp_path / "x")
    for device in ("cpu", "meta"):
        with pytest.raises(ConfigError, match=named):
            Encoder(locate(str(tmp_path / "x")), device=device)


def test_encoders_compute_on_their_device(bert):
    on_cpu, elsewhere = (Encoder(locate(bert), device=device) for device in ("cpu", "meta"))
    assert elsewhere.model.device.type == "meta"
    assert (elsewhere.width, elsewhere.padded) == (on_cpu.width, on_cpu.padded) == (16, True)


def test_a_missing_pooler_is_not_missed(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "x")
    without("pooler.")(tmp_path / "x")
    found = Encoder(locate(str(tmp_path / "x"))).states(TEXTS)
    np.testing.assert_array_equal(found, Encoder(locate(bert)).states(TEXTS))


def test_models_that_are_no_encoders_of_words(tmp_path):
    text = {"vocab_size": 28, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32}  # fmt: skip
    vision = {**text, "image_size": 16, "patch_size": 8}
    clip = write_with_word_pieces(tmp_path / "clip", "CLIP", text_config=text, vision_config=vision)
    with pytest.raises(ConfigError, match="Expected an encoder of text"):
        Encoder(locate(clip))
    funnel = write_with_word_pieces(
        tmp_path / "funnel", "Funnel", block_sizes=[1, 1], num_decoder_layers=1, d_model=16, n_head=2,
        d_head=8, d_inner=32,
    )  # fmt: skip
    assert Encoder(locate(funnel)).states([["film"]]).shape == (1, 16)
    with pytest.raises(ConfigError, match=r"layer 2 has 4 states for 7 tokens, expected one each"):
        Encoder(locate(funnel), layer=2)
