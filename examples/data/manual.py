"""Python's language reference as it comes with Python (`help()` shows it): 79 texts, 465 kB."""

from __future__ import annotations

from ..progress import announce
from .source import package, split_by_content


def load() -> tuple[list[str], list[str]]:
    """Texts to train on and to validate with."""
    announce("loading Python's language reference")
    topics = package("pydoc_data.topics", "python, with its standard library in full").topics
    texts = [topics[name] for name in sorted(topics)]
    split = split_by_content(text.encode() for text in texts)
    return tuple([texts[i] for i in part] for part in split)
