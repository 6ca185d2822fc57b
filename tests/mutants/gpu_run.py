"""Breaks of the benchmark that runs on a GPU."""

from mutant import Mutant

TESTS = "tests/triton_kernels/benchmarked.py"

MUTANTS = [
    Mutant(
        "a benchmark's file is written in place",
        file="benchmarks/gpu.py",
        old="""            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.data, indent=1))
            os.replace(new, self.path)
""",
        new="            self.path.write_text(json.dumps(self.data, indent=1))\n",
        tests=f"{TESTS} -k killed",
    ),
    Mutant(
        "a failed check cancels nothing",
        file="benchmarks/gpu.py",
        old='if failed and row["operation"] == task.operation:',
        new="if False:",
        tests=f"{TESTS} -k failed_check",
    ),
    Mutant(
        "a failed check cancels everything",
        file="benchmarks/gpu.py",
        old='if failed and row["operation"] == task.operation:',
        new="if failed:",
        tests=f"{TESTS} -k failed_check",
    ),
]
