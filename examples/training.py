"""Training: batches that follow from the step alone, validation, checkpoints, a loss curve.

Everything random is a function of (seed, step) or of torch's generator, which a checkpoint holds: a
training that was interrupted and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checkpoint, pictures
from .options import Options
from .progress import Progress

BETAS = (0.9, 0.98)
RARELY = 20  # steps between two validations, at least
SAVE_EVERY = 30.0  # seconds that an accident may cost
INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended


def random_numbers(seed: int, step: int) -> torch.Generator:
    """The generator of one training step."""
    return torch.Generator().manual_seed((seed << 32) + step)


def shuffled(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Which of `count` items the batch of a step holds: endless epochs, each in new order."""
    first = step * batch
    epochs = range(first // count, (first + batch - 1) // count + 1)
    orders = [torch.randperm(count, generator=random_numbers(seed + 1, e)) for e in epochs]
    return torch.cat(orders)[first % count :][:batch]


def warmup_cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.05) -> float:
    """The factor of the learning rate: up in a line, then down in half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, and random numbers that training does not miss."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        yield
        model.train()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Signals that ask to stop, in a list; a second one stops at once."""
    asked: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, remember)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Training:
    """One model, trained for options.steps steps.

    Args:
        options: the command line.
        name: of the checkpoint and the curve in options.out.
        model: what is trained; all of its state is in its state_dict().
        batch: the batch of a step.
        loss: the loss of a batch, a scalar.
        validate: the loss on the validation data, measured now and then without gradients.
        config: all that must be the same when a checkpoint is resumed; the example's name and the
            seed are added.
        learning_rate, weight_decay: of AdamW; the rate is multiplied by warmup_cosine().
        clip: the largest norm of the gradient.
        validations: about how many there are.
        baseline: a name and a loss, drawn into the curve.
    """

    def __init__(
        self,
        options: Options,
        name: str,
        model: nn.Module,
        *,
        batch: Callable[[int], Any],
        loss: Callable[[Any], Tensor],
        validate: Callable[[], float],
        config: dict[str, Any],
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        validations: int = 10,
        baseline: tuple[str, float] | None = None,
    ) -> None:
        self.options, self.name, self.model = options, name, model.to(options.device)
        self.batch, self.loss, self.validate = batch, loss, validate
        self.config = {**config, "example": options.name, "seed": options.seed}
        self.clip, self.baseline = clip, baseline
        self.validate_every = max(RARELY, options.steps // validations)
        self.optimizers: dict[str, Optimizer] = {
            "adam": torch.optim.AdamW(
                model.parameters(), learning_rate, BETAS, weight_decay=weight_decay
            )
        }
        self.path = options.out / f"{name}.safetensors"
        self.step, self.seconds = 0, 0.0
        self.history: dict[str, list] = {"train": [], "validation": []}  # loss; [step, loss]

    def update(self, batch: Any) -> float:
        """One step of gradient descent; the loss before it."""
        (optimizer,) = self.optimizers.values()
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        optimizer.step()
        return loss.item()

    def set_learning_rates(self) -> None:
        """Every learning rate follows from the step alone."""
        factor = warmup_cosine(self.step, self.options.steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def resume(self) -> None:
        """Go on from the checkpoint."""
        found = checkpoint.load(self.path)
        checkpoint.check_config(self.path, found.config, self.config)
        if found.step > self.options.steps:
            raise ValueError(
                f"{self.path} is at step {found.step}: --steps must be at least that,"
                f" got {self.options.steps}"
            )
        checkpoint.restore(found, self.model, self.optimizers)
        self.step, self.history, self.seconds = found.step, found.history, found.seconds

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            self.path,
            self.model,
            self.optimizers,
            self.step,
            self.seconds,
            self.config,
            self.history,
        )

    def measure(self) -> float:
        """The validation loss now, put on record."""
        with evaluating(self.model):
            found = float(self.validate())
        self.history["validation"].append([self.step, found])
        return found

    def one_step(self) -> dict[str, float]:
        """Train on the next batch; what the progress bar shows."""
        self.set_learning_rates()
        self.history["train"].append(self.update(self.batch(self.step)))
        self.step += 1
        if self.step % self.validate_every == 0 or self.step == self.options.steps:
            self.measure()
        shown = {"loss": self.history["train"][-1]}
        if self.history["validation"]:
            shown["validation"] = self.history["validation"][-1][1]
        return shown

    def run(self) -> Training:
        """Train what is left to train; afterwards the model is in evaluation mode."""
        if self.path.exists():
            self.resume()
        self.model.train()
        steps = self.options.steps
        progress, saved = Progress(self.name, self.step, steps), time.monotonic()
        with stop_signals() as asked:
            while self.step < steps:
                began = time.process_time()
                shown = self.one_step()
                self.seconds += time.process_time() - began
                if asked or self.step == steps or time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
                progress.show(self.step, shown)
                if asked and self.step < steps:
                    print(f"\nstopped at step {self.step}; --resume goes on from {self.path}")
                    raise SystemExit(INTERRUPTED)
        curve = self.options.out / f"{self.name}_loss.png"
        pictures.save_curve(curve, self.name, self.history, self.baseline)
        self.model.eval()
        return self

    @property
    def validation_loss(self) -> float:
        """The last one measured."""
        return self.history["validation"][-1][1]
