"""The reference model stack: papers' models over the layers of attn_kernels.nn."""

from .config import Config
from .gpt import GPT, GPTConfig
from .transformer import Transformer, TransformerConfig

__all__ = ["GPT", "Config", "GPTConfig", "Transformer", "TransformerConfig"]
