"""A reader for images: ResNet-18 over the planes [pixel ; M pixel].

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", with the stem that is usual for images of
32 x 32: one 3 x 3 convolution, no pooling. With 3 planes, hidden 64 and 10 classes it has 11,173,962 parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from glomo_dist.transfer.readers.models import Reader, ReaderSizes, planes
from glomo_dist.transfer.readers.sequences import Sequences

STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))  # times the hidden width, stride of the first block


class ResNetReader(Reader):
    """Image -> class logits [B, classes]; `hidden` is the width of the first stage, 64 in the paper."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        self.shape = sizes.shape
        layers: list[nn.Module] = [*_normed(sizes.width, sizes.hidden), nn.ReLU()]
        width = sizes.hidden
        for times, stride in STAGES:
            layers += [
                Block(width, times * sizes.hidden, stride),
                Block(times * sizes.hidden, times * sizes.hidden),
            ]
            width = times * sizes.hidden
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dropout = nn.Dropout(sizes.dropout)
        self.classify = nn.Linear(width, sizes.classes)

    def forward(self, image: Sequences) -> Tensor:
        # As it comes, the memory has the planes innermost, and for a few planes the CPU's backward of torch 2.13 then
        # writes where it must not (the process dies in malloc); in the usual order it does not.
        return self.classify(self.dropout(self.layers(planes(image, self.shape).contiguous())))


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; a 1 x 1 convolution there if width or size change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*_normed(inputs, outputs, stride), nn.ReLU(), *_normed(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(inputs, outputs, stride, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def _normed(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        _BatchNorm(outputs),
    )


class _BatchNorm(nn.BatchNorm2d):
    """Of one value per channel, an image alone in its batch at 1 x 1, there is no variance, and torch raises: it is
    normalised as in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
