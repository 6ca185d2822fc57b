"""The Triton kernels' machine code on GPUs that are not here: registers, spills, shared memory.

python -m benchmarks.compiled [--target sm_90,gfx942] [--only relative] [--json out.json]

Every case goes through the real launchers with tensors without memory, so what is compiled is what
is launched. Needs triton (its ptxas and cuobjdump come with it) and no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from attn_kernels.triton import launch, prepared
from attn_kernels.triton.configs import Config, Kind, candidates, shared_bytes, shared_limit
from attn_kernels.triton.launch_backward import backward_launches

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
BARRIERS = 128  # bytes of shared memory that no tile takes
MATRIX = r"HGMMA|HMMA|UTC\w*MMA|IMMA|v_mfma\w*"


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    name: str
    geometry: str
    extent: tuple[int, ...] = ()
    rows: int = 0  # of the relative table
    values: bool = False
    clip: bool = True
    q_len: int = 4096
    k_len: int = 4096
    group: int = 1
    describable: bool = True  # or as if no tensor descriptor could tell where the rows lie


GEOMETRIES = (
    Case("full", "full"),
    Case("causal", "causal", (0,)),
    Case("window", "causal", (1024,)),
    Case("two-sided", "window", (256, 256)),
    Case("local-1d", "local_1d", (256, 256, 0, 1)),
    Case("local-2d", "local_2d", (64, 64, 8, 8, 4, 4, 0)),
    Case("local-2d-causal", "local_2d", (64, 64, 8, 16, 8, 8, 1)),
    Case("pattern", "pattern", (4096, 4096, 0)),
)
CASES = (
    *GEOMETRIES,
    Case("decode", "causal", (0,), q_len=1, k_len=8192, group=4),
    Case("packed", "causal", (0,), q_len=48, group=4),  # a group's heads in one tile
    Case("relative", "causal", (0,), rows=1024),
    Case("relative-zero", "causal", (0,), rows=1024, clip=False),
    Case("relative-full", "full", rows=2047),
    Case("relative-window", "causal", (512,), rows=512),
    Case("relative-two-sided", "window", (256, 256), rows=513),
    Case("relative-local", "local_1d", (256, 256, 0, 1), rows=512),
    Case("relative-around", "local_1d", (256, 256, 256, 0), rows=511),
    Case("relative-values", "full", rows=2047, values=True),
    Case("relative-pattern", "pattern", (4096, 4096, 0), rows=2047),
    Case("causal-plain", "causal", (0,), describable=False),
    Case("relative-plain", "causal", (0,), rows=1024, describable=False),
    Case("relative-full-plain", "full", rows=2047, describable=False),
)


@dataclass
class Compiled:
    """What a compiler made of a kernel."""

    kernel: str
    case: str
    target: str
    dtype: str
    dim: int
    config: Config
    seconds: float = 0.0
    registers: int = 0
    spills: int = 0  # bytes of local memory, or spilled registers on AMD
    shared: int = 0
    bound: int = 0  # of shared memory, as configs.py estimates it; 0 where it does not
    matrix: dict[str, int] = field(default_factory=dict)  # instructions of the longest loop
    loops: list[int] = field(default_factory=list)  # instructions of every innermost loop
    spilling: float = 0.0  # the largest share of local memory in a loop's instructions
    waits: int = 0  # tiles that loops with products load in the step that needs them
    notes: str = ""
    error: str = ""

    @property
    def fits(self) -> bool:
        """It compiled, without spills, into a device's shared memory and what is expected of it,
        and where it has stages its loops are pipelined."""
        arch = 0 if self.target.startswith("gfx") else int(self.target[3:])
        most = min(shared_limit(arch), self.bound or shared_limit(arch))
        waits = self.waits > 0 and self.config.num_stages > 1
        return not (self.error or self.spills or waits) and self.shared <= most


# --- From a launch to a compilation ---


@dataclass(frozen=True)
class Launch:
    """The arguments of one launch."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    def source(self) -> tuple[ASTSource, dict[str, Any]]:
        """What triton.compile takes, specialised as a launch on a device would be."""
        names = self.kernel.arg_names
        given = dict(zip(names, self.args, strict=False))
        compiler = {k: v for k, v in self.options.items() if k not in names}
        given |= {k: v for k, v in self.options.items() if k in names}
        plain = {p.name for p in self.kernel.params if p.do_not_specialize}
        constant = {p.name for p in self.kernel.params if p.is_constexpr}
        signature, constants, attributes = {}, {}, {}

        def describe(value: Any, path: tuple[int, ...], specialize: bool) -> Any:
            if isinstance(value, tuple):
                return tuple(describe(x, (*path, i), specialize) for i, x in enumerate(value))
            if value is None or (specialize and type(value) is int and value == 1):
                constants[path] = value
                return "constexpr"
            if isinstance(value, torch.Tensor):
                attributes[path] = [["tt.divisibility", 16]]
                return "*" + TYPE_NAMES[value.dtype]
            if isinstance(value, TensorDescriptor):
                return f"tensordesc<{TYPE_NAMES[value.base.dtype]}{value.block_shape}>"
            if isinstance(value, int):
                if specialize and value % 16 == 0:
                    attributes[path] = [["tt.divisibility", 16]]
                return "i32" if -(2**31) <= value < 2**31 else "i64"
            return "fp32"

        for i, name in enumerate(names):
            if name in constant:
                constants[(i,)], signature[name] = given[name], "constexpr"
            else:
                signature[name] = describe(given[name], (i,), name not in plain)
        return ASTSource(self.kernel, signature, constants, attributes), compiler


