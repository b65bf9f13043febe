"""Time that the host takes to launch affinity_mix's Triton kernels, with a driver that does nothing; no GPU needed.

    python kernels/benchmarks/host_time.py [--triton FOLDER]      FOLDER: with another Triton's package in it

Everything runs that would on an H200 but the compiler and the CUDA driver: checks of the call are left out, its
allocations are those of CPU tensors. B 2, H 8, T 200, widths 256/64, bfloat16; the median of 500 calls.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = 500


class NoDevice:
    """What Triton asks of its active driver before a launch."""

    utils = launcher_cls = None

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        return lambda call, quantiles=None: [call() or 1.0] * 3

    def get_device_interface(self) -> Any:
        import torch

        return torch.cuda


class NoKernel:
    packed_metadata, function = None, 0

    def run(self, *arguments: Any) -> None: ...

    def launch_metadata(self, *arguments: Any) -> None: ...

    def result(self) -> NoKernel:
        return self


def _compile(self: Any, key: Any, signature: Any, device: int, *others: Any) -> NoKernel:
    kernel = self.device_caches[device][0][key] = NoKernel()
    return kernel


def calls() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import torch
    from glomo_kernels import triton_device
    from glomo_kernels.affinity_mix import triton_impl

    triton_device.capability = lambda _: ((9, 0), 227 * 1024)
    q, k, v = (torch.empty(2, 8, 200, width, dtype=torch.bfloat16) for width in (256, 256, 64))
    theta, spans = torch.empty(2, 8, 200, dtype=torch.bfloat16), torch.empty(2, 200, 2, dtype=torch.int64)

    def forward() -> tuple[torch.Tensor, ...]:
        return triton_impl.forward(q, k, v, theta, spans, None, "relu", False, "nothing")

    def both() -> None:
        mixed, norm, _edges, _entropy, live, kept = forward()
        triton_impl.backward(mixed, q, k, v, theta, spans, None, mixed, norm, live, kept, "relu", "nothing")

    return {"forward": forward, "forward and backward": both}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triton", type=Path)
    options = parser.parse_args()
    if options.triton:
        sys.path.insert(0, str(options.triton))
    import torch
    import triton
    from triton.runtime import driver, jit

    driver.set_active(NoDevice())
    jit.JITFunction._do_compile = _compile
    print(f"Triton {triton.__version__}, torch {torch.__version__}, microseconds")
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False
        for name, call in calls().items():
            times = []
            for _ in range(CALLS):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            way = "first configuration" if deterministic else "tuned"
            print(f"{name:22} {way:20} {statistics.median(times) * 1e6:.0f}")


if __name__ == "__main__":
    main()
