"""What affinity_mix chooses on Triton: whether to run at all, tiles, descriptors, order of products, live tiles."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_affinity_mix as plain
import torch
from glomo_kernels import BackendUnavailable, affinity_mix, dispatch, triton_device
from glomo_kernels.affinity_mix import triton_configs, triton_impl
from glomo_kernels.spans import make_spans
from triton_cases import check, on_device, pytest_generate_tests
from triton_here import DEVICE, INTERPRETED, anywhere, kernels, run_interpreted

__all__ = ["on_device", "pytest_generate_tests"]  # for conftest.py and pytest: see there


@anywhere
def test_in_the_interpreter():
    run_interpreted(__file__)


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
@pytest.mark.parametrize(
    "case,causal,tma",
    [("threshold", True, False), ("threshold", True, True), ("square", False, True), ("topk", True, True)],
)
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


GPUS = {"sm_80": ((8, 0), 163), "sm_90": ((9, 0), 227), "sm_100": ((10, 0), 227), "desktop": ((8, 9), 99)}
WIDTHS = [(64, 64), (128, 128), (256, 64), (256, 256)]


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs its own candidates in all other tests")
@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize(
    "gpu,width,values,precision,case",
    [
        *((gpu, *widths, torch.bfloat16, "threshold") for gpu in GPUS for widths in WIDTHS),
        *(("sm_90", *widths, torch.float16, "threshold") for widths in WIDTHS),
        ("sm_90", 64, 64, torch.float32, "threshold"),  # the same on every GPU and for all widths
        *((gpu, 128, 64, torch.bfloat16, "topk") for gpu in GPUS),
    ],
    ids=str,
)
def test_every_candidate_of_a_gpu(monkeypatch, gpu, width, values, precision, case):
    """Its tiles, descriptors and chunks, and the dtype's roundings between them."""
    capability, kilobytes = GPUS[gpu]
    with_theta, options = plain.split(case)
    kind, new = options.get("kind", "relu"), capability[0] in (9, 10)
    offered = triton_configs.Case(width, values, precision, kind, capability, kilobytes * 1024, new)
    monkeypatch.setattr(triton_configs, "interpreted", lambda: False)
    monkeypatch.setattr(triton_configs, "same", lambda _: kind == "topk" or precision == torch.float32)
    monkeypatch.setattr(triton_impl, "_case", lambda *_: offered)
    choices = {name: getattr(triton_configs, name)(offered) for name in ("forward", "query", "key")}
    # Warps and stages are nothing to the interpreter.
    choices = {name: list({(c[:2], c.tma): c for c in found}.values()) for name, found in choices.items()}
    q, k, v, theta = (x[:1] for x in plain.make(150, heads=1, width=width, values=values))
    for i in range(max(map(len, choices.values()))):
        for name, found in choices.items():
            chosen = found[min(i, len(found) - 1)]
            monkeypatch.setattr(triton_configs, name, lambda _, chosen=chosen: [chosen])
        check(
            (q * width**-0.5, k, v, theta), precision, with_theta, {**options, "lengths": torch.tensor([131])}
        )


@pytest.mark.skipif(not INTERPRETED, reason="about the interpreter")
def test_bfloat16_of_the_interpreter_is_pytorchs():
    from triton_interpreter import rounded, widened

    size = torch.randn(10_000).mul(20).exp()
    edges = [0.0, -0.0, torch.inf, -torch.inf, 1e-40, 3.4e38, 1.00390625, 1.01171875]
    values = torch.cat([torch.randn(10_000) * size, torch.tensor(edges)])
    bits = rounded(values.numpy())
    assert torch.equal(torch.from_numpy(bits.view("int16")).view(torch.bfloat16), values.bfloat16())
    assert torch.equal(torch.from_numpy(widened(bits)), values.bfloat16().float())
    assert torch.from_numpy(widened(rounded(torch.tensor([torch.nan]).numpy()))).isnan()


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


@anywhere
def test_threads_that_tune_the_same_kernel_wait_for_each_other(tmp_path):
    """Triton's tuner keeps the arguments of a call in itself. Here a second call comes while the first is timed."""
    code = """
import host_time, torch
from concurrent.futures import ThreadPoolExecutor, wait
from triton.runtime import driver, jit

class Device(host_time.NoDevice):
    def get_benchmarker(self):
        def timed(call, quantiles=None):
            if not second:
                second.append(pool.submit(forward))
                wait(second, timeout=0.5)  # it takes 10 ms if nothing stops it
            return [call() or 1.0] * 3
        return timed

second = []
driver.set_active(Device())
jit.JITFunction._do_compile = host_time._compile
forward = host_time.calls()["forward"]
torch.use_deterministic_algorithms(True)
forward()  # nothing is tuned yet; what the first call prepares is there
torch.use_deterministic_algorithms(False)
with ThreadPoolExecutor() as pool:
    forward()
second[0].result()
"""
    folder = Path(__file__).parents[2] / "kernels" / "benchmarks"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
