"""Starting values for the VGG19 features: ImageNet weights, or a VGG19 or VGG16 file of several kinds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from models.vgg import VGG19_BLOCKS
from models.weights import read_state_dict
from utils.pixels import IMAGENET_MEAN, IMAGENET_STD

Convolutions = list[tuple[torch.Tensor, torch.Tensor]]  # weight [out, in, 3, 3] and bias [out], in network order

MEAN, STD = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)  # of RGB in 0..1
CAFFE_MEAN = torch.tensor((123.68, 116.779, 103.939))  # of RGB in 0..255

# Convolutions in each block. VGG16 lacks the last one of blocks 3 to 5.
DEPTHS = {"VGG16": (2, 2, 3, 3, 3), "VGG19": tuple(depth for _, depth in VGG19_BLOCKS)}


def load_backbone(model: nn.Module, source: str | os.PathLike) -> None:
    """Fill `model.features`; everything else in the model stays as it is.

    source: "imagenet" (torchvision's VGG19, downloaded once), "none" (leave the random start), or a file:
    a PyTorch state_dict of VGG19 or VGG16, whole or its features alone ("features.0.weight" or "0.weight"; other layers
    are ignored), or a Keras VGG16 in HDF5 (see `_read_keras`). VGG16 is deepened to VGG19 without changing what it
    computes: the missing convolutions become identities, which are exact since a ReLU precedes them.

    Raises OSError (no download, no file) or ValueError (a file of another kind), one line each; the model is then
    unchanged.
    """
    if source == "none":
        return
    if source == "imagenet":
        convolutions = _from_state_dict(_download_imagenet(), "torchvision's VGG19")
    elif not Path(source).is_file():
        raise FileNotFoundError(f'{source}: no such backbone file, give a VGG19 or VGG16 file, "imagenet" or "none"')
    elif h5py.is_hdf5(source):
        convolutions = _read_keras(source)
    else:
        convolutions = _from_state_dict(read_state_dict(source), source)
    layers = [layer for layer in model.features if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, _deepen(convolutions), strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def _download_imagenet() -> dict[str, torch.Tensor]:
    """torchvision's VGG19, from torch's cache or else the internet; OSError if neither gives it whole."""
    from torchvision.models import VGG19_Weights  # takes as long to import as all the rest together

    weights = VGG19_Weights.IMAGENET1K_V1
    file = weights.url.rsplit("/", 1)[-1]
    try:
        return weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # offline, blocked, cut short, no room, damaged in the cache: each raises another kind
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        cached = Path(torch.hub.get_dir(), "checkpoints", file)
        raise OSError(
            f"cannot get {file} from {weights.url} or {cached} ({reason}): "
            "fetch it elsewhere and pass it with --backbone-weights PATH"
        ) from None


def _checked(source: str | os.PathLike, layers: Sequence[dict[str, torch.Tensor | None]]) -> Convolutions:
    """The convolutions, each as its weight and bias by their names, if they are VGG19's or VGG16's; ValueError otherwise."""
    network = next((name for name, depths in DEPTHS.items() if len(layers) == sum(depths)), None)
    if network is None:
        raise ValueError(
            f"{source}: its layers are those of neither VGG19 nor VGG16 (without batch normalisation), "
            "use torchvision's vgg19 or vgg16 weights"
        )
    outputs = [n for (n, _), depth in zip(VGG19_BLOCKS, DEPTHS[network], strict=True) for _ in range(depth)]
    for layer, before, after in zip(layers, [3, *outputs], outputs):
        for (name, tensor), expected in zip(layer.items(), ([after, before, 3, 3], [after])):
            if tensor is None:
                raise ValueError(f"{source}: {name} is missing, use the complete weights of a VGG19 or VGG16")
            if list(tensor.shape) != expected:
                raise ValueError(
                    f"{source}: {name} has shape {list(tensor.shape)}, VGG needs {expected}: "
                    "use the weights of an unmodified VGG19 or VGG16"
                )
    return [tuple(layer.values()) for layer in layers]


def _from_state_dict(state: dict[str, torch.Tensor], source: str | os.PathLike) -> Convolutions:
    """The convolutions of torchvision's VGG19 or VGG16; which of the two follows from their number."""
    prefix = "features." if any(name.startswith("features.") for name in state) else ""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    names = [f"{prefix}{number}" for number in sorted(int(number) for number in numbers if number.isdigit())]
    keys = [[f"{name}.{kind}" for kind in ("weight", "bias")] for name in names]
    return _checked(source, [{key: state.get(key) for key in pair} for pair in keys])


def _read_keras(path: str | os.PathLike) -> Convolutions:
    """A Keras VGG16 for Caffe-style input, changed so that its first layer takes our normalised RGB.

    Read are `block{1..5}/layers/conv2d[_1[_2]]/vars/{0,1}`: kernels [3, 3, in, out] and biases. The network expects
    BGR in 0..255 minus (103.939, 116.779, 123.68): for our input x, in each channel, 255 (std x + mean) - caffe. The
    first kernel is therefore reversed in its channels and multiplied by 255 std, and the bias gains
    sum(kernel * (255 mean - caffe)). This is exact where the kernel lies inside the image. On the outermost pixels
    zero padding stands for our mean instead of Caffe's: they differ by less than half a grey level of 255.
    """
    layers = []
    try:
        with h5py.File(path, "r") as file:
            for block, depth in enumerate(DEPTHS["VGG16"], start=1):
                for place in range(depth):
                    name = f"block{block}/layers/conv2d{f'_{place}' if place else ''}/vars"
                    layers.append({f"{name}/{i}": _read_floats(file, f"{name}/{i}") for i in (0, 1)})
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise OSError(f"{path}: cannot be read as HDF5 ({reason}), fetch it again") from None
    convolutions = _checked(path, layers)
    kernel, bias = convolutions[0]
    kernel = kernel.flip(1)  # BGR -> RGB
    bias = bias + (kernel.sum(dim=(2, 3)) * (255 * MEAN - CAFFE_MEAN)).sum(dim=1)
    convolutions[0] = (kernel * (255 * STD).view(1, 3, 1, 1), bias)
    return convolutions


def _read_floats(file: h5py.File, name: str) -> torch.Tensor | None:
    """An array of floats, its last axes first as PyTorch has them (kernels: [3, 3, in, out] -> [out, in, 3, 3])."""
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f":
        return None
    values = torch.from_numpy(dataset[()].astype(np.float32))
    return values.permute(3, 2, 0, 1) if values.ndim == 4 else values


def _deepen(convolutions: Convolutions) -> Convolutions:
    """The 13 convolutions of VGG16 as the 16 of VGG19, identities in the empty places; those of VGG19 unchanged."""
    name = "VGG16" if len(convolutions) == sum(DEPTHS["VGG16"]) else "VGG19"
    remaining = iter(convolutions)
    deepened = []
    for (channels, _), depth, full_depth in zip(VGG19_BLOCKS, DEPTHS[name], DEPTHS["VGG19"], strict=True):
        deepened += [next(remaining) for _ in range(depth)]
        for _ in range(full_depth - depth):
            identity = nn.init.dirac_(torch.empty(channels, channels, 3, 3))
            deepened.append((identity, torch.zeros(channels)))
    return deepened
