"""The target `static`: a program for paddle.inference that reads prompts, then one token at a time (`program.py`)."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.core.artifacts import GENERATION_CONFIG, MERGES, STATIC_STEP
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import names_a_file
from paddle_llm.export.targets.serving_files import chosen_template, is_recorded
from paddle_llm.export.targets.static.plan import Plan
from paddle_llm.export.targets.static.program import PROGRAM, save_step_program
from paddle_llm.export.targets.static.weights import StepWeights

if TYPE_CHECKING:
    from paddle_llm.export.options import Options
    from paddle_llm.export.source.source import Source

WEIGHTS = f"{PROGRAM}.pdiparams"
# Files of a tokenizer; its folder may also contain a model.
_TOKENIZER_FILES = ("*token*.json", "*.model", "vocab.*", MERGES, "*.tiktoken", "chat_template*", "*.vocab")


def write_static(source: Source, staged: Path, options: Options) -> None:
    """Write the program, config.json, generation_config.json, the tokenizer and step.json.

    Memory: the program's weights in fp32, and the largest tensor.

    Args:
        source: Model that is exported.
        staged: Folder of the files.
        options: Options of the export.

    Raises:
        UserError: If another dtype than fp32 is requested, or there is no tokenizer.
        OSError: If a file cannot be written.
    """
    if options.dtype not in (None, "float32"):
        raise UserError(
            f"--dtype {options.dtype}: a static program runs on the CPU, where Paddle's kernels are fp32. Drop the option (16-bit "
            "weights are converted to fp32), or use --target hf or fastdeploy."
        )
    if source.tokenizer is None:
        raise UserError(
            f"{source.folder} has no tokenizer_config.json. Give the folder of the tokenizer with --tokenizer."
        )
    weights = StepWeights(source)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Tensor do not have 'place'")  # raised by Paddle's conversion
            save_step_program(weights, staged)
    except Exception:
        _check_disk_space(staged / WEIGHTS, 4 * sum(math.prod(source.shape(name)) for name in source.names()))
        raise
    source.config.save_pretrained(str(staged))
    ends = source.stop_ids()
    _write_json(staged / GENERATION_CONFIG, source.generation | ({"eos_token_id": ends} if ends else {}))
    for file in sorted({file for pattern in _TOKENIZER_FILES for file in source.tokenizer.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, staged / file.name)
    _write_template(source, staged)
    # The path of a file is not valid on another machine; its text is in the folder.
    name = None if names_a_file(source.template) else source.template
    _write_json(staged / STATIC_STEP, {**describe_step(source, weights.plan), "template": name})


def _check_disk_space(file: Path, size: int) -> None:
    """Raise OSError if the disk has no space for the whole file; Paddle does not check its writes."""
    with file.open("ab") as opened:
        written = opened.tell()
        if written < size:
            os.posix_fallocate(opened.fileno(), written, size - written)


def describe_step(source: Source, plan: Plan) -> dict[str, Any]:
    """Return the description that `generation/static` reads, without the template."""
    return {
        "family": plan.family,
        "dtype": "float32",
        "vocab_size": plan.vocabulary,
        "layers": plan.layers,
        "kv_heads": plan.kv_heads,
        "head_width": plan.width,
        "max_position_embeddings": plan.most_positions,
        "position_rows": 0 if plan.slopes is not None else plan.position_rows,
        "key_places": plan.slopes is not None,
        "end_ids": sorted(source.stop_ids()),
    }


def _write_template(source: Source, staged: Path) -> None:
    """Write the chat template of the training beside the tokenizer, as in a model folder."""
    if not is_recorded(source):
        return
    template, why = chosen_template(source)
    if template is None:
        say(f"no chat template: {why}. To chat with the export, choose one with --chat_template.")
    else:
        template.write(staged)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
