"""Rules about the folders that a run reads, where it is a run of this machine."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.published_names import folder_like, why_unknown
from paddle_llm.config.local_files.weights import has_weights
from paddle_llm.config.model_facts import looks_local
from paddle_llm.config.rules.engine import Findings, Notice, Problem, Rule, Run
from paddle_llm.core.artifacts import MODEL_CONFIG


def tokenizer_is_there(run: Run) -> Findings:
    name = run.config.tokenizer_name_or_path
    if not run.is_local or not name or name == run.config.model_name_or_path or Path(name).is_dir():
        return
    unknown = why_unknown(name)
    if unknown or looks_local(name):
        yield Problem(
            f"tokenizer_name_or_path = {name}: {unknown or f'there is no such folder.{folder_like(name)}'} "
            f"Make one: paddle-llm tokenizer train --input FILES --output_dir {name} --vocab_size N"
        )
    else:
        yield Notice(
            f"tokenizer_name_or_path = {name} is not a folder here: it is a name that PaddleNLP knows, or a mistake. It is "
            "looked up over the network."
        )


def weights_are_there(run: Run) -> Findings:
    folder = Path(run.config.model_name_or_path)
    if not run.is_local or not run.config.continue_training or not (folder / MODEL_CONFIG).is_file():
        return
    if not has_weights(folder) and not any(folder.glob("*.bin")):  # torch's files: the loader has more to say of those
        yield Problem(
            f"{folder} holds no weights (model.safetensors, model_state.pdparams, or either with an index); "
            "for random weights give --continue_training 0."
        )


def corpora_are_there(run: Run) -> Findings:
    text = run.config.input_dir
    if not run.is_local or not text or _exists(text):
        return
    words = text.split()
    prefixes = words[1::2] if len(words) > 1 else words
    if len(words) > 1 and (len(words) % 2 or any(not _is_number(weight) for weight in words[::2])):
        yield Problem(
            f'input_dir = {text}: expected one folder or prefix, or weights and prefixes in turn: "0.3 data/a 0.7 data/b".'
        )
        return
    for prefix in prefixes:
        if not _exists(prefix):
            yield Problem(
                f"input_dir: there is no folder {prefix}, and no corpus {prefix}.bin/.idx. "
                f"Make one: paddle-llm data build --input FILES --tokenizer FOLDER --output_prefix {prefix}"
            )


def _exists(prefix: str) -> bool:
    """A folder, a file of a corpus, or the prefix of such files; what they hold is looked at when they are read."""
    path = Path(prefix).expanduser()
    if path.exists():
        return True
    starts = (f"{path.name}.", f"{path.name}_")
    return path.parent.is_dir() and any(one.name.startswith(starts) for one in path.parent.iterdir())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


RULES: list[Rule] = [tokenizer_is_there, weights_are_there, corpora_are_there]
