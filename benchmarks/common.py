"""The driver: a case's shapes one after the other, values compared before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_kernels import use_backend

from . import machine
from .case import Case, Inputs, Peer, Prepare, Shape
from .measure import (
    Step,
    agree,
    errors,
    forward_step,
    interleaved,
    training_step,
)
from .memory import MemoryMeter, total_memory
from .results import OURS, Entry, Result

MAX_INPUT_SETS = 256
REPEATS = 2  # of a shape whose times are in doubt


@dataclass(frozen=True)
class Options:
    """How to measure."""

    peers: tuple[str, ...] = ()  # names; empty: all
    rounds: int = 7
    budget: float = 5.0  # seconds for each peer and shape
    backend: str | None = "cpu"


class WrongValues(RuntimeError):
    """Ours and the first peer disagree: there is nothing to time."""


def make_step(
    provider: Prepare, shape: Shape, dtype: torch.dtype, inputs: list[Inputs], backward: bool
) -> Step:
    """The provider prepared for one shape, as a call without arguments.

    Gradients come in dtype's precision, whatever the precision of the inputs.
    """
    arithmetic = inputs[0].q.dtype
    call = provider(shape, arithmetic)
    if not backward:
        return forward_step(call, inputs)
    size = (shape.batch, shape.heads, shape.q_len, shape.dim)
    grad_out = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
    return training_step(call, inputs, grad_out.to(arithmetic))


def input_sets(case: Case, shape: Shape, dtype: torch.dtype) -> list[Inputs]:
    """One set of inputs, or so many that the caches forget one before it comes again."""
    count = min(MAX_INPUT_SETS, -(-case.cold_bytes // shape.input_bytes(dtype)))
    return [shape.inputs(dtype, seed) for seed in range(max(1, count))]


def widened(x: Inputs, dtype: torch.dtype) -> list[Inputs]:
    """The same values in a wider type."""
    return [Inputs(**{name: value.detach().to(dtype) for name, value in vars(x).items()})]


def check_against_float64(case: Case, dtype: torch.dtype, backward: bool) -> None:
    """Compare ours on the small shape with the reference in float64."""
    shape = case.small
    inputs = [shape.inputs(dtype)]
    with use_backend("reference"):
        wide = widened(inputs[0], torch.float64)
        expected = make_step(case.ours, shape, dtype, wide, backward)()
    found = errors(make_step(case.ours, shape, dtype, inputs, backward)(), expected)
    if not agree(found, dtype):
        where = f"{case.name} {shape.label} {dtype_name(dtype)}"
        raise WrongValues(f"{where}: {describe(found)} against the float64 reference")


def providers(case: Case, peers: tuple[str, ...] = ()) -> dict[str, Peer]:
    """Ours, the chosen peers (none chosen: all), and what is timed beside."""
    chosen = {name: peer for name, peer in case.peers.items() if not peers or name in peers}
    return {OURS: Peer(case.ours), **chosen, **case.related}


def describe(found: tuple[float, float]) -> str:
    """Errors in words."""
    return f"error {found[0]:.1e} (mean {found[1]:.1e})"


def results_of(step: Step, entry: Entry) -> list[Tensor] | None:
    """What the step computes; None, with the reason in the entry, if it cannot."""
    try:
        return [x.clone() for x in step()]
    except Exception as error:  # peers fail in many ways; the report says how
        first_line = str(error).strip().partition("\n")[0]
        entry.skipped = f"{type(error).__name__}: {first_line[:100]}"
        return None


def check_values(
    case: Case,
    shape: Shape,
    dtype: torch.dtype,
    backward: bool,
    found: dict[str, Peer],
    progress: Callable[[str], None],
) -> tuple[dict[str, Entry], dict[str, Step]]:
    """An entry for every provider, and a step for those that compute what the first peer does.

    Half types are compared with the first peer in float32, on the same values.
    """
    inputs = input_sets(case, shape, dtype)
    entries = {name: Entry() for name in found}
    steps: dict[str, Step] = {}
    expected = None
    for name in sorted(found, key=lambda name: (name in case.related, name == OURS)):
        progress(f"{name} values")
        peer, entry = found[name], entries[name]
        entry.skipped = peer.why_not(shape, dtype, backward, total_memory())
        if entry.skipped:
            continue
        step = make_step(peer.prepare, shape, dtype, inputs, backward)
        results = results_of(step, entry)
        if results is None and name == OURS:
            where = f"{case.name} {shape.label} {dtype_name(dtype)}"
            raise WrongValues(f"{where}: {entry.skipped}")
        if results is None:
            continue
        steps[name] = step
        if name in case.related:
            continue
        if expected is None and dtype.itemsize < 4 and name != OURS:
            wide = widened(inputs[0], torch.float32)
            expected = make_step(peer.prepare, shape, dtype, wide, backward)()
        expected = expected or results
        entry.errors = errors(results, expected)
        if agree(entry.errors, dtype):
            continue
        if name == OURS:
            where = f"{case.name} {shape.label} {dtype_name(dtype)}{' backward' * backward}"
            raise WrongValues(f"{where}: {describe(entry.errors)} against {next(iter(steps))}")
        entry.skipped = f"{name} has wrong values: {describe(entry.errors)}"
        del steps[name]
    return entries, steps


def run_shape(
    case: Case,
    shape: Shape,
    dtype: torch.dtype,
    direction: str,
    options: Options,
    meter: MemoryMeter,
    progress: Callable[[str], None],
    memory_of_all: bool = False,
) -> Result:
    """Compare values, time everything that agreed in turns, then measure memory.

    Times in doubt are measured again, REPEATS times at most; the last ones count. Memory is that of
    ours and of the best peer, or of everything.
    """
    backward, threads = direction == "backward", torch.get_num_threads()
    found = providers(case, options.peers)
    entries, steps = check_values(case, shape, dtype, backward, found, progress)
    gauge = machine.limit_gauge(threads, dtype, case.reads_only)
    result = Result(
        op=case.name,
        title=case.title,
        shape=shape.label,
        sizes={name: list(size) for name, size in shape.sizes().items()},
        source=shape.source,
        dtype=dtype_name(dtype),
        direction=direction,
        threads=threads,
        visible_pairs=shape.visible_pairs(),
        flops=shape.flops(backward),
        input_bytes=shape.input_bytes(dtype),
        result_bytes=shape.result_bytes(dtype, backward),
        reads_only=case.reads_only,
        peers=[name for name in found if name in case.peers],
        entries=entries,
        limits=[],
    )
    for attempt in range(1 + REPEATS):
        say = (lambda what: progress(f"again, {what}")) if attempt else progress
        times, result.limits = interleaved(steps, gauge, options.rounds, options.budget, say)
        for name, seconds in times.items():
            entries[name].seconds = seconds
        if not result.doubt:
            break
    for name in steps if memory_of_all else filter(None, (OURS, result.best_peer)):
        progress(f"{name} memory")
        arguments = (shape, dtype, backward, threads, options.backend)
        entries[name].extra_bytes = meter(case, name, *arguments)
    return result


def dtype_name(dtype: torch.dtype) -> str:
    """float32 and so on."""
    return str(dtype).removeprefix("torch.")
