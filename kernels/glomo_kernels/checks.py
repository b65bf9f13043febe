"""Checks of arguments that several ops share; every error names the argument.

Checks of values (lengths, positions, top-k counts) read the tensor, so they run on CPU tensors only and not
under torch.compile: elsewhere they would stall the device.
"""

from __future__ import annotations

import contextlib
import numbers
from operator import index
from typing import Any

import torch
from torch import Tensor

from glomo_kernels import autocast
from glomo_kernels.scores import compute_dtype

KINDS = ("relu", "square", "topk", "softmax")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATING_NAMES = "floating point (float16, bfloat16, float32 or float64)"


def shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def has_shape(tensor: Tensor, *shapes: tuple[int, ...]) -> bool:
    """One of `shapes`. Not by `in`: with sizes that vary, torch.compile finds no fixed shape among them."""
    return any(shape(tensor) == expected for expected in shapes)


def readable(tensor: Tensor) -> bool:
    """Whether looking at values costs nothing: a CPU tensor outside of tracing, with something in it."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False  # others, such as those that only know their shape, may have no values
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False  # vmap's: each has a batch of them
    return tensor.device.type == "cpu" and tensor.numel() > 0


def alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they are, or under autocast, where their dtypes differ, all in autocast's, as for torch's own
    products: a projection gives bfloat16 there, and a parameter is float32."""
    dtypes = {getattr(x, "dtype", None) for x in tensors}
    if len(dtypes) == 1 or not dtypes <= {torch.float16, torch.bfloat16, torch.float32}:
        return tensors
    device = tensors[0].device
    if not autocast.enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device.type)) for x in tensors)


def check_whole(op: str, name: str, value: Any, expected: str = "a whole number", low: int = -(2**63)) -> int:
    """value as an int from `low` on that fits 64 bits; numpy's are whole numbers, too."""
    number: Any = None
    with contextlib.suppress(TypeError):
        number = value if isinstance(value, (int, torch.SymInt)) else index(value)
    # a size that varies fits; a comparison would bind it
    fits = number is not None and low <= number and (torch.compiler.is_compiling() or number < 2**63)
    if isinstance(value, bool) or not fits:
        raise ValueError(f"{op}: {name} must be {expected}, got {value!r}")
    return number  # type: ignore[no-any-return]


def check_bool(op: str, name: str, value: Any) -> None:
    if not isinstance(value, (bool, torch.SymBool)):
        raise ValueError(f"{op}: {name} must be True or False, got {value!r}")


def check_integers(
    op: str, name: str, tensor: Tensor, shapes: tuple[tuple[int, ...], ...], device: torch.device
) -> None:
    """An int64 tensor on `device`, of one of `shapes`."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
        came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{op}: {name} must be an int64 tensor, got {came}")
    check_tensors(op, **{name: tensor})
    if not has_shape(tensor, *shapes):
        raise ValueError(f"{op}: {name} must be {' or '.join(map(str, shapes))}, got {shape(tensor)}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device} like the other tensors, got {tensor.device}")


def check_tensors(op: str, **tensors: object) -> None:
    """Dense tensors of this process, whatever their shapes and dtypes."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.is_nested:  # whatever its layout
            raise ValueError(
                f"{op}: {name} must be a dense tensor, got a nested one: use torch.nested.to_padded_tensor(x, 0.0), "
                "and lengths where the op takes them"
            )
        if tensor.layout != torch.strided:
            raise ValueError(
                f"{op}: {name} must be a dense tensor, got layout {tensor.layout}: use to_dense()"
            )
        if hasattr(tensor, "device_mesh"):  # not isinstance: that imports torch.distributed
            raise ValueError(
                f"{op}: {name} must be a tensor of this process, got a DTensor: call the op on the local parts, by "
                "torch.distributed.tensor.experimental.local_map (shards of samples or heads) or to_local()"
            )


