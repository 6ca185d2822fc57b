"""benchmarks.gpu without a GPU: every line of it but the clock's, in the interpreter, on tiny shapes.

pytest tests/triton_kernels/benchmarked.py       in a process of its own: tests/test_triton.py starts it
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
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

from attn_kernels import Causal, Local2d
from attn_kernels.core.backends import Backend
from attn_kernels.triton import configs, prepared
from benchmarks import gpu, gpu_calls, gpu_jobs, gpu_summary, gpu_tune, gpu_values, results
from benchmarks.gpu_calls import OURS, Work
from benchmarks.worker import JobError

ROOT = Path(__file__).parents[2]
CANVAS = Local2d((4, 4), (4, 2), (2, 1))
BARS = (
    Work("causal", "L 16", Causal(), 1, 2, 16, 16, 16, 1, peers=("flash", "cudnn")),
    Work("relative", "L 16", Causal(), 1, 1, 16, 16, 16, 1, 10),
    Work("local_2d", "4x4", CANVAS, 1, 1, 16, 16, 16, 1),
)
REST = (
    Work("decode", "cache 20", Causal(), 1, 2, 1, 20, 16, 1, peers=("flash",)),
    Work("causal", "L 14", Causal(), 1, 1, 14, 14, 16, 1, peers=("flex",)),
    Work("relative", "L 14", Causal(), 1, 1, 14, 14, 16, 1, 9, peers=("flex",)),
    Work("local_2d", "causal", replace(CANVAS, causal=True), 1, 1, 16, 16, 16, 1, peers=("flex",)),
)
NOT_ON_A_CPU = {"cudnn"}
SETTINGS = [
    gpu_tune.DEFAULT,
    gpu_tune.tile(32, 32, 4, 1),
    gpu_tune.tile(32, 16, 4, 1),
    gpu_tune.tile(16, 16, 4, 1),
]


class Inline:
    """Stands in for a process."""

    def run(self, job: tuple[Any, ...], seconds: float) -> Any:
        function, *arguments = job
        if seconds <= 0:
            raise JobError("out of time")
        try:
            return function(*arguments)
        except Exception as error:
            raise JobError(repr(error)) from error

    def stop(self) -> None:
        pass


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
    monkeypatch.setattr(triton.testing, "do_bench", once)
    monkeypatch.setattr(gpu, "backends", lambda: {"triton": Backend("triton", True)})
    monkeypatch.setattr(gpu, "Worker", Inline)
    monkeypatch.setattr(gpu_calls, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_jobs, "captured", lambda step: step)
    monkeypatch.setattr(gpu_jobs, "kernel_milliseconds", lambda step: step() and {"a_kernel": 1.0})
    monkeypatch.setattr(gpu_values, "HOST_CALLS", 1)
    for name, small in {"ROUNDS": 1, "REPEATS": 1, "CEILING": 8}.items():
        monkeypatch.setattr(gpu_jobs, name, small)
    monkeypatch.setattr(configs, "candidates", lambda kind: [configs.Config(16, 16, 4, 1)])
    monkeypatch.setattr(gpu_tune, "candidates", configs.candidates)
    replacements = {
        "bars": lambda: gpu_calls.both_ways(iter(BARS)),
        "rest": lambda: iter(REST),
        "profiled": lambda: [replace(BARS[0], backward=True)],
        "checks": lambda: [replace(x, label="check", peers=()) for x in BARS],
    }
    for name, works in replacements.items():
        monkeypatch.setattr(gpu_calls, name, works)
    tried = lambda: [(BARS[1], "grad_kv", x) for x in SETTINGS]  # noqa: E731
    monkeypatch.setattr(gpu_tune, "tried", tried)


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = gpu.main(["--out", str(folder), "--processes", "1", *arguments])
    return code, json.loads((folder / "gpu.json").read_text())


def names(rows: list[dict[str, Any]], *without: str) -> set[str]:
    return {row["name"] for row in rows if not row.keys() & set(without)}


def test_everything_is_checked_and_timed(tmp_path: Path, capsys: Any) -> None:
    """One row a shape, right values from every provider; and files that reports can read."""
    code, data = run(tmp_path, "--commit", "abc")
    assert (code, data["environment"]["commit"], data["errors"]) == (0, "abc", [])
    assert [row["wrong"] for part in ("checks", "steadiness") for row in data[part]] == [[]] * 6
    assert [row["name"] for row in data["ceilings"]] == ["before", "after"]
    timed = [*gpu_calls.bars(), *REST]
    assert [row["name"] for row in data["results"]] == [work.name for work in timed]
    for work, row in zip(timed, data["results"], strict=True):
        for name in (OURS, *work.peers):
            found = row["providers"][name]
            if name in NOT_ON_A_CPU:
                assert found["skipped"]
                continue
            assert found["skipped"] == "", (work, name)
            assert (found["milliseconds"], found["rounds"], found["peak_bytes"]) == (2.0, [2.0], 7)
            assert found["host_microseconds"] > 0
            assert found["tflops"] > 0
            assert bool(found["gigabytes_per_second"]) == (work.group == "decode")
    # the default and 32x32; one takes more queries than keys, one is the default
    assert [row.get("milliseconds") for row in data["tiles"]] == [2.0, 2.0, None, None]
    text = capsys.readouterr().out
    assert text.startswith("plan, seconds: environment 30,")
    assert len(gpu_summary.summary(data)) < gpu_summary.LIMIT
    path = gpu_summary.record(data, tmp_path)
    assert path.name == "some-gpu.json"
    assert len(results.load(path).results) == len(results.load(tmp_path / "gpu.json").results) == 10


def test_a_failed_check_cancels_its_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong gradients cancel backward, a kernel that raises both ways; the rest goes on."""
    real, launch = gpu_jobs.out_and_gradients, prepared.run

    def wrong(call: Any, inputs: list[Any], grad_out: Any) -> list[Any]:
        values = real(call, inputs, grad_out)
        return values if len(inputs) < 4 else [*values[:-1], values[-1] * 1.3]

    def refuse(kernel: Any, *args: Any, **options: Any) -> None:
        if options.get("GEOMETRY") == "local_2d":
            raise RuntimeError("no such kernel")
        launch(kernel, *args, **options)

    monkeypatch.setattr(gpu_jobs, "out_and_gradients", wrong)
    monkeypatch.setattr(prepared, "run", refuse)
    code, data = run(tmp_path)
    assert code == 1
    lost = {row["name"]: row["skipped"] for row in data["results"] if "skipped" in row}
    assert set(lost) == {
        "relative backward L 16 D 16", "local_2d forward 4x4 D 16", "local_2d backward 4x4 D 16"
    }  # fmt: skip
    assert lost["relative backward L 16 D 16"].endswith(
        "'relative forward check D 16' failed: rel_k"
    )
    assert "no such kernel" in lost["local_2d forward 4x4 D 16"]
    assert names(data["tiles"], "skipped") == set()  # of backward, too


