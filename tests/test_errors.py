"""Every message, word for word: the argument's name, the rule, what came."""

from __future__ import annotations

import ast
import inspect
import math
import re
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from common import Target

import attn_kernels
import attn_kernels.local
from attn_kernels import (
    Causal,
    Full,
    Local1d,
    Local2d,
    Pattern,
    Relative,
    Window,
    attention,
    causal_attention,
    local_attention_1d,
    local_attention_2d,
    relative_attention,
    use_backend,
)
from attn_kernels.core import backends, geometry, pattern, validate

Q = torch.zeros(2, 4, 6, 8)
K = V = torch.zeros(2, 2, 6, 8)
TABLE = torch.zeros(1, 5, 8)
PATTERN = Pattern.from_mask(torch.ones(9, 9, dtype=torch.bool))
CANVAS = torch.zeros(2, 4, 2, 3, 8)
BLOCKS = {"block": (2, 2), "halo": (1, 1)}


def call(*tensors: Any, geometry: Any = Full(), score: Any = None, **options: Any) -> Callable:  # noqa: B008
    """attention(), later, of q, k, v with the first of them replaced."""
    options = {"backend": "reference"} | options
    q, k, v = (*tensors, *(Q, K, V)[len(tensors) :])
    return lambda: attention(q, k, v, geometry, score, **options)


def score(geometry: Any = Causal(), **settings: Any) -> Callable:  # noqa: B008
    return call(geometry=geometry, score=Relative(**({"rel_k": TABLE} | settings)))


def canvas(*tensors: Any, **options: Any) -> Callable:
    q, k, v = (*tensors, *(CANVAS,) * (3 - len(tensors)))
    return lambda: local_attention_2d(q, k, v, **(BLOCKS | options), backend="reference")


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


LONG = torch.long
DEVICE_META = {"device": "meta"}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls these kinds prototypes
    SPARSE_ROWS = V.to_sparse_csr(dense_dim=1)
    NESTED = torch.nested.nested_tensor([zeros(4, 6, 8), zeros(4, 3, 8)])
JAGGED = torch.nested.nested_tensor([zeros(4, 6, 8), zeros(3, 6, 8)], layout=torch.jagged)
ONE_BOOL = (
    "Pattern: function must combine tensors by &, | and ~, and choose by torch.where; and, or, not, if"
    " and a < b < c want one bool, got a tensor"
)

