"""Adds the module `fused_ln` to an installation: its Python files, the kernel sources, and libraries.

Both setup.py files use it: that of the repository and the one in this folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithKernels(build_py):
    """Adds the kernel sources to the module, builds the kernels and, if Paddle can be imported, the binding to it.

    pip builds in an isolated environment without Paddle. The binding is then built at first use. An installation does
    not fail without a compiler: `fused_ln` then uses Paddle's operations and logs that.
    """

    def run(self) -> None:
        """Build the module."""
        super().run()
        if getattr(self, "editable_mode", False):
            return  # the source tree itself is imported; the library is built at first use
        installed = Path(self.build_lib) / "fused_ln"
        shutil.rmtree(installed / "csrc", ignore_errors=True)
        shutil.rmtree(installed / "lib", ignore_errors=True)
        shutil.copytree(HERE / "csrc", installed / "csrc")
        shutil.copy2(HERE / "rms_norm_native.py", installed)
        binding = _load(installed / "binding.py")
        try:
            binding.build_kernels(binding.SHIPPED)
            _say(f"fused RMSNorm: kernels built in {binding.SHIPPED}")
            reason = _why_no_paddle()
            if reason:
                _say(f"fused RMSNorm: {reason}. The binding to Paddle will be built at first use.")
                return
            binding.build(binding.SHIPPED / binding.key())
            _say("fused RMSNorm: binding to Paddle built")
        except binding.BuildError as error:
            _say(
                f"fused RMSNorm: NOT BUILT: {error}. The build is repeated at first use; until it succeeds, Paddle's own "
                "operations are used."
            )

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the installed files, including sources and libraries."""
        installed = Path(self.build_lib) / "fused_ln"
        added = [str(path) for name in ("csrc", "lib") for path in (installed / name).rglob("*") if path.is_file()]
        return [*super().get_outputs(include_bytecode), *added, str(installed / "rms_norm_native.py")]


def _why_no_paddle() -> str:
    """Return why Paddle cannot be imported; "" if it can."""
    if importlib.util.find_spec("paddle") is None:
        return "Paddle is not installed in the build environment"
    try:
        importlib.import_module("paddle")
    except Exception as error:  # for example a GPU build without its CUDA libraries, or an unsupported numpy
        reason = (str(error).splitlines() or [""])[0]
        return f"Paddle is installed but cannot be imported ({type(error).__name__}: {reason})"
    return ""


def _load(path: Path) -> ModuleType:
    """Load a module of `fused_ln` by its path, because importing the package would import Paddle."""
    spec = importlib.util.spec_from_file_location("fused_ln_binding", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options(folder: str) -> dict[str, Any]:
    """Return the keywords of setup() that add the module.

    Args:
        folder: Path of this folder, relative to setup.py.
    """
    return {
        "cmdclass": {"build_py": BuildWithKernels},
        "package_dir": {"fused_ln": f"{folder}/fused_ln"},
        # The libraries are for one platform, so the wheel and its folder must be, too.
        "has_ext_modules": lambda: True,
    }
