"""`paddle-llm recipes`: list, show and copy the configs that come with the package."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from paddle_llm.cli.path_option import PATH
from paddle_llm.config.layout import process_options
from paddle_llm.config.methods import chosen
from paddle_llm.config.recipes import Recipe, all_recipes, find_recipe
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, exit_on_user_error

_DEGREES = ("data_parallel_degree", "tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree")


class RecipeName(StringParamType):
    """The name of a recipe, with completion in the shell."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names, with or without their folder, that begin with the typed text."""
        names = [one.name for one in all_recipes()]
        found = [name for name in names if name.startswith(incomplete)]
        if incomplete:
            found += [short for name in names if (short := name.rpartition("/")[2]).startswith(incomplete)]
        return [CompletionItem(name) for name in dict.fromkeys(found)]


@click.group()
def recipes() -> None:
    """List, show and copy the configs that come with the package.

    \b
    Examples:
      paddle-llm recipes list
      paddle-llm recipes list lora
      paddle-llm recipes show llama_2_7b_sharding8_stage2
      paddle-llm recipes copy llama_2_7b_sharding8_stage2 pretrain.json
    """


@recipes.command("list")
@click.argument("words", nargs=-1, metavar="[WORD ...]")
@click.option("--processes", type=int, help="Only configs for this number of processes (one per GPU).")
def list_recipes(words: tuple[str, ...], processes: int | None) -> None:
    """List the recipes whose names contain all WORDs.

    \b
    Examples:
      paddle-llm recipes list pretrain llama_3
      paddle-llm recipes list pretrain --processes 64
    """
    found = [one for one in all_recipes() if all(word.lower() in one.name for word in words)]
    if processes is not None:
        found = [one for one in found if one.is_config and _processes(one) == processes]
    if not found:
        asked = [f"{' and '.join(words)} in its name"] if words else []
        asked += [f"{processes} processes"] if processes is not None else []
        with exit_on_user_error():
            raise UserError(f"No recipe has {' and '.join(asked)}. List all: paddle-llm recipes list")
    rows = [("name", "model", "method", "processes"), *((one.name, *_columns(one)) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *row, count in rows:
        click.echo("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=True)), count]).rstrip())


@recipes.command()
@click.argument("name", type=RecipeName())
def show(name: str) -> None:
    """Print the recipe NAME.

    \b
    Example:
      paddle-llm recipes show llama_2_7b_lora
    """
    with exit_on_user_error():
        click.echo(find_recipe(name).path.read_text(encoding="utf-8").rstrip())


@recipes.command()
@click.argument("name", type=RecipeName())
@click.argument("file", type=PATH, required=False)
def copy(name: str, file: str | None) -> None:
    """Copy the recipe NAME to FILE or into an existing folder, by default the current one; a model's shape to the folder FILE.

    A path like configs/models/llama-2-7b in a recipe is found in the package; it need not be copied.

    \b
    Example:
      paddle-llm recipes copy llama_2_7b_lora my_lora.json
    """
    with exit_on_user_error():
        recipe = find_recipe(name)
        name = recipe.name.rpartition("/")[2] + (".json" if not _is_shape(recipe) else "")
        target = Path(file or name)
        if target.is_dir():
            target /= name
        if target.exists():
            raise UserError(f"{target} exists already. Choose another FILE, or remove it.")
        if _is_shape(recipe):
            shutil.copytree(recipe.path.parent, target)
        else:
            write_atomically(target, recipe.path.read_bytes())
        say(f"copied {recipe.name} to {target}")
        if recipe.is_config:
            processes = _processes(recipe)
            options = f" {process_options(processes)}" if processes > 1 else ""
            say(f"next: edit its paths, then run paddle-llm {recipe.name.split('/')[0]} {target}{options}")


def _columns(recipe: Recipe) -> tuple[str, str, str]:
    if not recipe.is_config:
        return "", "", ""
    config = _read(recipe)
    method = "" if recipe.name.startswith("pretrain/") else "+".join(chosen(config)) or "full"
    return config["model_name_or_path"].removeprefix("configs/models/"), method, str(_processes(recipe))


def _read(recipe: Recipe) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(recipe.path.read_text(encoding="utf-8"))
    return config


def _processes(recipe: Recipe) -> int:
    config = _read(recipe)
    return math.prod(config.get(degree, 1) for degree in _DEGREES)


def _is_shape(recipe: Recipe) -> bool:
    return recipe.name.startswith("models/")