# fmt: off
MESSAGES = [
    # q, k, v
    (call([1.0]), TypeError, "q must be a torch.Tensor, got list"),
    (call(Q, None), TypeError, "k must be a torch.Tensor, got NoneType"),
    (call(Q, K, 3), TypeError, "v must be a torch.Tensor, got int"),
    (call(zeros(4, 6, 8)), ValueError, "q must have shape [batch, heads, length, dim], got [4, 6, 8]"),
    (call(Q, zeros(2, 2, 6)), ValueError, "k must have shape [batch, heads, length, dim], got [2, 2, 6]"),
    (call(Q, zeros(3, 2, 6, 8)), ValueError, "k must have shape [2, *, *, 8] like q, got [3, 2, 6, 8]"),
    (call(Q, zeros(2, 2, 6, 4)), ValueError, "k must have shape [2, *, *, 8] like q, got [2, 2, 6, 4]"),
    (call(Q, K, zeros(2, 2, 5, 8)), ValueError, "v must have shape [2, 2, 6, *] like k, got [2, 2, 5, 8]"),
    (call(Q, K, zeros(2, 4, 6, 8)), ValueError, "v must have shape [2, 2, 6, *] like k, got [2, 4, 6, 8]"),
    (call(Q, zeros(2, 0, 6, 8), zeros(2, 0, 6, 8)), ValueError,
     "k must have heads if and only if q has, got 0 for 4 of q"),
    (call(zeros(2, 0, 6, 8)), ValueError, "k must have heads if and only if q has, got 2 for 0 of q"),
    (call(zeros(2, 3, 6, 8)), ValueError, "q's heads must be a multiple of k's heads, got 3 and 2"),
    (call(zeros(2, 4, 6, 0), zeros(2, 2, 6, 0)), ValueError, "q and v must have a dim of at least 1, got 0 and 8"),
    (call(Q, K, zeros(2, 2, 6, 0)), ValueError, "q and v must have a dim of at least 1, got 8 and 0"),
    (call(Q.long(), K.long(), V.long()), ValueError, "q must be float32, float64, bfloat16 or float16, got int64"),
    (call(Q, K.double()), ValueError, "k must have dtype float32 like q, got float64"),
    (call(Q, K, V.bfloat16()), ValueError, "v must have dtype float32 like q, got bfloat16"),
    (call(*(x.to("meta") for x in (Q, K.double()))), ValueError, "k must have dtype float32 like q, got float64"),
    (call(Q, K.to("meta")), ValueError, "k must be on device cpu like q, got meta"),
    (call(Q, K, V.to("meta")), ValueError, "v must be on device cpu like q, got meta"),
    (call(Q.to_sparse()), ValueError, "q must be a dense tensor (torch.strided), got torch.sparse_coo"),
    (call(Q, K.to_sparse()), ValueError, "k must be a dense tensor (torch.strided), got torch.sparse_coo"),
    (call(Q, K, SPARSE_ROWS), ValueError,
     "v must be a dense tensor (torch.strided), got torch.sparse_csr"),
    (call(NESTED), ValueError, "q must be a dense tensor (torch.strided), got a nested one"),
    (call(Q, JAGGED), ValueError, "k must be a dense tensor (torch.strided), got a nested one"),
    # the other arguments
    (call(geometry="causal"), TypeError,
     "geometry must be a Geometry such as Full(), Causal() or Local1d(...), got str"),
    (call(geometry=Causal), TypeError,
     "geometry must be a Geometry such as Full(), Causal() or Local1d(...), got type"),
    (call(geometry=zeros(6, 6, dtype=torch.bool)), TypeError,
     "geometry must be a Geometry such as Full(), Causal() or Local1d(...), got Tensor:"
     " a boolean mask becomes one by Pattern.from_mask(mask)"),
    (call(geometry=lambda q, k: q >= k), TypeError,
     "geometry must be a Geometry such as Full(), Causal() or Local1d(...), got function:"
     " a function becomes one by Pattern.from_function(function, q_len, k_len)"),
    (call(scale="1"), TypeError, "scale must be a float, got str"),
    (call(scale=True), TypeError, "scale must be a float, got bool"),
    (call(scale=torch.ones(())), TypeError, "scale must be a float, got Tensor"),
    (call(scale=math.nan), ValueError, "scale must be finite, got nan"),
    (call(scale=-math.inf), ValueError, "scale must be finite, got -inf"),
    (call(return_lse="yes"), TypeError, "return_lse must be a bool, got str"),
    (call(return_lse=1), TypeError, "return_lse must be a bool, got int"),
    (call(key_lengths=[6, 6]), TypeError, "key_lengths must be an int tensor, got list"),
    (call(key_lengths=zeros(2)), ValueError, "key_lengths must be int64 or int32, got float32"),
    (call(key_lengths=zeros(3, dtype=LONG)), ValueError, "key_lengths must have shape [2], got [3]"),
    (call(key_lengths=zeros(2, dtype=LONG, **DEVICE_META)), ValueError,
     "key_lengths must be on device cpu like q, got meta"),
    (call(key_lengths=zeros(2, dtype=LONG).to_sparse()), ValueError,
     "key_lengths must be a dense tensor (torch.strided), got torch.sparse_coo"),
    (call(sinks=[0.0]), TypeError, "sinks must be a torch.Tensor, got list"),
    (call(sinks=zeros(5)), ValueError, "sinks must have shape [4], got [5]"),
    (call(sinks=zeros(4).long()), ValueError, "sinks must be of a floating dtype, got int64"),
    (call(query_offset=1.5), TypeError, "query_offset must be an int or int tensor, got float"),
    (call(query_offset=True), TypeError, "query_offset must be an int or int tensor, got bool"),
    (call(query_offset=2**60 + 1), ValueError,
     "query_offset must be in [-2**60, 2**60], got 1152921504606846977"),
    (call(query_offset=-(2**63)), ValueError,
     "query_offset must be in [-2**60, 2**60], got -9223372036854775808"),
    (call(query_offset=2**63, backend=None), ValueError,
     "query_offset must be in [-2**60, 2**60], got 9223372036854775808"),
    (call(query_offset=torch.tensor(1)), ValueError, "query_offset must have shape [2], got []"),
    (call(query_offset=zeros(2, dtype=torch.int16)), ValueError, "query_offset must be int64 or int32, got int16"),
    (call(query_offset=zeros(2, 1, dtype=LONG)), ValueError, "query_offset must have shape [2], got [2, 1]"),
    (call(query_offset=zeros(2, dtype=LONG, **DEVICE_META)), ValueError,
     "query_offset must be on device cpu like q, got meta"),
    # the score
    (call(score=TABLE), TypeError, "score must be None or a Relative, got Tensor"),
    (score(beyond="wrap"), ValueError, "beyond must be \"clip\" or \"zero\", got 'wrap'"),
    (score(rel_scale="1"), TypeError, "rel_scale must be a float, got str"),
    (score(rel_scale=math.inf), ValueError, "rel_scale must be finite, got inf"),
    (score(rel_k=None), TypeError, "rel_k must be a torch.Tensor, got NoneType"),
    (score(rel_k=TABLE.to_sparse()), ValueError, "rel_k must be a dense tensor (torch.strided), got torch.sparse_coo"),
    (score(rel_k=zeros(5, 8)), ValueError, "rel_k must have shape [1 or 4, rows, 8], got [5, 8]"),
    (score(rel_k=zeros(2, 5, 8)), ValueError, "rel_k must have shape [1 or 4, rows, 8], got [2, 5, 8]"),
    (score(rel_k=zeros(1, 5, 4)), ValueError, "rel_k must have shape [1 or 4, rows, 8], got [1, 5, 4]"),
    (score(rel_k=zeros(1, 0, 8)), ValueError, "rel_k must have at least one row, got 0"),
    (score(rel_k=TABLE.double()), ValueError, "rel_k must have dtype float32 like q, got float64"),
    (score(rel_k=TABLE.to("meta")), ValueError, "rel_k must be on device cpu like q, got meta"),
    (score(Full(), rel_k=zeros(1, 6, 8)), ValueError, "rel_k must have an odd number of rows unless causal or given a zero_row, got 6"),
    (score(rel_v=[0]), TypeError, "rel_v must be a torch.Tensor, got list"),
    (score(rel_v=zeros(1, 5, 7)), ValueError, "rel_v must have shape [1 or 4, rows, 8], got [1, 5, 7]"),
    (score(rel_v=zeros(1, 4, 8)), ValueError, "rel_v must have 5 rows like rel_k, got 4"),
    (score(rel_v=TABLE.half()), ValueError, "rel_v must have dtype float32 like q, got float16"),
    (score(q_rel=1), TypeError, "q_rel must be a torch.Tensor, got int"),
    (score(rel_v=NESTED), ValueError, "rel_v must be a dense tensor (torch.strided), got a nested one"),
    (score(q_rel=JAGGED), ValueError, "q_rel must be a dense tensor (torch.strided), got a nested one"),
    (score(q_rel=K), ValueError, "q_rel must have shape [2, 4, 6, 8] like q, got [2, 2, 6, 8]"),
    (score(q_rel=Q.double()), ValueError, "q_rel must have dtype float32 like q, got float64"),
    (lambda: relative_attention(Q, K, V, TABLE, causal=1), TypeError, "causal must be a bool, got int"),
    (lambda: relative_attention(Q, K, V, TABLE, causal=False, window=3), ValueError,
     "window must be None unless causal, got 3"),
    # the canvas
    (canvas(None), TypeError, "q must be a torch.Tensor, got NoneType"),
    (canvas(CANVAS, CANVAS, "v"), TypeError, "v must be a torch.Tensor, got str"),
    (canvas(CANVAS, NESTED), ValueError, "k must be a dense tensor (torch.strided), got a nested one"),
    (canvas(CANVAS, CANVAS, CANVAS.to_sparse()), ValueError,
     "v must be a dense tensor (torch.strided), got torch.sparse_coo"),
    (canvas(Q), ValueError, "q must have shape [batch, heads, rows, cols, dim], got [2, 4, 6, 8]"),
    (canvas(CANVAS, K), ValueError, "k must have shape [batch, heads, rows, cols, dim], got [2, 2, 6, 8]"),
    (canvas(CANVAS, CANVAS.transpose(2, 3)), ValueError, "k must have the canvas [2, 3] of q, got [3, 2]"),
    (canvas(CANVAS, CANVAS, zeros(2, 4, 2, 4, 8)), ValueError, "v must have the canvas [2, 3] of q, got [2, 4]"),
    (call(geometry=Local2d((2, 3), (2, 2), (1, 1)), query_offset=0), ValueError,
     "query_offset must be None under Local2d, got 0"),
    (call(geometry=Local2d((2, 4), (2, 2), (1, 1))), ValueError,
     "q must have length rows * cols = 2 * 4 = 8 under Local2d, got 6"),
    (call(Q, zeros(2, 2, 7, 8), zeros(2, 2, 7, 8), geometry=Local2d((2, 3), (2, 2), (1, 1))), ValueError,
     "k must have length rows * cols = 2 * 3 = 6 under Local2d, got 7"),
    (score(Local2d((2, 3), (2, 2), (1, 1))), NotImplementedError,
     "score: two-dimensional relative terms do not exist yet, got one"),
    # geometries
    (lambda: Causal(1.5), TypeError, "Causal: window must be an int, got float"),
    (lambda: Causal(True), TypeError, "Causal: window must be an int, got bool"),
    (lambda: Causal(0), ValueError, "Causal: window must be at least 1, got 0"),
    (lambda: Local1d(0, 4), ValueError, "Local1d: block must be at least 1, got 0"),
    (lambda: Local1d(4, 4, 2**60 + 1, causal=False), ValueError,
     "Local1d: look_ahead must be at most 1152921504606846976, got 1152921504606846977"),
    (lambda: Local1d(4, -1), ValueError, "Local1d: look_back must be at least 0, got -1"),
    (lambda: Local1d(4, 4, "8"), TypeError, "Local1d: look_ahead must be an int, got str"),
    (lambda: Local1d(4, 4, 1), ValueError, "Local1d: look_ahead must be 0 if causal, got 1"),
    (lambda: Local1d(4, 4, causal=1), TypeError, "Local1d: causal must be a bool, got int"),
    (lambda: Local2d("44", (2, 2), (1, 1)), TypeError, "Local2d: grid must be a tuple or list of two ints, got '44'"),
    (lambda: Window(-1, 2), ValueError, "Window: left must be at least 0, got -1"),
    (lambda: Window(2, 1.5), TypeError, "Window: right must be an int, got float"),
    (lambda: Local2d((4, 4), 2, (1, 1)), TypeError, "Local2d: block must be a tuple or list of two ints, got 2"),
    (lambda: Local2d((4, 4), (2, 2), [1]), TypeError, "Local2d: halo must be a tuple or list of two ints, got [1]"),
    (lambda: Local2d((4, -1), (2, 2), (1, 1)), ValueError, "Local2d: grid must be at least 0, got -1"),
    (lambda: Local2d((4, 4), (0, 2), (1, 1)), ValueError, "Local2d: block must be at least 1, got 0"),
    (lambda: Local2d((4, 4), (2, 2), (1, 1.0)), TypeError, "Local2d: halo must be an int, got float"),
    (lambda: Local2d((4, 4), (2, 2), (1, 1), "no"), TypeError, "Local2d: causal must be a bool, got str"),
    # patterns
    (lambda: Pattern(torch.ones(9, 9, dtype=torch.bool)), TypeError,
     "Pattern: make one by Pattern.from_mask(mask) or Pattern.from_function(function, q_len, k_len), got Tensor"),
    (lambda: Pattern(9, 9), TypeError,
     "Pattern: make one by Pattern.from_mask(mask) or Pattern.from_function(function, q_len, k_len), got int"),
    (lambda: Pattern.from_mask([[True]]), TypeError, "Pattern: mask must be a torch.Tensor, got list"),
    (lambda: Pattern.from_mask(zeros(2, 3)), ValueError,
     "Pattern: mask must be a bool tensor [queries, keys], got [2, 3] of float32"),
    (lambda: Pattern.from_mask(zeros(3, dtype=torch.bool)), ValueError,
     "Pattern: mask must be a bool tensor [queries, keys], got [3] of bool"),
    (lambda: Pattern.from_function(lambda i, j: i >= j, 2.0, 3), TypeError, "Pattern: q_len must be an int, got float"),
    (lambda: Pattern.from_function(lambda i, j: i >= j, 2, -3), ValueError,
     "Pattern: k_len must be at least 0, got -3"),
    (lambda: Pattern.from_function(lambda i, j: i - j, 2, 3), TypeError,
     "Pattern: function must return a bool tensor, got torch.int64"),
    (lambda: Pattern.from_function(lambda i, j: True, 2, 3), TypeError,
     "Pattern: function must return a bool tensor, got bool"),
    (lambda: Pattern.from_function(PATTERN, 2, 3), TypeError, "Pattern: function must be a function, got Pattern"),
    (lambda: Pattern.from_function(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, 2, 3), TypeError,
     "Pattern: function must take (q_pos, k_pos); FlexAttention's mask_mod is lambda q, k: mask_mod(0, 0, q, k),"
     " got (b, h, q_idx, kv_idx)"),
    (lambda: Pattern.from_function(lambda i, j: i >= j and i - j < 2, 2, 3), ValueError, ONE_BOOL),
    (lambda: Pattern.from_function(lambda i, j: i == j or j == 0, 2, 3), ValueError, ONE_BOOL),
    (lambda: Pattern.from_function(lambda i, j: not i > j, 2, 3), ValueError, ONE_BOOL),
    (lambda: Pattern.from_function(lambda i, j: 0 <= i - j < 2, 2, 3), ValueError, ONE_BOOL),
    (lambda: Pattern.from_function(lambda i, j: i >= j if i > 0 else j == 0, 2, 3), ValueError, ONE_BOOL),
    (lambda: Pattern.from_function(lambda i, j: (i >= j)[:, :2], 2, 3), ValueError,
     "Pattern: function must return a tensor that broadcasts to [2, 3], got [2, 2]"),
    (call(geometry=PATTERN, query_offset=4), ValueError,
     "query_offset must be in [0, 3] for 6 queries under a Pattern of 9 rows, got 4"),
    (call(geometry=Pattern.from_mask(zeros(9, 10, dtype=torch.bool))), ValueError,
     "query_offset must be in [0, 3] for 6 queries under a Pattern of 9 rows, got -1"),
    (call(zeros(2, 4, 10, 8), geometry=PATTERN), ValueError,
     "q must have a length of at most 9 under this Pattern, got 10"),
    (call(Q, zeros(2, 2, 10, 8), zeros(2, 2, 10, 8), geometry=PATTERN), ValueError,
     "k must have a length of at most 9 under this Pattern, got 10"),
    # backends
    (call(backend="tpu"), ValueError, "backend must be one of cpu, triton, reference or None, got 'tpu'"),
    (lambda: use_backend("tpu").__enter__(), ValueError,
     "backend must be one of cpu, triton, reference or None, got 'tpu'"),
    (call(backend="cuda"), ValueError, "backend must be one of cpu, triton, reference or None, got 'cuda'"),
]
# fmt: on


