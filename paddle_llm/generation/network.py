"""The process and the network of `paddle-llm generate`: one process, or the tensor-parallel ranks of a launch."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.checkpoint.locate import report_other_base
from paddle_llm.checkpoint.run_record import recorded_argument
from paddle_llm.config.device import find_device, why_no_gpu
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.chat_templates import keeps_template
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import CHAT_TEMPLATE_RECORD
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec
from paddle_llm.families.shape import find_family
from paddle_llm.generation.static_network import StaticModel
from paddle_llm.generation.stop_tokens import stop_ids_of_model
from paddle_llm.models.build import build_model
from paddle_llm.parallel.process import start
from paddle_llm.parallel.process.parent import end_with_launcher

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, or a static export, with its tokenizer.

    Attributes:
        model: Network, or a static export.
        family: Name of the model family.
        codec: The tokenizer.
        layout: Layout of the ranks.
        stop_ids: Token ids that end a text, according to the model's files and its tokenizer.
        template: --chat_template of fine-tuning, from the config.resolved.json of its run; None: unknown.
        template_folder: Folder that may record the chat template of fine-tuning.
    """

    model: LanguageModel | StaticModel
    family: str
    codec: TextCodec
    layout: Layout
    stop_ids: Collection[int]
    template: str | None = None
    template_folder: Path | None = None


def start_process(device: str | None) -> tuple[str, Layout]:
    """Set up this process before Paddle is imported. With several ranks, each holds a part of the network.

    Args:
        device: "cpu" or "gpu"; None: the GPU if one is available.

    Returns:
        The device and the layout.

    Raises:
        UserError: If a GPU is requested and none is available.
    """
    end_with_launcher()
    found = find_device()
    if device == "gpu" and found != "gpu":
        raise UserError(f"--device gpu: {why_no_gpu()}. Use --device cpu, or drop the option.")
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
    """Load a model folder, its tokenizer, and an adapter if one is given.

    On a GPU, 16-bit weights keep their type; on a CPU, all weights are fp32.

    Args:
        folder: The model folder.
        device: "cpu" or "gpu".
        layout: Layout of the ranks.
        tokenizer: Folder of the tokenizer; None: the model folder.
        adapter: Folder of an adapter.
        allow_pickle: Whether pickle files may be read.

    Raises:
        UserError: If a file cannot be loaded, or the adapter belongs to another base.
    """
    from paddle_llm.peft.save import load_adapter  # imports Paddle

    codec = open_codec(str(tokenizer or folder))
    facts = read_model_facts(folder)
    codec.fit_to_model(facts.vocab_size)
    stored = str(facts.raw.get("torch_dtype") or facts.raw.get("dtype") or "float32")
    dtype = stored if device == "gpu" and stored in ("bfloat16", "float16") else "float32"
    run = RunConfig.model_validate(
        {"model_name_or_path": str(folder), "continue_training": True, "device": device, "allow_pickle": allow_pickle}
    )
    model = build_model(run, layout, dtype=dtype)
    if adapter is not None:
        load_adapter(model, adapter, layout, allow_pickle=allow_pickle)
        report_other_base(adapter, folder)
    model.eval()
    stop_ids = stop_ids_of_model(folder, facts.raw, facts.vocab_size, codec)
    return Loaded(model, find_family(facts).name, codec, layout, stop_ids, *_training_template(folder, adapter))


def open_static(folder: Path, tokenizer: Path | None = None) -> Loaded:
    """Open a static export in this process.

    Args:
        folder: Folder of the export.
        tokenizer: Folder of a tokenizer that replaces the export's.

    Raises:
        UserError: If the folder is not a static export.
    """
    model = StaticModel(folder, tokenizer=tokenizer)
    template_folder = folder if (folder / CHAT_TEMPLATE_RECORD).is_file() else None
    return Loaded(model, model.family, model.codec, Layout(), model.end_ids, model.config.template, template_folder)


def _training_template(folder: Path, adapter: Path | None) -> tuple[str | None, Path | None]:
    """Find the chat template of training. That of an adapter (also of another trainer) precedes that of its base.

    Returns:
        The --chat_template in the config.resolved.json of the run, if no folder contains the template itself, else
        None; and the folder that contains the template, else None.
    """
    if keeps_template(adapter):
        return None, adapter or folder
    if (folder / CHAT_TEMPLATE_RECORD).is_file():
        return None, folder
    named = recorded_template(adapter or folder)
    # The tokenizer in the adapter folder may have no template. Then the template of the base is used.
    base_has_template = adapter is not None and named is None and keeps_template(folder)
    return named, folder if base_has_template else None


def recorded_template(folder: Path) -> str | None:
    """Return the --chat_template of the training that wrote a folder, from the config.resolved.json of its run."""
    return recorded_argument(folder, "chat_template")
