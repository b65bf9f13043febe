"""Scores of float32 that are looked at with rounded rows first (kernels/csrc/screen.h), in bfloat16 or int8, on
processors that have the instructions: those that may exceed theta are computed in float32, and no edge may be missed.
Elsewhere all are."""

import sys

import pytest
import test_affinity_mix as mix
import torch
from glomo_kernels import affinity_mix, cpu_extension
from glomo_kernels.scores import KEEP
from glomo_kernels.spans import make_spans
from kernel_oracle import SPANS, gradients, leaves, spans_of

module = sys.modules["glomo_kernels.affinity_mix"]  # the package has a function of that name

pytestmark = [
    pytest.mark.usefixtures("nan_memory", "backend"),
    pytest.mark.parametrize("backend", ["cpp"], indirect=True),
]

DENSITIES = {
    "none": 6.0,
    "hardly any": 3.0,
    "a tenth": 1.28,
    "a fifth": 0.84,
    "three tenths": 0.52,
    "half": 0.0,
}


def inputs_of(units, width=64, values=16, above=1.28, **sizes):
    """About a normal distribution's share of the scores exceeds theta.

    q and k are whole multiples of 1/256 that bfloat16 has to round; in float32 their scores are exact, so that every
    edge is known and no row is wrong because its only score is hardly above theta.
    """
    q, k, v, _ = mix.make(units, width=width, values=values, **sizes)
    q, k = (torch.randint(-300, 301, x.shape).double() / 256 for x in (q, k))
    deviation = width**0.5 * 300**2 / 3 / 256**2
    theta = torch.full(q.shape[:3], round(above * deviation * 256) / 256, dtype=torch.float64)
    return q, k, v, theta


def results_of(inputs, **options):
    inputs = leaves(*inputs, dtype=torch.float32)
    out, stats = affinity_mix(*inputs, return_stats=True, **options)
    return [out, stats.edges, stats.live, stats.row_sum, *gradients(out, inputs)]


def assert_same(results, others):
    assert all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("units", [1, 17, 64, 65, 200])
