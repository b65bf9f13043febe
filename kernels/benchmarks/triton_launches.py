"""What the Triton kernels launch in one pass, and what such a launch takes on a GPU that is not here.

The launchers run with tensors that have no memory and with `launch` replaced by a recorder, so what is compiled is
what a call would have compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from machine_code import counts, work

# Bytes of shared memory that one program may take, from the CUDA programming guide.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class Request(NamedTuple):
    """One compilation. config: that of triton_configs.Config, or None for all candidates of the launcher."""

    kernel: str
    arch: int
    dtype: str
    width: int
    values: int
    kind: str = "relu"
    theta: bool = True
    stats: bool = False
    config: tuple[int, int, int, int, bool] | None = None


def _record(request: Request) -> list[tuple[Any, Any, dict[str, Any]]]:
    """(kernel, candidates, arguments) of all the launches of one forward and backward pass, T 2048."""
    import torch
    from glomo_kernels import triton_device
    from glomo_kernels.affinity_mix import triton_impl, triton_launch
    from glomo_kernels.scores import live_shape

    launches: list[tuple[Any, Any, dict[str, Any]]] = []
    triton_launch.launch = lambda kernel, _, candidates, __, arguments: launches.append(
        (kernel, candidates, arguments)
    )
    triton_device.capability = lambda _: (divmod(request.arch, 10), SHARED[request.arch])
    dtype = getattr(torch, request.dtype)
    q, k = (torch.empty(2, 8, 2048, request.width, dtype=dtype, device="meta") for _ in range(2))
    v = torch.empty(2, 8, 2048, request.values, dtype=dtype, device="meta")
    theta = torch.empty(2, 8, 2048, dtype=dtype, device="meta") if request.theta else None
    spans = torch.empty(2, 2048, 2, dtype=torch.int64, device="meta")
    topk = torch.empty(2, dtype=torch.int64, device="meta") if request.kind == "topk" else None
    norm = torch.empty(2, 8, 2048, device="meta")
    live = torch.empty(live_shape(q, k), dtype=torch.uint8, device="meta")
    triton_impl.forward(q, k, v, theta, spans, topk, request.kind, request.stats, "nothing")
    triton_impl.backward(v, q, k, v, theta, spans, topk, v, norm, live, norm, request.kind, "nothing")
    return launches


def candidates(request: Request) -> list[Any]:
    """The configurations that the kernel's launcher may choose."""
    return list(_launch(request)[1])


def _softmax(request: Request) -> tuple[Any, Any, dict[str, Any]]:
    """The launch of decoder_loss, 100,001 words: those of the paper and one for the unknown ones."""
    import torch
    from glomo_kernels.affinity_mix.triton_configs import Config
    from glomo_kernels.decoder_loss.triton_softmax import BLOCK, WARPS, softmax_kernel

    logits = torch.empty(2, 100_000, dtype=getattr(torch, request.dtype), device="meta")
    target, number = torch.empty(2, dtype=torch.int64, device="meta"), torch.empty(2, device="meta")
    arguments = {"logits": logits, "target": target, "peaks": number, "others": number, "likelihoods": number}
    arguments |= {"ignore_index": -100, "words": 100_001, "step": 100_032, "GRADS": True}
    return softmax_kernel, [Config(1, BLOCK, WARPS, 1)], arguments


def _launch(request: Request) -> tuple[Any, Any, dict[str, Any]]:
    if request.kernel == "softmax_kernel":
        return _softmax(request)
    found = [launch for launch in _record(request) if launch[0].__name__ == request.kernel]
    if not found:
        raise ValueError(f"no kernel {request.kernel!r} is started for {request}")
    return found[0]


def _source(kernel: Any, arguments: dict[str, Any], meta: dict[str, int | bool]) -> Any:
    """What the just-in-time compiler would derive from the arguments: types, constants, divisibility by 16."""
    import torch
    from glomo_kernels.affinity_mix.triton_launch import DESCRIBED
    from triton.compiler import ASTSource

    types = {
        torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
        torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8",
    }  # fmt: skip
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        value = meta[name] if name in meta else arguments[name]
        if (
            parameter.is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize)
        ):
            signature[name], constants[name] = "constexpr", value
        elif meta.get("TMA") and name in DESCRIBED:
            block = (1, 1, meta["BLOCK_N"], arguments[DESCRIBED[name]])
            signature[name] = f"tensordesc<{types[value.dtype]}{list(block)}>"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + types[value.dtype]
            hints[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if value < 1 << 31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                hints[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)


def compile_here(request: Request) -> dict[str, Any]:
    """Resources of one configuration. Takes seconds, and may end the process."""
    import triton
    from glomo_kernels.affinity_mix.triton_configs import TENSOR_MEMORY, Config
    from triton.backends.compiler import GPUTarget

    kernel, configs, arguments = _launch(request)
    config = Config(*request.config) if request.config else configs[0]
    compiled = triton.compile(
        _source(kernel, arguments, config.meta(kernel.arg_names)),
        target=GPUTarget("cuda", request.arch, 32),
        options={"num_warps": config.warps, "num_stages": config.stages},
    )
    if (columns := getattr(compiled.metadata, "tmem_size", 0)) > TENSOR_MEMORY:
        raise MemoryError(f"{columns} columns of tensor memory, there are {TENSOR_MEMORY}")
    return {
        "shared": compiled.metadata.shared,
        "work": work(compiled.asm["ttgir"]),
        **counts(compiled.asm["cubin"]),
    }
