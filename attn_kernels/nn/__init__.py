"""Layers over the public operations: attention with projections, positions, Transformer blocks."""

from .attention import Attention, set_backend
from .blocks import ACTIVATIONS, FeedForward, Residual, TransformerLayer, TransformerStack
from .cache import KeyValueCache, LayerCache, ModelCache
from .local import LocalAttention1d, LocalAttention2d
from .multihead import MultiheadAttention
from .positions import LearnedPositions, SinusoidalPositions, grid_sinusoids, sinusoids
from .relative import RelativeAttention, ShawAttention, TransformerXLAttention

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "FeedForward",
    "KeyValueCache",
    "LayerCache",
    "LearnedPositions",
    "LocalAttention1d",
    "LocalAttention2d",
    "ModelCache",
    "MultiheadAttention",
    "RelativeAttention",
    "Residual",
    "ShawAttention",
    "SinusoidalPositions",
    "TransformerLayer",
    "TransformerStack",
    "TransformerXLAttention",
    "grid_sinusoids",
    "set_backend",
    "sinusoids",
]
