"""Breaks of what `python -m benchmarks` keeps and leaves out."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "benchmarks: Ctrl-C between two tables does not say so in the file",
        file="benchmarks/__main__.py",
        old="""        else:
            save(self.recording, self.path)
""",
        new="",
        tests="tests/test_benchmarks.py -k any_moment",
    ),
    Mutant(
        "benchmarks: Ctrl-C reaches the process that measures memory",
        file="benchmarks/worker.py",
        old="    resource_tracker.ensure_running()",
        new="    pass",
        tests="tests/test_benchmarks.py -k ctrl_c",
    ),
    Mutant(
        "benchmarks: noise counts in means",
        file="benchmarks/results.py",
        old="if r.speedup is not None and not r.doubt]",
        new="if r.speedup is not None]",
        tests="tests/test_benchmarks.py -k noise",
    ),
    Mutant(
        "benchmarks: noise is measured once more than is said",
        file="benchmarks/common.py",
        old="range(1 + REPEATS)",
        new="range(2 + REPEATS)",
        tests="tests/test_benchmarks.py -k noise",
    ),
]
