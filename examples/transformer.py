"""The Transformer translates Django's messages, by default from English to German.

734 messages to learn from, 89 others to validate with; the figure is BLEU on those.
translations.tsv has them all.
"""

from __future__ import annotations

from argparse import Namespace

from attn_kernels.models import Transformer, TransformerConfig

from .quality import main
from .translation import train_translator


def make(vocab: int, given: Namespace) -> Transformer:
    """A small one, normalised first: it needs no long warm-up."""
    config = TransformerConfig.preset(
        "small", vocab=vocab, dim=64, hidden=256, layers=2, dropout=0.2, norm="pre"
    )
    return Transformer(config, backend=given.backend)


def run(arguments: list[str] | None = None) -> None:
    """Train, translate and report."""
    train_translator(
        "transformer", __doc__, make, arguments,
        target="de", steps=800, stated=9, learning_rate=3e-3,
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
