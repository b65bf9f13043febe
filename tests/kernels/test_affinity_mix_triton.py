"""affinity_mix on Triton: in the interpreter on a CPU (float32), and on a GPU in all dtypes, the same tests."""

import itertools
import os
import subprocess
import sys

import pytest
import test_affinity_mix as plain
import torch
from glomo_kernels import BackendUnavailable, affinity_mix, dispatch, triton_device
from glomo_kernels.affinity_mix import triton_configs, triton_impl
from glomo_kernels.spans import make_spans
from kernel_oracle import dense_weights, leaves
from triton_here import (
    DEVICE,
    INTERPRETED,
    anywhere,
    assert_the_same_in_a_cuda_graph,
    kernels,
    run_interpreted,
)

DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float16]

pytest.importorskip("triton", reason="Triton is only made for Linux")


def pytest_generate_tests(metafunc):
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=str)


def on_device(*tensors, **options):
    """affinity_mix of CPU tensors, computed on DEVICE; gradients find their way back."""
    moved = [None if x is None else x.to(DEVICE) for x in tensors]
    options = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    result = affinity_mix(*moved, **options)
    if isinstance(result, tuple):
        return result[0].cpu(), type(result[1])(*(x.cpu() for x in result[1]))
    return result.cpu()


def check(inputs, dtype, with_theta, options):
    """Against the dense formula: errors at most twice those of PyTorch in that dtype.

    Plain float16 gives NaN (epsilon is 0 there), and rounded scores have other edges among the largest: then the
    measure is the exact result, rounded.
    """
    results = plain.both(inputs, dtype, with_theta, options)
    if dtype == torch.float16 or (dtype == torch.bfloat16 and options.get("kind") == "topk"):
        results[2] = [x.to(dtype) for x in results[1]]
    plain.compare(results)


@anywhere
def test_in_the_interpreter():
    run_interpreted(__file__)


SMALL = [(1, [1, 0, 1]), (2, [2, 1, 0]), (63, [63, 0, 17])]
KINDS = [case for case in plain.KINDS if case != "softmax"]


@kernels
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("units,lengths", SMALL)
@pytest.mark.parametrize("case", KINDS)
def test_agrees_with_dense_formula(case, units, lengths, causal, dtype):
    with_theta, options = plain.split(case)
    options |= {"lengths": torch.tensor(lengths), "causal": causal}
    check(plain.make(units, heads=1), dtype, with_theta, options)


@kernels
@pytest.mark.parametrize("case,causal", [("threshold", True), ("square", False)])
def test_several_tiles(case, causal, dtype):
    with_theta, options = plain.split(case)
    options |= {"lengths": torch.tensor([130, 66, 0]), "causal": causal}
    check(plain.make(130, heads=1), dtype, with_theta, options)


@kernels
@pytest.mark.parametrize("width,values", [(1, 1), (33, 17), (24, 40), (16, 100), (256, 64)])
def test_widths(width, values, dtype):
    inputs = plain.make(40, heads=1, width=width, values=values)
    inputs[0].mul_(width**-0.5)
    check(inputs, dtype, True, {"lengths": torch.tensor([40, 7, 0])})


@kernels
@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_do_not_see_each_other(causal, dtype):
    segments = torch.zeros(3, 150, dtype=torch.int64)
    segments[0, 70:] = 7
    segments[1] = torch.arange(150) // 11
    options = {"segments": segments, "lengths": torch.tensor([150, 140, 3]), "causal": causal}
    check(plain.make(150, heads=1), dtype, True, options)


@kernels
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "positions", [torch.tensor([7, 0, 7]), torch.tensor([[1, 8, 0], [3, 3, 2], [0, 0, 4]])]
)
def test_query_rows_at_positions(positions, causal, dtype):
    options = {"positions": positions, "lengths": torch.tensor([9, 3, 5]), "causal": causal}
    check(plain.make(9, rows=3), dtype, True, options)


