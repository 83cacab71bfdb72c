"""The counting networks, by name, and the files they load."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from models.backbone import load_backbone
from models.vgg import VGG, Prediction
from models.vgg_trans import VGGTrans, attention_variance
from models.weights import load_state, load_weights, read_checkpoint, weights_file
from utils.training.run_folder import describe

MODELS = {network.name: network for network in (VGG, VGGTrans)}

__all__ = [
    "MODELS",
    "Prediction",
    "attention_variance",
    "build_model",
    "load_backbone",
    "load_model",
    "load_state",
    "load_weights",
    "rate_groups",
    "read_checkpoint",
    "weights_file",
]


def build_model(name: str, pretrained: bool = False, topk: float = 0.3, usenum: int = 18) -> nn.Module:
    """A network with `forward(images [B, 3, H, W], normalised RGB) -> Prediction` and attributes name, topk, usenum.

    name: "vgg" or "vgg_trans". pretrained: start the features from ImageNet (see `load_backbone`); the rest is random.
    topk in (0, 1] and usenum >= 1 shape the graph of vgg_trans (see `vgg_trans.in_degree_index`).
    Raises ValueError for other values and OSError when the ImageNet weights cannot be fetched.
    """
    if name not in MODELS:
        raise ValueError(f"model name must be one of {', '.join(MODELS)}, got {name!r}")
    if not 0 < topk <= 1:
        raise ValueError(f"topk must be in (0, 1], got {topk}")
    if usenum < 1 or usenum != int(usenum):
        raise ValueError(f"usenum must be a whole number >= 1, got {usenum}")
    model = MODELS[name](topk=topk, usenum=usenum)
    if pretrained:
        load_backbone(model, "imagenet")
    return model


def rate_groups(model: nn.Module, head_lr: float = 0.0) -> list[dict[str, Any]]:
    """For an optimizer: all parameters as one group; with ``head_lr`` above 0 those behind ``features`` as a second.

    The features start from pretrained weights and what is behind them at random, so that their best rates differ.
    """
    if not head_lr:
        return [{"params": list(model.parameters())}]
    features = list(model.features.parameters())
    known = set(map(id, features))
    return [{"params": features}, {"params": [p for p in model.parameters() if id(p) not in known], "lr": head_lr}]


def load_model(
    path: str | os.PathLike, name: str | None = None, topk: float | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """(The network of a checkpoint in evaluation mode, what the checkpoint says of itself).

    path: .pth, .tar or .safetensors, or the folder of a run, for its best model. name and topk take the place of what the
    file says (`utils.training.run_folder.describe`). Raises OSError or ValueError, in one line, as `load_weights`.
    """
    path = weights_file(path)
    checkpoint = read_checkpoint(path)
    metadata = describe(checkpoint)
    metadata |= {"model_name": name or metadata["model_name"], "topk": topk or metadata.get("topk", 0.3)}
    model = build_model(metadata["model_name"], topk=metadata["topk"], usenum=metadata.get("usenum", 18))
    load_state(model, checkpoint["model_state_dict"], path)
    return model.eval(), metadata
