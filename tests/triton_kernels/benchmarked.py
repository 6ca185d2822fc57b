"""benchmarks.gpu without a GPU: every line of it but the clock's, in the interpreter, on tiny shapes.

pytest tests/triton_kernels/benchmarked.py       in a process of its own: tests/test_triton.py starts it
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import interpreter  # before triton and the kernels

_kept = interpreter.install_backend()

import pytest
import torch
import triton

from attn_kernels import Causal, Full, Local2d, Pattern
from attn_kernels.core.backends import Backend
from attn_kernels.triton import configs, prepared
from benchmarks import gpu, gpu_calls, gpu_tune, results
from benchmarks.gpu_calls import GROUPS, OURS, Work
from benchmarks.worker import JobError

TINY = (
    Work("causal", "forward", Causal(), 1, 2, 20, 20, 16, 2, peers=("flash", "cudnn", "flex", "eager")),
    Work("causal", "backward", Causal(), 1, 4, 20, 20, 16, 2, 0, True, ("flash", "flex")),
    Work("relative", "backward", Causal(), 2, 2, 20, 20, 16, 2, 18, True, ("eager",)),
    Work("relative", "both", Full(), 1, 2, 20, 20, 16, 2, 9, False, ("flex", "eager")),
    Work("local_2d", "backward", Local2d((6, 6), (3, 3), (2, 1)), 2, 2, 36, 36, 16, 2, 0, True,
         ("eager",)),
    Work("local_2d", "forward", Local2d((6, 6), (3, 3), (2, 1), True), 1, 2, 36, 36, 16, 2, 0, False,
         ("flex", "eager")),
    Work("pattern", "backward", Pattern.from_function(gpu_calls.documents, 20, 20), 1, 2, 20, 20, 16,
         2, 0, True, ("eager",)),
    Work("pattern", "forward", Pattern.from_function(gpu_calls.documents, 20, 20), 1, 2, 20, 20, 16,
         2, 0, False, ("flex", "eager")),
    Work("decode", "forward", Causal(), 1, 4, 1, 50, 16, 2, peers=("flash", "flex", "eager")),
)  # fmt: skip
NOT_ON_A_CPU = {("cudnn", False), ("flex", True)}  # provider, backward


class Inline:
    """Stands in for a process."""

    def run(self, job: tuple[Any, ...], seconds: float) -> Any:
        function, *arguments = job
        try:
            return function(*arguments)
        except Exception as error:
            raise JobError(repr(error)) from error

    def stop(self) -> None:
        pass


def run_all(jobs: list[Any], processes: int, seconds: Any) -> list[Any]:
    def result(job: Any) -> Any:
        try:
            return Inline().run(job, seconds())
        except JobError as error:
            return error

    return [result(job) for job in jobs]


def once(step: Any, **options: Any) -> float:
    step()
    return 2.0


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that says it is a GPU, and stand-ins for its clock and memory."""
    prepared.known.cache_clear()
    properties = SimpleNamespace(name="Some GPU", multi_processor_count=2, total_memory=1)
    for name, value in {
        "synchronize": None, "empty_cache": None, "memory_allocated": 1,
        "max_memory_allocated": 8, "reset_peak_memory_stats": None,
        "get_device_properties": properties,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    compile_for = torch.compile  # flex_attention compiles itself where nobody else does, eagerly
    monkeypatch.setattr(
        torch, "compile",
        lambda f, backend=None, **options: compile_for(f, backend=backend, **options) if backend else f,
    )  # fmt: skip
    monkeypatch.setattr(gpu, "backends", lambda: {"triton": Backend("triton", True)})
    monkeypatch.setattr(gpu_calls, "DEVICE", "cpu")
    monkeypatch.setattr(triton.testing, "do_bench", once)
    for module in (gpu, gpu_tune):
        monkeypatch.setattr(module, "run_all", run_all)
    monkeypatch.setattr(gpu, "Worker", Inline)
    monkeypatch.setattr(gpu, "captured", lambda step: step)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "works", lambda groups: [x for x in TINY if x.group in groups])
    monkeypatch.setattr(configs, "candidates", lambda kind: [configs.Config(16, 16, 4, 1)])
    small = [replace(TINY[2], label="check", peers=())]
    monkeypatch.setattr(gpu, "checked", lambda: [(x, torch.bfloat16) for x in small])


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = gpu.main(["--out", str(folder), *arguments])
    (path,) = folder.iterdir()
    return code, json.loads(path.read_text())


