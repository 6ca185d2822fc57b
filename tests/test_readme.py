"""Every snippet of the README runs, in order, as one program."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_snippets_run():
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(snippets) >= 3
    exec(compile("\n".join(snippets), str(README), "exec"), {})
