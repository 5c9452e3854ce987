"""Slow, obvious references for the paper's equations, with explicit matrices and loops."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def assert_same_with_gradients(
    output: Tensor,
    expected: Tensor,
    inputs: Sequence[Tensor],
    tolerance: float,
    rtol: float,
    atol: float,
) -> None:
    """Compare a result with its oracle, and the gradients of a random weighting of both.

    ``tolerance`` is for the results, relative and absolute; ``rtol`` and ``atol`` for gradients.
    """
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(expected)
    gradients, oracle = (
        torch.autograd.grad((result * weight).sum(), inputs) for result in (output, expected)
    )
    torch.testing.assert_close(gradients, oracle, rtol=rtol, atol=atol)


def candidates(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield y and x of a pixel, number 0 to 8 and flat cell index of each candidate in the map.

    Candidates are the parent cell and the eight around it (paper, Sec. 2.4 and Fig. 3).
    """
    rows, cols = (height + 1) // 2, (width + 1) // 2
    for y, x, k in itertools.product(range(height), range(width), range(9)):
        cy, cx = y // 2 + k // 3 - 1, x // 2 + k % 3 - 1
        if 0 <= cy < rows and 0 <= cx < cols:
            yield y, x, k, cy * cols + cx


def neighbors(height: int, width: int) -> Tensor:
    """Mask of the N_d coarse cells that are candidates of each of the N pixels: bool (N, N_d)."""
    return to_matrix(torch.ones(1, 9, height, width))[0] > 0


def assignment_matrix(fine: Tensor, coarse: Tensor, scale: Tensor | float) -> Tensor:
    """Eq. (3): A (B, N, N_d) = softmax over rows of FᵀF_d / |s|, masked to the neighbors."""
    similarity = torch.einsum("bcn,bcm->bnm", fine.flatten(2), coarse.flatten(2))
    logits = similarity / (1e-8 + abs(scale))
    allowed = neighbors(*fine.shape[-2:])
    return logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)


def hard_assignment_matrix(fine: Tensor, coarse: Tensor) -> Tensor:
    """Eq. (2): one-hot rows (B, N, N_d) at the most similar neighbor."""
    similarity = torch.einsum("bcn,bcm->bnm", fine.flatten(2), coarse.flatten(2))
    best = similarity.masked_fill(~neighbors(*fine.shape[-2:]), -torch.inf).argmax(dim=-1)
    return torch.nn.functional.one_hot(best, similarity.shape[-1]).to(similarity)


def to_candidates(matrix: Tensor, height: int, width: int) -> Tensor:
    """Convert an assignment to the layout of the package: (B, N, N_d) → (B, 9, H, W)."""
    assignment = matrix.new_zeros(matrix.shape[0], 9, height, width)
    for y, x, k, cell in candidates(height, width):
        assignment[:, k, y, x] = matrix[:, y * width + x, cell]
    return assignment


