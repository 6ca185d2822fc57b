"""Real data that comes in packages, one file for each source, with fixed splits."""

from .source import MissingData

__all__ = ["MissingData"]
