"""What must hold for every GLoMo model, whatever its sizes: who sees whom, padding, directions, gradients."""

import itertools

import pytest
import torch
from glomo_samples import IMAGE, KINDS, TEXT, VARIANTS, build, tokens

from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.model.feature_predictor import Rows
from glomo_dist.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (TEXT, {}),
        (IMAGE, {}),
        (IMAGE, {"coupled": True}),
        (IMAGE, {"distance": "rotary_2d"}),
        *((TEXT, changes) for changes in VARIANTS),
    ],
    ids=str,
)
def test_a_later_unit_changes_nothing_before_it(config: GlomoConfig, changes: dict[str, object]) -> None:
    model = build(config, **changes)
    x = tokens(1, 20)
    changed = x.clone()
    changed[0, 12] = (x[0, 12] + 1) % 16
    lengths = torch.tensor([20])
    with torch.no_grad():
        before, after = model.graphs(x, lengths), model.graphs(changed, lengths)
    forward = before[0].dense() - after[0].dense()
    backward = before[1].dense() - after[1].dense()
    assert (forward[:, :, :12] == 0).all()
    assert forward[:, :, 12:].abs().max() > 0
    assert (backward[:, :, 13:] == 0).all()
    assert backward[:, :, :13].abs().max() > 0


@pytest.mark.parametrize(
    "changes",
    [
        *({"sparsity": s, "composition": c} for s in KINDS for c in ("gru", "lstm", "residual")),
        *VARIANTS,
    ],
    ids=str,
)
def test_padding_changes_neither_loss_nor_gradients(changes: dict[str, object]) -> None:
    model = build(**changes)
    x, lengths = tokens(2, 12), torch.tensor([12, 7])
    positions = torch.tensor([[[0, 5, 11], [2, 3, 6]], [[1, 8, 9], [0, 4, 4]]])
    both = model(x, lengths, positions)
    (both.loss_sum + both.penalty).backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    total, penalty, count = 0.0, 0.0, 0
    for b, n in enumerate(lengths.tolist()):
        alone = model(x[b : b + 1, :n], lengths[b : b + 1], positions[:, b : b + 1])
        (alone.loss_sum + alone.penalty).backward()
        total, count = total + alone.loss_sum.item(), count + alone.targets.item()
        penalty += alone.penalty.item()
    assert both.loss_sum.item() == pytest.approx(total, rel=1e-12)
    assert both.penalty.item() == pytest.approx(penalty, rel=1e-12)
    assert (penalty > 0) == bool(model.config.empty_row_penalty)
    assert both.targets.item() == count
    for name, p in model.named_parameters():
        assert torch.allclose(together[name], p.grad, rtol=1e-9, atol=1e-12), name


def test_padding_is_no_occurrence_of_the_word_whose_id_it_has() -> None:
    model = build(scale_grad_by_freq=True)
    lengths, positions = torch.tensor([9]), torch.tensor([[[0, 3, 5]], [[1, 2, 8]]])
    grads = []
    for row in (
        torch.tensor([[0, 3, 0, 5, 1, 0, 3, 2, 7]]),
        torch.tensor([[0, 3, 0, 5, 1, 0, 3, 2, 7, 0, 0, 0]]),
    ):
        model.zero_grad()
        model(row, lengths, positions).loss_sum.backward()
        grads.append(model.embedding.weight.grad.clone())
    assert torch.allclose(*grads, rtol=1e-9, atol=1e-12)


def test_every_parameter_is_trained() -> None:
    for sparsity, composition in itertools.product(KINDS, ("gru", "lstm", "residual")):
        model = build(sparsity=sparsity, composition=composition)
        model(tokens(4, 16), torch.full((4,), 16), torch.randint(0, 12, (2, 4, 8))).loss_sum.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, (sparsity, composition, name)
            assert torch.isfinite(p.grad).all(), (sparsity, composition, name)
            assert p.grad.abs().max() > 0, (sparsity, composition, name)


def test_the_embedding_begins_within_a_tenth_of_zero() -> None:
    """As the authors' does."""
    first = build(vocab_size=500).embedding.weight
    assert 0.099 < first.max() <= 0.1 and -0.1 <= first.min() < -0.099 and first.mean().abs() < 0.01


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("config", [TEXT, IMAGE], ids=["text", "image"])
@pytest.mark.parametrize(
    "changes", [{"sparsity": s} for s in KINDS] + [{"distance": "rotary"}, *VARIANTS], ids=str
)
def test_bfloat16_parameters_beside_float32_buffers(
    config: GlomoConfig, changes: dict[str, object], norm: str
) -> None:
    """What DeepSpeed makes of a model with precision bf16: its buffers stay as they were."""
    models = [build(config, norm=norm, **changes).float() for _ in range(2)]
    for p in models[1].parameters():
        p.data = p.data.bfloat16()
    assert {b.dtype for b in models[1].buffers() if b.is_floating_point()} <= {torch.float32}
    T = 20 if config.image else 24
    x, lengths, positions = tokens(6, T), torch.full((6,), T), torch.randint(0, T - 4, (2, 6, 8))
    losses = []
    for model in models:
        out = model(x, lengths, positions)
        loss = out.loss_sum / out.targets
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for (name, p), exact in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        assert (p.grad is None) == (exact.grad is None), name
        assert p.grad is None or (p.grad.dtype == torch.bfloat16 and torch.isfinite(p.grad).all()), name
    for found, exact in zip(models[1].buffers(), models[0].buffers(), strict=True):
        assert found.dtype == exact.dtype
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)


