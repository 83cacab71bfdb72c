"""VGG19 features refined by graph-modulated attention between all cells (after Gramformer, Lin et al., AAAI 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.vgg import Prediction, check_images, regression_head, vgg19_features
from utils.pixels import STRIDE

CHANNELS = 512
HEADS = 8
HEAD_CHANNELS = CHANNELS // HEADS
FEEDFORWARD = 2048
LAYERS = 2
DROPOUT = 0.1


@torch.no_grad()
def in_degree_index(tokens: torch.Tensor, topk: float, usenum: int) -> torch.Tensor:
    """How sought-after each token is among its sample's tokens, as an index into `usenum` embeddings.

    tokens [B, L, C] -> int64 [B, L] in [0, usenum - 1]. Each token points to its k = max(1, int(topk * L)) nearest by
    Euclidean distance / sqrt(C); its distance to itself counts as the largest distance of the sample. The index is
    in-degree / largest in-degree * (usenum - 1), truncated.
    """
    length, channels = tokens.shape[1:]
    distances = torch.cdist(tokens, tokens) / channels**0.5  # [B, L, L]
    distances += distances.amax(dim=(1, 2), keepdim=True) * torch.eye(length, device=tokens.device)
    nearest = distances.topk(max(1, int(topk * length)), dim=-1, largest=False).indices  # [B, L, k]
    in_degree = torch.zeros_like(distances).scatter_(2, nearest, 1.0).sum(dim=1)  # [B, L]
    # Multiplied after the division and in single precision: the truncation sees the rounding of exactly this order.
    return (in_degree / in_degree.amax(dim=1, keepdim=True) * (usenum - 1)).long()


class GraphAttention(nn.Module):
    """Multi-head attention whose softmax maps are multiplied by edge weights, not renormalised; post-norm residual."""

    def __init__(self) -> None:
        super().__init__()
        self.w_qs = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.w_ks = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.w_vs = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.fc = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.layer_norm = nn.LayerNorm(CHANNELS, eps=1e-6)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(
        self, query: torch.Tensor, value: torch.Tensor, edges: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """query (also the keys) and value [B, L, 512], edges [B, heads, L, L] -> ([B, L, 512], A [B, heads, L, L])."""

        def split(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.unflatten(-1, (HEADS, HEAD_CHANNELS)).transpose(1, 2)  # [B, heads, L, 64]

        queries, keys, values = split(self.w_qs(query)), split(self.w_ks(query)), split(self.w_vs(value))
        attention = (queries @ keys.transpose(-2, -1) / HEAD_CHANNELS**0.5).softmax(dim=-1)
        mixed = (self.dropout(attention) * edges) @ values  # [B, heads, L, 64]
        mixed = self.dropout(self.fc(mixed.transpose(1, 2).flatten(2)))
        return self.layer_norm(mixed + query), attention


class EncoderLayer(nn.Module):
    """x = norm1(x + dropout(attention)); x = norm2(x + dropout(feed-forward))."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = GraphAttention()
        self.linear1 = nn.Linear(CHANNELS, FEEDFORWARD)
        self.linear2 = nn.Linear(FEEDFORWARD, CHANNELS)
        self.norm1 = nn.LayerNorm(CHANNELS)
        self.norm2 = nn.LayerNorm(CHANNELS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(
        self, tokens: torch.Tensor, position: torch.Tensor, edges: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens and position [B, L, 512], edges [B, heads, L, L] -> (tokens, A); values carry no position."""
        attended, attention = self.self_attn(tokens + position, tokens, edges)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(self.linear1(tokens).relu())
        return self.norm2(tokens + self.dropout(self.linear2(hidden))), attention


class Encoder(nn.Module):
    """Two layers of attention over the L = h w cells of a feature map; each sample is treated as if alone."""

    in_degree_index = staticmethod(in_degree_index)  # models.export puts one in its place that can be traced

    def __init__(self, topk: float, usenum: int) -> None:
        super().__init__()
        self.topk, self.usenum = topk, usenum
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))
        self.near_embeddings = nn.Embedding(usenum, CHANNELS)
        self.pe_layer = nn.Sequential(
            nn.Conv2d(CHANNELS, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, HEADS, 3, padding=1),
            nn.Sigmoid(),
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """[B, 512, h, w] -> the same shape, and A [B, heads, L, L] of each layer."""
        potentials = self.pe_layer(features).flatten(2)  # [B, heads, L]
        edges = (potentials.unsqueeze(-1) - potentials.unsqueeze(-2)).abs()  # [B, heads, L, L]
        tokens = features.flatten(2).transpose(1, 2)  # [B, L, 512]
        attentions = []
        for layer in self.layers:
            position = self.near_embeddings(self.in_degree_index(tokens, self.topk, self.usenum))
            tokens, attention = layer(tokens, position, edges)
            attentions.append(attention)
        return tokens.transpose(1, 2).reshape(features.shape), tuple(attentions)


class VGGTrans(nn.Module):
    """VGG19 features, the encoder, upsampling to (H // 8, W // 8), and a regression head with absolute value.

    topk: share of the tokens that each token is linked to, in (0, 1]; usenum: number of in-degree embeddings, >= 1.
    """

    name = "vgg_trans"

    def __init__(self, topk: float = 0.3, usenum: int = 18) -> None:
        super().__init__()
        self.topk, self.usenum = topk, usenum
        self.features = vgg19_features()
        self.encoder = Encoder(topk, usenum)
        self.reg_layer_0 = regression_head()

    def forward(self, images: torch.Tensor) -> Prediction:
        """Normalised RGB [B, 3, H, W] -> Prediction; ValueError for another shape or a side under 16 pixels."""
        check_images(images)
        features, attention = self.encoder(self.features(images))
        size = (images.shape[-2] // STRIDE, images.shape[-1] // STRIDE)
        features = F.interpolate(features, size=size, mode="bilinear", align_corners=True)
        return Prediction(self.reg_layer_0(features).abs(), attention)


def attention_variance(attention: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Per layer, the sum over heads and tokens of the unbiased variance of each row of A, averaged over the batch.

    attention: `Prediction.attention`, maps [B, heads, L, L] -> [layers] (empty without attention). A single token has
    nothing to vary: 0. Training adds 0.1 * the sum of this to its loss.
    """
    if not attention:
        return torch.zeros(0)
    correction = min(1, attention[0].shape[-1] - 1)
    return torch.stack([maps.var(dim=-1, correction=correction).sum(dim=(1, 2)).mean() for maps in attention])
