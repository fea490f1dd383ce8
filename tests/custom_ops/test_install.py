"""The three ways to install, each from a new clone into a new environment. pip's build isolation needs a package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_USE = """
import fused_ln, paddle
x = paddle.ones([2, 8])
x.stop_gradient = False
fused_ln.fused_rms_norm(x, paddle.ones([8]), 1e-6)[0].sum().backward()
print(fused_ln.__file__, "|", fused_ln.why_not("cpu"), "|", float(x.grad.abs().max()) < 1e-5)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Environment:
    """A fresh virtual environment that sees the Paddle of this one, and a fresh clone."""

    def __init__(self, folder: Path):
        self.folder, self.clone, self.cache = folder / "venv", folder / "clone", folder / "cache"
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.clone)], check=True)
        (self.site / "paddle_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    @property
    def site(self) -> Path:
        return next((self.folder / "lib").glob("python*/site-packages"))

    def run(self, *command: str, cwd: Path | None = None, **changes: str) -> str:
        """Run Python, and return its stdout and stderr.

        Raises:
            AssertionError: If it fails.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "PYTHON", "CXX"))}
        settings = kept | {"GLOG_minloglevel": "2", "PADDLE_EXTENSION_DIR": str(self.cache)} | changes
        command = (str(self.folder / "bin" / "python"), *command)
        done = subprocess.run(command, cwd=cwd or self.clone, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def use(self, **changes: str) -> list[str]:
        """Return [file of the module, why it has no operator, whether the gradient is right], seen from outside the clone."""
        printed = self.run("-W", "ignore", "-c", _USE, cwd=self.folder, **changes)
        return [part.strip() for part in next(line for line in printed.splitlines() if " | " in line).split("|")]

    def libraries(self) -> set[str]:
        return {path.name for path in (self.site / "fused_ln").rglob("*.so")}


@pytest.fixture
def fresh(tmp_path):
    return Environment(tmp_path)


def test_pip_install_ships_the_kernels_and_builds_the_binding_at_first_use(fresh, tmp_path):
    fresh.run("-m", "pip", "install", "--no-deps", ".")
    assert fresh.libraries() == {"librms_norm_cpu.so"}
    count, path = tmp_path / "count", tmp_path / "bin"
    path.mkdir()
    (path / "g++").write_text(f'#!/bin/sh\necho x >> {count}\nexec {shutil.which("g++")} "$@"\n')
    (path / "g++").chmod(0o755)
    for _ in range(2):
        file, reason, right = fresh.use(PATH=f"{path}:/usr/bin:/bin")
        assert (file, reason, right) == (str(fresh.site / "fused_ln" / "__init__.py"), "", "True")
    assert count.read_text() == "x\n", "only the binding is compiled, once"


def test_without_isolation_the_binding_is_built_at_install(fresh):
    fresh.run("-m", "pip", "install", "setuptools>=77")  # older ones also need `wheel`
    fresh.run("-m", "pip", "install", "--no-deps", "--no-build-isolation", ".")
    assert fresh.libraries() == {"librms_norm_cpu.so", "pllm_rms_norm_paddle.so"}
    assert fresh.use(PATH="/nowhere")[1:] == ["", "True"]
    assert not list(fresh.cache.rglob("*.so"))


def test_an_editable_installation_imports_the_clone(fresh):
    """`make install` installs it like this."""
    fresh.run("-m", "pip", "install", "--no-deps", "-e", ".")
    file, reason, right = fresh.use()
    assert (file, reason, right) == (str(fresh.clone / "custom_ops" / "fused_ln" / "__init__.py"), "", "True")


def test_setup_py_install_of_the_tutorials_works(fresh):
    fresh.run("setup.py", "install", cwd=fresh.clone / "custom_ops")
    file, reason, right = fresh.use(PATH="/nowhere")
    assert Path(file).is_relative_to(fresh.site) and (reason, right) == ("", "True")
    assert not list(fresh.cache.rglob("*.so"))


def test_an_installation_without_a_compiler_succeeds(fresh):
    printed = fresh.run("-m", "pip", "install", "--no-deps", "-v", ".", PATH="/nowhere")
    assert "fused RMSNorm: NOT BUILT: no C++ compiler: g++ is not on the PATH (install it, or set CXX)" in printed
    assert fresh.libraries() == set()
    assert fresh.use(PATH="/nowhere")[1:] == [
        "no C++ compiler: g++ is not on the PATH (install it, or set CXX)",
        "True",
    ]
