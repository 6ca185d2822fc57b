"""What a user is told where the compiled library is not beside the package."""

from __future__ import annotations

import sys

from attn_kernels.core import backends


def test_a_hidden_installation_is_named(monkeypatch, tmp_path):
    """Python in a clone imports the clone's folder, which has no library, and not the installed."""
    monkeypatch.setattr(sys, "path", [])
    assert backends.not_built().endswith("run `pip install --no-build-isolation .`")
    installed = tmp_path / "attn_kernels"
    installed.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "is not built" in backends.not_built()
    (installed / "_C.abi3.so").touch()
    assert (
        f"hides the installed {installed}: start Python in another folder" in backends.not_built()
    )
