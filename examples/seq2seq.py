"""The LSTM encoder-decoder of Sutskever et al. translates Django's messages, by default to French.

No attention: the whole source passes through one state. The figure is BLEU on sentences that were
not trained on. translations.tsv has them all.
"""

from __future__ import annotations

from argparse import Namespace

from attn_kernels.models import RnnSeq2Seq, RnnSeq2SeqConfig

from .quality import main
from .translation import train_translator


def make(vocab: int, given: Namespace) -> RnnSeq2Seq:
    """One layer of 192 cells."""
    config = RnnSeq2SeqConfig(vocab, vocab, embed_dim=96, hidden_dim=192, layers=1)
    return RnnSeq2Seq(config, backend=given.backend)


def run(arguments: list[str] | None = None) -> None:
    """Train, translate and report."""
    train_translator(
        "seq2seq", __doc__, make, arguments,
        target="fr", steps=800, stated=8, learning_rate=4e-3, has_backend=lambda given: False,
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
