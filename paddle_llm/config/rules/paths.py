"""Rules about the folders that a run on this machine reads."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.model_folder import looks_local
from paddle_llm.config.local_files.published_names import folder_like, why_unknown
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import MODEL_CONFIG


def tokenizer_exists(run: Run) -> Findings:
    """The tokenizer is a folder, or may be a published name."""
    name = run.config.tokenizer_name_or_path
    if not run.is_local or not name or name == run.config.model_name_or_path or Path(name).is_dir():
        return
    unknown = why_unknown(name)
    if unknown or looks_local(name) or _is_beside_data(name, run.config):
        yield Problem(
            f"tokenizer_name_or_path = {name}: {unknown or f'no such folder exists.{folder_like(name)}'} "
            f"To train a tokenizer, run paddle-llm tokenizer train --input FILES --output_dir {name} --vocab_size N"
        )
    else:
        yield Notice(
            f"tokenizer_name_or_path = {name} is not a folder on this machine. PaddleNLP will look it up on the network."
        )


def _is_beside_data(name: str, config: RunConfig) -> bool:
    """Return whether a name like `data/tokenizer` begins with the folder of another path: then it is not `owner/name`."""
    first = Path(name).parts[:1]
    others = f"{config.input_dir or ''} {config.dataset_name_or_path or ''} {config.output_dir or ''}".split()
    return len(Path(name).parts) > 1 and any(Path(other).parts[:1] == first for other in others)


def weights_exist(run: Run) -> Findings:
    """The model folder has weights if they are loaded."""
    folder = Path(run.config.model_name_or_path)
    if not run.is_local or not run.config.continue_training or not (folder / MODEL_CONFIG).is_file():
        return
    if not has_weights(folder) and not any(
        folder.glob("*.bin")
    ):  # for torch's files the loader has a more precise message
        advice = (
            "Add them, or give the folder of a trained model."
            if run.entry == "finetune"
            else "Add them, or give --continue_training 0 to start from random weights."
        )
        yield Problem(
            f"{folder} has no weights (model.safetensors, model_state.pdparams, or either with an index). {advice}"
        )


def corpora_exist(run: Run) -> Findings:
    """The corpora of pretraining exist."""
    text = run.config.input_dir
    if not run.is_local or not text or _exists(text):
        return
    words = text.split()
    prefixes = words[1::2] if len(words) > 1 else words
    if len(words) > 1 and (len(words) % 2 or any(not _is_number(weight) for weight in words[::2])):
        yield Problem(
            f"input_dir = {text}: expected one folder or prefix, or alternating weights and prefixes. "
            'Example: "0.3 data/a 0.7 data/b".'
        )
        return
    for prefix in prefixes:
        if not _exists(prefix):
            yield Problem(
                f"input_dir = {prefix}: no such folder or corpus ({prefix}.bin and .idx) exists. "
                f"To build a corpus, run paddle-llm data build --input FILES --tokenizer FOLDER --output_prefix {prefix}"
            )


def _exists(prefix: str) -> bool:
    """Return whether a path is a folder, a file of a corpus, or the prefix of such files. Their content is checked on reading."""
    path = Path(prefix).expanduser()
    if path.exists():
        return True
    prefixes = (f"{path.name}.", f"{path.name}_")
    return path.parent.is_dir() and any(file.name.startswith(prefixes) for file in path.parent.iterdir())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


RULES: list[Rule] = [tokenizer_exists, weights_exist, corpora_exist]
