"""The reference model stack: papers' models over the layers of attn_kernels.nn."""

from .config import Config
from .gpt import GPT, GPTConfig
from .music_transformer import MusicTransformer, MusicTransformerConfig
from .transformer import Transformer, TransformerConfig
from .vit import ViT, ViTConfig

__all__ = [
    "GPT",
    "Config",
    "GPTConfig",
    "MusicTransformer",
    "MusicTransformerConfig",
    "Transformer",
    "TransformerConfig",
    "ViT",
    "ViTConfig",
]
