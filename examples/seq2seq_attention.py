"""An RNN with attention (Bahdanau's, or Luong's with --luong) translates Django's messages.

By default from English to French; the figure is BLEU on sentences that were not trained on.
alignment_*.png show which pieces of the source each piece of the translation looked at;
translations.tsv has all translations.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import torch

from attn_kernels.models import BahdanauConfig, BahdanauSeq2Seq, LuongConfig, LuongSeq2Seq
from attn_kernels.models.seq2seq_attention import AttentionSeq2Seq

from . import pictures
from .bpe import START
from .options import Options
from .quality import main
from .translation import Corpus, numbered, train_translator

SHOWN = 3  # sentences whose alignment is drawn
PIECES = range(4, 16)  # how long they are


def make_bahdanau(vocab: int, given: Namespace) -> BahdanauSeq2Seq:
    """128 cells."""
    config = BahdanauConfig(
        vocab, vocab, embed_dim=96, hidden_dim=128, align_dim=96, maxout_dim=96, dropout=0.2
    )
    return BahdanauSeq2Seq(config, backend=given.backend)


def make_luong(vocab: int, given: Namespace) -> LuongSeq2Seq:
    """One layer of 192 cells."""
    config = LuongConfig(vocab, vocab, embed_dim=96, hidden_dim=192, layers=1)
    return LuongSeq2Seq(config, backend=given.backend)


def make(vocab: int, given: Namespace) -> AttentionSeq2Seq:
    """The one that was asked for."""
    return (make_luong if given.luong else make_bahdanau)(vocab, given)


def add_luong(parser: ArgumentParser) -> None:
    """The option of this example."""
    parser.add_argument("--luong", action="store_true", help="Luong's general score")


def save_alignments(model: AttentionSeq2Seq, corpus: Corpus, options: Options) -> None:
    """Attention weights of a few translations."""
    vocabulary = corpus.vocabulary
    rows = [vocabulary.encode(numbered(x, [])) for x in corpus.validation.source]
    for index, row in enumerate([x for x in rows if len(x) in PIECES][:SHOWN]):
        source = torch.tensor([row], device=options.device)
        target = model.translate(source)
        read = torch.cat([source.new_full((1, 1), START), target[:, :-1]], 1)
        weights = model.alignments(source, read)[0].cpu()
        words, wanted = (list(map(vocabulary.label, x)) for x in (target[0].tolist(), row))
        pictures.save_matrix(options.out / f"alignment_{index}.png", weights, words, wanted)


def run(arguments: list[str] | None = None) -> None:
    """Train, translate, draw and report."""
    train_translator(
        "seq2seq_attention",
        __doc__,
        make,
        arguments,
        target="fr",
        steps=900,
        stated=10,
        learning_rate=3e-3,
        has_backend=lambda given: given.luong,
        look=save_alignments,
        extend=add_luong,
    )


if __name__ == "__main__":
    main(run)
