"""The reference model stack: papers' models over the layers of attn_kernels.nn."""

from .config import Config

__all__ = ["Config"]