def message_id(value: Any) -> str | None:
    return value[:60] if isinstance(value, str) else ""


@pytest.mark.parametrize(("wrong_call", "kind", "text"), MESSAGES, ids=message_id)
def test_message(wrong_call: Callable, kind: type[Exception], text: str) -> None:
    """The exception's type, and its text to the letter."""
    with pytest.raises(kind) as error:
        wrong_call()
    assert type(error.value) is kind
    assert str(error.value) == text


@pytest.mark.parametrize(
    "module", [validate, geometry, pattern, attn_kernels.local], ids=lambda m: m.__name__
)
def test_every_message_is_in_the_table(module: ModuleType) -> None:
    """Whoever adds a `raise` adds a line above: each one is where some call of the table ends."""
    reached = set()
    for wrong_call, kind, _ in MESSAGES:
        with pytest.raises(kind) as error:
            wrong_call()
        last = traceback.extract_tb(error.value.__traceback__)[-1]
        if Path(last.filename) == Path(module.__file__):
            reached.add(last.lineno)
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            lines = range(node.lineno, node.end_lineno + 1)
            assert reached.intersection(lines), f"{module.__name__}:{node.lineno} has no test"


OPERATIONS = {
    "attention": partial(attention, Q, K, V),
    "causal_attention": partial(causal_attention, Q, K, V),
    "relative_attention": partial(relative_attention, Q, K, V, TABLE),
    "local_attention_1d": partial(local_attention_1d, Q, K, V, block=2, look_back=2),
    "local_attention_2d": partial(local_attention_2d, CANVAS, CANVAS, CANVAS, **BLOCKS),
}
OTHER_LIBRARIES = [
    "attn_mask",
    "dropout_p",
    "enable_gqa",
    "is_causal",
    "score_mod",
    "softmax_scale",
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_unknown_keyword(name: str) -> None:
    """A keyword of another library's attention is an error of the function that was called."""
    others = [*OTHER_LIBRARIES, *["query_offset"] * (name == "local_attention_2d")]
    for keyword in others:
        text = f"{name}() got an unexpected keyword argument '{keyword}'"
        with pytest.raises(TypeError, match=f"^{re.escape(text)}"):  # newer Pythons add a guess
            OPERATIONS[name](**{keyword: 0})


def test_errors_of_a_patterns_function_come_through() -> None:
    """Only the question for one bool of many pairs is explained: another error is the user's own."""

    def wrong(q_pos: torch.Tensor, k_pos: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        Pattern.from_function(wrong, 2, 3)


LARGEST_DIM = {"cpu": 512, "triton": 256}


def test_head_dim_limit(fused: Target) -> None:
    """What the kernels cannot do is NotImplementedError, with the limit, and no fallback."""
    largest = LARGEST_DIM[fused.name]
    wide = zeros(1, 1, 4, largest + 1)
    last = zeros(1, 1, 6, largest + 1)
    for tensors in ((wide, wide, zeros(1, 1, 4, 8)), (Q[:1, :1], K[:1, :1], last)):
        with pytest.raises(NotImplementedError) as error:
            call(*tensors, backend=fused.name)()
        text = f"head dim is at most {largest}, got {largest + 1}"
        assert str(error.value) == f'backend="{fused.name}" cannot run this: {text}'


def test_wrong_device(fused: Target) -> None:
    """The kernels say where the inputs are."""
    tensors = (x.to("meta") for x in (Q, K, V))
    with pytest.raises(NotImplementedError) as error:
        call(*tensors, backend=fused.name)()
    assert str(error.value) == f'backend="{fused.name}" cannot run this: inputs are on meta'


def test_falling_back_warns_once(fused: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """backend=None may choose the reference, and says so, with the reason, the first time."""
    monkeypatch.setattr(backends, "_warned", set())
    wide = zeros(1, 1, 4, 600)
    limit = f"head dim is at most {LARGEST_DIM[fused.name]}, got 600"
    text = f"attn_kernels uses the dense reference, O(Lq * Lk) memory: {limit}"
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        causal_attention(wide, wide, wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        causal_attention(wide, wide, wide)
    assert caught[0].filename == __file__


def library_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> backends.CpuLibrary:
    """The library as it loads where the package lies in `folder`."""
    (folder / "core").mkdir()
    monkeypatch.setattr(backends, "__file__", str(folder / "core" / "backends.py"))
    library = backends.CpuLibrary()
    monkeypatch.setattr(backends, "cpu_library", library)
    return library


def test_extension_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension: the command that builds it, from every way to ask."""
    library = library_in(tmp_path, monkeypatch)
    reason = "the C++ extension is not built: run `pip install --no-build-isolation .`"
    assert library.error() == reason
    assert backends.backends()["cpu"] == backends.Backend("cpu", False, reason)
    with pytest.raises(RuntimeError) as error:
        call(backend="cpu")()
    assert str(error.value) == f'backend="cpu" is not available: {reason}'
    monkeypatch.setattr(backends, "_warned", set())
    text = f"attn_kernels uses the dense reference, O(Lq * Lk) memory: {reason}"
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        call(backend=None)()


def test_extension_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that the loader refuses: the loader's reason and the command that rebuilds it."""
    (tmp_path / "_C.abi3.so").write_text("not a library")
    error = library_in(tmp_path, monkeypatch).error()
    assert error.startswith("the C++ extension does not load (")
    assert "_C.abi3.so" in error
    assert error.endswith("): run `pip install --no-build-isolation .`")


def test_unknown_instruction_set(fused: Target) -> None:
    """An instruction set that this CPU lacks is an error that names those it has."""
    library = backends.cpu_library
    before = library.isa
    with pytest.raises(RuntimeError) as error:
        library.use_isa("sse9")
    found = ",".join(library.isas)
    assert str(error.value) == (
        f"ATTN_KERNELS_ISA=sse9 is not available on this CPU, which has: {found}"
    )
    library.use_isa("")
    assert library.isa == before