def test_wrong_values_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a timed shape, ours or a peer's, whatever the checks have said."""
    flash = gpu_calls.PROVIDERS["flash"]
    monkeypatch.setitem(
        gpu_calls.PROVIDERS, "flash", lambda work: lambda *x: flash(work)(*x) * 1.3
    )  # fmt: skip
    code, data = run(tmp_path, "--only", "causal")
    assert code == 0
    found = data["results"][0]["providers"]
    assert found["flash"]["skipped"].startswith("wrong values")
    assert (found["flash"]["milliseconds"], found[OURS]["milliseconds"]) == (None, 2.0)


def test_what_changes_from_run_to_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = gpu_jobs.out_and_gradients, []

    def sometimes(*given: Any) -> list[Any]:
        calls.append(1)
        values = real(*given)
        return [*values[:2], values[2] + (len(calls) == 2), *values[3:]]

    monkeypatch.setattr(gpu_jobs, "out_and_gradients", sometimes)
    row = gpu_jobs.steadiness(replace(BARS[0], backward=True))
    assert (row["changed"], row["wrong"]) == ({"out": 0, "q": 0, "k": 1, "v": 0}, ["k"])


def test_out_of_time(tmp_path: Path) -> None:
    """What was not begun is listed; a second run does it, and that alone."""
    code, data = run(tmp_path, "--minutes", "0")
    assert code == 0
    assert {row["skipped"] for part in gpu.PARTS for row in data[part]} == {"out of time"}
    file = str(tmp_path / "gpu.json")
    _, data = run(tmp_path, "--resume", file, "--only", "causal")
    before = names(data["results"], "skipped")
    assert before == {"causal forward L 16 D 16", "causal backward L 16 D 16", "causal forward L 14 D 16"}  # fmt: skip
    _, data = run(tmp_path, "--resume", file)
    assert names(data["results"], "skipped") == names(data["results"])
    assert {row["run"] for row in data["results"] if row["name"] in before} == {1}
    assert {row["run"] for row in data["results"] if row["name"] not in before} == {2}
    with pytest.raises(SystemExit, match=r"gpu.json exists: --resume it"):
        run(tmp_path)
    data["environment"]["device"] = "Another GPU"
    (tmp_path / "gpu.json").write_text(json.dumps(data))
    with pytest.raises(SystemExit, match="it was measured with device Another GPU"):
        run(tmp_path, "--resume", file)


