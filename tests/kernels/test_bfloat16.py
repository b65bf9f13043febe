"""Products of bfloat16 by the processor's own instructions (kernels/csrc/bfloat16.h), where it has them.

Those of AVX512_BF16 on a processor with AMX: GLOMO_SIMD=avx512_bf16 pytest tests/kernels/test_bfloat16.py
"""

import os
import subprocess
import sys

import pytest
import test_affinity_mix as mix
import torch
from glomo_kernels import affinity_mix, cpu_extension
from glomo_kernels.scores import KEEP
from kernel_oracle import SPANS, gradients, leaves, of_processor, spans_of

HALF = torch.bfloat16
pytestmark = [
    pytest.mark.usefixtures("nan_memory", "backend"),
    pytest.mark.parametrize("backend", ["cpp"], indirect=True),
]

needs_instructions = pytest.mark.skipif(
    not cpu_extension.loaded().bfloat16(),
    reason="this processor has no such products, or GLOMO_SIMD forbids them",
)


def inputs_of(units, width=64, values=32, **sizes):
    """As those of the other dtypes, with scores of the size of 1."""
    q, k, v, theta = mix.make(units, width=width, values=values, **sizes)
    return q / width**0.25, k / width**0.25, v, theta


def differentiated(inputs, **options):
    q, k, v, theta = inputs
    out = affinity_mix(q, k, v, theta, **options)
    return [out, *gradients(out, [q, k, v, theta])]


def at_an_odd_address(x):
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


