"""How both setup.py files put `fused_ln` into an installation: the module, the sources, and what can be built of them."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithKernels(build_py):
    """Adds to the module the sources, the kernels' library, and the binding where Paddle can be seen.

    pip builds in isolation and sees no Paddle: the binding is then built at first use. Nor does an installation fail for want
    of a compiler: `fused_ln` then computes by Paddle's own operations, and says so.
    """

    def run(self) -> None:
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
            _say(f"fused RMSNorm: kernels built into {binding.SHIPPED}")
            reason = _why_no_paddle()
            if reason:
                _say(f"fused RMSNorm: {reason}; its binding will be built at first use")
                return
            binding.build(binding.SHIPPED / binding.key())
            _say("fused RMSNorm: binding to Paddle built")
        except binding.BuildError as error:
            _say(
                f"fused RMSNorm: NOT BUILT: {error}. It will be tried again at first use; without it Paddle's own runs."
            )

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        installed = Path(self.build_lib) / "fused_ln"
        added = [str(path) for name in ("csrc", "lib") for path in (installed / name).rglob("*") if path.is_file()]
        return [*super().get_outputs(include_bytecode), *added, str(installed / "rms_norm_native.py")]


def _why_no_paddle() -> str:
    if importlib.util.find_spec("paddle") is None:
        return "Paddle is not to be seen here"
    try:
        importlib.import_module("paddle")
    except Exception as error:  # a Paddle for GPUs without its CUDA libraries, a numpy that it does not know, ...
        return (
            f"Paddle is here, but cannot be imported ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        )
    return ""


def _load(path: Path) -> ModuleType:
    """By its path: the package imports Paddle."""
    spec = importlib.util.spec_from_file_location("fused_ln_binding", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options(folder: str) -> dict:
    """Keywords of setup(): the module that lies in `folder`/fused_ln."""
    return {
        "cmdclass": {"build_py": BuildWithKernels},
        "package_dir": {"fused_ln": f"{folder}/fused_ln"},
        # A library of this machine's kind is inside: a wheel for it alone, in the folder for such.
        "has_ext_modules": lambda: True,
    }