TYPE_NAMES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


def launches_of(work: Callable[[], object]) -> list[Launch]:
    """Run the launchers without launching."""
    found: list[Launch] = []
    before = prepared.run
    prepared.run = lambda kernel, grid, *args, **options: found.append(
        Launch(kernel, args, options)
    )
    try:
        work()
    finally:
        prepared.run = before
    return found


def call_of(case: Case, dtype: torch.dtype, dim: int) -> launch.Call:
    """The case's tensors, without memory, in the memory order of a projection's output."""

    def tensor(heads: int, length: int) -> torch.Tensor:
        return torch.empty(2, length, heads, dim, dtype=dtype, device="meta").transpose(1, 2)

    heads = 4 * case.group
    table = torch.empty(heads, case.rows, dim, dtype=dtype, device="meta") if case.rows else None
    pattern = (
        torch.empty(0, dtype=torch.int64, device="meta") if case.geometry == "pattern" else None
    )
    return launch.Call.of(
        tensor(heads, case.q_len), tensor(4, case.k_len), tensor(4, case.k_len),
        table, table if case.values else None, None, None, None, pattern,
        case.k_len - case.q_len,
        case.geometry, case.extent, case.clip, dim**-0.5, dim**-0.5,
    )  # fmt: skip


def work_of(
    case: Case, dtype: torch.dtype, dim: int, arch: int
) -> Iterator[tuple[Kind | None, Config, Launch]]:
    """Every launch of the case, forward and backward, in default configurations."""
    call = call_of(case, dtype, dim)

    def kind_of(direction: str) -> Kind:
        kind = call.kind(direction)
        return replace(kind, arch=arch, describable=kind.describable and case.describable)

    q, v = call.q, call.v
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=dtype, device="meta")
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device="meta")
    kind = kind_of("forward")
    config = candidates(kind)[0]
    splits = 8 if case.name == "decode" else 1
    for each in launches_of(lambda: launch.launch_forward(call, config, out, lse, splits)):
        yield kind, config, each
    if case.name == "decode":
        return
    for direction, work in backward_launches(call, out, out, None, lse):
        kind = kind_of(direction) if direction else None
        config = candidates(kind)[0] if kind else Config(0, 0, 4, 1)
        for each in launches_of(lambda work=work, config=config: work(config)):
            yield kind, config, each


# --- Reading machine code ---


def run_tool(*command: str | Path) -> str:
    result = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    return result.stdout + result.stderr


def read_cubin(found: Compiled, binary: bytes, ptx: str) -> None:
    """Registers, spills and the innermost loop with matrix instructions, from the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, source = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(binary)
        source.write_text(ptx)
        os.environ["PATH"] = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
        usage = run_tool(TOOLS / "cuobjdump", "-res-usage", cubin)
        code = run_tool(TOOLS / "cuobjdump", "-sass", cubin)
        target = re.search(r"\.target\s+(sm_\w+)", ptx)[1]
        ptxas = TOOLS / ("ptxas-blackwell" if int(target[3:].rstrip("af")) >= 100 else "ptxas")
        verbose = run_tool(ptxas, "-v", f"--gpu-name={target}", source, "-o", Path(folder, "o"))
    found.registers = int(re.search(r"REG:(\d+)", usage)[1])
    found.spills = sum(map(int, re.findall(r"(\d+) bytes spill", verbose)))
    found.notes = "; ".join(
        sorted(set(re.findall(r"\(C7\d+\)[^\n]*?(?= in the function|$)", verbose)))
    )
    lines = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", code, re.M
    )
    places = {int(at, 16): i for i, (at, _, _) in enumerate(lines)}
    spans = []  # of loops: first and last instruction
    for i, (at, name, rest) in enumerate(lines):
        to = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if to and int(to[1], 16) < int(at, 16) and int(to[1], 16) in places:
            spans.append((places[int(to[1], 16)], i))
    loops = []
    for first, last in spans:
        holds_another = any(first <= a and b < last for a, b in spans)
        body = [name for _, name, _ in lines[first : last + 1]]
        if not holds_another and any(re.match(MATRIX, name) for name in body):
            loops.append(body)
    found.loops = [len(body) for body in loops]
    for body in loops or [[name for _, name, _ in lines]]:
        local = sum(name.startswith(("LDL", "STL")) for name in body)
        found.spilling = max(found.spilling, local / len(body))
    names = max(loops, key=len, default=[])
    found.matrix = dict(Counter(name.split(".")[0] for name in names if re.match(MATRIX, name)))


def unpipelined_loads(code: str) -> int:
    """Tiles that innermost loops with products load for the same step. Where Triton pipelines,
    copies go to rooms made before the loop, or registers are handed to the next step."""
    count, open_loops = 0, []  # of loops: their indentation, what they hold
    for line in code.splitlines():
        depth = len(line) - len(line.lstrip())
        if re.search(r"\bscf\.(for|while)\b", line):
            open_loops.append((depth, []))
        elif open_loops and line.strip().startswith("}") and depth <= open_loops[-1][0]:
            _, body = open_loops.pop()
            products = any(re.search(r"\btt\.dot |warp_group_dot |tc_gen5_mma ", x) for x in body)
            if products:
                loads = r"tt\.load .*tensor<\d+x\d+x|tt\.descriptor_load|ttg\.local_alloc : \(\)"
                found = [x.split()[0] for x in body if re.search(loads, x)]
                handed_on = next((x for x in reversed(body) if "scf.yield" in x), "")
                count += sum(not re.search(rf"{name}\b", handed_on) for name in found)
        elif open_loops:
            open_loops[-1][1].append(line)
    return count


def read_amd(found: Compiled, assembly: str) -> None:
    """The same from an AMD kernel's own notes."""

    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(match[1]) if match else 0

    found.registers = number("vgpr_count")
    found.spills = number("vgpr_spill_count")
    found.spilling = float(found.spills > 0)
    found.matrix = dict(Counter(re.findall(r"^\s+(v_mfma\w+)", assembly, re.M)))