# T on both sides of what is multiplied at once: 16 rows, 32 units of depth, blocks of 64.
@needs_instructions
@pytest.mark.parametrize("units", [1, 2, 15, 16, 17, 33, 63, 64, 65, 130, 200])
@pytest.mark.parametrize("width,values", [(32, 32), (256, 64), (33, 16), (1, 200)])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
def test_agrees_with_dense_formula(units, width, values, causal):
    lengths = torch.tensor([units, 0, (units + 1) // 2])
    options = {"kind": "relu", "lengths": lengths, "causal": causal}
    mix.compare(mix.both(inputs_of(units, width, values), HALF, True, options))


@needs_instructions
@pytest.mark.parametrize("case", ["relu", "square"])
@pytest.mark.parametrize("option", SPANS)
def test_kinds_and_spans(case, option):
    with_theta, kind = mix.split(case)
    rows, where = spans_of(option, 150)
    mix.compare(mix.both(inputs_of(150, rows=rows), HALF, with_theta, {**kind, **where}))


@needs_instructions
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("above", [3.0, 1.5, 1.0, 0.0], ids=["hardly any", "a fifteenth", "a sixth", "half"])
def test_few_and_many_edges(monkeypatch, above, keep):
    """Without AMX a tile of few edges goes over these alone in the backward pass, beside tiles of many."""
    monkeypatch.setattr(sys.modules["glomo_kernels.affinity_mix"], "_keep", lambda *tensors: keep)
    q, k, v, theta = inputs_of(220)
    k[:, :, 64:128] *= 3
    theta = torch.full_like(theta, above)
    options = {"lengths": torch.tensor([220, 150, 3])}
    mix.compare(mix.both((q, k, v, theta), HALF, True, options))
    mix.compare(mix.both((q, k, v, theta), HALF, True, {"causal": False}))


@needs_instructions
@pytest.mark.parametrize(("topk", "causal"), [(1, True), (5, True), (45, False)])
def test_the_largest_are_those_of_exact_scores(topk, causal):
    """The scores are sums in float32 of exact products, as those of the same numbers in float32 are."""
    inputs = leaves(*inputs_of(150), dtype=HALF)
    options = {"kind": "topk", "topk": topk, "causal": causal}
    out, stats = affinity_mix(*inputs[:3], **options, return_stats=True)
    single = leaves(*inputs[:3], dtype=torch.float32)
    expected, wanted = affinity_mix(*single, **options, return_stats=True)
    assert torch.equal(stats.edges, wanted.edges) and torch.equal(stats.live, wanted.live)
    torch.testing.assert_close(stats.row_sum, wanted.row_sum, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    ours, theirs = gradients(out, inputs[:3]), gradients(expected, single)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.03, atol=0.03 * float(b.abs().max()))


@needs_instructions
def test_statistics_are_those_of_float32():
    q, k, v, theta = leaves(*inputs_of(140), dtype=HALF)
    options = {"lengths": torch.tensor([140, 0, 77]), "return_stats": True}
    _, stats = affinity_mix(q, k, v, theta, **options)
    _, wanted = affinity_mix(q.float(), k.float(), v.float(), theta.float(), **options)
    assert torch.equal(stats.edges, wanted.edges) and torch.equal(stats.live, wanted.live)
    torch.testing.assert_close(stats.row_sum, wanted.row_sum, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stats.entropy, wanted.entropy, rtol=1e-4, atol=1e-5)


@needs_instructions
def test_a_row_of_one_edge_is_its_value_and_one_of_none_is_zero():
    q, k, v, _ = leaves(*inputs_of(100), dtype=HALF)
    scores = (q.float() @ k.float().mT).detach()
    seen = torch.ones(100, 100, dtype=torch.bool).tril(-1)
    two = scores.masked_fill(~seen, -torch.inf).topk(2).values
    theta = two.mean(-1)  # between the largest and the second one
    theta[:, :, 1] = two[:, :, 1, 0] - 0.5  # that row sees one key
    theta[:, :, 50:60] = 1e4
    out = affinity_mix(q, k, v, theta)
    best = scores.masked_fill(~seen, -torch.inf).argmax(-1)
    expected = v.gather(2, best[..., None].expand(-1, -1, -1, 32)).detach().clone()
    expected[:, :, 0] = expected[:, :, 50:60] = 0
    assert torch.equal(out, expected)
    dq, dk, _ = gradients(out, [q, k, v])
    assert not dq.any() and not dk.any()  # the weight of the only edge is 1, whatever its score


@needs_instructions
def test_any_layout():
    q, k, v, theta = (x.to(HALF) for x in inputs_of(70))
    inputs = leaves(q, k, v, theta, dtype=HALF)
    expected = differentiated(inputs)
    across = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    odd = [torch.cat([x, x[..., :1]], -1)[..., :-1] for x in (q, k, v)]  # rows at odd distances
    wide = [torch.stack([x, x], -1)[..., 0] for x in (q, k, v)]
    shifted = [at_an_odd_address(x) for x in (q, k, v)]
    for matrices in (across, odd, wide, shifted):
        moved = [x.requires_grad_() for x in (*matrices, theta.clone())]
        assert all(torch.equal(a, b) for a, b in zip(differentiated(moved), expected, strict=True))
    out = affinity_mix(*inputs)
    equal = torch.ones((), dtype=HALF).expand_as(out)
    for got, wanted in zip(
        torch.autograd.grad(out, inputs, equal, retain_graph=True),
        torch.autograd.grad(out, inputs, equal.contiguous()),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@needs_instructions
@pytest.mark.parametrize("units", [50, 200])
@pytest.mark.parametrize("more", [0, 2], ids=["many edges", "few"])
def test_any_number_of_threads_gives_the_same_bits(units, more):
    """More heads than the threads have places for."""
    q, k, v, theta = inputs_of(units, heads=4)
    inputs = leaves(q, k, v, theta + more, dtype=HALF)
    options = {"lengths": torch.tensor([units, units // 3, units - 1])}
    results = []
    for threads in (1, 2, 5, 64):
        torch.set_num_threads(threads)
        results.append(differentiated(inputs, **options))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@needs_instructions
def test_sums_wait_for_all_heads_that_had_their_place():
    """Of three heads in the same place the second one has no edge, and nobody in it waits for the first. With more
    threads than processors some stop in between, so that the third one comes early."""
    threads = 8
    inputs = leaves(*inputs_of(64, 256, 256, heads=2 * threads), dtype=HALF)
    inputs = [x.detach().repeat(3, 1, 1, *[1] * (x.ndim - 3)).requires_grad_() for x in inputs]
    options = {"lengths": torch.tensor([64, 0, 64]).repeat(3), "causal": False}
    torch.set_num_threads(1)
    expected = differentiated(inputs, **options)
    torch.set_num_threads(threads)
    for _ in range(20):
        got = differentiated(inputs, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@needs_instructions
def test_scores_that_are_kept_and_computed_again_give_the_same_gradients(monkeypatch):
    inputs = leaves(*inputs_of(150), dtype=HALF)
    again = {"lengths": torch.tensor([150, 149, 1])}
    results = {}
    for keep in KEEP:
        module = sys.modules["glomo_kernels.affinity_mix"]
        monkeypatch.setattr(module, "_keep", lambda *x, keep=keep: keep)
        results[keep] = differentiated(inputs, **again)
    for name in ("nothing", "edges"):
        for a, b in zip(results["roots"], results[name], strict=True):
            if name == "nothing" or cpu_extension.loaded().bfloat16() == "amx":
                assert torch.equal(a, b)
            else:  # scores of edges by themselves are other sums in float32
                torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.detach().abs().max()))


@needs_instructions
def test_dead_tiles_and_keys_that_nobody_looks_at():
    q, k, v, theta = inputs_of(300)
    theta[:, :, 64:192] = 1e3
    k[:, :, 128:192] = 0
    mix.compare(mix.both((q, k, v, theta.abs() + 0.1), HALF, True, {"lengths": torch.tensor([300, 10, 129])}))


@needs_instructions
def test_nan_spoils_its_row():
    q, k, v, theta = (x.to(HALF) for x in inputs_of(90))
    whole = affinity_mix(q, k, v, theta)
    q[1, 0, 40, 3] = torch.nan
    out = affinity_mix(q, k, v, theta)
    assert out[1, 0, 40].isnan().all()
    out[1, 0, 40] = whole[1, 0, 40]
    assert torch.equal(out, whole)


@needs_instructions
def test_a_key_of_no_weight_for_its_infinity_spoils_no_other():
    """Nor its own gradient; places of rows that a block does not have hold 0 times infinity."""
    q, k, v, _ = leaves(*(x.abs() + 0.1 for x in inputs_of(5)), dtype=HALF)
    with torch.no_grad():
        k[:, :, 2] = -torch.inf
    out = affinity_mix(q, k, v, causal=False)
    _, dk, dv = gradients(out, [q, k, v])
    assert out.isfinite().all() and dk.isfinite().all() and dv.isfinite().all()
    assert not dk[:, :, 2].any() and not dv[:, :, 2].any()


@needs_instructions
def test_pytorchs_products_beside_ours():
    """Both use the processor's tiles, each in its own shape."""
    a, b = (torch.randn(200, 200).to(HALF) for _ in range(2))
    inputs = [x.to(HALF) for x in inputs_of(100)]
    product, mixed = a @ b, affinity_mix(*inputs)
    for _ in range(5):
        assert torch.equal(affinity_mix(*inputs), mixed)
        assert torch.equal(a @ b, product)


TRIED = """
import torch
from glomo_kernels import affinity_mix, cpu_extension, decoder_loss
torch.manual_seed(0)
q, k, v = (torch.randn(2, 3, 150, 64).bfloat16().requires_grad_() for _ in range(3))
out = affinity_mix(q, k, v, torch.full((2, 3, 150), 4.0))
loss = decoder_loss(q.flatten(0, 2), k.flatten(0, 2), torch.arange(900), reduction="mean")
gradients = torch.autograd.grad(out.float().square().sum() + loss, [q, k, v])
torch.save([cpu_extension.loaded().bfloat16(), [out.detach(), loss.detach().bfloat16(), *gradients]], "{file}")
"""


def test_instructions_of_amd_are_taken_without_being_asked_for():
    if "avx512_bf16" not in of_processor("flags") or "amx_bf16" in of_processor("flags"):
        pytest.skip("this processor has no AVX512_BF16, or AMX")
    environment = {name: value for name, value in os.environ.items() if name != "GLOMO_SIMD"}
    code = "from glomo_kernels import cpu_extension; print(cpu_extension.loaded().bfloat16())"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    wanted = "avx512_bf16" if of_processor("vendor_id") == ["AuthenticAMD"] else ""
    assert said.stdout.strip() == wanted


@pytest.mark.parametrize("name", ["avx512", "avx512_bf16", "amx"])
def test_instructions_of_other_machines(tmp_path, name):
    """In processes of their own. avx512 stands for all that have none: float32's products."""
    if name != "avx512" and {"avx512_bf16": "avx512_bf16", "amx": "amx_bf16"}[name] not in of_processor(
        "flags"
    ):
        pytest.skip(f"this processor has no {name}")
    results = []
    for set_to in (name, "avx2"):
        file = tmp_path / set_to
        environment = {**os.environ, "GLOMO_SIMD": set_to, "GLOMO_KERNELS": "cpp"}
        subprocess.run([sys.executable, "-c", TRIED.format(file=file)], check=True, env=environment)
        results.append(torch.load(file, weights_only=True))
    (used, ours), (none, wanted) = results
    assert used == ("" if name == "avx512" else name) and none == ""
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))
