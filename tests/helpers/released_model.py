"""The released implementation's forward pass, as slow, obvious functions.

It is written from the paper and from notes on that implementation, on plain tensors under their
released names, and uses nothing of the package. ``docs/converting.md`` says what the notes leave
open.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import count, product, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from tests.helpers import reference
from tests.helpers.released_checkpoints import PREDICTOR, State

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of R, G and B


class Prediction(NamedTuple):
    """Outputs of a released model in evaluation mode.

    Attributes:
        classes: Class logits (B, Q, K + 1) of the last layer.
        masks: Its mask logits (B, Q, H/32, W/32).
        decoded: The mask logits decoded to stride 4 (B, Q, H/4, W/4); with level L, to 32 / 2^L.
        assignments: (B, 9, H, W) of every level, finest first.
    """

    classes: Tensor
    masks: Tensor
    decoded: Tensor
    assignments: list[Tensor]


def normalize(image: Tensor) -> Tensor:
    """An image (H, W, 3) of 8-bit R, G and B → (1, 3, H', W'), padded to multiples of 32."""
    pixels = (image.double() - torch.tensor(PIXEL_MEAN).double()) / torch.tensor(PIXEL_STD).double()
    height, width = image.shape[:2]
    padded = pixels.new_zeros(3, -(-height // 32) * 32, -(-width // 32) * 32)
    padded[:, :height, :width] = pixels.permute(2, 0, 1)
    return padded[None].float()


def predict(
    state: State, image: Tensor, *, num_heads: int = 8, swin_heads: Iterable[int] = (3, 6, 12, 24)
) -> Prediction:
    """Run a released model in evaluation mode on a normalized, padded image (B, 3, H, W)."""
    if "backbone.stem.0.weight" in state:
        pairs, x = _resnet(state, image)
        names = [n for n in state if re.fullmatch(r"backbone\.clustering_layers\.\d\.temp", n)]
        names.sort(reverse=True)  # the released modules begin with the coarsest level
    else:
        pairs, x = _swin(state, image, list(swin_heads))
        names = sorted(n for n in state if n.endswith(".clustering.temp"))
    modules = [name.removesuffix(".temp") for name in names]
    pairs = pairs[len(pairs) - len(modules) :]
    matrices = [
        cluster(state, module, fine, coarse)
        for module, (fine, coarse) in zip(modules, pairs, strict=True)
    ]
    if "backbone.aux.input_proj.0.weight" in state:
        x = _encode(state, x, num_heads)
    classes, masks = _predictor(state, x, num_heads)
    decoded = masks
    sizes = [tuple(fine.shape[-2:]) for fine, _ in pairs]
    for matrix, size in zip(reversed(matrices), reversed(sizes), strict=True):
        decoded = reference.decode(decoded, matrix, *size)
    assignments = [
        reference.to_candidates(matrix, *size) for matrix, size in zip(matrices, sizes, strict=True)
    ]
    return Prediction(classes, masks, decoded, assignments)


def cluster(state: State, module: str, fine: Tensor, coarse: Tensor, eps: float = 1e-5) -> Tensor:
    """A clustering module: the assignment as a matrix (B, N, N_d)."""

    def embed(x: Tensor, side: str) -> Tensor:
        x = _layer_norm(state, f"{module}.{side}_norm", x.movedim(1, -1), eps).movedim(-1, 1)
        x = F.conv2d(x, state[f"{module}.{side}_emb.weight"])
        return x / x.norm(dim=1, keepdim=True)

    return reference.assignment_matrix(
        embed(fine, "fine"), embed(coarse, "coarse"), state[f"{module}.temp"]
    )


def _resnet(state: State, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Fine and coarse maps of stages 1→2, 2→3, 3→4, and the last map."""
    x = _conv(state, "backbone.stem.0", x, stride=2, padding=3)
    x = F.max_pool2d(frozen_batch_norm(state, "backbone.stem.1", x).relu(), 3, 2, padding=1)
    pairs = []
    for stage in range(1, 5):
        for i, block in enumerate(_layers(state, f"backbone.layer{stage}")):
            is_strided, before = i == 0 and stage > 1, x
            x = bottleneck(state, block, x, 2 if is_strided else 1)
            if is_strided:
                pairs.append((before, x))
    return pairs, x


