"""The files in which the states of an encoder are kept: one for each list of texts, made by one process."""

import fcntl
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from encoder_samples import write_bert

from glomo_dist.transfer.datasets.dataset import Column, Split, TaskData
from glomo_dist.transfer.features import states
from glomo_dist.transfer.features.encoder import Encoder
from glomo_dist.transfer.features.encoder_files import locate
from glomo_dist.transfer.features.inputs import encode
from glomo_dist.transfer.features.spec import FeatureSpec


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("encoders") / "bert")


def made(bert, cache, texts, options=""):
    """The states of a column of few words, and their file in a cache of their own."""
    spec = FeatureSpec.parse(f"hf:{bert}{options}")
    (chunk,) = states.column_states(spec, "key", {"a": texts}, cache)["a"].chunks
    (path,) = cache.rglob("*.safetensors")
    return np.array(chunk), path


def test_states_are_those_of_the_layer_and_the_pooling(bert, tmp_path):
    found, _ = made(bert, tmp_path, [["intentions"]], "@0,first")
    np.testing.assert_array_equal(found, Encoder(locate(bert), 0, "first").states([["intentions"]]))


def test_the_same_words_in_other_texts_have_a_file_of_their_own(bert, tmp_path):
    """Half a character, which no encoding has, may be in one; the file of other texts under its name is none."""
    texts = [[["film", "good"]], [["film"], ["good"]], [["film good"]], [["\ud83d"]]]
    found, paths = zip(*(made(bert, tmp_path / str(i), text) for i, text in enumerate(texts)), strict=True)
    assert len({path.name for path in paths}) == 4
    assert not np.allclose(found[0], found[1], atol=1e-3)
    paths[1].write_bytes(paths[0].read_bytes())
    np.testing.assert_array_equal(made(bert, tmp_path / "1", texts[1])[0], found[1])


def test_texts_without_a_word_have_a_file_too(bert, tmp_path):
    for _ in range(2):  # made, and found
        assert made(bert, tmp_path, [[], []])[0].shape == (0, 16)


def test_a_text_without_a_word_is_one_unit_of_padding(bert, tmp_path):
    """Alone in its batch too, as of other features."""
    split = Split({"text": Column([["film"], []], np.array([[0], [1]]))}, np.array([0, 1]))
    data = TaskData(dict.fromkeys(("train", "dev", "test"), split), ("x", "y"), "f")
    inputs = encode(data, "words", f"hf:{bert}", {"text": None}, 8, state_cache=str(tmp_path))
    column = inputs.splits["dev"].columns["text"]
    film, nothing = (inputs.features("dev.text", column.batch(np.array([i]))) for i in (0, 1))
    assert film.shape == nothing.shape == (1, 1, 16) and film.all() and not nothing.any()


def test_two_processes_make_a_chunk_once(bert, tmp_path, monkeypatch):
    texts = [["a", "film", "with", "intentions"], [], ["timing"]]
    _, path = made(bert, tmp_path, texts)
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(states, "Encoder", None)  # this one must not compute anything
    with ThreadPoolExecutor(1) as pool, open(path.with_suffix(".lock"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = pool.submit(made, bert, tmp_path, texts)
        time.sleep(0.2)
        assert not waiting.done()
        path.write_bytes(content)
        fcntl.flock(other, fcntl.LOCK_UN)
        waiting.result(timeout=30)
    assert path.read_bytes() == content
