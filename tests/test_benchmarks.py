"""The benchmark suite: what it records, refuses, compares and prints. No test looks at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import operator
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from attn_kernels import backends
from attn_kernels.core.backends import cpu_library
from benchmarks import __main__ as program
from benchmarks import common, machine, options, plots, readme, report, summary, sweeps
from benchmarks.cases import CASES
from benchmarks.common import WrongValues, check_against_float64
from benchmarks.compare import comparison
from benchmarks.measure import FLOOR, ZERO_FLOOR, errors, interleaved
from benchmarks.memory import MemoryMeter
from benchmarks.peers import visible_mask
from benchmarks.progress import Progress
from benchmarks.results import OURS, Entry, Recording, Result, UnknownFormat, load, save
from benchmarks.worker import JobError, Worker, run_all

needs_cpu = pytest.mark.skipif(not backends()["cpu"].available, reason="measures the CPU kernels")
ROOT = Path(__file__).parents[1]


def result(seconds: float = 0.01, **changes) -> Result:
    """A made-up result: three rounds of ours, and a peer that takes twice as long."""
    rounds = [seconds * x for x in (0.99, 1.0, 1.01)]
    made = Result(
        op="causal",
        title="causal attention",
        shape="[1,1,8,4]",
        sizes={name: [1, 1, 8, 4] for name in "qkv"},
        source="a test",
        dtype="float32",
        direction="forward",
        threads=1,
        visible_pairs=36,
        flops=576.0,
        input_bytes=384,
        result_bytes=128,
        reads_only=False,
        peers=["sdpa"],
        entries={
            OURS: Entry(rounds, extra_bytes=1000),
            "sdpa": Entry([2 * x for x in rounds], extra_bytes=2000),
        },
        limits=[1e6, 1e6],
    )
    return replace(made, **changes)


def recording(*results: Result, date: str = "2026-01-02T03:04:05+00:00") -> Recording:
    """A recording of a made-up machine."""
    environment = {"device": "A CPU", "date": date, "torch": "2.13.0", "commit": "abc"}
    return Recording(environment, list(results), Path("a-cpu.json"))


def sweep(power: float, memory: float, slow_at: int = 0) -> list[Result]:
    """A sweep along length whose time and memory follow powers of it.

    Where it is `slow_at` the machine does half: the time doubles, and so does not the peak.
    """
    rows = []
    for length in (512, 1024, 2048, 4096):
        share = 2 if length == slow_at else 1
        total = round(100 * length**memory)
        entry = Entry([share * 1e-9 * length**power] * 3, extra_bytes=total)
        made = result(entries={OURS: entry}, limits=[1e9 / share], input_bytes=0, result_bytes=0)
        rows.append(replace(made, axis="length", value=length))
    return rows


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases_count_visible_pairs_and_name_their_source(case):
    """Pairs as counted by the geometry equal those of the dense mask."""
    shape = case.small
    pairs = shape.batch * shape.heads * int(visible_mask(shape).sum())
    assert shape.visible_pairs() == pairs
    assert shape.flops(backward=False) == 4 * shape.dim * pairs
    assert shape.flops(backward=True) == 3.5 * 4 * shape.dim * pairs
    assert all(shape.source for shape in case.shapes)
    assert set(case.quick) <= set(case.shapes)


def test_a_file_is_read_as_it_was_written(tmp_path):
    written = recording(result(), *sweep(2, 1))
    save(written, tmp_path / "a.json")
    assert load(tmp_path / "a.json").results == written.results


def test_older_files_are_read(tmp_path):
    """Format 1, as it was recorded, knew neither titles nor who is a peer."""
    later = ("title", "reads_only", "peers", "result_bytes", "axis", "value", "entries")
    row = {name: value for name, value in asdict(result()).items() if name not in later}
    seconds = {OURS: 0.01, "sdpa": 0.02, "our causal": 0.001}
    rest = {"skipped": "", "errors": None, "extra_bytes": None}
    entries = {name: {"seconds": [each], **rest} for name, each in seconds.items()}
    data = {
        "format": 1,
        "environment": {},
        "results": [{**row, "best_peer": "sdpa", "speedup": 2.0, "entries": entries}],
    }
    (tmp_path / "old.json").write_text(json.dumps(data))
    (found,) = load(tmp_path / "old.json").results
    assert (found.peers, found.speedup, found.result_bytes) == (["sdpa"], 2, 128)


def test_gpu_files_are_read(tmp_path):
    """benchmarks.gpu writes no format; its backward is backward alone."""
    ours = {"milliseconds": 2.0, "tflops": 300.0, "gigabytes_per_second": None, "skipped": ""}
    ours |= {"peak_bytes": 5, "error": [0.0, 0.0]}
    row = {"group": "causal", "work": "2k", "shape": [1, 2, 2, 2048, 2048], "dim": 64}
    row |= {"backward": True, "providers": {OURS: ours, "cudnn": ours | {"milliseconds": 3.0}}}
    late = {"work": "4k", "skipped": "out of time"}
    data = {"environment": {"device": "H200"}, "checks": [], "results": [row, late]}
    (tmp_path / "gpu.json").write_text(json.dumps(data))
    (found,) = load(tmp_path / "gpu.json").results
    assert (found.direction, found.threads, found.best_peer) == ("backward alone", 0, "cudnn")
    assert found.speedup == 1.5
    assert found.rate == pytest.approx(300e12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 99, "environment": {}, "results": []}', "has format 99; this version reads"),
        ('{"environment": {}, "results": []}', "has format None"),
        ("[]", "is not a recording"),
        ("{", "is not JSON"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UnknownFormat, match=message) as caught:
        load(tmp_path / "odd.json")
    assert "odd.json" in str(caught.value)


def test_compare_names_what_changed_beyond_noise():
    """10 % is a change where rounds differ by 1 %; 1 % is none; the peers tell of the machine."""
    before = recording(result(), result(shape="b"), result(shape="gone"))
    after = recording(result(0.011), result(0.0101, shape="b"))
    text = comparison(before, after)
    assert "[1,1,8,4] float32 forward 1 thread: 10.0 ms -> 11.0 ms, 1.10x slower" in text
    assert "peers +10%" in text
    assert "1 of 2 changed beyond noise; only in the first: 1, only in the second: 0" in text
    exact = [recording(result(entries={OURS: Entry([x] * 3)})) for x in (0.01, 0.0102)]
    assert "0 of 1 changed" in comparison(*exact)
    noisy = result(0.011)
    noisy.entries[OURS].seconds = [0.009, 0.011, 0.013]
    assert "0 of 1 changed" in comparison(recording(result()), recording(noisy))


def test_exponents_are_fitted():
    """Also where other work halved the machine's peak for one of the points."""
    (time, memory) = sweeps.fits(sweep(2, 1))[OURS]
    assert time == pytest.approx(2)
    assert memory == pytest.approx(1, abs=0.01)
    (time, _) = sweeps.fits(sweep(1, 1, slow_at=4096))[OURS]
    assert time == pytest.approx(1)
    assert sweeps.exponent([(512, 1.0)]) is None
    assert "length^2.00" in sweeps.fit_text(sweep(2, 1))