def test_an_unknown_group_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "relative,local"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith(f"of {', '.join(gpu.GROUPS)}, got local")


# A run whose process is killed while it writes its 20th row.
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks import gpu

class Inline:
    def run(self, job, seconds):
        return {"wrong": []}

def killed(path, text):
    with path.open("w") as file:
        file.write(text[: len(text) // 2] if '"19"' in text else text)
    if '"19"' in text:
        os.kill(os.getpid(), signal.SIGKILL)

Path.write_text = killed
report = gpu.Report(Path(sys.argv[1]), {})
for i in range(50):
    gpu.run_stage(report, [gpu.Task("checks", str(i), "", (len, ""))], [Inline()], lambda: 9)
    print(i, flush=True)
"""


def test_a_killed_run_loses_nothing(tmp_path: Path) -> None:
    """Every row that was told of is in the file, though the process was killed as it wrote."""
    path = tmp_path / "gpu.json"
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL
    told = run.stdout.split()
    assert told == [str(i) for i in range(19)]
    assert [row["name"] for row in json.loads(path.read_text())["checks"]] == told


def test_the_plan_fits() -> None:
    """Seven minutes in all; no row may take longer than its phase."""
    assert sum(seconds for seconds, _ in gpu.PLAN.values()) <= 60 * gpu.MINUTES <= 7 * 60
    assert all(most <= seconds for seconds, most in gpu.PLAN.values())


def test_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are unique, what is promised comes first, every tile is a known one's."""
    monkeypatch.undo()
    bars, checks = list(gpu_calls.bars()), list(gpu_calls.checks())
    works = [*bars, *gpu_calls.rest()]
    tried = list(gpu_tune.tried())
    for listed in (works, checks, tried):
        found = [str(x) if isinstance(x, tuple) else x.name for x in listed]
        assert len(set(found)) == len(listed)
    assert [x.name for x in bars[:2]] == [f"causal {way} L 16384 D 128" for way in ("forward", "backward")]  # fmt: skip
    for work in works:
        assert work.flops() > 0
        assert set(work.peers) <= set(gpu_calls.PROVIDERS)
        assert work.rows == 0 or work.geometry.causal or work.rows % 2
        assert work.group in gpu.GROUPS
    assert {x.operation for x in bars} <= {x.operation for x in checks}
    at = [(work, direction) for work, direction, _ in tried]
    assert max(map(at.count, at)) <= 4
    assert set(gpu_tune.TRIED) == {(x.group, x.dim, way) for x, way in at}


def test_predictions_are_those_of_contributing() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert [x.text for x in gpu_summary.PREDICTIONS if f"| {x.text} |" not in page] == []


def test_bars_and_predictions() -> None:
    """A file whose every figure is known."""

    def timed(name: str, tflops: float, **milliseconds: float) -> dict[str, Any]:
        providers = {n: {"milliseconds": ms, "tflops": tflops} for n, ms in milliseconds.items()}
        return {"name": name, "providers": providers}

    relative = "L 8192 table 1024 D 128"
    tile = {"late": True, "described": True, "block_q": 128, "block_k": 128, "whole": False}
    found = gpu_summary.Found({
        "results": [
            timed("causal forward L 16384 D 128", 500, attn_kernels=2.0, cudnn=1.9, flash=3.0),
            timed(f"relative forward {relative}", 460, attn_kernels=2.0),
            timed(f"relative backward {relative}", 200, attn_kernels=2.0),
            timed("causal backward L 8192 D 128", 400, attn_kernels=2.0),
        ],
        "tiles": [
            {"name": "causal L 8192 D 64 forward default", "config": tile, "milliseconds": 2.0},
            {"name": "causal L 8192 D 64 forward x", "config": tile | {"block_q": 64}, "milliseconds": 1.0},
        ],
    })  # fmt: skip
    bars = {text: figure for text, figure, _ in gpu_summary.bars(found) if figure is not None}
    assert bars == {
        "causal forward L 16384 D 128 / best of cuDNN, flash": 0.95,
        "relative forward L 8192 table 1024 D 128, TFLOP/s": 460,
        "relative backward D 128 / causal backward": 0.5,
    }
    outcomes = [x.outcome(found) for x in gpu_summary.PREDICTIONS]
    assert [x for x in outcomes if x] == ["460 TFLOP/s", "50%", "2.00 times"]
