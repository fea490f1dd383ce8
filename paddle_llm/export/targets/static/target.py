"""The target `static`: a program for paddle.inference that reads prompts and, token by token, what follows (step_program.py)."""

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
# What a tokenizer's folder has of a tokenizer; it may be a model's folder, too.
_TOKENIZER_FILES = ("*token*.json", "*.model", "vocab.*", MERGES, "*.tiktoken", "chat_template*", "*.vocab")


def write_static(source: Source, staged: Path, options: Options) -> None:
    """Write the program, config.json, generation_config.json, the tokenizer and step.json.

    Memory: the program's weights in fp32, and the largest tensor.

    Raises:
        UserError: another dtype than fp32 is asked for, or there is no tokenizer.
        OSError: of the disk.
    """
    if options.dtype not in (None, "float32"):
        raise UserError(
            f"--dtype {options.dtype}: a static program computes on the CPU, where Paddle's kernels are fp32; leave it out "
            "(16-bit weights are widened), or take --target hf or fastdeploy"
        )
    if source.tokenizer is None:
        raise UserError(
            f"{source.folder} has no tokenizer_config.json; name the folder of the tokenizer with --tokenizer"
        )
    weights = StepWeights(source)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Tensor do not have 'place'")  # Paddle's, of its own conversion
            save_step_program(weights, staged)
    except Exception:
        _ask_for_room(staged / WEIGHTS, 4 * sum(math.prod(source.shape(name)) for name in source.names()))
        raise
    source.config.save_pretrained(str(staged))
    ends = source.stop_ids()
    _write_json(staged / GENERATION_CONFIG, source.generation | ({"eos_token_id": ends} if ends else {}))
    for file in sorted({file for pattern in _TOKENIZER_FILES for file in source.tokenizer.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, staged / file.name)
    _write_template(source, staged)
    # A file's path means nothing on another machine: its text is in the folder.
    name = None if names_a_file(source.template) else source.template
    _write_json(staged / STATIC_STEP, {**describe_step(source, weights.plan), "template": name})


def _ask_for_room(file: Path, size: int) -> None:
    """Raise OSError where the disk has no room for all of a file: Paddle does not look whether what it writes arrives."""
    with file.open("ab") as opened:
        written = opened.tell()
        if written < size:
            os.posix_fallocate(opened.fileno(), written, size - written)


def describe_step(source: Source, plan: Plan) -> dict[str, Any]:
    """What `generation/static_network.py` must know (its `Step`), but for the template."""
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
    """Write the template of the training beside the tokenizer, as a model folder has it."""
    if not is_recorded(source):
        return
    template, why = chosen_template(source)
    if template is None:
        say(f"no chat template: {why}. Name one with --chat_template to ask questions")
    else:
        template.write(staged)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
