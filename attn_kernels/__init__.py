"""Structured attention (causal, local, relative) as fused kernels with exact gradients."""

from .causal import causal_attention
from .core.attention import attention
from .core.backends import backends, use_backend
from .core.explain import explain
from .core.geometry import Causal, Full, Local1d, Local2d, Window
from .core.merge import merge
from .core.pattern import Pattern
from .local import local_attention_1d, local_attention_2d
from .picture import plot
from .relative import relative_attention
from .score.bias import Bias
from .score.relative import Relative

__version__ = "0.1.0"
__all__ = [
    "Bias",
    "Causal",
    "Full",
    "Local1d",
    "Local2d",
    "Pattern",
    "Relative",
    "Window",
    "attention",
    "backends",
    "causal_attention",
    "explain",
    "local_attention_1d",
    "local_attention_2d",
    "merge",
    "plot",
    "relative_attention",
    "use_backend",
]
