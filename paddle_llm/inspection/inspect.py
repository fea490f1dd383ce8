"""Report on one folder, made with the readers of training and generation."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.config.local_files.adapters import describe_folder
from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_FOLDER, MODEL_CONFIG, MODEL_FOLDER
from paddle_llm.core.downloads import describe_other_layout
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.jinja_template import JINJA
from paddle_llm.inspection.adapter import inspect_adapter
from paddle_llm.inspection.comparison import compare, compare_networks
from paddle_llm.inspection.model import inspect_model
from paddle_llm.inspection.report import Level, Report, Section
from paddle_llm.inspection.tokenizer import has_tokenizer, inspect_tokenizer


def inspect_folder(folder: Path, *, quick: bool = False, networks: bool = False, allow_pickle: bool = False) -> Report:
    """Describe a model, tokenizer or adapter folder, or the output folder of a run.

    Args:
        folder: Folder to describe.
        quick: Whether to only read files, without importing Paddle or comparing with transformers.
        networks: Whether to compare logits with transformers on torch.
        allow_pickle: Whether to read torch's pickles.

    Raises:
        UserError: If the folder is not a model, tokenizer or adapter.
    """
    report = Report(str(folder))
    chosen = _choose(folder)
    folder_section = Section("folder", {"path": str(chosen)})
    report.sections.append(folder_section)
    base: Path | None = None
    if (chosen / ADAPTER_CONFIG).is_file():
        section, base = inspect_adapter(chosen)
        report.sections.append(section)
    has_model = (chosen / MODEL_CONFIG).is_file()
    vocab_size = None
    if has_model:
        sections = inspect_model(chosen, quick=quick, allow_pickle=allow_pickle)
        vocab_size = sections[0].facts.get("vocabulary")
        report.sections += sections
    elif base is not None:
        folder_section.facts["base"] = str(base)
        folder_section.add(Level.NOTE, f"the base model is not described. Run paddle-llm check-model {base}")
    codec, sample = None, None
    if has_tokenizer(chosen):
        sections, codec = inspect_tokenizer(chosen, vocab_size)
        report.sections += sections
        if sections[-1].facts.get("template") == JINJA:
            sample = sections[-1].facts.get("sample ids")
    if not quick and (has_model or codec is not None):
        readable = has_model and vocab_size is not None
        compared = compare(chosen, model=readable, codec=codec, sample_ids=sample)
        if networks and has_model and not report.has(Level.REFUSED):
            compare_networks(compared, chosen)
        report.sections.append(compared)
    return report


def _choose(folder: Path) -> Path:
    """Return the folder itself, or the model or adapter folder in the output folder of a run.

    Raises:
        UserError: If neither exists.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give a folder with a model, a tokenizer or an adapter.")
    for candidate in (folder, folder / MODEL_FOLDER, folder / ADAPTER_FOLDER):
        if any((candidate / name).is_file() for name in (MODEL_CONFIG, ADAPTER_CONFIG)) or has_tokenizer(candidate):
            return candidate
    raise UserError(
        f"{folder} has no {MODEL_CONFIG}, no {ADAPTER_CONFIG} and no tokenizer. "
        f"Give a folder with a model, a tokenizer or an adapter.{describe_other_layout(folder) or describe_folder(folder)}"
    )
