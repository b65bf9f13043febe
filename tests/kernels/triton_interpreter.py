"""Triton's interpreter with bfloat16 and float32's division as on a GPU, and faster.

The interpreter keeps a bfloat16 as the 16 bits of an integer. It multiplies these bits in `tl.dot`, and cuts a
float32 off where a GPU rounds it (Triton 3.6 to 3.7). It divides exactly, where a GPU takes the product with a
reciprocal that is a unit in the last place off: x / x need not be 1 (PTX's div.full; only `tl.div_rn` divides).
"""

import dataclasses
import functools

import numpy as np
import triton.language as tl
from glomo_kernels import triton_device
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of the bits of bfloat16 (uint16), exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 (uint16) of float32: to the nearest, of two as near to the even one; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def reciprocal(x: np.ndarray) -> np.ndarray:
    """Of float32; a unit in the last place too small, too large or neither, as the bits say. Powers of two: exact."""
    exact = np.float32(1) / x
    bits = x.view(np.int32)
    step = np.where((bits & 0x7FFFFF != 0) & np.isfinite(exact), bits % 3 - 1, 0)
    return (exact.view(np.int32) + step).astype(np.int32).view(np.float32)


def repair() -> None:
    """For this process. glomo_kernels takes bfloat16 there from then on."""
    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    plain_division = InterpreterBuilder.create_fdiv

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        a, b = (
            TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        )
        return plain_dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return TensorHandle(rounded(src.data), tl.bfloat16)
        return plain_cast(self, src, dst_type)

    def create_fdiv(self, a, b):
        if a.dtype.scalar != tl.float32:
            return plain_division(self, a, b)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return TensorHandle(a.data * reciprocal(b.data), a.dtype.scalar)

    def get_bf16(self, value):
        return TensorHandle(rounded(np.array([value], np.float32)), tl.bfloat16)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    InterpreterBuilder.create_fdiv = create_fdiv
    InterpreterBuilder.get_bf16 = get_bf16  # it has none
    triton_device.WRONG_IF_INTERPRETED = ()


def speed_up() -> None:
    """For this process. At every call of a device function the interpreter goes through all of triton.language, to
    find it patched: two fifths of its time. Once per launch and module is enough."""
    plain_patch, plain_launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched = set()

    def patch(fn):
        if fn.__module__ in patched:
            return None
        patched.add(fn.__module__)
        return plain_patch(fn)

    def launch(self, *args, **kwargs):
        patched.clear()
        return plain_launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, launch

    of_number = functools.cache(interpreter._get_np_dtype)  # which makes a table at every call

    def of_any(type):
        return np.dtype(np.uint64) if type.scalar.is_ptr() else of_number(type.scalar)

    interpreter._get_np_dtype = of_any

    # It works out whether an integer sum overflows, and then says so only where `debug` is on, which it is not.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