@kernels
def test_rows_without_weight_are_exactly_zero_and_give_no_gradient():
    plain.test_rows_without_weight_are_exactly_zero_and_give_no_gradient("triton")


@kernels
@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e4])
def test_tiny_and_huge_scores(size):
    plain.test_tiny_and_huge_scores("triton", size)


@kernels
@pytest.mark.parametrize("size", [1e-3, 30])
@pytest.mark.parametrize("precision", list(dict.fromkeys([*DTYPES, torch.float16])), ids=str)
def test_rows_that_one_edge_rules(size, precision):
    """Thresholds just below the largest score: dO . v - D cancels, and the slopes are steep. Such a row's output is
    the one v, whatever its weight was rounded to."""
    q, k, v, _ = plain.make(40, heads=1)
    q, k, v = (x.to(precision).double() for x in (q * size, k, v + 3))
    scores = (q @ k.mT).masked_fill(torch.ones(40, 40).triu().bool(), -torch.inf)
    theta = scores.amax(-1).clamp(min=-1) - 0.05 * size
    check((q, k, v, theta), precision, True, {})


@kernels
@pytest.mark.parametrize("case", KINDS)
def test_stats(case):
    """live as well: exactly the tiles with a weight in them."""
    with_theta, options = plain.split(case)
    q, k, v, theta = (x.float() for x in plain.make(70, heads=1))
    options["lengths"] = torch.tensor([70, 0, 4])
    theta = theta.abs() + 1 if with_theta else None
    mixed, stats = on_device(q, k, v, theta, **options, return_stats=True)
    torch.testing.assert_close(mixed, on_device(q, k, v, theta, **options), rtol=0, atol=0)
    weights = dense_weights(q, k, theta, **options)
    assert stats.edges.dtype == torch.int32
    torch.testing.assert_close(stats.edges.long(), (weights > 0).sum(-1))
    torch.testing.assert_close(stats.entropy, torch.special.entr(weights).sum(-1))
    assert ((stats.row_sum == 0) == (weights.sum(-1) == 0)).all()
    tiles = torch.nn.functional.pad(weights > 0, (0, 58, 0, 58)).unflatten(3, (2, 64)).unflatten(2, (2, 64))
    assert torch.equal(stats.live, tiles.any(5).any(3))


@kernels
def test_live_tiles():
    q, k, v, theta = (x.float() for x in plain.make(200, rows=150, heads=1))
    theta = theta.abs() + 1
    theta[0, :, 64:128] = 1e6  # the second tile of rows
    k[1, :, 64:128] = 0
    options = {"positions": torch.arange(150) + 50, "lengths": torch.tensor([200, 200, 120])}
    live = on_device(q, k, v, theta, **options, return_stats=True)[1].live
    weights = dense_weights(q, k, theta, **options)
    tiles = torch.nn.functional.pad(weights > 0, (0, 56, 0, 42)).unflatten(3, (4, 64)).unflatten(2, (3, 64))
    assert torch.equal(live, tiles.any(5).any(3))
    assert 0.2 < live.float().mean() < 0.8


def planted(units=200):
    """q, k, v, theta, spans of which the keys 64..127 have no weight at all, and the rows 128..191 none of theirs."""
    q, k, v, theta = (x[:1].float().to(DEVICE) for x in plain.make(units, heads=1))
    k[:, :, 64:128] = 0
    theta = theta.abs() + 0.5
    theta[:, :, 128:192] = 1e6
    return q, k, v, theta, make_spans(1, units, q.device, lengths=None, causal=False, positions=None)


