"""TransformerEncoderNeck: the transformer encoder of HCFormer+, between backbone and head."""

from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.layers import DetrTransformerEncoder
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures, require_clustering
from ..layers.attention import fuse_attention
from ..layers.positional_encoding import GridEncoding
from ..utils.pretrained import is_pretrained


@MODELS.register_module()
class TransformerEncoderNeck(BaseModule):
    """A transformer encoder on the coarsest feature map: HCFormer+ (paper, Tables 1-4).

    A 1×1 convolution and group normalization (32 groups) bring the map to ``out_channels``. Then
    its cells attend to each other; sine positional encodings are added to the queries and keys of
    every layer. Cells in the padding are not masked out, as in the head.

    Args:
        in_channels: Channels of the last feature map.
        out_channels: Channels of the encoded map, which the head reads.
        encoder: Config of mmdet's ``DetrTransformerEncoder``: ``num_layers`` and ``layer_cfg`` with
            ``self_attn_cfg`` and ``ffn_cfg``.
        positional_encoding: Config of mmdet's ``SinePositionalEncoding``.
        init_cfg: Initialization config of MMEngine.

    Raises:
        ValueError: The widths differ from ``out_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        *,
        encoder: dict[str, Any],
        positional_encoding: dict[str, Any],
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.encoder = DetrTransformerEncoder(**encoder)
        fuse_attention(self.encoder)
        widths = (self.encoder.embed_dims, 2 * positional_encoding["num_feats"])
        if widths != (out_channels, out_channels):
            raise ValueError(
                "expected embed_dims of encoder and 2 * num_feats of positional_encoding equal to "
                f"out_channels={out_channels}, got {widths}"
            )
        self.in_channels = in_channels
        # The released weights have the bias, although the normalization has one too.
        self.input_proj = ConvModule(
            in_channels,
            out_channels,
            kernel_size=1,
            bias=True,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=None,
        )
        self.positional_encoding = GridEncoding(**positional_encoding)

    def init_weights(self) -> None:
        """Initialize as the released implementation does, or by ``init_cfg``."""
        is_first = not self.is_init
        super().init_weights()
        if not is_first or is_pretrained(self):
            return
        self.input_proj.conv.reset_parameters()  # a uniform bias, which ConvModule has set to 0
        for parameter in (self.input_proj.conv.weight, *self.encoder.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: ClusteredFeatures) -> ClusteredFeatures:
        """Encode the last feature map.

        Args:
            x: Feature maps, finest first, with their clustering; the last is
                ``(B, in_channels, h, w)``.

        Returns:
            The features with the encoded map ``(B, out_channels, h, w)`` in place of the last map.

        Raises:
            TypeError: The features carry no clustering.
            ValueError: The last map does not have ``in_channels``.
        """
        x = require_clustering(x)
        if x[-1].shape[1] != self.in_channels:
            raise ValueError(
                f"expected a last feature map of in_channels={self.in_channels}, got "
                f"{tuple(x[-1].shape)}"
            )
        cells = self.input_proj(x[-1])
        encoded: Tensor = self.encoder(
            query=cells.flatten(2).transpose(1, 2),  # (B, h·w, C)
            query_pos=self.positional_encoding(cells),
            key_padding_mask=None,
        )
        return x.replace([*x[:-1], encoded.transpose(1, 2).unflatten(2, cells.shape[-2:])])
