"""README and docs/: snippets run, generated parts are up to date, everything public has its page."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attn_kernels
from attn_kernels.core.backends import cpu_library
from attn_kernels.core.geometry import Geometry
from benchmarks import readme

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path):
    """The snippets of a page, in order, as one program."""
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    exec(compile("\n".join(snippets), str(page), "exec"), {})


@pytest.mark.skipif(bool(cpu_library.error()), reason="the support table tries the CPU kernels")
def test_generated_parts_are_up_to_date():
    """README's tables and the pictures show what benchmarks/results/ and the code hold."""
    names = [str(path.relative_to(ROOT)) for path in readme.out_of_date()]
    assert not names, f"run python -m benchmarks.readme: {names}"


def test_every_geometry_and_score_has_a_page():
    """With a picture, a formula and a snippet, and listed in the contents."""
    contents = (ROOT / "docs" / "index.md").read_text()
    public = [getattr(attn_kernels, name) for name in attn_kernels.__all__]
    geometries = [x.name for x in public if isinstance(x, type) and issubclass(x, Geometry)]
    assert len(geometries) >= 4
    for name in [*(f"geometries/{name}" for name in geometries), "scores/relative", "scores/bias"]:
        page = (ROOT / "docs" / f"{name}.md").read_text()
        assert f"\n{name}\n" in contents
        assert "![" in page
        assert "$$" in page
        assert "```python" in page


def test_links_and_pictures_exist():
    """Relative links of every page lead to files."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.skipif(
    importlib.util.find_spec("myst_parser") is None, reason="pip install -r requirements/docs.txt"
)
def test_documentation_builds_without_warnings(tmp_path: Path):
    """What `make docs` runs."""
    folders = ["-d", tmp_path / "trees", ROOT / "docs", tmp_path / "html"]
    command = [sys.executable, "-m", "sphinx", "-q", "-W", *folders]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "html" / "api.html").exists()
