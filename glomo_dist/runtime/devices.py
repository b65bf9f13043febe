"""Where a predictor or a task model computes: the processor, or a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from glomo_dist.runtime.errors import ConfigError

Device = Literal["cpu", "cuda"]


def require_device(device: Device) -> None:
    """ConfigError where there is no such device."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "PyTorch finds none" if built else f"this PyTorch ({torch.__version__}) is built without CUDA"
        raise ConfigError(
            f"a GPU is asked for, and {why}. Without --device cuda and --job-gpus all is computed on the processor; "
            "`glomo doctor` says what is here."
        )


@contextlib.contextmanager
def in_float32(device: str) -> Iterator[None]:
    """Within it a GPU convolves, and runs recurrent layers, in float32, as it multiplies matrices and as a processor
    does. cuDNN would cut the factors to the 11 bits of TF32, and with them weights of graphs change by percents."""
    if device == "cpu":
        yield
        return
    import torch

    cudnn: Any = torch.backends.cudnn  # of which mypy knows the older names alone
    of_both = cudnn.conv, cudnn.rnn
    before = [of.fp32_precision for of in of_both]
    try:
        for of in of_both:
            of.fp32_precision = "ieee"
        yield
    finally:
        for of, precision in zip(of_both, before, strict=True):
            of.fp32_precision = precision