@pytest.mark.parametrize("width", [64, 101, 256])
@pytest.mark.parametrize("above", DENSITIES)
def test_agrees_with_dense_formula(above, width, units, causal):
    options = {"lengths": torch.tensor([units, 0, (units + 1) // 2]), "causal": causal}
    mix.compare(mix.both(inputs_of(units, width, above=DENSITIES[above]), torch.float32, True, options))


@pytest.mark.parametrize("above", [-3.0, 0.5, 2.0])
def test_tiles_of_all_densities_side_by_side(above):
    """Some keys are far from all queries, some near to all: whole tiles live, dead and in between."""
    q, k, v, theta = inputs_of(500, above=above)
    q, k = q + 0.25, k + (torch.arange(500) // 50 - 5)[:, None] / 4
    for causal in (True, False):
        mix.compare(mix.both((q, k, v, theta), torch.float32, True, {"causal": causal}))


@pytest.mark.parametrize("option", [*SPANS, "no theta"])
def test_spans_and_rows(option):
    rows, where = (None, {}) if option == "no theta" else spans_of(option, 250)
    inputs = inputs_of(250, above=1.5, rows=rows)
    mix.compare(mix.both(inputs, torch.float32, option != "no theta", where))


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("to", ["bfloat16", "int8"])
@pytest.mark.parametrize("width", [64, 300])
def test_no_edge_is_missed_where_all_roundings_go_one_way(width, to, direction):
    """Every number is off by nearly half a step, all scores by more than by which they exceed theta."""
    hair = -(2.0**-20) if direction == "down" else 2.0**-20
    if to == "bfloat16":
        row = torch.full((width,), 1 + 2.0**-8 + hair, dtype=torch.float64)  # to 1, to 1 + 2^-7
    else:
        row = torch.full((width,), 10.5 + 2**10 * hair, dtype=torch.float64) / 64  # to 10, to 11
        row[0] = 127 / 64
    q = row.repeat(1, 1, 200, 1)
    k, v = q.clone(), torch.randn(1, 1, 200, 8, dtype=torch.float64)
    k[:, :, 1::7] *= -1  # far below theta
    theta = torch.full((1, 1, 200), float(row @ row) - 0.01, dtype=torch.float64)
    k[:, :, 100:] = -k[:, :, 100:].abs()
    k[:, :, 150] = row  # one edge in a tile, by a hair
    stats = affinity_mix(*(x.float() for x in (q, k, v, theta)), return_stats=True, causal=False)[1]
    assert (stats.edges == int((k[0, 0, :, 0] > 0).sum())).all()


@pytest.mark.parametrize("large", ["q", "k"])
@pytest.mark.parametrize("factor", [16.0, 2.0**12])
def test_a_feature_that_leaves_int8_nothing_of_the_others(factor, large):
    q, k, v, theta = inputs_of(200, width=96, above=1.5)
    matrices = (q, k) if large == "q" else (k, q)
    matrices[0][..., 5] *= factor
    matrices[1][..., 5] /= factor
    mix.compare(mix.both((q, k, v, theta), torch.float32, True, {}))


def test_rows_of_zeros_beside_others():
    """Below theta, at it and, without theta, no edge; their tiles are looked at like others."""
    q, k, v, theta = inputs_of(200, above=1.5)
    q[:, :, ::3], k[:, :, ::5], theta[:, :, ::2] = 0, 0, 0
    for with_theta in (True, False):
        mix.compare(mix.both((q, k, v, theta), torch.float32, with_theta, {}))


def test_edges_are_those_of_float32():
    """Close to theta, too: rows and keys of very different lengths, theta at a score of the row."""
    q, k, v, _ = inputs_of(400, width=128)
    q *= torch.logspace(-3, 3, 400, dtype=torch.float64)[torch.randperm(400), None]
    k *= torch.logspace(-3, 3, 400, dtype=torch.float64)[torch.randperm(400), None]
    scores = q @ k.mT
    ranked = scores.sort(-1, descending=True).values
    theta = ranked[..., 30:32].mean(-1)  # between two neighbours
    clear = (scores - theta[..., None]).abs() > 1e-5 * (
        q.norm(dim=-1)[..., None] * k.norm(dim=-1)[:, :, None]
    )
    stats = affinity_mix(*(x.float() for x in (q, k, v, theta)), return_stats=True, causal=False)[1]
    sure = ((scores > theta[..., None]) & clear).sum(-1)
    assert (stats.edges >= sure).all() and (stats.edges <= sure + (~clear).sum(-1)).all()
    assert (clear.all(-1)).double().mean() > 0.5  # most rows leave no doubt


@pytest.mark.parametrize("exponent", [-50, -20, 20, 30])
@pytest.mark.parametrize("of", ["q", "k"])
def test_small_and_large_numbers(exponent, of):
    q, k, v, theta = inputs_of(90)
    size = 2.0**exponent
    q, k = (q * size, k) if of == "q" else (q, k * size)
    mix.compare(mix.both((q, k, v, theta * size), torch.float32, True, {}))


@pytest.mark.parametrize("size_q,size_k", [(-40, 0), (-40, 20), (-20, -20), (-30, 30), (15, 15), (38, -38)])
def test_edges_at_the_ends_of_float32(size_q, size_k):
    """Where squares, norms or products in bfloat16 underflow or overflow, those of float32 decide."""
    q, k, v, theta = inputs_of(90)
    q, k, theta = (
        (10.0**size_q * q).float(),
        (10.0**size_k * k).float(),
        (10.0 ** (size_q + size_k) * theta).float(),
    )
    got = affinity_mix(q, k, v.float(), theta, return_stats=True)[1].edges
    roots = (q.double() @ k.double().mT - theta.double()[..., None]).float().relu()
    wanted = ((roots * roots).tril(-1) > 0).sum(-1)
    torch.testing.assert_close(got.long(), wanted, rtol=0, atol=1)


def test_rows_without_weight_are_exactly_zero_and_give_no_gradient():
    out, edges, _, row_sum, *grads = results_of(inputs_of(200, above=20.0))
    assert not out.any() and not edges.any() and not row_sum.any()
    assert not any(gradient.any() for gradient in grads)


def test_a_row_of_one_edge_is_its_value_to_the_bit():
    q, k, v, _ = (x.float() for x in inputs_of(300))
    scores = (q @ k.mT).masked_fill(~torch.ones(300, 300, dtype=torch.bool).tril(-1), -torch.inf)
    two = scores.topk(2).values
    theta = two.mean(-1)
    theta[:, :, 0], theta[:, :, 1] = 0, two[:, :, 1, 0] - 0.5
    inputs = leaves(q, k, v, theta, dtype=torch.float32)
    out = affinity_mix(*inputs)
    expected = v.gather(2, scores.argmax(-1)[..., None].expand(-1, -1, -1, 16))
    expected[:, :, 0] = 0
    torch.testing.assert_close(out[:, :, 1:], expected[:, :, 1:], rtol=1e-6, atol=0)
    dq, dk, _, dtheta = gradients(out, inputs)
    assert not dq.any() and not dk.any() and not dtheta.any()


def test_any_layout():
    q, k, v, theta = (x.float() for x in inputs_of(150, width=96))
    expected = results_of((q, k, v, theta))
    across = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    odd = [torch.cat([x, x[..., :1]], -1)[..., :-1] for x in (q, k, v)]
    for matrices in (across, odd):
        inputs = [x.requires_grad_() for x in (*matrices, theta.clone())]
        out, stats = affinity_mix(*inputs, return_stats=True)
        assert_same([out, stats.edges, stats.live, stats.row_sum, *gradients(out, inputs)], expected)


def test_any_number_of_threads_gives_the_same_bits():
    """Of many heads, whose rounded keys take the places of earlier ones; with more threads than processors some stop
    in the midst of it."""
    inputs = inputs_of(200, heads=8, above=1.5)
    options = {"lengths": torch.tensor([200, 70, 199])}
    torch.set_num_threads(1)
    expected = results_of(inputs, **options)
    for threads in (2, 3, 8, 64) * 3:
        torch.set_num_threads(threads)
        assert_same(results_of(inputs, **options), expected)


LOOKED_AT = bool(cpu_extension.loaded().look())


@pytest.mark.parametrize("above", [0.6, 1.5])
def test_whatever_is_kept_gives_the_same_gradients(monkeypatch, above):
    inputs, results = inputs_of(220, above=above), []
    options = {"lengths": torch.tensor([220, 150, 3])}
    for keep in KEEP:
        monkeypatch.setattr(module, "_keep", lambda *tensors: keep)  # noqa: B023
        results.append(results_of(inputs, **options))
        mix.compare(mix.both(inputs, torch.float32, True, options))
    if LOOKED_AT:  # else scores of whole tiles, and of edges by themselves
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])


def test_roots_are_kept_only_where_many_scores_have_an_edge():
    q, k, v, theta = inputs_of(300, width=256)
    theta[:, :, 150:] = 0  # the first blocks of rows have few edges, the others many
    inputs = [x.float() for x in (q, k, v, theta)]
    spans = make_spans(q.shape[0], 300, q.device, lengths=None, causal=False, positions=None)

    def kept(most):
        flags = module._forward(*inputs, spans, None, "relu", False, most)[5][-q.shape[0] * q.shape[1] * 5 :]
        return [[KEEP[int(flag)] for flag in head] for head in flags.view(-1, 5)]

    for head in kept("roots"):
        assert head[:2] == ["edges"] * 2 and head[3:] == ["roots"] * 2
    assert kept("edges") == [["edges"] * 5] * q.shape[0] * q.shape[1]
