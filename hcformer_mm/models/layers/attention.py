"""mmcv's attention, computed by PyTorch's fused kernels."""

from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention(MultiheadAttention):
    """mmcv's ``MultiheadAttention`` by ``scaled_dot_product_attention``, with equal results.

    mmcv's also averages the weights over the heads, and discards the averages; it adds positions
    to queries and keys and projects both one by one even where they are the same.

    :func:`fuse_attention` turns mmcv's into this one; parameters, names and hooks stay.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: None = None,
    ) -> Tensor:
        """Attend, and add the queries.

        Args:
            query: Queries ``(B, Q, C)``; in self-attention the same object as ``key``.
            key: Keys ``(B, N, C)``.
            value: Values ``(B, N, C)``.
            query_pos: Positions that are added to queries for the attention weights.
            key_pos: Positions that are added to keys; None if ``key`` contains them.
            attn_mask: Added to the logits of attention, ``(B, 1, Q, N)``, in their dtype.
            key_padding_mask: None; part of mmdet's signature.

        Returns:
            Queries ``(B, Q, C)``.
        """
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        width = self.embed_dims
        at = query + query_pos
        if key is query and key_pos is query_pos:
            q, k = F.linear(at, weight[: 2 * width], bias[: 2 * width]).chunk(2, dim=-1)
        else:
            q = F.linear(at, weight[:width], bias[:width])
            keys = key if key_pos is None else key + key_pos
            k = F.linear(keys, weight[width : 2 * width], bias[width : 2 * width])
        v = F.linear(value, weight[2 * width :], bias[2 * width :])
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.attn.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
        out = self.attn.out_proj(attended.transpose(1, 2).flatten(2))
        return query + self.dropout_layer(self.proj_drop(out))


def fuse_attention(model: nn.Module) -> None:
    """Turn every attention of mmcv inside ``model`` into a :class:`FusedAttention`, in place.

    Raises:
        ValueError: An attention has an option that this one lacks.
    """
    for name, module in model.named_modules():
        if type(module) is not MultiheadAttention:
            continue
        attn = module.attn
        extra = attn.bias_k is not None or attn.add_zero_attn
        if extra or attn.in_proj_weight is None or attn.in_proj_bias is None:
            raise ValueError(
                f"expected {name!r} to have no options beside embed_dims, num_heads, batch_first "
                "and rates of dropout, got bias, add_bias_kv, add_zero_attn, kdim or vdim; remove "
                "them from its config"
            )
        module.__class__ = FusedAttention