def compile_launch(found: Compiled, each: Launch) -> Compiled:
    """Compile one launch and fill in what came of it."""
    source, options = each.source()
    if found.target.startswith("sm_"):
        target = GPUTarget("cuda", int(found.target[3:]), 32)
    else:
        target = GPUTarget("hip", found.target, 64)
    start = time.perf_counter()
    try:
        kernel = triton.compile(source, target=target, options=options)
    except Exception as error:  # a compiler's failures have no common type
        found.error = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
        return found
    found.seconds = time.perf_counter() - start
    found.shared = kernel.metadata.shared
    if "cubin" in kernel.asm:
        found.waits = unpipelined_loads(kernel.asm["ttgir"])
        read_cubin(found, kernel.asm["cubin"], kernel.asm["ptx"])
    else:
        read_amd(found, kernel.asm["amdgcn"])
    return found


def compile_case(
    case: Case, dtype: str, dim: int, target: str, kernel: str = ""
) -> Iterator[Compiled]:
    """Everything that the case launches, of kernels whose name contains `kernel`."""
    arch = 0 if target.startswith("gfx") else int(target[3:])
    for kind, config, each in work_of(case, DTYPES[dtype], dim, arch):
        name = each.kernel.__name__
        if kernel not in name:
            continue
        found = Compiled(name, case.name, target, dtype, dim, config)
        if kind is not None and name in ("attention_fwd_kernel", f"{kind.direction}_kernel"):
            found.bound = shared_bytes(kind, config) + BARRIERS
        yield compile_launch(found, each)


# --- Command line ---


def row_of(found: Compiled) -> str:
    """One line of the table."""
    config = found.config
    shape = f"{config.block_q}x{config.block_k} w{config.num_warps} s{config.num_stages}"
    shape += " late" * config.late + " tma" * config.described + " whole" * config.whole
    matrix = " ".join(f"{name} {n}" for name, n in found.matrix.items())
    text = (
        f"{found.case:16} {found.kernel:24} {found.target:7} {found.dtype:5} {found.dim:4}"
        f" {shape:27} {found.registers:4} {found.spills:6} {found.spilling:5.1%} {found.waits:5}"
        f" {found.shared:7} {'/'.join(map(str, found.loops)):15} {matrix}"
    )
    return f"{text} {found.notes} {found.error}".rstrip()


HEADER = (
    f"{'case':16} {'kernel':24} {'target':7} {'dtype':5} {'dim':>4} {'tile':27} {'regs':>4}"
    f" {'spills':>6} {'loops':>5} {'waits':>5} {'shared':>7} {'instructions':15}"
    " of which matrix, in the longest"
)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if anything spills, waits for loads, does not fit or does not compile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--target", default=",".join(TARGETS), help="comma separated")
    parser.add_argument("--only", default="", help="cases of exactly these names, comma separated")
    parser.add_argument("--kernel", default="", help="kernels whose name contains this")
    parser.add_argument("--dtype", default="bf16,f32", help="comma separated")
    parser.add_argument("--dim", default="64,128", help="comma separated")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    chosen = parser.parse_args(arguments)
    names = chosen.only.split(",") if chosen.only else [case.name for case in CASES]
    found: list[Compiled] = []
    print(f"triton {triton.__version__}\n{HEADER}", flush=True)
    for case in (case for case in CASES if case.name in names):
        for target in chosen.target.split(","):
            for dtype in chosen.dtype.split(","):
                for dim in map(int, chosen.dim.split(",")):
                    for row in compile_case(case, dtype, dim, target, chosen.kernel):
                        found.append(row)
                        print(row_of(row), flush=True)
    bad = [row for row in found if not row.fits]
    print(f"{len(found)} kernels, {len(bad)} that spill, wait, do not fit or do not compile")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
