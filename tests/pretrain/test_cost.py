"""What a run costs by the formulas: parameters, arithmetic and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from glomo_kernels import decoder_loss
from torch.utils.flop_counter import FlopCounterMode

from glomo_dist import recipes
from glomo_dist.cli.plan import Plan, describe
from glomo_dist.data import Windows
from glomo_dist.model import Glomo, GlomoConfig, decoder
from glomo_dist.model.config import LARGEST_VOCABULARY, WIDEST, WIDEST_KERNEL
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.cost import activation_bytes, cost, state_bytes
from glomo_dist.pretrain.steps.activations import checkpoint_activations


def with_vocabulary(config: PretrainConfig) -> PretrainConfig:
    return replace(config, model=replace(config.model, vocab_size=1000))


def test_memory_follows_the_stages() -> None:
    """16 bytes per parameter in float32 with Adam, with ZeRO 4 more for the copy that it updates and 4 for the
    bucket, which is whole; each stage shares out one more part over the ranks."""
    sizes = {stage: sum(parts.values()) for stage, parts in state_bytes(PretrainConfig(), 1000, 4).items()}
    assert sizes == {0: 16000, 1: 15000, 2: 12000, 3: 9000}
    half = state_bytes(PretrainConfig(zero_stage=1, precision="bf16"), 10**9, 1)
    assert list(half) == [1, 2, 3]
    assert {name: size / 10**9 for name, size in half[1].items()} == {
        "parameters": 2, "gradients": 2, "optimizer": 12, "bucket": 1,
    }  # fmt: skip
    sgd = [PretrainConfig(optimizer="sgd", momentum=momentum) for momentum in (0.0, 0.5)]
    assert [state_bytes(config, 1000, 1)[0]["optimizer"] for config in sgd] == [0, 4000]


def test_arithmetic_grows_with_the_pairs() -> None:
    """Twice the window and twice the sampled positions leave all else per unit as it was: what is added is, forward
    and backward (x3), a multiply-add (x2) for each pair, layer and head, over d_g score and d/K feature entries."""
    short = with_vocabulary(recipes.get("tiny"))
    long = replace(short, window=2 * short.window, positions_per_sequence=2 * short.positions_per_sequence)
    m, pairs = short.model, short.window  # T/2 pairs per unit and direction
    layers = (
        m.layers - 1 + short.positions_per_sequence / short.window
    )  # the last one at the sampled positions
    added = 3 * 2 * layers * m.heads * (m.graph_width + m.width // m.heads) * pairs
    assert cost(long).flops_per_unit - cost(short).flops_per_unit == pytest.approx(added)
    assert cost(long).units_per_step == 2 * cost(short).units_per_step


@pytest.mark.parametrize(
    ("changes", "window", "positions"),
    [({}, 64, 20), ({"layers": 1}, 512, 20), ({}, 64, 1), ({"layers": 4, "coupled": True}, 64, 20),
     ({"composition": "residual"}, 64, 20), ({}, 8, 20), ({"empty_row_penalty": 1.0}, 256, 20),
     ({"edge_floor": 2, "layers": 4}, 256, 20), ({"norm": "batch", "kernel_size": 9}, 32, 20),
     ({"norm": "batch", "kernel_size": 9, "coupled": True, "layers": 3}, 32, 20)],
)  # fmt: skip
@pytest.mark.parametrize("again", [False, True])
def test_arithmetic_is_what_a_step_does(
    again: bool, changes: dict[str, Any], window: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch counts its own ops; what ours do is added by the formula of DESIGN: pairs, and the softmax. again:
    with activation checkpointing, which makes pairs again, but no softmax."""
    monkeypatch.setenv("GLOMO_KERNELS", "reference")
    losses = 0

    def counted_loss(*args: Any, **options: Any) -> torch.Tensor:
        nonlocal losses
        losses += 1
        return decoder_loss(*args, **options)

    monkeypatch.setattr(decoder, "decoder_loss", counted_loss)
    m = GlomoConfig(**{"vocab_size": 500, "width": 64, "heads": 4, "layers": 2, **changes})
    config = PretrainConfig(
        m, window=window, global_batch=2, positions_per_sequence=positions, activation_checkpointing=again
    )
    tokens = torch.randint(500, (2, window))
    at = torch.randint(window - m.decoder_steps, (2, 2, positions))
    model = Glomo(m)
    if again:
        checkpoint_activations(model)
    with FlopCounterMode(display=False) as counter:
        loss = model(tokens, torch.full((2,), window), at)
        (loss.loss_sum + loss.penalty).backward()
    sampled = positions / window
    pairs = (m.layers - 1 + sampled) * m.heads * (m.graph_width + m.width // m.heads) * window
    softmax = sampled * m.decoder_steps * 2 * m.vocab_size * m.width
    assert losses == 2, "one per direction"
    ours = (8 if again else 6) * pairs + 6 * softmax
    found = counter.get_total_flops() / tokens.numel() + ours
    assert cost(config).flops_per_unit == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("image", [None, (4, 4)])
def test_batch_statistics_have_a_tail_in_rows_of_one_text_alone(image: tuple[int, int] | None) -> None:
    """Neither in packed rows nor in images; without a tail both norms cost the same."""

    def flops(norm: Literal["layer", "batch"], windows: Windows) -> float:
        return cost(PretrainConfig(GlomoConfig(9, norm=norm, image=image), windows=windows)).flops_per_unit

    alone: Windows = "packed" if image is None else "fixed"
    assert flops("batch", alone) == flops("layer", alone) == flops("layer", "fixed")
    assert (flops("batch", "fixed") > flops("layer", "fixed")) == (image is None)


def test_arithmetic_where_the_embedding_is_as_large_as_another_parameter() -> None:
    """A vocabulary of three widths: the GRU's matrices have as many numbers. Each word costs the same."""
    recipe = recipes.get("tiny")
    near = [recipe.model.width * 3 + more for more in (-1, 0, 1)]
    flops = [
        cost(replace(recipe, model=replace(recipe.model, vocab_size=size))).flops_per_unit for size in near
    ]
    assert flops[1] - flops[0] == pytest.approx(flops[2] - flops[1])


def test_an_image_has_its_pixels_however_long_the_window_is() -> None:
    config = PretrainConfig(GlomoConfig(vocab_size=16, image=(6, 5)), window=30)
    wide = replace(config, window=128)
    assert cost(wide) == cost(config) and cost(wide).units_per_step == 30 * wide.global_batch
    assert activation_bytes(wide, 1) == activation_bytes(config, 1)
    a_step = describe(Plan(wide), wide, cost(wide))[1]
    assert "sequences of at most 30 units = 960 units" in a_step


@pytest.mark.parametrize("image", [None, (4, 4)])
@pytest.mark.parametrize("composition", ["gru", "lstm", "residual"])
def test_sizes_of_the_largest_model(image: tuple[int, int] | None, composition: str) -> None:
    """No size that is allowed is one that torch cannot count the bytes of."""
    model = GlomoConfig(
        LARGEST_VOCABULARY, width=WIDEST, heads=WIDEST, head_width=WIDEST,
        kernel_size=WIDEST_KERNEL - (image is not None), composition=composition, image=image,
    )  # fmt: skip
    estimate = cost(PretrainConfig(model))
    assert estimate.embedding == 2**52 and estimate.others > 2**61


def test_memory_counts_what_the_loss_holds() -> None:
    """Few sampled units have few logits, many half a gigabyte; beside them the gradient of the words' weights."""
    few = replace(with_vocabulary(recipes.get("tiny")), global_batch=2, positions_per_sequence=3)
    model = replace(few.model, vocab_size=few.model.vocab_size + 1)
    rows = 2 * 3 * few.model.decoder_steps
    added = activation_bytes(replace(few, model=model), 1) - activation_bytes(few, 1)
    assert added == rows * 4 + 2 * few.model.width * 4
    gradient = 2 * few.model.vocab_size * few.model.width * 4  # float32 whatever the precision
    half = replace(few, precision="bf16")
    assert 2 * (activation_bytes(half, 1) - gradient) == activation_bytes(few, 1) - gradient
    a_sequence = activation_bytes(replace(few, global_batch=1), 1)
    assert activation_bytes(few, 2) == activation_bytes(replace(few, micro_batch=1), 1) == a_sequence
    many = replace(few, model=replace(few.model, vocab_size=10**8))
    features = activation_bytes(few, 1) - few.model.vocab_size * added
    assert activation_bytes(many, 1) - features == (1 << 29) + 10**8 * 2 * few.model.width * 4


def test_memory_follows_activation_checkpointing() -> None:
    """A layer more is then its scores and its input more, in both directions; the rest is computed again."""
    config = replace(with_vocabulary(recipes.get("base")), global_batch=8, activation_checkpointing=True)
    m, units = config.model, 8 * config.window
    deeper = replace(config, model=replace(m, layers=m.layers + 1))
    added = 2 * (2 * m.heads * m.graph_width + m.width) * units * 4
    assert activation_bytes(deeper, 1) - activation_bytes(config, 1) == added
    batch_norm = replace(config, model=replace(m, norm="batch"))  # its convolutions are not computed again
    sizes = [
        activation_bytes(c, 1) for c in (config, batch_norm, replace(config, activation_checkpointing=False))
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("changes", "window", "positions"),
    [({}, 64, 20), ({"decoder_steps": 8, "decoder_layers": 3}, 64, 20), ({"layers": 4}, 64, 4),
     ({"key_layers": 4, "kernel_size": 7}, 64, 20), ({"decoder_steps": 1}, 64, 20), ({}, 8, 20)],
)  # fmt: skip
def test_memory_is_what_a_forward_pass_keeps(changes: dict[str, Any], window: int, positions: int) -> None:
    """What autograd saves of a real pass, each storage once and parameters not; roughly: within a quarter."""
    m = GlomoConfig(**{"vocab_size": 500, "width": 64, "heads": 4, "layers": 2, **changes})
    config = PretrainConfig(m, window=window, global_batch=32, positions_per_sequence=positions)
    model = Glomo(m)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # which keeps its address from being used again
        return tensor

    tokens = torch.randint(500, (32, window))
    at = torch.randint(window - m.decoder_steps, (2, 32, positions))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(tokens, torch.full((32,), window), at).loss_sum
    found = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    assert loss.isfinite() and 0.8 < activation_bytes(config, 1) / found < 1.25
