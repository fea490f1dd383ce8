"""Find the folder of a model and read its shape from config.json, without importing Paddle."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.adapters import adapter_as_model, adapters_below
from paddle_llm.config.local_files.published_names import downloaded, folder_like, why_unknown
from paddle_llm.config.recipes import SHAPE_PREFIX, shipped_shape
from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.downloads import describe_other_layout
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import facts_from_dict

# configs/models/llama-7b is PaddleNLP's facebook/llama-7b. A llama-7b of another owner may be another model.
_SHIPPED_OWNERS = ("facebook", "meta-llama", "THUDM", "bigscience", "Qwen", "mistralai")


def read_model_facts(folder: str | Path) -> ModelFacts:
    """Read the config.json of a folder.

    Raises:
        UserError: If the file does not exist, cannot be read, or lacks a number that every family needs.
    """
    path = Path(folder).expanduser() / MODEL_CONFIG
    if not path.parent.is_dir():
        name = Path(folder).name
        raise UserError(
            f"{folder} is not a folder on this machine. A name built into PaddleNLP must be downloaded first. Without a network, "
            f"give a local folder: --model_name_or_path /path/to/{name}"
        )
    if not path.is_file():
        problem = (
            adapter_as_model(path.parent)
            or f"{path} does not exist. A model folder needs its config.json.{describe_other_layout(path.parent)}"
        )
        raise UserError(problem + adapters_below(path.parent))
    raw = read_json_object(path)
    return facts_from_dict(raw, where=str(path))


def find_model_folder(name: str) -> Path | None:
    """Find the folder with the config.json of a model: `name` itself, a shipped shape, or PaddleNLP's download cache.

    Returns:
        Folder; None for a built-in name that is not downloaded.

    Raises:
        UserError: If no such folder exists, and PaddleNLP cannot know the name.
    """
    path = Path(name).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path = {name[:80]!r} cannot be a folder: {error.args[-1]}. Give a folder."
        ) from None
    if is_folder:
        return path
    if is_file:
        raise UserError(f"model_name_or_path = {name} is a file. Give the folder that contains config.json.")
    shipped = shipped_shape(name)
    if shipped is not None:
        return shipped
    if looks_local(name):
        raise UserError(f"model_name_or_path = {name}: no such folder exists.{folder_like(name)} Check the path.")
    if problem := why_unknown(name):
        raise UserError(f"model_name_or_path = {name}: {problem}")
    candidates = [downloaded(name)]
    owner, _, model = name.rpartition("/")
    if owner in _SHIPPED_OWNERS:
        shape = shipped_shape(SHAPE_PREFIX + model.lower())
        candidates += [shape] if shape is not None else []
    return next((folder for folder in candidates if (folder / MODEL_CONFIG).is_file()), None)


def is_folder_name(name: str) -> bool:
    """Return whether a name is that of an existing folder or a shipped shape, so that it is never downloaded."""
    return Path(name).expanduser().is_dir() or shipped_shape(name) is not None


def looks_local(name: str) -> bool:
    """Return whether a name is a local path: written like one, or beginning with an existing folder.

    Names of PaddleNLP have the form `owner/name` or `name`.
    """
    if name.startswith(("/", "./", "../", "~")) or name.endswith("/") or name.count("/") > 1:
        return True
    owner = name.split("/")[0]
    return "/" in name and owner not in _SHIPPED_OWNERS and Path(owner).is_dir()
