"""The limits of encoders: tokens at once, words without sub-words, words they do not know, states beyond float16."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_samples import write_bert

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.transfer.features.encoder import ALL_UNKNOWN, Encoder
from glomo_dist.transfer.features.encoder_files import locate
from glomo_dist.transfer.features.text_windows import Window, windows


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("encoders") / "bert")


@pytest.fixture
def encoder(bert):
    return Encoder(locate(bert))


def with_tokenizer(bert, folder: Path, **settings) -> Path:
    """A copy of the encoder whose tokenizer has other settings."""
    shutil.copytree(bert, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return locate(str(folder))


def test_the_smallest_limit_counts(bert, tmp_path):
    assert Encoder(locate(write_bert(tmp_path / "long", positions=700))).most == 512
    encoder = Encoder(with_tokenizer(bert, tmp_path / "short", model_max_length=8))
    assert (encoder.most, encoder.capacity) == (8, 6)
    assert encoder.states([["film"] * 20]).all()


def test_a_text_that_fits_is_one_window():
    assert windows([3, 3], 6) == [Window(0, 2, 0, 2)]
    assert len(windows([3, 4], 6)) == 2


def test_a_word_longer_than_the_encoder_takes_is_known_by_its_beginning(bert, tmp_path):
    """Whatever side its tokenizer cuts as a rule."""
    found = []
    for side in ("right", "left"):
        folder = with_tokenizer(bert, tmp_path / side, model_max_length=6, truncation_side=side)
        found.append(
            Encoder(folder).states([["intentionsingorspha"], ["film"]])
        )  # 7 sub-words, of which 4 fit
    np.testing.assert_array_equal(*found)
    cut = Encoder(with_tokenizer(bert, tmp_path / "cut", model_max_length=6)).states(
        [["intentionsing"], ["film"]]
    )
    np.testing.assert_array_equal(found[0], cut)


def test_a_word_without_sub_words_is_zero_and_changes_no_other(encoder):
    """A control character is none to BERT."""
    found = encoder.states([["film", "\x01", "good"], ["\x01"]])
    np.testing.assert_array_equal(found[[0, 2]], encoder.states([["film", "good"]]))
    assert not found[[1, 3]].any()


def test_twenty_different_words_of_which_none_is_known_are_refused(encoder):
    words = [f"x{i}" for i in range(ALL_UNKNOWN - 1)]
    encoder.require_known([*words, *words])
    encoder.require_known([*words, "y", "film"])
    for other in ("y", "\x01"):  # the second has no sub-words at all
        with pytest.raises(DataError, match=r"knows none of 20 words \(\['x0', 'x1', 'x2'\] …\)"):
            encoder.require_known([*words, other])


@pytest.mark.parametrize("value", [1e6, float("inf"), float("nan")])
def test_states_that_are_no_numbers_of_float16_are_refused(encoder, value):
    with torch.no_grad():
        encoder.model.encoder.layer[-1].output.LayerNorm.bias[3] = value
    with warnings.catch_warnings(), pytest.raises(DataError, match=r"too large for float16 .*another layer"):
        warnings.simplefilter("error")
        encoder.states([["film"]])


def test_an_encoder_in_the_home_folder(bert, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(bert).parent))
    assert locate("~/bert") == Path(bert)


@pytest.mark.parametrize("error", [OSError(), RuntimeError("peer closed connection"), ValueError("no\nname")])
def test_a_hub_that_does_not_answer_as_it_should_is_named(monkeypatch, error):
    """A broken connection is no OSError to what the hub is asked with, and may be without a word."""
    import huggingface_hub

    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    said = f"{type(error).__name__}{': ' + ' '.join(str(error).split()) if str(error) else ''}"
    with pytest.raises(
        ConfigError, match=rf"hf:org/name: no such folder, .* not reachable \({said}\)\. Give the"
    ):
        locate("org/name")


def test_of_an_encoder_on_the_hub_no_pickled_weights_are_loaded(bert, monkeypatch):
    import huggingface_hub

    with pytest.raises(ConfigError, match="not on the hub"):  # the hub's own check of names
        locate("x" * 300)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or bert
    )
    assert locate("org/bert") == Path(bert)
    ((name, options),) = asked
    assert name == "org/bert"
    assert set(options["allow_patterns"]) == {"*.safetensors", "*.json", "*.txt", "*.model"}
