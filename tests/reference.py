"""Slow, obvious oracles of the paper's equations, written with explicit matrices and loops."""

import torch
from torch import Tensor


def parent(y: int, x: int) -> tuple[int, int]:
    """The coarse cell of a fine pixel: downsampling halves both sides."""
    return y // 2, x // 2


def neighbours(height: int, width: int) -> Tensor:
    """Which of the N_d coarse cells each of the N fine pixels may choose: bool (N, N_d).

    The parent cell and the eight around it, those that exist (paper, Sec. 2.4 and Fig. 3).
    """
    rows, cols = (height + 1) // 2, (width + 1) // 2
    allowed = torch.zeros(height * width, rows * cols, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            py, px = parent(y, x)
            for cy in range(max(py - 1, 0), min(py + 2, rows)):
                for cx in range(max(px - 1, 0), min(px + 2, cols)):
                    allowed[y * width + x, cy * cols + cx] = True
    return allowed


def assignment_matrix(fine: Tensor, coarse: Tensor, scale: Tensor | float) -> Tensor:
    """Eq. (3): A (B, N, N_d) = softmax over rows of FᵀF_d / |s|, masked to the neighbours."""
    similarity = torch.einsum("bcn,bcm->bnm", fine.flatten(2), coarse.flatten(2))
    logits = similarity / (1e-8 + abs(scale))
    allowed = neighbours(*fine.shape[-2:])
    return logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)


def hard_assignment_matrix(fine: Tensor, coarse: Tensor) -> Tensor:
    """Eq. (2): one-hot rows (B, N, N_d) at the most similar neighbour."""
    similarity = torch.einsum("bcn,bcm->bnm", fine.flatten(2), coarse.flatten(2))
    best = similarity.masked_fill(~neighbours(*fine.shape[-2:]), -torch.inf).argmax(dim=-1)
    return torch.nn.functional.one_hot(best, similarity.shape[-1]).to(similarity)


def to_candidates(matrix: Tensor, height: int, width: int) -> Tensor:
    """The same assignment in the layout of the package: (B, N, N_d) → (B, 9, H, W)."""
    rows, cols = (height + 1) // 2, (width + 1) // 2
    assignment = matrix.new_zeros(matrix.shape[0], 9, height, width)
    for y in range(height):
        for x in range(width):
            py, px = parent(y, x)
            for k in range(9):
                cy, cx = py + k // 3 - 1, px + k % 3 - 1
                if 0 <= cy < rows and 0 <= cx < cols:
                    assignment[:, k, y, x] = matrix[:, y * width + x, cy * cols + cx]
    return assignment


def to_matrix(assignment: Tensor) -> Tensor:
    """Undo :func:`to_candidates`: (B, 9, H, W) → (B, N, N_d)."""
    batch, _, height, width = assignment.shape
    rows, cols = (height + 1) // 2, (width + 1) // 2
    matrix = assignment.new_zeros(batch, height * width, rows * cols)
    for y in range(height):
        for x in range(width):
            py, px = parent(y, x)
            for k in range(9):
                cy, cx = py + k // 3 - 1, px + k % 3 - 1
                if 0 <= cy < rows and 0 <= cx < cols:
                    matrix[:, y * width + x, cy * cols + cx] = assignment[:, k, y, x]
    return matrix


def decode(masks: Tensor, matrix: Tensor, height: int, width: int) -> Tensor:
    """Eq. (5): M (B, Q, H, W) = A M' with the assignment as a matrix (B, N, N_d)."""
    return torch.einsum("bnm,bqm->bqn", matrix, masks.flatten(2)).unflatten(2, (height, width))


def probability_logits(logits: Tensor, assignments: list[Tensor]) -> Tensor:
    """Eqs. (4)-(5) to the letter, as logits: decode Sigmoid(M), then take the log-odds."""
    probabilities = logits.sigmoid()
    for assignment in reversed(assignments):
        probabilities = decode(probabilities, to_matrix(assignment), *assignment.shape[-2:])
    return torch.log(probabilities / (1 - probabilities))


def deform_conv(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """DCNv2: every tap of the kernel reads bilinearly at its own moved, modulated place."""
    batch, _, height, width = x.shape
    kernel = weight.shape[-1]
    rows, cols = offset.shape[-2:]
    y = bias.view(1, -1, 1, 1).expand(batch, -1, rows, cols).clone()

    def pixel(b: int, py: int, px: int) -> Tensor:
        if 0 <= py < height and 0 <= px < width:
            return x[b, :, py, px]
        return torch.zeros_like(x[b, :, 0, 0])

    for b in range(batch):
        for i in range(rows):
            for j in range(cols):
                for k in range(kernel**2):
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