def bottleneck(state: State, block: str, x: Tensor, stride: int) -> Tensor:
    """A residual block; the 3×3 convolution and the shortcut are strided."""
    y = frozen_batch_norm(state, f"{block}.bn1", _conv(state, f"{block}.conv1", x)).relu()
    y = strided_conv(state, f"{block}.conv2", y, stride, padding=1)
    y = frozen_batch_norm(state, f"{block}.bn2", y).relu()
    y = frozen_batch_norm(state, f"{block}.bn3", _conv(state, f"{block}.conv3", y))
    if f"{block}.downsample.1.weight" in state:
        x = strided_conv(state, f"{block}.downsample.0", x, stride, padding=0)
        x = frozen_batch_norm(state, f"{block}.downsample.1", x)
    return (x + y).relu()


def strided_conv(state: State, name: str, x: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution, or the modulated deformable one in its place."""
    if f"{name}.deform.weight" not in state:
        return _conv(state, name, x, stride=stride, padding=padding)
    raw = _conv(state, f"{name}.offset", x, stride=2, padding=1)
    taps = raw.shape[1] // 3
    weight, bias = state[f"{name}.deform.weight"], state[f"{name}.deform.bias"]
    return deform_conv2d(
        x, raw[:, : 2 * taps], weight, bias, stride, padding, mask=raw[:, 2 * taps :].sigmoid()
    )


def frozen_batch_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalize with stored statistics."""
    kinds = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.{kind}"] for kind in kinds), eps=eps)


def _swin(
    state: State, image: Tensor, heads: list[int]
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Fine and coarse maps of the three patch mergings, and the last map, normalized."""
    x = _conv(state, "backbone.patch_embed.proj", image, stride=4).movedim(1, -1)
    x = _layer_norm(state, "backbone.patch_embed.norm", x)  # (B, H, W, C)
    pairs = []
    for stage in range(4):
        for i, block in enumerate(_layers(state, f"backbone.layers.{stage}.blocks")):
            x = swin_block(state, block, x, heads[stage], shifted=i % 2 == 1)
        if stage < 3:
            batch, height, width, _ = x.shape
            name = f"backbone.layers.{stage}.downsample"
            merged = reference.patch_merging(
                x.flatten(1, 2),
                (height, width),
                state[f"{name}.norm.weight"],
                state[f"{name}.norm.bias"],
                state[f"{name}.reduction.weight"],
            ).view(batch, -(-height // 2), -(-width // 2), -1)
            pairs.append((x.movedim(-1, 1), merged.movedim(-1, 1)))
            x = merged
    return pairs, _layer_norm(state, "backbone.norm3", x).movedim(-1, 1)


def swin_block(state: State, block: str, x: Tensor, heads: int, *, shifted: bool) -> Tensor:
    """A block of Swin on (B, H, W, C)."""
    normed = _layer_norm(state, f"{block}.norm1", x)
    x = x + window_attention(state, f"{block}.attn", normed, heads, shifted=shifted)
    hidden = F.gelu(_apply(state, f"{block}.mlp.fc1", _layer_norm(state, f"{block}.norm2", x)))
    return x + _apply(state, f"{block}.mlp.fc2", hidden)


def window_attention(state: State, attn: str, x: Tensor, heads: int, *, shifted: bool) -> Tensor:
    """Attention within windows of a map (B, H, W, C), padded by zeros to whole windows.

    For shifted windows the map is rolled up and left by half a window; pairs of cells that are
    neighbors only after rolling get -100.
    """
    table = state[f"{attn}.relative_position_bias_table"]
    window = (math.isqrt(len(table)) + 1) // 2
    bias = table[state[f"{attn}.relative_position_index"].flatten()]
    bias = bias.view(window**2, window**2, heads).permute(2, 0, 1)
    batch, height, width, channels = x.shape
    rows, cols = (-(-side // window) * window for side in (height, width))
    padded = x.new_zeros(batch, rows, cols, channels)
    padded[:, :height, :width] = x
    shift = window // 2 if shifted else 0
    padded = padded.roll((-shift, -shift), dims=(1, 2))
    out = torch.zeros_like(padded)

    def part(position: int, side: int) -> int:
        """Part of the rolled map: outside the last window, before its seam, or after it."""
        return 0 if position < side - window else 1 if position < side - shift else 2

    for top, left in product(range(0, rows, window), range(0, cols, window)):
        cells = [(top + y, left + x) for y, x in product(range(window), repeat=2)]
        parts = torch.tensor([[part(y, rows), part(x, cols)] for y, x in cells])
        apart = (parts[:, None] != parts[None]).any(-1) & (shift > 0)
        tokens = torch.stack([padded[:, y, x] for y, x in cells], dim=1)  # (B, w², C)
        qkv = _apply(state, f"{attn}.qkv", tokens)
        q, k, v = (  # packed in this order, each with all heads
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(channels // heads) + bias
        attended = (scores - 100.0 * apart).softmax(-1) @ v
        result = _apply(state, f"{attn}.proj", attended.transpose(1, 2).flatten(2))
        for index, (y, x) in enumerate(cells):
            out[:, y, x] = result[:, index]
    return out.roll((shift, shift), dims=(1, 2))[:, :height, :width]


def sine_position(rows: int, cols: int, channels: int) -> Tensor:
    """The normalized sine position encoding (C, h, w): first the row's half, then the column's."""
    half = channels // 2
    encoding = torch.zeros(channels, rows, cols, dtype=torch.float64)
    for i in range(half):
        frequency = 10000 ** (2 * (i // 2) / half)
        wave = math.sin if i % 2 == 0 else math.cos
        for y in range(rows):
            encoding[i, y] = wave((y + 1) / (rows + 1e-6) * 2 * math.pi / frequency)
        for x in range(cols):
            encoding[half + i, :, x] = wave((x + 1) / (cols + 1e-6) * 2 * math.pi / frequency)
    return encoding


def _layers(state: State, prefix: str) -> Iterator[str]:
    """Names of the layers ``prefix.0``, ``prefix.1`` and so on that a model has."""
    layers = (f"{prefix}.{i}." for i in count())
    found = takewhile(lambda layer: any(name.startswith(layer) for name in state), layers)
    return (layer.removesuffix(".") for layer in found)


def _encode(state: State, x: Tensor, num_heads: int) -> Tensor:
    """HCFormer+'s encoder on the last map."""
    aux = "backbone.aux"
    x = _conv(state, f"{aux}.input_proj.0", x)
    weight, bias = state[f"{aux}.input_proj.1.weight"], state[f"{aux}.input_proj.1.bias"]
    x = F.group_norm(x, 32, weight, bias, 1e-5)
    _, channels, rows, cols = x.shape
    position = sine_position(rows, cols, channels).to(x).flatten(1).T
    cells = x.flatten(2).transpose(1, 2)
    for layer in _layers(state, f"{aux}.encoder.layers"):
        query = cells + position
        attended = attention(state, f"{layer}.self_attn", query, query, cells, num_heads)
        cells = _layer_norm(state, f"{layer}.norm1", cells + attended)
        cells = _layer_norm(state, f"{layer}.norm2", cells + _feed_forward(state, layer, cells))
    return cells.transpose(1, 2).unflatten(2, (rows, cols))


def _predictor(state: State, x: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Class logits (B, Q, K + 1) and mask logits (B, Q, h, w) of the last layer."""
    mask_features = _conv(state, f"{PREDICTOR}.mask_proj", x)
    if f"{PREDICTOR}.input_proj.weight" in state:
        x = _conv(state, f"{PREDICTOR}.input_proj", x)
    position = sine_position(*x.shape[-2:], x.shape[1]).to(x).flatten(1).T
    memory = x.flatten(2).transpose(1, 2)
    query_position = state[f"{PREDICTOR}.query_embed.weight"]

    def cross(name: str, norm: str, queries: Tensor, ignored: Tensor | None = None) -> Tensor:
        query, key = queries + query_position, memory + position
        attended = attention(state, name, query, key, memory, num_heads, ignored)
        return _layer_norm(state, norm, queries + attended)

    def own(name: str, norm: str, queries: Tensor) -> Tensor:
        query = queries + query_position
        attended = attention(state, name, query, query, queries, num_heads)
        return _layer_norm(state, norm, queries + attended)

    def feed_forward(name: str, norm: str, queries: Tensor) -> Tensor:
        return _layer_norm(state, norm, queries + _feed_forward(state, name, queries))

    if f"{PREDICTOR}.transformer.decoder.norm.weight" in state:
        queries = torch.zeros_like(query_position).expand(len(memory), -1, -1)
        for layer in _layers(state, f"{PREDICTOR}.transformer.decoder.layers"):
            queries = own(f"{layer}.self_attn", f"{layer}.norm1", queries)
            queries = cross(f"{layer}.multihead_attn", f"{layer}.norm2", queries)
            queries = feed_forward(layer, f"{layer}.norm3", queries)
        return _heads(state, "transformer.decoder.norm", queries, mask_features)

    memory = memory + state[f"{PREDICTOR}.level_embed.weight"][0]
    queries = state[f"{PREDICTOR}.query_feat.weight"].expand(len(memory), -1, -1)
    classes, masks = _heads(state, "decoder_norm", queries, mask_features)
    for feed in _layers(state, f"{PREDICTOR}.transformer_ffn_layers"):
        ignored = masks.sigmoid().flatten(2) < 0.5  # (B, Q, h·w)
        ignored[ignored.all(-1)] = False
        layer = feed.replace("ffn", "cross_attention")
        queries = cross(f"{layer}.multihead_attn", f"{layer}.norm", queries, ignored)
        layer = feed.replace("ffn", "self_attention")
        queries = own(f"{layer}.self_attn", f"{layer}.norm", queries)
        queries = feed_forward(feed, f"{feed}.norm", queries)
        classes, masks = _heads(state, "decoder_norm", queries, mask_features)
    return classes, masks


def _heads(
    state: State, norm: str, queries: Tensor, mask_features: Tensor
) -> tuple[Tensor, Tensor]:
    """Class and mask logits of queries."""
    x = _layer_norm(state, f"{PREDICTOR}.{norm}", queries)
    classes = _apply(state, f"{PREDICTOR}.class_embed", x)
    for k in range(3):
        x = _apply(state, f"{PREDICTOR}.mask_embed.layers.{k}", x)
        x = x.relu() if k < 2 else x
    return classes, torch.einsum("bqc,bchw->bqhw", x, mask_features)


def attention(
    state: State,
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    ignored: Tensor | None = None,
) -> Tensor:
    """Multi-head attention with the projections of query, key and value packed in one matrix."""
    inputs = zip(
        (query, key, value),
        state[f"{name}.in_proj_weight"].chunk(3),
        state[f"{name}.in_proj_bias"].chunk(3),
        strict=True,
    )
    q, k, v = (
        (x @ weight.T + bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, weight, bias in inputs
    )
    mask = None if ignored is None else ~ignored[:, None]
    attended = F.scaled_dot_product_attention(q, k, v, mask)
    return _apply(state, f"{name}.out_proj", attended.transpose(1, 2).flatten(2))


def _feed_forward(state: State, name: str, x: Tensor) -> Tensor:
    return _apply(state, f"{name}.linear2", _apply(state, f"{name}.linear1", x).relu())


def _apply(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _conv(state: State, name: str, x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def _layer_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)