def to_matrix(assignment: Tensor) -> Tensor:
    """Undo :func:`to_candidates`: (B, 9, H, W) → (B, N, N_d)."""
    batch, _, height, width = assignment.shape
    cells = ((height + 1) // 2) * ((width + 1) // 2)
    matrix = assignment.new_zeros(batch, height * width, cells)
    for y, x, k, cell in candidates(height, width):
        matrix[:, y * width + x, cell] = assignment[:, k, y, x]
    return matrix


def decode(masks: Tensor, matrix: Tensor, height: int, width: int) -> Tensor:
    """Eq. (5): M (B, Q, H, W) = A M' with the assignment as a matrix (B, N, N_d)."""
    return torch.einsum("bnm,bqm->bqn", matrix, masks.flatten(2)).unflatten(2, (height, width))


def decode_hierarchy(masks: Tensor, assignments: list[Tensor]) -> Tensor:
    """Eq. (5) level by level; assignments (B, 9, H_i, W_i), finest first."""
    for assignment in reversed(assignments):
        masks = decode(masks, to_matrix(assignment), *assignment.shape[-2:])
    return masks


def probability_logits(logits: Tensor, assignments: list[Tensor]) -> Tensor:
    """Eqs. (4)-(5) to the letter, as logits: decode Sigmoid(M), then take the log-odds."""
    probabilities = decode_hierarchy(logits.sigmoid(), assignments)
    return torch.log(probabilities / (1 - probabilities))


def class_probability_logits(logits: Tensor, assignments: list[Tensor]) -> Tensor:
    """Eqs. (4)-(5) for exclusive classes: decode Softmax(.), then take the logarithm."""
    return torch.log(decode_hierarchy(logits.softmax(dim=1), assignments))


def deform_conv(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """DCNv2: every tap samples bilinearly at its own moved position and is modulated."""
    batch, _, height, width = x.shape
    kernel = weight.shape[-1]
    rows, cols = offset.shape[-2:]
    y = bias.view(1, -1, 1, 1).expand(batch, -1, rows, cols).clone()

    def pixel(b: int, py: int, px: int) -> Tensor:
        if 0 <= py < height and 0 <= px < width:
            return x[b, :, py, px]
        return torch.zeros_like(x[b, :, 0, 0])

    positions = (range(batch), range(rows), range(cols), range(kernel**2))
    for b, i, j, k in itertools.product(*positions):
        py = i * stride - padding + k // kernel + offset[b, 2 * k, i, j]
        px = j * stride - padding + k % kernel + offset[b, 2 * k + 1, i, j]
        top, left = int(py.floor()), int(px.floor())
        fy, fx = py - top, px - left
        sample = (
            (1 - fy) * (1 - fx) * pixel(b, top, left)
            + (1 - fy) * fx * pixel(b, top, left + 1)
            + fy * (1 - fx) * pixel(b, top + 1, left)
            + fy * fx * pixel(b, top + 1, left + 1)
        )
        kernel_tap = weight[:, :, k // kernel, k % kernel]
        y[b, :, i, j] = y[b, :, i, j] + kernel_tap @ (mask[b, k, i, j] * sample)
    return y


def attention(
    attn: torch.nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Multi-head attention (B, N, C), head by head, with the weights of torch's module."""
    width = attn.embed_dim // attn.num_heads
    weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    heads = []
    for h in range(attn.num_heads):
        part = slice(h * width, (h + 1) * width)
        similarity = q[..., part] @ k[..., part].transpose(1, 2) / width**0.5
        heads.append(similarity.softmax(dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1) @ attn.out_proj.weight.T + attn.out_proj.bias


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """Normalize over the last dimension, with the weights of torch's module."""
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = (centered**2).mean(dim=-1, keepdim=True)
    return centered / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def feed_forward(x: Tensor, first: torch.nn.Linear, second: torch.nn.Linear) -> Tensor:
    """Two linear layers around a ReLU."""
    return (x @ first.weight.T + first.bias).clamp_min(0) @ second.weight.T + second.bias


def encoder_layer(layer: torch.nn.Module, x: Tensor, position: Tensor) -> Tensor:
    """A layer of DETR's encoder (B, N, C), post-norm; values have no positional encoding."""
    linear = [m for m in layer.ffn.modules() if isinstance(m, torch.nn.Linear)]
    x = layer_norm(
        x + attention(layer.self_attn.attn, x + position, x + position, x), layer.norms[0]
    )
    return layer_norm(x + feed_forward(x, *linear), layer.norms[1])


def decoder_layer(
    layer: torch.nn.Module, x: Tensor, memory: Tensor, query_position: Tensor, position: Tensor
) -> Tensor:
    """A layer of DETR's decoder (B, Q, C), post-norm: self-attention, cross-attention, FFN."""
    linear = [m for m in layer.ffn.modules() if isinstance(m, torch.nn.Linear)]
    query = x + query_position
    x = layer_norm(x + attention(layer.self_attn.attn, query, query, x), layer.norms[0])
    key = memory + position
    x = x + attention(layer.cross_attn.attn, x + query_position, key, memory)
    x = layer_norm(x, layer.norms[1])
    return layer_norm(x + feed_forward(x, *linear), layer.norms[2])


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Class scores of every pixel (K, H, W): P(class) · P(mask), summed over the queries."""
    queries, classes = class_logits.shape
    scores = mask_logits.new_zeros(classes - 1, *mask_logits.shape[1:])
    for q in range(queries):
        probabilities = class_logits[q].exp() / class_logits[q].exp().sum()
        for k in range(classes - 1):
            scores[k] += probabilities[k] / (1 + (-mask_logits[q]).exp())
    return scores


def patch_merging(
    tokens: Tensor,
    size: tuple[int, int],
    norm_weight: Tensor,
    norm_bias: Tensor,
    reduction: Tensor,
) -> Tensor:
    """Swin's patch merging as in its paper: tokens (B, H·W, C) → (B, ⌈H/2⌉·⌈W/2⌉, 2C).

    The four tokens of a window, (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), zero outside the
    map, are concatenated, normalized together and reduced by one matrix.
    """
    height, width = size
    channels = tokens.shape[-1]
    merged = []
    for top, left in itertools.product(range(0, height, 2), range(0, width, 2)):
        parts = []
        for row, col in ((0, 0), (1, 0), (0, 1), (1, 1)):
            y, x = top + row, left + col
            inside = y < height and x < width
            parts.append(tokens[:, y * width + x] if inside else tokens.new_zeros(channels))
        window = torch.cat([part.expand(len(tokens), channels) for part in parts], dim=1)
        mean = window.mean(dim=1, keepdim=True)
        variance = ((window - mean) ** 2).mean(dim=1, keepdim=True)
        window = (window - mean) / (variance + 1e-5).sqrt() * norm_weight + norm_bias
        merged.append(window @ reduction.T)
    return torch.stack(merged, dim=1)


def undersegmentation_error(labels: Tensor, ground_truth: Tensor, form: str) -> float:
    """Undersegmentation error of Stutz et al., by sets of pixels; labels (H, W)."""
    pixels = [(y, x) for y in range(labels.shape[0]) for x in range(labels.shape[1])]
    clusters: dict[int, set[tuple[int, int]]] = {}
    segments: dict[int, set[tuple[int, int]]] = {}
    for pixel in pixels:
        clusters.setdefault(int(labels[pixel]), set()).add(pixel)
        segments.setdefault(int(ground_truth[pixel]), set()).add(pixel)
    errors = []
    for segment in segments.values():
        touching = [cluster for cluster in clusters.values() if cluster & segment]
        if form == "levin":
            errors.append((sum(map(len, touching)) - len(segment)) / len(segment))
        else:
            errors.append(sum(min(len(c & segment), len(c - segment)) for c in touching))
    return sum(errors) / (len(segments) if form == "levin" else len(pixels))


def labelings(labels: Tensor, segments: list[int]) -> Tensor:
    """All label maps (n, H, W) that give each cluster of (H, W), from 0, one of the segments."""
    number = int(labels.max()) + 1
    choices = torch.cartesian_prod(*[torch.tensor(segments)] * number)
    return choices.view(-1, number)[:, labels]


def boundary_pixels(labels: Tensor) -> set[tuple[int, int]]:
    """Pixels with another label above, below, left or right of them."""
    height, width = labels.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and labels[v, u] != labels[y, x]:
                found.add((y, x))
    return found


def boundary_hits(
    ours: set[tuple[int, int]], theirs: set[tuple[int, int]], tolerance: int
) -> float:
    """Fraction of our pixels with one of theirs within the tolerance along each axis."""
    hits = sum(
        any(abs(y - v) <= tolerance and abs(x - u) <= tolerance for v, u in theirs) for y, x in ours
    )
    return hits / len(ours)


def compactness(labels: Tensor) -> float:
    """Mean over the pixels of 4π · area / perimeter² of their cluster."""
    height, width = labels.shape
    total = 0.0
    for label in labels.unique().tolist():
        area = perimeter = 0
        for y in range(height):
            for x in range(width):
                if labels[y, x] != label:
                    continue
                area += 1
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= v < height and 0 <= u < width and labels[v, u] == label
                    perimeter += not inside
        total += area * 4 * torch.pi * area / perimeter**2
    return total / labels.numel()


def explained_variation(labels: Tensor, image: Tensor) -> float:
    """1 minus the fraction of the variance of an image (C, H, W) within the clusters (H, W)."""
    residual = image.clone()
    for label in labels.unique():
        inside = labels == label
        residual[:, inside] -= image[:, inside].mean(dim=1, keepdim=True)
    spread = image - image.mean(dim=(1, 2), keepdim=True)
    return float(1 - (residual**2).sum() / (spread**2).sum())


def listing_clustering(fine: Tensor, coarse: Tensor, scale: Tensor) -> Tensor:
    """Listing 1, eq. (3) by unfold, einsum and fold: fine (B, C, H, W), H and W even.

    Candidates outside the map have similarity 0, whereas the package excludes them, so pixels with
    a parent at the border differ. Two corrections: the paper's ``downscaled_feat`` is its
    ``downsampled_feat``, and einsum gets its operands without a tuple.
    """
    batch, channels, height, width = fine.shape
    candidates = F.unfold(coarse, kernel_size=3, padding=1).reshape(batch, channels, 9, -1)
    pixels = F.unfold(fine, kernel_size=2, stride=2).reshape(batch, channels, 4, -1)
    similarities = torch.einsum("bkcn,bkpn->bcpn", candidates, pixels)
    similarities = similarities.reshape(batch * 9, 4, -1)
    similarities = F.fold(similarities, (height, width), kernel_size=2, stride=2)
    similarities = similarities.reshape(batch, 9, height, width)
    return (similarities / scale.abs()).softmax(dim=1)


def listing_decode(masks: Tensor, assignment: Tensor) -> Tensor:
    """Listing 2, eq. (5) by unfold, einsum and fold; assignment (B, 9, H, W) with even H, W.

    Corrected: einsum's output is ``bkpn``, not ``bkpnn``.
    """
    batch, _, height, width = assignment.shape
    channels = masks.shape[1]
    candidates = F.unfold(masks, kernel_size=3, padding=1).reshape(batch, channels, 9, -1)
    weights = F.unfold(assignment, kernel_size=2, stride=2).reshape(batch, 9, 4, -1)
    decoded = torch.einsum("bkcn,bcpn->bkpn", candidates, weights)
    decoded = decoded.reshape(batch, channels * 4, -1)
    return F.fold(decoded, (height, width), kernel_size=2, stride=2)


def listing_module(module: nn.Module, fine: Tensor, coarse: Tensor) -> Tensor:
    """Listing 1 on the projected features of Sec. 2.2, with the weights of a ClusteringModule."""
    embedded = []
    for x, norm, projection in (
        (fine, module.fine_norm, module.fine_proj),
        (coarse, module.coarse_norm, module.coarse_proj),
    ):
        x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        embedded.append(F.normalize(projection(x), dim=1))
    return listing_clustering(*embedded, module.scale)
