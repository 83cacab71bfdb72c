"""Density regression on VGG19 features, the plain network; its parts serve vgg_trans too."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.pixels import COARSEST

# Output channels and number of 3x3 convolutions of the five blocks of VGG19 (Simonyan and Zisserman, ICLR 2015,
# configuration E); every block but the last ends in a 2x2 max pooling.
VGG19_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class Prediction(NamedTuple):
    """What the networks return.

    density [B, 1, H/8, W/8], >= 0: people in each cell; its sum is the count.
    attention: one softmax map [B, heads, L, L] for each attention layer, before dropout; () without attention.
    """

    density: torch.Tensor
    attention: tuple[torch.Tensor, ...]


def vgg19_features() -> nn.Sequential:
    """VGG19 up to its last block, without the fifth pooling: RGB [B, 3, H, W] -> [B, 512, H // 16, W // 16].

    Layers are numbered as in torchvision's `vgg19().features` and start at random as they do there (He et al. 2015,
    fan-out, zero biases).
    """
    layers: list[nn.Module] = []
    in_channels = 3
    for out_channels, convolutions in VGG19_BLOCKS:
        for _ in range(convolutions):
            convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.ReLU(inplace=True)]
            in_channels = out_channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1])


def regression_head() -> nn.Sequential:
    """[B, 512, h, w] -> [B, 1, h, w], of either sign."""
    return nn.Sequential(
        nn.Conv2d(512, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 128, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 1, 1),
    )


def check_images(images: torch.Tensor) -> None:
    """Raise ValueError unless `images` is [B, 3, H, W] with both sides long enough for one feature cell."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape [B, 3, H, W], got {list(images.shape)}")
    height, width = images.shape[-2:]
    if min(height, width) < COARSEST:
        raise ValueError(
            f"images must be at least {COARSEST} x {COARSEST} pixels, got {height} x {width}: enlarge or pad them"
        )


class VGG(nn.Module):
    """VGG19 features, upsampled by 2, and a regression head; the absolute value makes the density nonnegative.

    The upsampling doubles the feature map, so a side that is no multiple of 16 yields 2 * (side // 16) cells. `topk`
    and `usenum` shape nothing here; they are kept so that every model can be asked how it was built.
    """

    name = "vgg"

    def __init__(self, topk: float = 0.3, usenum: int = 18) -> None:
        super().__init__()
        self.topk, self.usenum = topk, usenum
        self.features = vgg19_features()
        self.reg_layer = regression_head()

    def forward(self, images: torch.Tensor) -> Prediction:
        """Normalised RGB [B, 3, H, W] -> Prediction; ValueError for another shape or a side under 16 pixels."""
        check_images(images)
        features = F.interpolate(self.features(images), scale_factor=2, mode="bilinear", align_corners=True)
        return Prediction(self.reg_layer(features).abs(), ())
