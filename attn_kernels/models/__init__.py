"""The reference model stack: papers' models over the layers of attn_kernels.nn."""

from .captioning import CaptionConfig, CaptionModel
from .config import Config
from .dalle import Dalle, DalleConfig
from .dvae import DiscreteVae, DiscreteVaeConfig
from .gpt import GPT, GPTConfig
from .image_transformer import ImageTransformer, ImageTransformerConfig
from .music_transformer import MusicTransformer, MusicTransformerConfig
from .sagan import SaganConfig, SaganDiscriminator, SaganGenerator, SelfAttention2d
from .seq2seq import RnnSeq2Seq, RnnSeq2SeqConfig
from .seq2seq_attention import BahdanauConfig, BahdanauSeq2Seq, LuongConfig, LuongSeq2Seq
from .transformer import Transformer, TransformerConfig
from .vit import ViT, ViTConfig

__all__ = [
    "GPT",
    "BahdanauConfig",
    "BahdanauSeq2Seq",
    "CaptionConfig",
    "CaptionModel",
    "Config",
    "Dalle",
    "DalleConfig",
    "DiscreteVae",
    "DiscreteVaeConfig",
    "GPTConfig",
    "ImageTransformer",
    "ImageTransformerConfig",
    "LuongConfig",
    "LuongSeq2Seq",
    "MusicTransformer",
    "MusicTransformerConfig",
    "RnnSeq2Seq",
    "RnnSeq2SeqConfig",
    "SaganConfig",
    "SaganDiscriminator",
    "SaganGenerator",
    "SelfAttention2d",
    "Transformer",
    "TransformerConfig",
    "ViT",
    "ViTConfig",
]
