"""What every layer and every model must hold: deferred construction, resetting, no waiting."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from every_module import LAYERS, MODULES, Case
from host_reads import host_reads
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attn_kernels.models
import attn_kernels.nn
from attn_kernels.models import seq2seq, seq2seq_attention
from attn_kernels.models.tokens import lengths_of
from attn_kernels.nn import checks

NAN_OR_NEGATIVE = {True: math.nan, False: -1}  # by whether a tensor is floating


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=MODULES)
def case(request) -> Case:
    return MODULES[request.param]


def outputs(case: Case, module: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)  # DiscreteVae draws
    with torch.no_grad():
        return [x for x in tree_leaves(case.call(module.eval(), *case.inputs)) if x is not None]


def spoil(module: nn.Module) -> None:
    """Overwrite all parameters and buffers."""
    for x in (*module.parameters(), *module.buffers()):
        x.data.fill_(NAN_OR_NEGATIVE[x.is_floating_point()])


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, found, expected)) and len(found) == len(expected) > 0


def test_none_is_missing():
    """Every module class that the two packages export has a case."""
    made = {type(case.make()).__name__ for case in MODULES.values()}
    for package in (attn_kernels.nn, attn_kernels.models):
        for name in package.__all__:
            if inspect.isclass(found := getattr(package, name)) and issubclass(found, nn.Module):
                assert name in made


@pytest.mark.parametrize("assign", [False, True])
def test_made_on_meta_and_loaded(case, assign):
    """It computes what the module computes whose state it loads: nothing is held outside of the
    state that construction alone would fill."""
    original = case.make()
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.device("meta"):
        module = case.make()
    if not assign:
        spoil(module.to_empty(device=torch.get_default_device()))
    module.load_state_dict(original.state_dict(), assign=assign)
    assert same(outputs(case, module), outputs(case, original))


class FixedDice(TorchDispatchMode):
    """Random fillings depend on their bounds and on the shape alone, not on what was drawn before."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default):
            torch.manual_seed(args[0].numel())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("through_apply", [False, True])
def test_reset(case, through_apply):
    """Resetting leaves what the constructor leaves, bit for bit, buffers included; also when torch's
    own way visits the children first."""
    with FixedDice():
        expected, module = case.make().state_dict(), case.make()
        kept = dict(module.named_parameters())
        spoil(module)
        if through_apply:
            module.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        else:
            module.reset_parameters()
    for name, x in module.state_dict().items():
        assert torch.equal(x, expected[name]), name
    for name, parameter in module.named_parameters():
        assert parameter is kept[name], name


@pytest.mark.parametrize(
    "name", [name for name, case in LAYERS.items() if [*case.make().parameters()]]
)
def test_device_and_dtype(name):
    make = LAYERS[name].make
    for dtype in (torch.float64, torch.bfloat16):
        assert {x.dtype for x in make(dtype=dtype).parameters()} == {dtype}
    module = make(device="meta", dtype=torch.float16)
    assert {(x.device.type, x.dtype) for x in module.parameters()} == {("meta", torch.float16)}
    module = make(device=torch.get_default_device())
    assert {(x.device, x.dtype) for x in module.parameters()} == {
        (torch.get_default_device(), torch.float32)
    }


def test_a_step_does_not_wait(monkeypatch, case):
    """Forward, loss and gradients read no values where the device asserts the rules on ids and
    padding, as a GPU does: here the CPU does it in its place. Packed sentences are left out: torch
    wants their lengths on the CPU."""
    monkeypatch.setattr(checks, "is_asserted_by_device", lambda holds: True)
    for module in (seq2seq, seq2seq_attention):
        monkeypatch.setattr(module, "run_packed", lambda rnn, x, lengths: rnn(x))
    module = case.make()
    with host_reads() as reads:
        out = (case.loss or case.call)(module, *case.inputs)
        first = tree_leaves(out)[0]
        if first.requires_grad:
            first.sum().backward()
    assert reads == []


def test_the_device_asserts_the_same_rules(monkeypatch):
    monkeypatch.setattr(checks, "is_asserted_by_device", lambda holds: True)
    for ids in (torch.tensor([[0, 9]]), torch.tensor([[-1, 0]])):
        with pytest.raises(RuntimeError, match=r"tokens must lie in \[0, 9\)"):
            checks.check_ids("tokens", ids, 9)
    for text, rule in (([[0, 0]], "at least one token"), ([[1, 0, 1]], "pad 0 only at its end")):
        with pytest.raises(RuntimeError, match=f"text must have {rule}"):
            lengths_of("text", torch.tensor(text), 0)
