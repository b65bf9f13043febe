import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from privileges import closed, public_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from glomo_dist.model import Glomo, GlomoConfig, load_model, random_model, save_model
from glomo_dist.runtime.errors import CheckpointError, GlomoError
from glomo_dist.runtime.fingerprint import fingerprint

CONFIG = GlomoConfig(vocab_size=11, width=8, heads=2, layers=1, key_layers=1, query_layers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path / "model", Glomo(CONFIG), {"kind": "words", "fingerprint": "0f"}, {"steps": 7})


def test_round_trip(folder: Path) -> None:
    model, meta = load_model(folder)
    torch.manual_seed(0)
    expected = Glomo(CONFIG).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert meta["steps"] == 7
    assert json.loads((folder / "tokenizer.json").read_text()) == {"kind": "words", "fingerprint": "0f"}
    assert meta["tokenizer"] == "0f" and not random_model(folder, seed=0).training


@pytest.mark.parametrize("image", [None, (2, 3)])
def test_what_is_saved_are_the_parameters(tmp_path: Path, image: tuple[int, int] | None) -> None:
    """Of pixels too: what follows from the sizes is no part of a file that other versions are to read."""
    model = random_model(dataclasses.replace(CONFIG, image=image), seed=0)
    saved = load_file(save_model(tmp_path / "saved", model) / "model.safetensors")
    assert saved.keys() == dict(model.named_parameters()).keys()


def test_fingerprint_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    again = save_model(tmp_path / "again", random_model(folder, seed=0))
    other = save_model(tmp_path / "other", random_model(folder, seed=1))
    marks = [load_model(f)[1]["fingerprint"] for f in (folder, again, other)]
    assert marks[0] == marks[1] != marks[2]


def test_random_model_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    random_model(folder, seed=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no model"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON .* Copy the folder again"),
        (lambda f: edit(f, version=9), "format version 9"),
        (lambda f: edit(f, format="x"), "not the description of a model"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "damaged.* Copy the folder again"),
        (lambda f: sign(f, model={**vars(CONFIG), "vocab_size": 12}), r"embedding.weight is \(11, 8\)"),
        (
            lambda f: sign(f, model={**vars(CONFIG), "vocab_size": 1 << 32, "width": 1 << 20}),
            "no memory .* Copy",
        ),
        (lambda f: sign(f, model={**vars(CONFIG), "widht": 8}), "Did you mean 'width'"),
        (lambda f: edit(f, model={**vars(CONFIG), "sparsity": "relu"}), "not those of its fingerprint"),
        (lambda f: edit(f, weights_sha256="0" * 64), "not those of its fingerprint"),
        (lambda f: edit(f, fingerprint=5), "not those of its fingerprint"),
        (lambda f: rewrite(f, lambda w: w.fill_(math.nan)), r"thresholds.* 1 of 1 values are NaN"),
        (lambda f: rewrite(f, Tensor.int), r"thresholds.* is of torch.int32 .*expected dense float"),
        (lambda f: (f / "model.safetensors").unlink() or (f / "model.safetensors").mkdir(), "is missing"),
        (lambda f: leave_out(f, "model"), "config.json: has no 'model'"),
        (lambda f: leave_out(f, "fingerprint"), "config.json: has no 'fingerprint'"),
    ],
)
def test_damage_is_named(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(GlomoError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors"])
def test_what_may_not_be_read_is_named(name: str) -> None:
    with public_folder() as above:
        folder = save_model(above / "model", Glomo(CONFIG))
        load_model(folder)  # so that all is imported
        with (
            closed(folder / name),
            pytest.raises(CheckpointError, match=rf"model/?{name}.* cannot be read: Permission denied"),
        ):
            load_model(folder)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sign(folder: Path, **changes: object) -> None:
    """`edit`, and what it says of itself is true."""
    edit(folder, **changes)
    meta = json.loads((folder / "config.json").read_text())
    edit(folder, fingerprint=fingerprint([meta["model"], meta["weights_sha256"]]))


def rewrite(folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    """Other values of one parameter."""
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "thresholds" in name and state[name].numel() == 1)
    save_file({**state, name: change(state[name])}, path)
    sign(folder, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def leave_out(folder: Path, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def test_nothing_is_overwritten(folder: Path) -> None:
    with pytest.raises(GlomoError, match="not empty"):
        save_model(folder, Glomo(CONFIG))
