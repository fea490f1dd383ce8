"""The process and the network of `paddle-llm generate`: one process, or the tensor-parallel ranks of a launch."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.chat_templates import keeps_template
from paddle_llm.core.artifacts import CHAT_TEMPLATE_RECORD, RESOLVED_CONFIG
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.models.configuration.generation_settings import (
    additional_ends,
    end_ids,
    read_generation,
    unreachable_ends,
)


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, or a static export, with the words that it reads.

    Attributes:
        model: PaddleNLP's, or a `StaticModel`.
        family: the network's, by name.
        end_ids: what ends a text, as the model's own files and its tokenizer say.
        template: --chat_template of the fine-tuning, if a resolved configuration beside the folder has it.
        template_folder: Folder that may have the record of the fine-tuning's template.
    """

    model: Any
    family: str
    codec: TextCodec
    layout: Layout
    end_ids: Collection[int]
    template: str | None = None
    template_folder: Path | None = None


def start_process(device: str | None) -> tuple[str, Layout]:
    """Set this process up before paddle is imported; with several ranks all of them hold a part of the network.

    Returns:
        the device and the layout.

    Raises:
        UserError: a GPU is asked for where there is none.
    """
    from paddle_llm.config.device import find_device, why_no_gpu
    from paddle_llm.parallel.process import start
    from paddle_llm.parallel.process.parent import end_with_launcher

    end_with_launcher()
    found = find_device()
    if device == "gpu" and found != "gpu":
        raise UserError(f"--device gpu, but {why_no_gpu()}: give --device cpu, or leave it out")
    device = device or found
    layout = Layout(tensor=int(os.environ.get("PADDLE_TRAINERS_NUM", "1")))
    start.start_process(device, layout.tensor)
    if layout.tensor > 1:
        start.start_groups(device, layout)
    return device, layout


def load_network(
    folder: Path,
    device: str,
    layout: Layout,
    *,
    tokenizer: Path | None = None,
    adapter: Path | None = None,
    allow_pickle: bool = False,
) -> Loaded:
    """A network with the folder's weights, an adapter over it where one is given, and its tokenizer.

    On a GPU weights that are stored in 16 bits stay so; on a CPU they are fp32.

    Raises:
        UserError: something of it cannot be loaded, or the adapter is of another base.
    """
    from paddle_llm.config.model_facts import read_model_facts
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.data.tokenizers.text_codec import open_codec
    from paddle_llm.models.build import build_model
    from paddle_llm.models.registry import find_family

    codec = open_codec(str(tokenizer or folder))
    facts = read_model_facts(folder)
    codec.fit_to_model(facts.vocab_size)
    stored = str(facts.raw.get("torch_dtype") or facts.raw.get("dtype") or "float32")
    dtype = stored if device == "gpu" and stored in ("bfloat16", "float16") else "float32"
    run = RunConfig(model_name_or_path=str(folder), continue_training=True, device=device, allow_pickle=allow_pickle)
    model = build_model(run, layout, dtype=dtype)
    if adapter is not None:
        _put_over(model, adapter, folder, layout, allow_pickle)
    model.eval()
    settings = read_generation(folder)
    ends = {*end_ids(settings, facts.raw, folder), *([] if codec.eos_id is None else [codec.eos_id])}
    if line := unreachable_ends(ends, facts.vocab_size):
        say(f"{folder}: {line}. Correct eos_token_id in config.json or generation_config.json.")
    if line := additional_ends(settings, ends):
        say(f"{folder}: {line}")
    return Loaded(model, find_family(facts).name, codec, layout, frozenset(ends), *_template_of(folder, adapter))


def open_static(folder: Path, tokenizer: Path | None = None) -> Loaded:
    """A static export in this process, which is set up for it; the tokenizer of another folder if one is given.

    Raises:
        UserError: the folder is no static export.
    """
    from paddle_llm.generation.static_network import StaticModel

    model = StaticModel(folder, tokenizer=tokenizer)
    kept = folder if (folder / CHAT_TEMPLATE_RECORD).is_file() else None
    return Loaded(model, model.family, model.codec, Layout(), model.end_ids, model.config.template, kept)


def _put_over(model: Any, adapter: Path, folder: Path, layout: Layout, allow_pickle: bool) -> None:
    from paddle_llm.peft.base import base_named_in, say_other_base
    from paddle_llm.peft.save import described_in, load_adapter

    load_adapter(model, adapter, layout, allow_pickle=allow_pickle)
    base = base_named_in(described_in(adapter))
    if base:
        say_other_base(base, adapter, folder)


def _template_of(folder: Path, adapter: Path | None) -> tuple[str | None, Path | None]:
    """--chat_template of the training where only a configuration has it, and the folder that keeps its template: an adapter's (also
    one of another trainer) goes before the base's."""
    if keeps_template(adapter):
        return None, adapter or folder
    if (folder / CHAT_TEMPLATE_RECORD).is_file():
        return None, folder
    named = template_of(adapter or folder)
    # A tokenizer beside the adapter may bring no template: the base's stays.
    kept = adapter is not None and named is None and keeps_template(folder)
    return named, folder if kept else None


def template_of(folder: Path) -> str | None:
    """--chat_template of the training whose output the folder is, from the resolved configuration beside it (folders without a
    record of their template)."""
    return recorded_argument(folder, "chat_template")


def recorded_argument(folder: Path, name: str) -> str | None:
    """A word that the training was given whose output a folder is, None where there is no record of it."""
    record = folder.resolve().parent / RESOLVED_CONFIG
    try:
        value = json.loads(record.read_text(encoding="utf-8"))["arguments"][name]["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None
