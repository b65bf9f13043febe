"""The layers of the key and query CNNs: causal convolutions over words or pixels, their dropout and norm.

Shapes: B batch, T units, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class LockedDropout(nn.Module):
    """Dropout that drops the same features in every unit of a sequence. [B, T, d] -> [B, T, d]"""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.rate)


class CausalConv1d(nn.Module):
    """Conv1d + normalisation + ReLU in which unit i sees units i - kernel_size + 1 .. i. [B, T, d] -> same"""

    def __init__(self, width: int, kernel_size: int, norm: str) -> None:
        super().__init__()
        self.tail = kernel_size - 1
        self.conv = nn.Conv1d(width, width, kernel_size)
        self.norm: nn.Module = LayerNorm(width) if norm == "layer" else BatchNorm(width)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """before int64 [B, T]: units of its own document before each unit, where a row holds several documents."""
        T = x.shape[1]
        if before is not None:
            y = self._apart(x, before).transpose(1, 2)
        else:
            # The authors pad on both sides and cut after normalising, so the batch statistics include the tail.
            behind = self.tail if isinstance(self.norm, BatchNorm) else 0
            y = self.conv(F.pad(x.transpose(1, 2), (self.tail, behind)))
        return F.relu(self.norm(y)[:, :, :T]).transpose(1, 2)

    def _apart(self, x: Tensor, before: Tensor) -> Tensor:
        """The convolution with zeros before each document, as a product with the units that each unit sees."""
        seen = [
            F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * (before >= back)[:, :, None]
            for back in range(self.tail, -1, -1)
        ]
        weight = self.conv.weight.transpose(1, 2).flatten(1)  # [d, kernel_size * d]
        return F.linear(torch.cat(seen, dim=2), weight, self.conv.bias)


class CausalConv2d(nn.Module):
    """The same for pixels: a pixel sees only itself and its neighbours that come before it in raster order.

    The kernel covers the rows above and the current row up to the pixel itself. [B, T, d] -> [B, T, d]
    """

    mask: Tensor

    def __init__(self, width: int, kernel_size: int, norm: str, image: tuple[int, ...]) -> None:
        super().__init__()
        self.image = image
        self.side = kernel_size // 2
        rows = self.side + 1
        self.conv = nn.Conv2d(width, width, (rows, kernel_size))
        self.norm: nn.Module = LayerNorm(width) if norm == "layer" else BatchNorm(width)
        mask = torch.ones(rows, kernel_size)
        mask[-1, self.side + 1 :] = 0.0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, before: None = None) -> Tensor:
        """before: as for words; an image is a row of its own."""
        planes = x.transpose(1, 2).unflatten(2, self.image)
        planes = F.pad(planes, (self.side, self.side, self.side, 0))
        planes = F.conv2d(planes, self.conv.weight * self.mask.to(x.dtype), self.conv.bias)
        return F.relu(self.norm(planes)).flatten(2).transpose(1, 2)


class LayerNorm(nn.LayerNorm):
    """Over the features of each unit, the second dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class BatchNorm(_BatchNorm):
    """Over all dimensions but the second, in the dtype of its running statistics: DeepSpeed leaves these in float32
    where it makes the parameters bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance, batches = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and batches is not None and self.momentum is not None  # for the type checker
        if self.training:
            batches.add_(1)
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        y = F.batch_norm(
            x.to(mean.dtype), mean, variance, weight, bias, self.training, self.momentum, self.eps
        )
        return y.to(x.dtype)