def test_everything_is_checked_and_timed(tmp_path: Path) -> None:
    """One row a shape, right values from every provider, and a file that reports can read."""
    code, data = run(tmp_path, "--commit", "abc")
    assert (code, data["environment"]["commit"]) == (0, "abc")
    assert [row["passed"] for row in data["checks"]] == [True]
    assert [row["group"] for row in data["results"]] == [work.group for work in TINY]
    for work, row in zip(TINY, data["results"], strict=True):
        for name in (OURS, *work.peers):
            found = row["providers"][name]
            if (name, work.backward) in NOT_ON_A_CPU:
                assert found["skipped"]
                assert found["milliseconds"] is None
                continue
            assert found["skipped"] == "", (work, name)
            assert (found["milliseconds"], found["rounds"]) == (2.0, [2.0])
            assert found["peak_bytes"] == 7
            assert found["host_microseconds"] > 0
            assert found["tflops"] > 0
    assert data["results"][-1]["providers"][OURS]["gigabytes_per_second"] > 0
    (path,) = tmp_path.iterdir()
    assert len(results.load(path).results) == len(TINY)


def test_wrong_values_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ours nor a peer's; the rest goes on, and the exit status tells."""

    def wrong(prepare: Any) -> Any:
        return lambda work: lambda *inputs: prepare(work)(*inputs) * 1.3

    for name in (OURS, "eager"):
        monkeypatch.setitem(gpu_calls.PROVIDERS, name, wrong(gpu_calls.PROVIDERS[name]))
    code, data = run(tmp_path, "--only", "causal,relative")
    assert code == 1
    assert not data["checks"][0]["passed"]
    for row in data["results"]:
        for name in {OURS, "eager"} & set(row["providers"]):
            found = row["providers"][name]
            assert found["skipped"].startswith("wrong values")
            assert found["milliseconds"] is None
    assert data["results"][0]["providers"]["flash"]["milliseconds"] == 2.0


def test_a_failing_kernel_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepared.run

    def refuse(kernel: Any, *args: Any, **options: Any) -> None:
        if options["GEOMETRY"] == "local_2d":
            raise RuntimeError("no such kernel")
        real(kernel, *args, **options)

    monkeypatch.setattr(prepared, "run", refuse)
    code, data = run(tmp_path, "--only", "local_2d")
    assert code == 1
    first, second = (row["providers"] for row in data["results"])
    assert "no such kernel" in first[OURS]["skipped"]
    assert first["eager"]["milliseconds"] == second[OURS]["milliseconds"] == 2.0


def test_an_unknown_group_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "relative,local"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith("of causal, relative, local_2d, pattern, decode, got local")


def test_out_of_time(tmp_path: Path) -> None:
    """What was not begun is listed."""
    code, data = run(tmp_path, "--budget", "0", "--only", "causal")
    assert code == 0
    assert [row["skipped"] for row in data["results"]] == ["out of time"] * 2


def test_tiles_are_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size of every kernel has a time, or the reason why it has none."""
    sizes = [
        configs.Config(16, 16, 4, 1),
        configs.Config(32, 32, 4, 1),
        configs.Config(32, 16, 4, 1),
    ]
    monkeypatch.setattr(gpu_tune, "searched", lambda kind: sizes)
    monkeypatch.setattr(gpu, "works", lambda groups: [TINY[0], TINY[2]])
    code, data = run(tmp_path, "--tune")
    assert code == 0
    rows = data["configs"]
    assert [row["direction"] for row in rows[::3]] == ["forward", "grad_q", "grad_kv"]
    for row in rows:
        # of these kernels one does not take more queries than keys
        wide = row["group"] == "relative" and row["direction"] == "grad_kv"
        wide = wide and row["config"]["block_q"] > row["config"]["block_k"]
        assert row.get("milliseconds") == (None if wide else 2.0), row
        assert bool(row.get("failed")) == wide


def test_shapes() -> None:
    """Labels are unique, headlines of every group come first, sizes are what they say."""
    works = list(gpu_calls.works(list(GROUPS)))
    assert len({(x.group, x.label) for x in works}) == len(works)
    firsts = [name for name in GROUPS for _ in range(1 if name == "decode" else 2)]
    assert [x.group for x in works[: len(firsts)]] == firsts
    for work in works:
        assert work.flops() > 0
        assert set(work.peers) <= set(gpu_calls.PROVIDERS)
        assert work.rows == 0 or work.geometry.causal or work.rows % 2
    assert len(list(gpu_calls.checked())) == 84