def check_scores(op: str, q: Tensor, k: Tensor, theta: Tensor | float | None, kind: str) -> Tensor | None:
    """Checks all four; theta as [B, H, Tq], one number for all spread out, or None."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_tensors(op, q=q, k=k)
    if isinstance(theta, bool) or not (
        theta is None or isinstance(theta, (Tensor, int, float, numbers.Real))
    ):
        raise ValueError(f"{op}: theta must be a tensor or a number, got {theta!r}")
    if isinstance(theta, (int, float, numbers.Real)):
        number = theta if isinstance(theta, int) else float(theta)  # an int may be too large for a float
        dtype = compute_dtype(q)
        # compiled code may not know a number yet; a comparison would bind it
        if not torch.compiler.is_compiling() and torch.finfo(dtype).max < abs(number) < torch.inf:
            raise ValueError(f"{op}: theta must be within the range of {dtype}, got {theta!r}")
        # not torch.tensor: that copies from the host, which waits for the device and no CUDA graph can capture
        theta = torch.full((), float(number), dtype=dtype, device=q.device)
    if theta is not None:
        check_tensors(op, theta=theta)
    if q.ndim != 4:
        raise ValueError(f"{op}: q must be [B, H, Tq, Dg], got {shape(q)}")
    if q.dtype not in FLOATING:
        raise ValueError(f"{op}: q must be {FLOATING_NAMES}, got {q.dtype}")
    expected = (q.shape[0], q.shape[1], "T", q.shape[3])
    if k.ndim != 4 or shape(k)[:2] != shape(q)[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(f"{op}: k must be {expected} to go with q {shape(q)}, got {shape(k)}")
    same_kind(op, "q", q, "k", k)
    if theta is None:
        return None
    if kind != "relu":
        raise ValueError(f"{op}: theta is only used by kind 'relu', got it with kind {kind!r}")
    if not has_shape(theta, shape(q)[:3], ()):
        raise ValueError(
            f"{op}: theta must be {shape(q)[:3]} to go with q {shape(q)}, or a scalar, got {shape(theta)}"
        )
    if theta.dtype not in FLOATING or theta.device != q.device:
        raise ValueError(
            f"{op}: theta must be {FLOATING_NAMES} on {q.device}, got {theta.dtype} on {theta.device}"
        )
    return theta.expand(q.shape[:3])


def same_kind(op: str, model: str, like: Tensor, name: str, other: Tensor) -> None:
    """`other` has the dtype and the device of `like`. model: the name of `like`."""
    if other.dtype != like.dtype or other.device != like.device:
        raise ValueError(
            f"{op}: {name} must be {like.dtype} on {like.device} like {model}, got {other.dtype} on {other.device}"
        )


def check_lengths(op: str, lengths: Tensor | None, batch: int, columns: int, device: torch.device) -> None:
    """int64 [B], each in 0..T."""
    if lengths is None:
        return
    check_integers(op, "lengths", lengths, ((batch,),), device)
    if readable(lengths) and not (int(lengths.min()) >= 0 and int(lengths.max()) <= columns):
        raise ValueError(
            f"{op}: lengths must lie in 0..T={columns}, got {int(lengths.min())}..{int(lengths.max())}"
        )


def check_segments(op: str, segments: Tensor | None, batch: int, columns: int, device: torch.device) -> None:
    """int64 [B, T]; equal numbers must stand side by side."""
    if segments is None:
        return
    check_integers(op, "segments", segments, ((batch, columns),), device)
    if readable(segments):
        for sample, row in enumerate(segments):
            documents = row.unique_consecutive()
            if len(documents.unique()) != len(documents):
                raise ValueError(
                    f"{op}: segments of sample {sample} return to an earlier number; equal numbers "
                    "must stand side by side"
                )


def check_positions(
    op: str, positions: Tensor | None, batch: int, rows: int, columns: int, device: torch.device
) -> Tensor | None:
    """positions as [B, Tq]; None (all units) needs as many query rows as keys."""
    if positions is None:
        if rows != columns:
            raise ValueError(
                f"{op}: q has {rows} rows and k {columns}; with Tq != T give positions (the unit of each row)"
            )
        return None
    check_integers(op, "positions", positions, ((rows,), (batch, rows)), device)
    if readable(positions) and not (int(positions.min()) >= 0 and int(positions.max()) < columns):
        raise ValueError(
            f"{op}: positions must lie in 0..{columns - 1} (T={columns}), "
            f"got {int(positions.min())}..{int(positions.max())}"
        )
    return positions.expand(batch, rows)


def check_topk(
    op: str, topk: int | Tensor | None, kind: str, batch: int, device: torch.device
) -> Tensor | None:
    """topk as int64 [B]; given exactly when kind is 'topk'."""
    if (topk is None) == (kind == "topk"):
        what = f"got kind {kind!r} and topk={topk!r}"
        hint = "say how many edges a row keeps, e.g. topk=8" if topk is None else "leave topk out"
        raise ValueError(f"{op}: topk goes with kind 'topk' and no other, {what}: {hint}")
    if topk is None:
        return None
    if isinstance(topk, bool) or not isinstance(topk, (Tensor, int, numbers.Integral)):
        raise ValueError(f"{op}: topk must be a whole number or an int64 tensor, got {topk!r}")
    if isinstance(topk, (int, numbers.Integral)):
        if not 1 <= topk < 2**63:
            raise ValueError(f"{op}: topk must be at least 1 and below 2^63, got {topk}")
        return torch.full((batch,), int(topk), dtype=torch.int64, device=device)
    check_integers(op, "topk", topk, ((batch,),), device)
    if readable(topk) and int(topk.min()) < 1:
        raise ValueError(f"{op}: topk must be at least 1 everywhere, got {int(topk.min())}")
    return topk
