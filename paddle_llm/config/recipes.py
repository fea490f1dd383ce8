"""The recipes that come with the package: configs of jobs, shapes of models, and JSON Schemas for editors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.errors import UserError

_MODELS = "models"
_CONFIG_FOLDERS = ("pretrain", "finetune")
_PACKAGE = Path(__file__).resolve().parents[1]
# Recipes name the folders of model shapes like this, relative to a checkout.
SHAPE_PREFIX = "configs/models/"


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        name: Name for the command line, like "pretrain/llama_2_7b_sharding8_stage2".
        path: File; for the shape of a model, its config.json.
    """

    name: str
    path: Path

    @property
    def is_config(self) -> bool:
        """Whether the recipe is the config of a job."""
        return self.name.split("/")[0] in _CONFIG_FOLDERS


def recipes_folder() -> Path:
    """Return the folder of the recipes: in an installed package `recipes/`, in a checkout `configs/`."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def all_recipes() -> list[Recipe]:
    """Return all recipes: configs of jobs, then shapes of models, then schemas."""
    folder = recipes_folder()
    found = [
        Recipe(f"{kind}/{path.stem}", path)
        for kind in _CONFIG_FOLDERS
        for path in sorted((folder / kind).glob("*.json"))
    ]
    found += [
        Recipe(f"{_MODELS}/{path.parent.name}", path) for path in sorted((folder / _MODELS).glob(f"*/{MODEL_CONFIG}"))
    ]
    return found + [Recipe(path.stem, path) for path in sorted(folder.glob("schema*.json"))]


def find_recipe(name: str) -> Recipe:
    """Find a recipe by its name, with or without its folder and `.json`; a config comes before a shape of the same name.

    Raises:
        UserError: If no recipe, or more than one, has the name.
    """
    recipes = all_recipes()
    wanted = name.removeprefix("configs/").removesuffix(".json").rstrip("/")
    found = [recipe for recipe in recipes if wanted in (recipe.name, recipe.name.rpartition("/")[2])]
    found = [recipe for recipe in found if recipe.is_config] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name} is the name of {len(found)} recipes. Use {' or '.join(one.name for one in found)}.")
    names = [recipe.name for recipe in recipes] + [recipe.name.rpartition("/")[2] for recipe in recipes]
    close = difflib.get_close_matches(wanted, names, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"{name} is not a recipe.{hint} List them: paddle-llm recipes list")


def shipped_shape(name: str) -> Path | None:
    """Return the folder of a model's shape that a recipe names, like `configs/models/llama-7b`; None for another name."""
    if not name.startswith(SHAPE_PREFIX):
        return None
    folder = recipes_folder() / _MODELS / name.removeprefix(SHAPE_PREFIX).rstrip("/")
    return folder if (folder / MODEL_CONFIG).is_file() else None