def test_a_table_says_why_a_peer_is_missing():
    found = result()
    found.entries["flex"] = Entry(skipped="has no backward on the CPU")
    text = report.as_text(report.table([found, result(shape="b")]))
    assert "(1) has no backward on the CPU" in text
    assert "2.00x sdpa" in text
    assert "geometric mean 2.00x" in text


NOISY = [0.001, 0.01, 0.02]


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({}, ""),
        (
            {"entries": {OURS: Entry(NOISY), "sdpa": Entry([0.5] * 3)}},
            "the rounds are spread by more than ±25%",
        ),
        (
            {"entries": {OURS: Entry([0.01] * 3), "sdpa": Entry(NOISY)}},
            "the rounds are spread by more than ±25%",
        ),
        ({"limits": [2e4, 2e4]}, "the rate is more than 105% of the machine's peak"),
        (
            {"limits": [2e4, 2e4], "dtype": "float64"},
            "the rate is more than 105% of the machine's peak",
        ),
        ({"limits": [2e4, 2e4], "dtype": "float16"}, ""),  # its peak is that of float32
        ({"limits": []}, ""),
    ],
)
def test_noise_is_no_result(changes, doubt):
    """Of 576 operations in 0.01 s the rate is 5.8e4: more than twice a peak of 2e4."""
    assert result(**changes).doubt == doubt


