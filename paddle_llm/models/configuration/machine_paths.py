"""Remove local paths from JSON files that are saved for other machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import GENERATION_CONFIG, MODEL_CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG

# Keys under which PaddleNLP and transformers store the path that something was read from.
_KEYS = {
    "name_or_path", "_name_or_path", "tokenizer_file", "vocab_file", "merges_file", "sp_model_file", "spm_file", "source_spm",
    "special_tokens_map_file", "added_tokens_file", "added_tokens_decoder_file", "full_tokenizer_file", "pretrained_model_name_or_path",
    "pretrained_vocab_files", "cache_dir", "model_name_or_path", "tokenizer_name_or_path",
}  # fmt: skip
_FILES = (MODEL_CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)


def remove_paths(folder: Path) -> None:
    """Remove local paths from the folder's configuration files; readers find the files by their usual names."""
    for name in _FILES:
        file = folder / name
        if not file.is_file():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        kept = without_paths(found)
        if kept != found:
            file.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def without_paths(value: Any) -> Any:
    """Return a JSON value without the keys that store local paths, at any depth."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items() if key not in _KEYS}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return value


def portable_name(folder: Path) -> str:
    """Return the last two parts of a folder's path, such as "llama_7b/model", for a record that other machines read."""
    return "/".join(folder.resolve().parts[-2:]).lstrip("/")