def test_dropout_takes_whole_features_of_a_sequence_in_training_alone() -> None:
    """Where the CNNs begin (here there is none), and in what the decoder starts from, in both of its layers."""
    model = build(dropout=0.5, key_layers=0, query_layers=0)
    x, at, ends = tokens(3, 6), torch.tensor([[0, 2, 5]] * 3), torch.full((3, 1), 6)
    e, states = (1 + torch.rand(3, n, 16, dtype=torch.float64) for n in (6, 3))
    decoder, first = model.forwards.decoder, []
    decoder.rnn.register_forward_pre_hook(lambda _, given: first.append(given[1].unflatten(1, (3, 3))))
    for training in (True, False):
        model.train(training)
        decoder.read(states, e, x, at, ends)
        kept = [given / e for given in model.forwards.graph_predictor(e)]
        for share in (*kept, *(layer / states for layer in first.pop())):
            assert share.unique().tolist() == ([0, 2] if training else [1])
            assert torch.equal(share, share[:, :1].expand_as(share))
            assert torch.equal(share[0], share[1]) == (not training)  # each sequence loses others
        assert torch.equal(*kept) == (not training)  # keys and queries lose different ones
    between = [build(dropout=0.5, decoder_layers=n).forwards.decoder.rnn.dropout for n in (1, 2)]
    assert between == [0, 0.5]  # PyTorch's own; it warns of one that has no layer to go to


def test_an_lstm_cell_by_hand() -> None:
    """Both layers share it; what is mixed and the unit's own features come in, and its memory goes on."""
    model = build(composition="lstm", sparsity="square")
    x, length = tokens(1, 7), torch.tensor([7])
    with torch.no_grad():
        graphs = model.graphs(x, length)[0].dense()[0].unflatten(0, (2, 4))
        direction, e = model.forwards, model.embedding(x)
        cell, state = direction.feature_predictor.cell, direction.feature_predictor.start(e)
        h, c = e[0], torch.zeros_like(e[0])
        for layer in range(2):
            m = (graphs[layer] @ h.unflatten(1, (4, 4)).transpose(0, 1)).transpose(0, 1).flatten(1)
            gates = (
                torch.cat([m * h, m], 1) @ cell.weight_ih.T
                + h @ cell.weight_hh.T
                + cell.bias_ih
                + cell.bias_hh
            )
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            scores = direction.graph_predictor.scores(layer, *direction.graph_predictor(e))
            state = direction.feature_predictor.step(layer, state, scores, Rows())
    torch.testing.assert_close(state, (h[None], c[None]))


@pytest.mark.parametrize("composition", ["gru", "lstm"])
def test_loss_is_the_cross_entropy_of_the_following_units(composition: str) -> None:
    """The decoder and the targets by hand, one sampled unit at a time."""
    model = build(composition=composition)
    x, length = tokens(1, 10), torch.tensor([10])
    for t in (0, 4, 8, 9):
        got = model(x, length, torch.tensor([[[t]], [[t]]]))
        total, count = 0.0, 0
        for direction, ids in ((model.forwards, x), (model.backwards, x.flip(1))):
            e = model.embedding(ids)
            state = direction.feature_predictor.start(e)
            keys, queries = direction.graph_predictor(e)
            for layer in range(2):
                scores = direction.graph_predictor.scores(layer, keys, queries)
                state = direction.feature_predictor.step(layer, state, scores, Rows())
            hidden = state[0][:, t].expand(2, 1, -1).contiguous()
            given = torch.zeros(1, 1, 16, dtype=torch.float64)
            for step in range(1, 4):
                out, hidden = direction.decoder.rnn(given, hidden)
                if t + step < 10:
                    target = ids[0, t + step]
                    total -= (out[0, 0] @ model.embedding.weight.T).log_softmax(-1)[target].item()
                    count += 1
                    given = e[:, t + step : t + step + 1]
        assert got.targets.item() == count
        assert got.loss_sum.item() == pytest.approx(total, rel=1e-10)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"width 10 must be a multiple of model\.heads 4"):
        GlomoConfig(width=10, heads=4)
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        Glomo(GlomoConfig())
    with pytest.raises(ConfigError, match="odd for images"):
        GlomoConfig(image=(2, 2), kernel_size=2)
    with pytest.raises(ValueError, match="4 x 5 pixels"):
        build(IMAGE).graphs(tokens(1, 19), torch.tensor([19]))
    for short in (torch.tensor([20, 19]), torch.tensor([20, 21])):
        with pytest.raises(ValueError, match=f"all of its 20 pixels, or none, got a length of {short[1]}"):
            build(IMAGE).graphs(tokens(2, 20), short)
    assert build(IMAGE).graphs(tokens(2, 20), torch.tensor([20, 0]))[1].shape == (2, 4, 20)
    with pytest.raises(TypeError, match=r"must be tensors, got Tensor and NoneType"):
        build().graphs(tokens(1, 3), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("beyond", [23, -1])
def test_ids_beyond_the_vocabulary_are_named(beyond: int) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to 22, got {min(beyond, 2)} to {max(beyond, 2)}\."):
        build().graphs(torch.tensor([[2, beyond]]), torch.tensor([2]))