def test_a_slower_peer_may_be_noisy():
    found = result()
    found.entries["flex"] = Entry([10 * x for x in NOISY])
    found.peers.append("flex")
    assert found.best_peer == "sdpa"
    assert found.doubt == ""


def test_noise_is_marked_and_left_out_of_means():
    """In tables, README's summary, its picture and the fit of a sweep; and each says so."""
    loud = result(shape="loud", entries={OURS: Entry([1e-9, 1e-6, 1e-3]), "sdpa": Entry([9.0] * 3)})
    rows = [result(), result(0.005, shape="b"), loud]
    text = report.as_text(report.table(rows))
    assert f"{9e6:.2f}x sdpa (1)" in text
    assert "(1) left out of the means: the rounds are spread by more than ±25%" in text
    assert "geometric mean 2.00x, lowest 2.00x" in text
    assert summary.ratio_cell(rows) == "**2.00** (2.00 to 2.00), 1 left out"
    assert summary.ratio_cell([loud]) == "-, 1 left out"
    page = "\n".join(summary.full_table(rows))
    assert f"{9e6:.2f} (left out)" in page
    assert "Left out of the means, because the rounds are spread by more than ±25%: loud." in page
    assert "speed" not in summary.pictures(recording(loud))
    points = sweep(2, 1)
    points[-1].entries[OURS].seconds = [1e-9, 1e-6, 1e-3]
    assert "left out at 4096: the rounds are spread by more than ±25%" in sweeps.fit_text(points)
    assert sweeps.fits(points)[OURS][0] == pytest.approx(2)


@needs_cpu
@pytest.mark.parametrize("loud_times", [0, 1, 2, 5])
def test_noise_is_measured_again(quick_run, monkeypatch, capsys, loud_times):
    """Twice at most: what is calm by then is a result like any other."""
    asked = []

    def interleaved(steps, gauge, rounds, budget, progress):
        asked.append(rounds)
        seconds = NOISY if len(asked) <= loud_times else [0.01] * 3
        return dict.fromkeys(steps, seconds), []

    monkeypatch.setattr(common, "interleaved", interleaved)
    assert program.main([*quick_run, "--direction", "forward"]) == 0
    printed = capsys.readouterr()
    assert asked == [3] * min(1 + loud_times, 1 + common.REPEATS)
    marked = loud_times > common.REPEATS
    assert ("(1) left out of the means" in printed.out) == marked
    assert ("in doubt" in printed.err) == marked


def test_one_round_has_no_spread():
    assert report.timing(Entry([0.01])) == "10.0 ms"
    assert report.timing(Entry([0.01, 0.01])) == "10.0 ms ±0%"


@pytest.mark.parametrize(("rounds", "taken"), [(1, 1), (2, 2), (3, 3), (7, 3)])
def test_as_many_rounds_as_asked_for(rounds, taken):
    """Where the budget is short, three at most."""
    times, _ = interleaved({"a": lambda: []}, None, rounds, 1e-9, lambda _: None)
    assert len(times["a"]) == taken


def test_the_newest_result_of_a_kind_counts():
    """README merges the files of one machine."""
    old = recording(result(), result(shape="only in the older"))
    new = recording(result(0.001), date="2026-02-01T00:00:00+00:00")
    found = summary.merged([old, new])
    assert sorted(r.shape for r in found.results) == ["[1,1,8,4]", "only in the older"]
    assert min(r.entries[OURS].median for r in found.results) == 0.001
    assert len(found.environment["files"]) == 2
    everything_replaced = summary.merged([recording(result()), new])
    assert len(everything_replaced.environment["files"]) == 1


