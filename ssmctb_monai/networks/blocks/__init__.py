"""Self-supervised blocks (SSPCAB, SSMCTB) and their parts, in 2D and 3D."""

from ssmctb_monai.networks.blocks.backbones import Backbone, make_backbone
from ssmctb_monai.networks.blocks.block_score import block_score
from ssmctb_monai.networks.blocks.channel_transformer import ChannelTransformer
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder
from ssmctb_monai.networks.blocks.factory import NO_BLOCK, Block, BlockName, make_block
from ssmctb_monai.networks.blocks.fastvit import FastViT, RepMixer
from ssmctb_monai.networks.blocks.masked_convolution import MaskedConvolution
from ssmctb_monai.networks.blocks.released import ReleasedChannelAttention, from_released
from ssmctb_monai.networks.blocks.reparameterized import RepConvolution
from ssmctb_monai.networks.blocks.self_supervised_block import SelfSupervisedBlock, named_blocks
from ssmctb_monai.networks.blocks.slice_attention import SliceAttention
from ssmctb_monai.networks.blocks.spatial_transformer import SpatialTransformer
from ssmctb_monai.networks.blocks.ssmctb import SSMCTB
from ssmctb_monai.networks.blocks.sspcab import SSPCAB
from ssmctb_monai.networks.blocks.transformer_layer import SummedHeadAttention, TransformerLayer

__all__ = [
    "NO_BLOCK",
    "SSMCTB",
    "SSPCAB",
    "Backbone",
    "Block",
    "BlockName",
    "ChannelTransformer",
    "Decoder",
    "Encoder",
    "FastViT",
    "MaskedConvolution",
    "ReleasedChannelAttention",
    "RepConvolution",
    "RepMixer",
    "SelfSupervisedBlock",
    "SliceAttention",
    "SpatialTransformer",
    "SummedHeadAttention",
    "TransformerLayer",
    "block_score",
    "from_released",
    "make_backbone",
    "make_block",
    "named_blocks",
]
