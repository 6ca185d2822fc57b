"""Every layer of attn_kernels.nn and every model, small, and a call of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import dice
from torch import Tensor, nn

from attn_kernels import Causal
from attn_kernels.models import (
    GPT,
    BahdanauConfig,
    BahdanauSeq2Seq,
    CaptionConfig,
    CaptionModel,
    Dalle,
    DalleConfig,
    DiscreteVae,
    DiscreteVaeConfig,
    GPTConfig,
    ImageTransformer,
    ImageTransformerConfig,
    LuongConfig,
    LuongSeq2Seq,
    MusicTransformer,
    MusicTransformerConfig,
    RnnSeq2Seq,
    RnnSeq2SeqConfig,
    SaganConfig,
    SaganDiscriminator,
    SaganGenerator,
    SelfAttention2d,
    Transformer,
    TransformerConfig,
    ViT,
    ViTConfig,
)
from attn_kernels.nn import (
    Attention,
    FeedForward,
    LearnedPositions,
    LocalAttention1d,
    LocalAttention2d,
    MultiheadAttention,
    RelativeAttention,
    Residual,
    ShawAttention,
    SinusoidalPositions,
    TransformerLayer,
    TransformerStack,
    TransformerXLAttention,
)


@dataclass(frozen=True)
class Case:
    """A module, the inputs of a call of it, and, of a model, what its loss is.

    Args:
        make: the module; of a layer with parameters, make(device=, dtype=).
        inputs: on the CPU.
        loss: loss(model, *inputs).
        call: call(module, *inputs).
    """

    make: Callable[..., nn.Module]
    inputs: tuple[Any, ...]
    loss: Callable[..., Tensor] | None = None
    call: Callable[..., Any] = lambda module, *inputs: module(*inputs)


def model_loss(model: nn.Module, *inputs: Any) -> Tensor:
    return model.loss(*inputs)


def judged_loss(discriminator: nn.Module, *inputs: Any) -> Tensor:
    judged = discriminator(*inputs)
    return discriminator.loss(judged, judged)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=dice(0))


def ids(count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape, generator=dice(0))


def layer(**factory: Any) -> TransformerLayer:
    return TransformerLayer(
        Attention(8, 2, geometry=Causal(), **factory), FeedForward(8, 12, **factory),
        Attention(8, 2, **factory), **factory,
    )  # fmt: skip


X = normal(2, 6, 8)

LAYERS = {
    "Attention": Case(lambda **f: Attention(8, 2, kv_heads=1, context_dim=6, **f), (X, normal(2, 5, 6))),
    "FeedForward": Case(lambda **f: FeedForward(8, 12, **f), (X,)),
    "LearnedPositions": Case(lambda **f: LearnedPositions(9, 8, **f), (X,)),
    "LocalAttention1d": Case(lambda **f: LocalAttention1d(8, 2, block=2, look_back=2, **f), (X,)),
    "LocalAttention2d": Case(
        lambda **f: LocalAttention2d(8, 2, block=(2, 2), halo=(1, 1), **f), (normal(2, 4, 4, 8),)
    ),
    "MultiheadAttention": Case(lambda **f: MultiheadAttention(8, 2, batch_first=True, **f), (X, X, X)),
    "MultiheadAttention of other sizes": Case(
        lambda **f: MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True, **f),
        (X, normal(2, 5, 6), normal(2, 5, 6)),
    ),
    "RelativeAttention": Case(lambda **f: RelativeAttention(8, 2, distances=4, **f), (X,)),
    "Residual": Case(lambda **f: Residual(8, **f), (X, torch.tanh)),
    "ShawAttention": Case(lambda **f: ShawAttention(8, 2, max_distance=3, **f), (X,)),
    "SinusoidalPositions": Case(lambda: SinusoidalPositions(8), (X,)),
    "TransformerLayer": Case(layer, (X, normal(2, 5, 8))),
    "TransformerStack": Case(
        lambda **f: TransformerStack([layer(**f), layer(**f)], **f), (X, normal(2, 5, 8))
    ),
    "TransformerXLAttention": Case(lambda **f: TransformerXLAttention(8, 2, **f), (X,)),
}  # fmt: skip

SIZES = {"dim": 16, "layers": 2, "heads": 2, "dropout": 0.0}
IMAGE = ImageTransformerConfig(
    **SIZES, image=(4, 3), channels=2, levels=5, hidden=12, block=(5,), memory=(5,)
)
CONDITIONED = replace(IMAGE, classes=3, source=(2, 2), encoder_layers=1, positions="learned")
SAGAN = SaganConfig(image=8, bottom=2, width=8, latent=5, classes=3, attention_at=4)
WORDS = {"source_vocab": 11, "target_vocab": 9, "embed_dim": 5, "hidden_dim": 6}
SOURCE = torch.tensor([[3, 4, 5, 10, 2], [6, 2, 0, 0, 0], [7, 3, 9, 2, 0]])
TARGET = torch.tensor([[1, 3, 4, 5, 2], [1, 8, 2, 0, 0], [1, 6, 7, 2, 0]])
TEXT = torch.tensor([[3, 1, 4, 5], [2, 6, 0, 0], [1, 1, 5, 0]])
LABELS = torch.tensor([0, 2, 1])


def image_transformer(config: ImageTransformerConfig) -> Case:
    inputs = (
        ids(5, 3, 2, *config.image),
        LABELS if config.classes else None,
        ids(5, 3, 2, *config.source) if config.source else None,
    )
    return Case(lambda: ImageTransformer(config), inputs, model_loss)


def luong(score: str) -> Case:
    config = LuongConfig(**WORDS, layers=2, score=score, dropout=0.0)
    return Case(lambda: LuongSeq2Seq(config), (SOURCE, TARGET), model_loss)


def music(**changes: Any) -> Case:
    config = MusicTransformerConfig(**SIZES, hidden=16, max_length=8, **changes)
    tokens = ids(9, 2, 6)
    inputs = (tokens, tokens) if config.melody_vocab else (tokens,)
    return Case(lambda: MusicTransformer(config), inputs, model_loss)


MODELS = {
    "BahdanauSeq2Seq": Case(
        lambda: BahdanauSeq2Seq(BahdanauConfig(**WORDS, align_dim=4, maxout_dim=3)),
        (SOURCE, TARGET), model_loss,
    ),
    "CaptionModel": Case(
        lambda: CaptionModel(
            CaptionConfig(
                vocab=9, image=(8, 12), stages=((4, 1), (6, 2)), embed_dim=5, hidden_dim=7,
                align_dim=3, dropout=0.0,
            )
        ),
        (normal(3, 3, 8, 12), TARGET), model_loss,
    ),
    "Dalle": Case(
        lambda: Dalle(
            DalleConfig(
                **SIZES | {"layers": 4}, text_vocab=7, text_length=5, codes=6, grid=4, kernel=3,
                patterns=("row", "column", "conv", "full"),
            )
        ),
        (TEXT, ids(6, 3, 4, 4)), model_loss,
    ),
    "DiscreteVae": Case(
        lambda: DiscreteVae(
            DiscreteVaeConfig(
                image=(4, 8), channels=2, codes=5, hidden=8, code_dim=3, groups=2, blocks=1
            )
        ),
        (normal(2, 2, 4, 8).sigmoid(),), model_loss,
    ),
    "GPT": Case(lambda: GPT(GPTConfig(**SIZES, vocab=9, max_length=8)), (ids(9, 2, 6),), model_loss),
    "ImageTransformer": image_transformer(IMAGE),
    "ImageTransformer in two dimensions, conditioned": image_transformer(
        replace(CONDITIONED, block=(3, 4), memory=(2, 5))
    ),
    "ImageTransformer, logistic": image_transformer(replace(IMAGE, output="logistic", mixtures=2)),
    "LuongSeq2Seq": luong("general"),
    "LuongSeq2Seq, concat": luong("concat"),
    "MusicTransformer": music(),
    "MusicTransformer with a melody": music(melody_vocab=9, melody_layers=1),
    "RnnSeq2Seq": Case(
        lambda: RnnSeq2Seq(RnnSeq2SeqConfig(**WORDS, layers=2)), (SOURCE, TARGET), model_loss
    ),
    "SaganDiscriminator": Case(
        lambda: SaganDiscriminator(SAGAN), (normal(3, 3, 8, 8), LABELS), judged_loss
    ),
    "SaganGenerator": Case(
        lambda: SaganGenerator(SAGAN), (normal(3, 5), LABELS),
        lambda generator, *inputs: generator.loss(generator(*inputs)),
    ),
    "SelfAttention2d": Case(lambda: SelfAttention2d(8), (normal(2, 8, 4, 4),)),
    "Transformer": Case(
        lambda: Transformer(TransformerConfig(**SIZES, vocab=11, hidden=16)),
        (SOURCE, TARGET), model_loss,
    ),
    "ViT": Case(
        lambda: ViT(ViTConfig(**SIZES, image=8, patch=4, channels=1, hidden=12, classes=3)),
        (normal(3, 1, 8, 8), LABELS), model_loss, lambda model, images, labels: model(images),
    ),
}  # fmt: skip

MODULES = LAYERS | MODELS
