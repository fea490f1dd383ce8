"""Resolve a model name to a local folder: a folder, a shipped configuration, or a download by PaddleNLP."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.model_folder import find_model_folder, is_folder_name
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.core.artifacts import MODEL_CONFIG, PDPARAMS, PDPARAMS_INDEX, SAFETENSORS, SAFETENSORS_INDEX
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.parallel.process.first_rank import on_first_rank

_WEIGHTS = [SAFETENSORS_INDEX, SAFETENSORS, PDPARAMS_INDEX, PDPARAMS]


def model_folder(name: str, *, weights: bool) -> Path:
    """Return the folder with a model's config.json and, if requested, its weights. Collective over all ranks.

    Args:
        name: Folder, or name built into PaddleNLP.
        weights: Whether the weights are needed.

    Raises:
        UserError: If the folder does not exist and the name cannot be downloaded (no network, no such model).
    """
    found = find_model_folder(name)
    # A download never replaces an existing folder; missing files are reported when the folder is read.
    if found is not None and (not weights or has_weights(found) or is_folder_name(name)):
        return found
    folder = Path(on_first_rank(lambda: _download(name, weights)))
    return folder if folder.is_dir() else Path(_download(name, weights))  # another machine with a separate disk


def _download(name: str, weights: bool) -> str:
    from paddlenlp.utils.download import resolve_file_path

    say(f"{name} is not a local folder. PaddleNLP downloads it.")
    try:
        folder = Path(resolve_file_path(name, [MODEL_CONFIG])).parent
        if weights:
            file = Path(resolve_file_path(name, _WEIGHTS))
            parts = parse_json(file.read_text())["weight_map"].values() if file.suffix == ".json" else []
            for part in sorted(set(parts)):
                resolve_file_path(name, [part])
    except Exception as error:  # the clients of the hubs raise many types; for a missing file they return None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model_name_or_path = {name} does not exist, and PaddleNLP cannot download a model of that name: {reason}. "
            f"Use a local folder with config.json{' and weights' if weights else ''}."
        ) from error
    return str(folder)
