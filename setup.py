"""The metadata is in pyproject.toml. This file adds what needs code: the recipes, and the module `fused_ln` of custom_ops/."""

import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "custom_ops"))
from installation import BuildWithKernels, options  # noqa: E402

RECIPES = ("pretrain", "finetune", "models")


class Build(BuildWithKernels):
    """Copy the recipes of configs/ to paddle_llm/recipes/ and build the kernels."""

    def run(self) -> None:
        """Build everything; an editable installation reads configs/ itself."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        installed = self._recipes()
        shutil.rmtree(installed, ignore_errors=True)
        for folder in RECIPES:
            shutil.copytree(HERE / "configs" / folder, installed / folder)
        for schema in sorted((HERE / "configs").glob("schema*.json")):
            shutil.copy2(schema, installed)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return all files of the installation."""
        return [*super().get_outputs(include_bytecode), *map(str, self._recipes().rglob("*.json"))]

    def _recipes(self) -> Path:
        return Path(self.build_lib) / "paddle_llm" / "recipes"


class Wheel(bdist_wheel):
    """A wheel for every Python version: its kernels are called through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags; a binding to Paddle, if it was built, is for this Python version alone."""
        python, abi, platform = super().get_tag()
        has_binding = any(Path(self.bdist_dir).glob("**/fused_ln/lib/paddle*"))
        return (python, abi, platform) if has_binding else ("py3", "none", platform)


settings = options("custom_ops")
settings["cmdclass"] = {"build_py": Build, "bdist_wheel": Wheel}
setup(packages=[*find_packages(include=["paddle_llm*"]), "fused_ln"], **settings)