@kernels
def test_dead_tiles_are_left_out_and_change_nothing():
    q, k, v, theta, spans = planted()
    mixed, norm, _, _, live, kept = triton_impl.forward(q, k, v, theta, spans, None, "relu", False, False)
    assert live[0, 0].tolist() == [[1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]]
    grad = torch.randn_like(mixed)
    rest = (theta, spans, None, mixed, norm)
    lists = triton_impl.backward(grad, q, k, v, *rest, live, kept, "relu")
    everything = triton_impl.backward(grad, q, k, v, *rest, torch.ones_like(live), kept, "relu")
    for name, ours, whole in zip(("dq", "dk", "dv", "dtheta"), lists, everything, strict=True):
        assert torch.equal(ours, whole), name
    spoilt = v.clone()
    spoilt[:, :, 64:128] = torch.nan
    for ours, again in zip(
        lists, triton_impl.backward(grad, q, k, spoilt, *rest, live, kept, "relu"), strict=True
    ):
        assert torch.equal(ours, again)


@kernels
@pytest.mark.parametrize("block_m,block_n", [(64, 64), (128, 64), (64, 128)])
def test_lists_of_live_tiles(block_m, block_n):
    rows, columns = 150, 400
    positions = torch.randint(columns, (2, rows)).sort(1).values
    lengths = torch.tensor([390, 250])
    spans = make_spans(2, columns, torch.device("cpu"), lengths=lengths, causal=True, positions=positions)
    live = torch.rand(2, 3, 3, 7) < 0.7
    results = triton_impl._lists(
        live.to(DEVICE, torch.uint8), spans.to(DEVICE), rows, columns, block_m, block_n
    )
    by_row, row_counts, by_column, column_counts = (x.cpu() for x in results)

    column = torch.arange(7 * 64)
    seen = (column >= spans[..., :1]) & (column < spans[..., 1:])  # [B, rows, columns]
    some = spans[..., 0] < spans[..., 1]

    def check_list(entries, counts, expected_live, expected_inner):
        edges, inners = counts.tolist()
        got_edges, got_inners = entries[:edges], entries[len(entries) - inners :]
        both = [t for t in range(len(entries)) if expected_live(t)]
        assert sorted(got_edges.tolist() + got_inners.tolist()) == both
        assert sorted(got_inners.tolist()) == [t for t in both if expected_inner(t)]

    for b in range(2):
        # A tile is in reach if it meets the union of the spans, taken as one range, as the kernels take it.
        for h in range(3):
            for block in range(-(-rows // block_m)):
                r = slice(block * block_m, min((block + 1) * block_m, rows))
                reach = (seen[b, r].any(0)).nonzero().flatten()
                low, high = (int(reach[0]), int(reach[-1])) if len(reach) else (0, -1)
                any_live = live[b, h, r.start // 64 : (r.stop + 63) // 64].any(0)
                check_list(
                    by_row[b, h, block],
                    row_counts[b, h, block],
                    lambda t, low=low, high=high, any_live=any_live: (
                        bool(any_live[t]) and t * 64 <= high and t * 64 + 63 >= low
                    ),
                    lambda t, b=b, r=r: bool(seen[b, r, t * 64 : t * 64 + 64].all()),
                )
            for block in range(-(-columns // block_n)):
                c = slice(block * block_n, (block + 1) * block_n)
                any_live = live[b, h, :, c.start // 64 : c.stop // 64].any(1)

                def reaches(t, b=b, c=c, any_live=any_live):
                    own = spans[b, t * 64 : t * 64 + 64][some[b, t * 64 : t * 64 + 64]]
                    if not len(own) or not any_live[t]:
                        return False
                    return c.start < int(own[:, 1].max()) and c.stop > int(own[:, 0].min())

                def inside(t, b=b, c=c):
                    own = spans[b, t * 64 : t * 64 + 64]
                    return len(own) == 64 and bool(((own[:, 0] <= c.start) & (own[:, 1] >= c.stop)).all())

                check_list(by_column[b, h, block], column_counts[b, h, block], reaches, inside)


@kernels
def test_non_contiguous_inputs():
    q, k, v, theta = (x.float() for x in plain.make(12))
    strided = [
        q.transpose(1, 2).contiguous().transpose(1, 2),
        k.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([v, v], -1)[..., 0],
        theta.mT.contiguous().mT,
    ]
    results = []
    for tensors in ((q, k, v, theta), strided):
        tensors = [x.to(DEVICE).detach().requires_grad_() for x in tensors]
        out = affinity_mix(*tensors)
        results.append(
            [out, *torch.autograd.grad(out, tensors, torch.ones_like(out[..., :1]).expand_as(out))]
        )
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@kernels
def test_ties_of_topk_go_to_the_lowest_column():
    plain.test_ties_of_topk_go_to_the_lowest_column("triton")


@kernels
def test_ties_of_topk_in_many_tiles(dtype):
    """Scores of -1, 0 and 1 only, keys in several tiles: forward and backward agree on who is in."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randint(-1, 2, (1, 1, 100, 2), generator=generator).double() for _ in range(2))
    v = torch.randn(1, 1, 100, 3, dtype=torch.float64)
    check((q, k, v, q[..., 0]), dtype, False, {"kind": "topk", "topk": 7, "causal": False})


@kernels
def test_products_in_the_gpus_order(monkeypatch):
    """k @ q^T in the interpreter too; its bits differ from those of q @ k^T, which these weights do not feel."""
    monkeypatch.setattr(triton_configs, "same", lambda case: False)
    check(plain.make(70, heads=1), torch.float32, False, {"kind": "square", "causal": False})


@kernels
@pytest.mark.parametrize("case", ["threshold", "topk"])
def test_products_in_chunks(monkeypatch, case):
    """As for float32 on a GPU: a few columns of the factors at a time, all tiles masked."""
    monkeypatch.setattr(triton_configs, "chunk", lambda dtype: 16)
    with_theta, options = plain.split(case)
    options |= {"lengths": torch.tensor([70, 66, 0]), "causal": case == "threshold"}
    check(plain.make(70, heads=1, width=33, values=17), torch.float32, with_theta, options)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU they are among the candidates of every case")
@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("case,causal", [("threshold", True), ("square", False), ("topk", True)])
def test_tensor_descriptors_and_wide_tiles(monkeypatch, case, causal, tma):
    """Tiles of 128 keys, with two flags each; descriptors also of views, and of sizes that no tile divides."""
    monkeypatch.setattr(triton_configs, "forward", lambda _: [triton_configs.Config(64, 128, 4, 1, tma)])
    monkeypatch.setattr(triton_configs, "query", lambda _: [triton_configs.Config(64, 32, 4, 1, tma)])
    with_theta, options = plain.split(case)
    segments = torch.zeros(3, 140, dtype=torch.int64)
    segments[1, 70:] = 7
    options |= {"lengths": torch.tensor([140, 135, 0]), "segments": segments, "causal": causal}
    q, k, v, theta = plain.make(140, heads=1, width=20, values=12)
    theta += 2  # whole tiles without an edge
    k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    check((q, k, v, theta), torch.float32, with_theta, options)
    outside = torch.full(
        (3, 1, 150, 20), torch.nan
    )  # a descriptor that read beyond its tensor would bring NaN
    outside[:, :, :140] = k
    tensors = [x.float() for x in (q, k, v)]
    bias = theta.float() if with_theta else None
    expected = affinity_mix(*tensors, bias, **options)
    assert torch.equal(affinity_mix(tensors[0], outside[:, :, :140], tensors[2], bias, **options), expected)


@anywhere
@pytest.mark.parametrize(
    "tensor,fits",
    [
        (torch.zeros(2, 3, 5, 8), True),
        (torch.zeros(2, 5, 3, 8).transpose(1, 2), True),
        (torch.zeros(2, 3, 5, 16)[..., :7], True),
        (torch.zeros(1, 3, 5, 8).as_strided((1, 3, 5, 8), (0, 40, 8, 1)), False),
        (torch.zeros(2, 3, 5, 7), False),
        (torch.zeros(2, 3, 5, 16)[..., 3:11], False),
        (torch.zeros(2, 3, 8, 5).transpose(2, 3), False),
        (torch.zeros(2, 1, 5, 8).expand(2, 3, 5, 8), False),
        (torch.zeros(2, 3, 0, 8), False),
    ],
)
def test_what_a_tensor_descriptor_takes(tensor, fits):
    from glomo_kernels.affinity_mix.triton_launch import describable

    view = torch.zeros(tensor.untyped_storage().nbytes() // 4 + 64, dtype=torch.float16)
    assert describable(view.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())) == fits


@kernels
def test_float16_of_small_scores():
    """r / l, and with it the slopes of dk, grow as the scores shrink: beyond float16, where dk itself is not."""
    q, k, v, _ = (x.half() for x in plain.make(70, heads=1))
    results = []
    for dtype in (torch.float16, torch.float64):
        queries, keys, values = leaves(q * 1e-5, k, v, dtype=dtype)
        weights = dense_weights(queries, keys, None, kind="relu") if dtype == torch.float64 else None
        out = on_device(queries, keys, values) if weights is None else weights @ values
        results += torch.autograd.grad(out.sum(), keys)
    torch.testing.assert_close(results[0].double(), results[1], rtol=2e-3, atol=2e-3 * results[1].abs().max())


@kernels
@pytest.mark.parametrize("topk", [torch.tensor([1, 9, 2, 9, 3, 9])[::2], torch.tensor([2]).expand(3)])
def test_a_strided_topk(topk):
    q, k, v, _ = (x.float() for x in plain.make(9))
    topk = topk.to(DEVICE)
    mixed = on_device(q, k, v, kind="topk", topk=topk)
    assert torch.equal(mixed, on_device(q, k, v, kind="topk", topk=topk.clone()))


@kernels
def test_nan_spoils_its_row_and_no_other():
    q, k, v, theta = (x.float() for x in plain.make(9))
    q[1, 0, 4, 2] = torch.nan
    out = on_device(q, k, v, theta)
    assert out[1, 0, 4].isnan().all()
    out[1, 0, 4] = 0
    assert not out.isnan().any()


@kernels
@pytest.mark.parametrize("case", KINDS)
def test_nan_in_a_key_does_not_reach_rows_that_see_nothing(case):
    """Rows of padding, in a block with others that do."""
    with_theta, options = plain.split(case)
    q, k, v, theta = (x.float() for x in plain.make(130, heads=1))
    options |= {"lengths": torch.tensor([100, 130, 0]), "causal": False}
    if "topk" in options:
        options["topk"] = 3
    k[0, 0, 5] = torch.nan
    mixed = on_device(q, k, v, theta if with_theta else None, **options)
    assert mixed[0, 0, :100].isnan().all() and (mixed[0, 0, 100:] == 0).all() and mixed[1:].isfinite().all()


@kernels
def test_no_rows_and_no_samples():
    for shape in ((0, 2, 4, 5), (3, 2, 0, 5)):
        x = torch.zeros(shape, device=DEVICE, requires_grad=True)
        out = affinity_mix(x, x, x)
        out.sum().backward()
        assert out.shape == shape and x.grad.shape == shape


@anywhere
def test_reasons_against_triton(monkeypatch):
    q = torch.zeros(1, 1, 4, 5)
    monkeypatch.setattr(triton_device, "installed", lambda: False)
    assert triton_impl.why_not(q, q, q) == "triton is not installed"
    monkeypatch.setattr(triton_device, "installed", lambda: True)
    assert triton_impl.why_not(q, q, q) == "it takes CUDA tensors, these are on cpu"
    assert "'softmax' is not implemented" in triton_impl.why_not(q, q, q, kind="softmax")
    assert "float64 is not implemented" in triton_impl.why_not(*[q.double()] * 3)
    wide = torch.zeros(1, 1, 4, 257)
    assert "widths up to 256 are implemented, these are 257 and 5" in triton_impl.why_not(wide, wide, q)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_impl.why_not(q, q, q) is None
    assert "bfloat16 are wrong" in triton_impl.why_not(*[q.bfloat16()] * 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert triton_impl.why_not() == "there is no CUDA device"


@anywhere
@pytest.mark.parametrize(
    "capability,kilobytes", [((8, 0), 163), ((8, 9), 99), ((9, 0), 227), ((10, 0), 227), ((12, 0), 99)]
)
def test_candidates(capability, kilobytes):
    """There are always some, and all that a case offers cut the lists of live tiles alike."""
    widths = [16, 32, 64, 128, 256]
    kinds = ["relu", "square", "topk"]
    for width, values, kind, dtype in itertools.product(
        widths, widths, kinds, [torch.float32, torch.float16]
    ):
        case = triton_configs.Case(width, values, dtype, kind, capability, kilobytes * 1024)
        forward, query, key = (
            f(case) for f in (triton_configs.forward, triton_configs.query, triton_configs.key)
        )
        assert forward and query and key
        assert len({c.block_m for c in query}) == 1 and len({c.block_n for c in key}) == 1
        assert all(c.block_m % 64 == 0 and 64 % c.block_n == 0 for c in query)
        assert all(c.block_m % 64 == 0 and (64 % c.block_n == 0 or c.block_n == 128) for c in forward)
        assert all(c.block_n % 64 == 0 and 64 % c.block_m == 0 for c in key)
        if kind == "topk" and dtype == torch.float16:
            shapes = {c[:2] for c in (*forward, *query, *key, *triton_configs.topk(case))}
            assert (len(shapes) == 1) == triton_configs.topk_fits(case)
            assert len(shapes) == 1 or (kilobytes == 99 and max(width, values) == 256)


@anywhere
def test_forced_where_it_cannot_run(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    q = torch.zeros(1, 1, 4, 5)
    with pytest.raises(
        BackendUnavailable, match="GLOMO_KERNELS=triton: affinity_mix cannot run here: triton: "
    ):
        affinity_mix(q, q, q)


@anywhere
def test_triton_is_not_imported_for_cpu_tensors():
    code = """
import sys, torch, glomo_kernels
q = torch.randn(1, 1, 4, 5)
glomo_kernels.affinity_mix(q, q, q)
glomo_kernels.backends("affinity_mix")
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def gpu_inputs(units=300, dtype=torch.bfloat16, heads=4, width=64, values=64):
    q, k, v, theta = plain.make(units, heads=heads, width=width, values=values)
    return [x.to(DEVICE, dtype).requires_grad_() for x in (q * width**-0.5, k, v, theta)]


@pytest.mark.gpu
@pytest.mark.parametrize("widths", [(256, 64), (128, 128)])
def test_same_bits_on_every_run(widths, dtype):
    inputs = gpu_inputs(704, dtype, width=widths[0], values=widths[1])
    runs = []
    for _ in range(20):
        out = affinity_mix(*inputs)
        runs.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("widths", [(256, 64), (128, 128), (64, 64), (32, 16), (256, 256)])
def test_every_configuration(widths, dtype, monkeypatch):
    inputs = plain.make(200, heads=1, width=widths[0], values=widths[1])
    inputs[0].mul_(widths[0] ** -0.5)
    for name in ("forward", "query", "key"):
        choices = getattr(triton_configs, name)
        case = triton_impl._case(*(x.to(DEVICE, dtype) for x in inputs[:3]), "relu")
        for config in choices(case):
            with monkeypatch.context() as patch:
                patch.setattr(triton_configs, name, lambda _, config=config: [config])
                check(inputs, dtype, True, {"lengths": torch.tensor([200, 130, 0])})


@pytest.mark.gpu
def test_autotuned(dtype):
    """Outside of deterministic mode the best candidate is found by time."""
    torch.use_deterministic_algorithms(False)
    check(
        plain.make(200, heads=1, width=64, values=64), dtype, True, {"lengths": torch.tensor([200, 130, 0])}
    )


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31():
    """Samples 2^31 elements apart, and rows 2^23: offsets of both kinds pass 2^31."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(2, 1, 300, 16, dtype=torch.float64, generator=generator).to(DEVICE, torch.bfloat16)
    memory = torch.zeros(2**31 + 2**20, dtype=torch.bfloat16, device=DEVICE)
    far = memory.as_strided((2, 1, 300, 16), (2**31, 16, 16, 1))
    wide = memory.as_strided((1, 1, 257, 16), (0, 0, 2**23, 1))
    for strided, values in ((far, small), (wide, small[:1, :, :257])):
        strided.copy_(values)
        results = []
        for x in (values.contiguous(), strided):
            x = x.detach().requires_grad_()
            out = affinity_mix(x, x, x)
            results.append([out, *torch.autograd.grad(out, x, torch.ones_like(out))])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_descriptors_of_views(half):
    """Heads beside each other, and parts of one tensor: steps along T and H of which neither divides the other."""
    q, k, v, theta = (x.detach() for x in gpu_inputs(300, half))
    beside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    parts = torch.cat([q, k, v], -1).split(64, -1)
    assert not any(x.is_contiguous() for x in (*beside, *parts))
    results = []
    for tensors in ((q, k, v), beside, parts):
        inputs = [x.detach().requires_grad_() for x in tensors]
        out = affinity_mix(*inputs, theta)
        results.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.gpu
def test_autocast_does_not_reach_inside():
    inputs = gpu_inputs(dtype=torch.float32)
    expected = affinity_mix(*inputs)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(affinity_mix(*inputs), expected)


@pytest.mark.gpu
def test_on_a_stream_of_its_own():
    """Launches follow torch's current stream; results and gradients are those of the default one."""
    inputs = gpu_inputs(400)
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            out = affinity_mix(*inputs)
            results.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.multi_gpu
def test_on_the_second_device():
    inputs = [x.detach() for x in gpu_inputs()]
    expected = affinity_mix(*inputs)
    assert torch.cuda.current_device() == 0
    assert torch.equal(affinity_mix(*(x.to("cuda:1") for x in inputs)).cpu(), expected.cpu())


@pytest.mark.gpu
def test_compiles_as_one_graph():
    torch.use_deterministic_algorithms(False)
    inputs = gpu_inputs()

    def step(q, k, v, theta):
        mixed, stats = affinity_mix(q * 1, k, v, theta, return_stats=True)
        return mixed * 2, stats.edges

    eager, edges = step(*inputs)
    out, compiled_edges = torch.compile(step, fullgraph=True)(*inputs)
    torch.testing.assert_close(out, eager)
    assert torch.equal(edges, compiled_edges)
    grad = torch.ones_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(eager, inputs, grad)
    )


@pytest.mark.gpu
def test_runs_in_a_cuda_graph():
    torch.use_deterministic_algorithms(False)
    inputs = gpu_inputs()

    def step():
        out = affinity_mix(*inputs)
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    assert_the_same_in_a_cuda_graph(step)


@pytest.mark.gpu
def test_gradients_agree_with_the_reference_at_full_size(dtype):
    """The paper's widths, T 1000: against the reference backend in float64, on the device."""
    inputs = gpu_inputs(1000, dtype, heads=2, width=256, values=64)
    exact = leaves(*inputs, dtype=torch.float64)
    ours = affinity_mix(*inputs)
    upstream = torch.randn_like(ours)
    got = [ours, *torch.autograd.grad(ours, inputs, upstream)]
    os.environ[dispatch.VARIABLE] = "reference"  # the fixture restores it
    whole = affinity_mix(*exact)
    expected = [whole, *torch.autograd.grad(whole, exact, upstream.double())]
    for name, x, y in zip(("mixed", "dq", "dk", "dv", "dtheta"), got, expected, strict=True):
        error = (x.double() - y).abs().max().item()
        bound = 8 * torch.finfo(dtype).eps * max(1.0, y.abs().max().item())
        assert error <= bound, f"{name}: error {error:.2e}, bound {bound:.2e}"
