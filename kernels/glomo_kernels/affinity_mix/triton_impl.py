"""affinity_mix in Triton: forward, and a backward pass of two kernels without atomics.

kinds relu, square and topk; float32, bfloat16 and float16; widths up to 256. Triton is imported when a kernel is
first started.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from glomo_kernels import triton_device
from glomo_kernels.affinity_mix import triton_configs as configs
from glomo_kernels.scores import kept_size, live_shape

WIDEST = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    theta: Tensor | None = None,
    spans: Tensor | None = None,
    topk: Tensor | None = None,
    kind: str = "relu",
    stats: bool = False,
    keep: str = "nothing",
) -> str | None:
    if kind == "softmax":
        return "kind 'softmax' is not implemented in Triton (relu, square, topk are)"
    if q is not None and v is not None:
        if q.dtype not in DTYPES:
            return f"{q.dtype} is not implemented in Triton (float32, bfloat16, float16 are)"
        if max(q.shape[3], v.shape[3]) > WIDEST:
            return f"widths up to {WIDEST} are implemented, these are {q.shape[3]} and {v.shape[3]}"
        if triton_device.interpreted() and q.dtype in triton_device.WRONG_IF_INTERPRETED:
            return f"products in {q.dtype} are wrong in Triton's interpreter (TRITON_INTERPRET=1)"
    reason = triton_device.why_not(q)
    if reason is not None or kind != "topk" or q is None or k is None or v is None:
        return reason
    if configs.topk_fits(_case(q, k, v, kind)):
        return None
    return f"kind 'topk' with widths {q.shape[3]} and {v.shape[3]} is too large for this GPU's shared memory"


def _case(q: Tensor, k: Tensor, v: Tensor, kind: str) -> configs.Case:
    from glomo_kernels.affinity_mix.triton_launch import describable

    here = triton_device.interpreted()
    capability, shared = ((0, 0), 0) if here else triton_device.capability(q.device.index)
    return configs.Case(
        configs.padded(q.shape[3]),
        configs.padded(v.shape[3]),
        q.dtype,
        kind,
        capability,
        shared,
        capability[0] in (9, 10) and describable(k, v),
    )


def _shared_arguments(q: Tensor, k: Tensor, spans: Tensor, kind: str, topk: Tensor | None) -> dict[str, Any]:
    """Arguments of all the kernels but the lists': q, k, spans, the search of the k-th largest for kind topk."""
    from glomo_kernels.affinity_mix.triton_launch import bucket, launch, strides
    from glomo_kernels.affinity_mix.triton_topk import topk_kernel

    batch, heads, rows, width = q.shape
    arguments = {
        "q": q,
        "k": k,
        "spans": spans,
        **strides("q", q),
        **strides("k", k),
        "heads": heads,
        "rows": rows,
        "columns": k.shape[2],
        "bucket": bucket(rows, k.shape[2]),
        "DG": width,
        "PADDED_DG": configs.padded(width),
        "CHUNK": configs.chunk(q.dtype),
    }
    if topk is None:
        return {**arguments, "cut": spans, "last": spans, "KIND": kind}
    cut, last = (torch.empty(batch, heads, rows, dtype=torch.int32, device=q.device) for _ in range(2))
    launch(
        topk_kernel,
        lambda config: batch * heads * -(-rows // config.block_m),
        configs.topk(_case(q, k, k, kind)),
        q.device,
        {**arguments, "topk": topk.contiguous(), "cut": cut, "last": last},
    )
    return {**arguments, "cut": cut, "last": last, "KIND": kind}


def _value_arguments(v: Tensor, theta: Tensor | None, q: Tensor) -> dict[str, Any]:
    """Arguments of the kernels that mix: v and theta, in whose place q stands where there is none to read."""
    from glomo_kernels.affinity_mix.triton_launch import strides

    return {
        "v": v,
        "theta": q if theta is None else theta.contiguous(),
        **strides("v", v),
        "THETA": theta is not None,
        "DV": v.shape[3],
        "PADDED_DV": configs.padded(v.shape[3]),
    }


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    stats: bool,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As in reference.py; live is exact with and without stats, nothing is kept."""
    from glomo_kernels.affinity_mix.triton_forward import forward_kernel
    from glomo_kernels.affinity_mix.triton_launch import launch, unit_stride

    batch, heads, rows, _ = q.shape
    counted = (batch, heads, rows) if stats else (0,)
    mixed = q.new_empty(batch, heads, rows, v.shape[3])
    norm = q.new_empty(batch, heads, rows, dtype=torch.float32)
    edges = q.new_empty(counted, dtype=torch.int32)
    entropy = q.new_empty(counted, dtype=torch.float32)
    live = q.new_empty(live_shape(q, k), dtype=torch.uint8)
    kept = q.new_zeros(kept_size(q, k, keep), dtype=torch.float32)
    outputs = mixed, norm, edges, entropy, live, kept
    if norm.numel() == 0:
        return outputs
    q, k, v, spans = unit_stride(q), unit_stride(k), unit_stride(v), spans.contiguous()
    launch(
        forward_kernel,
        lambda config: batch * heads * -(-rows // config.block_m),
        configs.forward(_case(q, k, v, kind)),
        q.device,
        {
            **_shared_arguments(q, k, spans, kind, topk),
            **_value_arguments(v, theta, q),
            "mixed": mixed,
            "norm": norm,
            "edges": edges,
            "entropy": entropy,
            "live": live,
            "STATS": stats,
            "SCALED": q.dtype == torch.float16,
        },
    )
    return outputs


def _constant(programs: int, config: configs.Config) -> int:
    return programs


def _lists(
    live: Tensor, spans: Tensor, rows: int, columns: int, block_m: int, block_n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(lists, counts) of the live tiles by blocks of query rows, and by blocks of keys (triton_lists.py)."""
    from glomo_kernels.affinity_mix import triton_lists
    from glomo_kernels.affinity_mix.triton_launch import launch

    batch, heads, row_tiles, column_tiles = live.shape
    row_blocks, column_blocks = -(-rows // block_m), -(-columns // block_n)
    make = functools.partial(torch.empty, dtype=torch.int32, device=live.device)
    limits = make(batch, row_tiles, triton_lists.LIMITS.value)
    by_row, row_counts = make(batch, heads, row_blocks, column_tiles), make(batch, heads, row_blocks, 2)
    by_column, column_counts = (
        make(batch, heads, column_blocks, row_tiles),
        make(batch, heads, column_blocks, 2),
    )
    arguments = {
        "spans": spans,
        "live": live,
        "limits": limits,
        "heads": heads,
        "rows": rows,
        "columns": columns,
    }
    for kernel, programs, lists, counts in (
        (triton_lists.limits_kernel, batch * row_tiles, None, None),
        (triton_lists.row_lists_kernel, batch * heads * row_blocks, by_row, row_counts),
        (triton_lists.column_lists_kernel, batch * heads * column_blocks, by_column, column_counts),
    ):
        launch(
            kernel,
            functools.partial(_constant, programs),
            [configs.Config(block_m, block_n, warps=1, stages=1)],
            live.device,
            {**arguments, "lists": lists, "counts": counts},
        )
    return by_row, row_counts, by_column, column_counts


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    mixed: Tensor,
    norm: Tensor,
    live: Tensor,
    kept: Tensor,
    kind: str,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, theta (empty without theta): the same bits on every run."""
    from glomo_kernels.affinity_mix.triton_backward import key_kernel, query_kernel
    from glomo_kernels.affinity_mix.triton_launch import launch, strides, unit_stride

    batch, heads, rows, _ = q.shape
    columns = k.shape[2]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dtheta = q.new_empty(0) if theta is None else theta.new_empty(theta.shape)
    if norm.numel() == 0:
        return dq, dk.zero_(), dv.zero_(), dtheta
    q, k, v, grad = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(grad)
    spans, mixed, norm, live = (x.contiguous() for x in (spans, mixed, norm, live))
    case = _case(q, k, v, kind)
    query_configs, key_configs = configs.query(case), configs.key(case)
    by_row, row_counts, by_column, column_counts = _lists(
        live, spans, rows, columns, query_configs[0].block_m, key_configs[0].block_n
    )
    means, inverses, thresholds = (torch.empty_like(norm) for _ in range(3))
    arguments = {
        **_shared_arguments(q, k, spans, kind, topk),
        **_value_arguments(v, theta, q),
        "grad": grad,
        **strides("grad", grad),
        "norm": norm,
        "means": means,
        "inverses": inverses,
        "thresholds": thresholds,
    }
    launch(
        query_kernel,
        lambda config: batch * heads * -(-rows // config.block_m),
        query_configs,
        q.device,
        {
            **arguments,
            "mixed": mixed,
            "lists": by_row,
            "counts": row_counts,
            "dq": dq,
            "dtheta": norm if theta is None else dtheta,
            "SCALED": q.dtype == torch.float16,
            "EXACT": q.dtype == torch.float32,
        },
    )
    launch(
        key_kernel,
        lambda config: batch * heads * -(-columns // config.block_n),
        key_configs,
        q.device,
        {
            **arguments,
            "lists": by_column,
            "counts": column_counts,
            "dk": dk,
            "dv": dv,
            "SAME": configs.same(case),
            "SCALED": q.dtype == torch.float16,
        },
    )
    return dq, dk, dv, dtheta
