"""Build the wheel, install it in an empty environment, and call it from another folder."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import torch, attn_kernels
assert not attn_kernels.__file__.startswith({root!r}), attn_kernels.__file__
cpu = attn_kernels.backends()["cpu"]
assert cpu.available, cpu.reason
q, k, v = (torch.randn(2, 3, 100, 16, requires_grad=True) for _ in range(3))
out = attn_kernels.causal_attention(q, k, v, backend="cpu")
expected = attn_kernels.causal_attention(q, k, v, backend="reference")
torch.testing.assert_close(out, expected)
out.sum().backward()
print(attn_kernels.__file__, attn_kernels.__version__, cpu.detail)
"""


def run(*command: object, **options) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def torch_folder() -> str:
    """Where this environment keeps torch: the new one borrows it."""
    import torch

    return str(Path(torch.__file__).parents[1])


def main() -> None:
    """Fail unless the wheel is tagged for every Python 3 and works away from the source tree."""
    with tempfile.TemporaryDirectory() as folder:
        wheels, fresh = Path(folder, "wheels"), Path(folder, "venv")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT)
        (wheel,) = wheels.iterdir()
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
        assert "-py3-none-linux_" in wheel.name, "the wheel must not be tied to one Python"
        names = zipfile.ZipFile(wheel).namelist()
        assert "attn_kernels/py.typed" in names, "type checkers must see that the package is typed"
        venv.create(fresh, with_pip=False)
        python = fresh / "bin" / "python"
        (packages,) = fresh.glob("lib/python*/site-packages")
        (packages / "torch.pth").write_text(torch_folder())  # looked in last
        run(*pip, "--python", python, "install", "--quiet", "--no-deps", wheel)
        run(python, "-c", PROGRAM.format(root=str(ROOT)), cwd=folder)


if __name__ == "__main__":
    main()