def test_readme_is_found_out_of_date(tmp_path, monkeypatch):
    """A result that is added, and a picture that shows other data, are noticed."""
    pytest.importorskip("matplotlib")
    page, support = tmp_path / "README.md", tmp_path / "support.md"
    for path, name in ((page, "results"), (support, "support")):
        path.write_text(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n")
    folder = tmp_path / "results"
    for name, value in {
        "README": page,
        "SUPPORT": support,
        "FULL_TABLES": tmp_path / "docs" / "results.md",
        "PICTURES": tmp_path / "pictures",
    }.items():
        monkeypatch.setattr(readme, name, value)
    monkeypatch.setattr(readme.support, "table", lambda: "| a |\n")
    monkeypatch.setattr(readme, "DRAWINGS", {})
    loaded = readme.recordings
    monkeypatch.setattr(readme, "recordings", lambda: loaded(folder))
    save(recording(result()), folder / "a.json")
    assert page in readme.out_of_date()
    readme.write()
    assert readme.out_of_date() == []
    save(recording(result(shape="more"), date="2026-02-01T00:00:00+00:00"), folder / "b.json")
    (picture,) = (tmp_path / "pictures").iterdir()
    left_over = tmp_path / "pictures" / "of-something-gone.svg"
    left_over.touch()
    assert set(readme.out_of_date()) == {readme.FULL_TABLES, page, picture, left_over}
    readme.write()
    assert readme.out_of_date() == []
    assert not left_over.exists()


def test_the_report_is_one_file(tmp_path):
    """Plots are inside, nothing is loaded from elsewhere, and PNGs are written beside it."""
    pytest.importorskip("matplotlib")
    peaks = {"threads": 1, "fma_flops": 1e9, "fma_bits": 512, "bf16_flops": 0, "read_bytes": 1e9}
    found = recording(result(), *sweep(2, 1))
    found.environment["peaks"] = {"1": peaks | {"copy_bytes": 1e9}}
    program.write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "causal attention, length 512 to 4096, float32, forward, 1 thread" in page
    assert 'src="' not in page
    assert "<link" not in page
    pngs = {path.name for path in tmp_path.glob("*.png")}
    assert pngs == {
        "ratio-causal.png",
        "roofline-1.png",
        "scaling-causal-length-float32-forward-1.png",
    }


def test_missing_matplotlib_is_said_before_measuring(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.NoMatplotlib, match="pip install matplotlib"):
        plots.require()
    with pytest.raises(SystemExit, match="--out: plots need matplotlib"):
        program.main(["--out", str(tmp_path), "--op", "overhead"])


RECORDED = str(next((ROOT / "benchmarks" / "results").glob("*.json")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "casual"], "argument --op: must be of causal, .*, got 'casual'"),
        (["--op", "causal,"], "argument --op: must be of causal, .*, got ''"),
        (["--dtype", "int8"], "argument --dtype: must be of float32, .*, got 'int8'"),
        (["--peers", "nobody"], "argument --peers: must be of .*, got 'nobody'"),
        (
            ["--op", "decode", "--peers", "skew+sdpa"],
            "--peers: must be of eager, flex, sdpa for decode, got",
        ),
        (["--sweep", "depth"], "--sweep: must be of length, heads, window, threads, got 'depth'"),
        (
            ["--sweep", "window", "--op", "causal,decode"],
            "--sweep: there is none of causal, decode along window",
        ),
        (
            ["--threads", "two"],
            "argument --threads: must be numbers separated by commas, got 'two'",
        ),
        (["--threads", "0"], "argument --threads: must be at least 1 and at most .*, got 0"),
        (["--threads", "1,100000"], "argument --threads: must be .* at most .*, got 100000"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["--rounds", "-2"], "argument --rounds: must be at least 1, got -2"),
        (["--rounds", "2.5"], "argument --rounds: must be a whole number, got '2.5'"),
        (["--budget", "nan"], "argument --budget: must be positive and finite, got nan"),
        (["--budget", "inf"], "argument --budget: must be positive and finite, got inf"),
        (["--budget", "0"], "argument --budget: must be positive and finite, got 0"),
        (["--budget", "-1"], "argument --budget: must be positive and finite, got -1"),
        (["--budget", "long"], "argument --budget: must be a number, got 'long'"),
        (["--backend", "cuda"], "argument --backend: invalid choice: 'cuda'"),
        (["--direction", "up"], "argument --direction: invalid choice: 'up'"),
        (
            ["--direction", "backward", "--op", "decode"],
            "--direction: there is no backward of decode",
        ),
        (["--shapes", "nothing"], "--shapes: no shape of causal, .* has 'nothing' in its name"),
        (["--full", "--quick"], "argument --quick: not allowed with argument --full"),
        (["--no-tables"], "argument --no-tables: needs --sweep, or nothing is measured"),
        (["--no-tables", "--sweep", "all", "--full"], "--full does not go with --no-tables"),
        (["--device", "cuda", "--dtype", "float16"], "--dtype does not go with --device cuda"),
        (
            ["--device", "cuda", "--op", "overhead"],
            "--op: must be of causal, .* on a GPU, got overhead",
        ),
        (["--out", "a", "--save", "b"], "argument --save: not allowed with argument --out"),
        (["--out", "a.json"], "argument --out: must be a folder, got a.json"),
        (["--out", __file__], "argument --out: .*test_benchmarks.py is no folder to write in"),
        (["--save", f"{__file__}/a.json"], "--save: .*test_benchmarks.py is no folder to write in"),
        (["--compare", "a.json", "b.json"], "argument --compare: a.json: No such file"),
        (["--compare", RECORDED, __file__], "argument --compare: .*test_benchmarks.py is not JSON"),
        (["--compare", RECORDED], "argument --compare: expected 2 arguments"),
        (["--compare", RECORDED, RECORDED, "--out", "a"], "--out does not go with --compare"),
        (["--report", str(ROOT)], "argument --report: .*: Is a directory"),
        (["--report", RECORDED, "--rounds", "3"], "--rounds does not go with --report"),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_the_command_line_is_checked(arguments, message, capsys):
    """What is wrong is one line that names the option, the rule and what came."""
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(f"python -m benchmarks: error: .*{message}.*\n", printed.err)


def test_files_without_results_are_one_line(tmp_path, capsys):
    """Also those whose results lack parts, or our times."""
    path = tmp_path / "odd.json"
    row = asdict(result())
    for results, reason in (
        ([], "holds no result"),
        ([{}], r"has a result that cannot be read \(KeyError: 'entries'\)"),
        (
            [row | {"entries": {OURS: asdict(Entry())}}],
            ".*cannot be read .*no times of attn_kernels",
        ),
        (7, "is not a recording"),
    ):
        path.write_text(json.dumps({"format": 2, "environment": {}, "results": results}))
        with pytest.raises(SystemExit):
            program.main(["--report", str(path)])
        error = capsys.readouterr().err
        assert re.fullmatch(f".*error: argument --report: .*odd.json {reason}.*\n", error)


@pytest.fixture
def quick_run(monkeypatch, thread_count):
    """No peaks, and no process of its own for memory."""
    monkeypatch.setattr(machine, "peaks_library", lambda: None)
    machine.measure.cache_clear()
    machine.limit_gauge.cache_clear()
    monkeypatch.setattr(MemoryMeter, "__call__", lambda *_: 4096)
    yield ["--op", "overhead", "--budget", "0.01", "--rounds", "3", "--threads", "1"]
    machine.measure.cache_clear()
    machine.limit_gauge.cache_clear()


@needs_cpu
def test_a_run_prints_and_records(quick_run, tmp_path, capsys):
    path = tmp_path / "run.json"
    assert program.main([*quick_run, "--peers", "sdpa", "--save", str(path)]) == 0
    printed = capsys.readouterr()
    assert "overhead of a call, float32, forward + backward, 1 thread" in printed.out
    first, last = printed.err.splitlines()  # the first and the last shape, and none in between
    for line, direction, count in (
        (first, "forward", "[1/2 0:00:"),
        (last, "forward + backward", "[2/2 0:00:"),
    ):
        assert line.startswith(count)
        title = f"overhead of a call, float32, {direction}, 1 thread"
        ratio = re.search(f"elapsed, 0:00:.* left] {re.escape(title)}, (.*): (.*x sdpa)$", line)
        assert f"\n{title}\n" in printed.out
        assert re.search(f"\n{re.escape(ratio[1])} .*  {re.escape(ratio[2])} ", printed.out)
    found = load(path).results
    assert [(r.op, r.direction, list(r.entries)) for r in found] == [
        ("overhead", direction, [OURS, "sdpa"]) for direction in ("forward", "backward")
    ]
    assert all(len(r.entries[OURS].seconds) >= 3 for r in found)
    assert program.main(["--report", str(path)]) == 0
    assert "overhead of a call, float32, forward, 1 thread" in capsys.readouterr().out


# `python -m benchmarks`, without the seconds that measuring the machine's peaks takes.
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
from benchmarks import __main__, machine
machine.peaks_library = lambda: None
sys.exit(__main__.main(sys.argv[1:]))
"""
LONG = ["--op", "overhead,awkward", "--full", "--threads", "1", "--rounds", "3", "--budget", "0.01"]


@needs_cpu
@pytest.mark.parametrize("place", [[], ["--out", "."]])
def test_an_interrupted_run_keeps_what_it_measured(tmp_path, place):
    """Ctrl-C reaches every process of the terminal: the results, no traceback, status 130."""
    if place:
        pytest.importorskip("matplotlib")
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, *LONG, *place], cwd=tmp_path, start_new_session=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    line = run.stderr.readline()
    os.killpg(run.pid, signal.SIGINT)
    out, rest = run.communicate(timeout=120)
    assert line.startswith("[1/38 ")
    assert "Traceback" not in out + rest
    assert run.returncode == 130
    assert "overhead of a call, float32, forward, 1 thread\n" in out
    how_far = re.search("\ninterrupted (after [0-9]+ of 38 shapes)\n", out)[1]
    if not place:
        assert "neither --out nor --save was given" in out
        assert not list(tmp_path.iterdir())
        return
    (path,) = tmp_path.glob("*.json")
    assert f"\nwrote {path.name}\n" in out
    found = load(path)
    assert found.environment["interrupted"] == how_far
    assert f"interrupted {how_far}" in report.header(found.environment)
    assert f"after {len(found.results)} of" in how_far
    assert found.results[0].op == "overhead"
    assert "wrote report.html" in out
    assert "overhead of a call" in (tmp_path / "report.html").read_text()


@needs_cpu
def test_an_interrupt_at_any_moment_is_no_traceback(quick_run, monkeypatch, tmp_path, capsys):
    """Before anything is measured, between two tables, and while the last file is written."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    path = tmp_path / "kept.json"
    with monkeypatch.context() as patched:
        patched.setattr(program, "run_shape", interrupt)
        assert program.main([*quick_run, "--save", str(path)]) == 130
    assert "nothing was measured yet" in capsys.readouterr().out
    assert not path.exists()

    def second_table(case, shape, dtype, direction, *rest, **options):
        if direction == "backward":
            raise KeyboardInterrupt
        return common.run_shape(case, shape, dtype, direction, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(program, "run_shape", second_table)
        assert program.main([*quick_run, "--save", str(path)]) == 130
    assert load(path).environment["interrupted"] == "after 1 of 2 shapes"
    with monkeypatch.context() as patched:
        patched.setattr(report, "environment", interrupt)
        assert program.main(quick_run) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    save(recording(result()), path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(recording(), path)
    assert len(load(path).results) == 1


SHAPES = """
from benchmarks.progress import Progress
progress = Progress(3)
for length in range(3):
    progress.begin("causal attention, float32, forward, 1 thread", f"[1,1,{length},64]")
    progress.step("sdpa round 1/3")
    progress.end("2.00x sdpa")
progress.clear()
print("a table")
progress.close()
"""


def in_terminal(columns: int, *command: str) -> str:
    """What a command of Python's, or SHAPES, writes to a terminal so wide."""
    command = [sys.executable, *(command or ("-c", SHAPES))]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    run = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while more := os.read(ours, 4096):
            written += more
    os.close(ours)
    assert run.wait() == 0
    return written.decode()


@pytest.mark.parametrize("columns", [0, 1, 39])
def test_a_terminal_too_narrow_for_a_bar_gets_lines(columns):
    written = in_terminal(columns)
    assert "\x1b" not in written
    first, last, table = written.splitlines()
    for line, number in ((first, 1), (last, 3)):
        assert line.startswith(f"[{number}/3 0:00:0")
        shape = f"[1,1,{number - 1},64]"
        assert line.endswith(f"causal attention, float32, forward, 1 thread, {shape}: 2.00x sdpa")
    assert table == "a table"


def test_a_terminal_gets_a_bar():
    """On one line, which makes room for a table."""
    pytest.importorskip("tqdm")
    written = in_terminal(140)
    before, _, after = written.partition("a table\r\n")
    assert "\n" not in before
    *_, last, cleared, empty = before.split("\r")
    assert "3/3" in last
    assert (
        "[1,1,2,64] sdpa round 1/3, causal attention, float32, forward, 1 thread, last 2.00x sdpa"
        in last
    )
    assert cleared.strip() == empty == after.strip() == ""
    assert all(len(line) < 80 for line in in_terminal(80).split("\r"))


@needs_cpu
def test_a_run_in_a_terminal():
    """The header stands alone; then the bar comes, and the tables in its place."""
    pytest.importorskip("tqdm")
    run = ["--op", "overhead", "--direction", "forward", "--rounds", "3", "--budget", "0.01"]
    lines = in_terminal(140, "-c", RUN, *run, "--threads", "1").split("\r\n")
    (bar,) = [line for line in lines if "0/1" in line]
    assert bar.startswith("\r0/1")
    assert "overhead of a call, float32, forward, 1 thread" in lines


def test_no_tqdm_is_no_error():
    code = f"import sys; sys.modules['tqdm'] = None\n{SHAPES}"
    assert in_terminal(80, "-c", code).startswith("[1/3 ")


def test_lines_come_now_and_then(monkeypatch, capsys):
    """A shape a second: after the first, one in 30 seconds, and the last."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Progress(70)
    for number in range(70):
        shown.begin("a title", f"shape {number}")
        now[0] += 1
        shown.end("-")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["[1/70", "[31/70", "[61/70", "[70/70"]
    assert lines[1] == "[31/70 0:00:31 elapsed, 0:00:39 left] a title, shape 30: -"


@pytest.mark.parametrize("command", ["", ".readme"])
def test_what_is_not_built_is_one_line(command, tmp_path):
    """That names `make build`; what needs no kernels works."""
    package = tmp_path / "attn_kernels"
    shutil.copytree(ROOT / "attn_kernels", package, ignore=shutil.ignore_patterns("*.so", "__py*"))
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copy(ROOT / "setup.py", tmp_path)  # as in a clone

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "-m", f"benchmarks{command}", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    done = run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch("nothing to measure: .*`make build`.*\n", done.stderr)
    if not command:
        assert run("--report", RECORDED).returncode == 0


def test_a_cpu_without_the_instruction_set_is_told_so(monkeypatch):
    """To build again would not help."""
    refusal = "ATTN_KERNELS_ISA=amx is not available on this CPU"
    monkeypatch.setattr(cpu_library, "load_error", "")
    monkeypatch.setattr(cpu_library, "isa_error", refusal)
    with pytest.raises(SystemExit, match=f"^nothing to measure: {refusal}; --backend reference"):
        program.main([])


@needs_cpu
def test_wrong_values_are_not_timed(quick_run, monkeypatch, capsys):
    """A kernel that is wrong has no speed, and the run fails."""
    case = CASES["overhead"]
    wrong = replace(case, ours=lambda shape, dtype: lambda x: case.ours(shape, dtype)(x) + 0.01)
    monkeypatch.setitem(CASES, "overhead", wrong)
    monkeypatch.setattr(program, "check_against_float64", lambda *_: None)
    assert program.main([*quick_run, "--direction", "forward"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG VALUES: overhead [1,1,1,64]" in printed
    assert "GFLOP/s" not in printed


@pytest.mark.parametrize(
    ("value", "compared_with"),
    [(1.0, 1.0), (1e-3, 10.0 * FLOOR), (1e-5, 10.0 * ZERO_FLOOR), (0.0, 10.0 * ZERO_FLOOR)],
)
def test_errors_are_relative(value, compared_with):
    """To a result itself, or to a part of the largest among all: less where it is only rounding."""
    largest, result = torch.full((4,), 10.0), torch.full((4,), value, dtype=torch.float64)
    found = errors([largest, result + 1e-6], [largest, result])
    assert found == pytest.approx((1e-6 / compared_with,) * 2)
    assert errors([largest * math.nan], [largest]) == (math.inf, math.inf)


@needs_cpu
def test_wrong_values_are_found_by_the_float64_reference(monkeypatch):
    case = CASES["overhead"]

    def nearly(shape, dtype):
        return lambda x: case.ours(shape, dtype)(x) * (1 if dtype == torch.float64 else 1.001)

    with pytest.raises(WrongValues, match="against the float64 reference"):
        check_against_float64(replace(case, ours=nearly), torch.float32, False)


@needs_cpu
def test_pytest_benchmark_runs_the_same_cases():
    """What `pytest benchmarks` collects, with a stand-in for pytest-benchmark's fixture."""
    pytest.importorskip("pytest_benchmark")
    from benchmarks.test_benchmarks import WORK, test_speed

    work = [x for x in WORK if (x[0], x[2]) == ("overhead", "forward")]
    assert [name for *_, name in work] == [OURS, "sdpa", "eager"]
    for one in work:
        ran = []
        benchmark = Mock(side_effect=lambda step, ran=ran: ran.append(step()), extra_info={})
        test_speed(benchmark, *one)
        assert len(ran) == 1
        assert benchmark.extra_info["source"]
    assert {case for case, *_ in WORK} == set(CASES)
    assert 'testpaths = ["tests"]' in (ROOT / "pyproject.toml").read_text()


def test_every_sweep_is_of_a_case():
    """Peers are known, sizes grow, and each axis is there."""
    for one in sweeps.SWEEPS:
        assert set(one.peers) <= set(CASES[one.op].peers)
        values = [value for value, _ in one.points]
        assert values == sorted(set(values))
    assert {one.axis for one in sweeps.SWEEPS} == set(sweeps.AXES)
    assert options.parse(["--sweep", "all"]).sweep == list(sweeps.AXES)


@needs_cpu
def test_stages_of_a_step_are_measured():
    """stages.cpp keeps up with the kernels, and the stages make up most of a forward."""
    from benchmarks.stages import STAGES, causal_forward_ns, measure_stages

    stages = measure_stages(dim=32, seconds=0.002)
    assert len(stages.times) == len(STAGES)
    assert min(stages.times) > 0
    assert sum(causal_forward_ns(stages, 4 * stages.keys).values()) > 0


def test_a_process_is_replaced_when_it_fails():
    """What a job raises, its process's death and its silence are JobErrors; the next job runs."""
    worker = Worker()
    try:
        assert worker.run((operator.add, 1, 2), 60) == 3
        process = worker.process
        assert worker.run((os.getpid,), 60) == process.pid
        with pytest.raises(JobError, match="ZeroDivisionError"):
            worker.run((operator.truediv, 1, 0), 60)
        with pytest.raises(JobError, match="ended with 3"):
            worker.run((os._exit, 3), 60)
        with pytest.raises(JobError, match="no result after 0 s"):
            worker.run((time.sleep, 60), 0.1)
        with pytest.raises(JobError, match="out of time"):
            worker.run((operator.add, 1, 2), 0)
        assert worker.run((operator.add, 1, 2), 60) == 3
    finally:
        worker.stop()


def test_ctrl_c_is_left_to_who_started_the_process():
    worker = Worker()
    try:
        blocked = worker.run((signal.pthread_sigmask, signal.SIG_BLOCK, []), 60)
    finally:
        worker.stop()
    assert signal.SIGINT in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_failed_measurement_of_memory_is_none(capfd):
    meter = MemoryMeter()
    try:
        case = CASES["overhead"]
        assert meter(case, "nobody", case.small, torch.float32, False, 1, "reference") is None
    finally:
        meter.close()
    assert "KeyError: 'nobody'" in capfd.readouterr().err


def test_jobs_keep_their_order():
    """And whoever waits hears of each as it ends."""
    workers, heard = [Worker(), Worker()], {}
    try:
        jobs = [(operator.truediv, 1, x) for x in (1, 0, 2)]
        found = run_all(jobs, workers, lambda: 60, heard.__setitem__)
        assert found[::2] == [1, 0.5]
        assert isinstance(found[1], JobError)
        assert heard == dict(enumerate(found))
        assert run_all([], workers, lambda: 60) == []
    finally:
        for worker in workers:
            worker.stop()
