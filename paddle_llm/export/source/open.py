"""Opens a source: a model folder, a checkpoint of any layout, or an adapter with its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paddle_llm.checkpoint.locate import ModelFolders, locate_export_source
from paddle_llm.config.local_files.chat_templates import keeps_template
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.artifacts import CHAT_TEMPLATE_RECORD, MANIFEST
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.dtypes import ITEM_SIZES
from paddle_llm.export.source.folder_tensors import FolderTensors
from paddle_llm.export.source.merged_adapter import merge_adapter
from paddle_llm.export.source.sharded_checkpoint import open_checkpoint
from paddle_llm.export.source.source import Source, Tensors
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import facts_from_dict, find_family
from paddle_llm.generation.network import recorded_template
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.generation_settings import read_generation
from paddle_llm.models.weights.weight_shapes import weight_shapes


def open_source(
    folder: Path, *, adapter: Path | None = None, tokenizer: Path | None = None, allow_pickle: bool = False
) -> Source:
    """Locate and open a model. Every weight is checked to exist with the right shape.

    Args:
        folder: Model folder, output folder of a run, checkpoint of any layout, or adapter (combined with the base
            that it names).
        adapter: Adapter that is merged into the weights of `folder`.
        tokenizer: Folder of the tokenizer; None: the one beside the adapter or the weights.
        allow_pickle: Whether torch's pickles may be read if there are no safetensors.

    Raises:
        UserError: If there is nothing to export, it is incomplete, or the adapter belongs to another base.
    """
    folders = locate_export_source(Path(folder), adapter=adapter, tokenizer=tokenizer)
    return open_located(folders, allow_pickle=allow_pickle)


def open_located(folders: ModelFolders, *, allow_pickle: bool = False) -> Source:
    """Open a model whose folders are known; see `open_source`."""
    adapter = folders.adapter
    source = replace(_open_model(folders.model, allow_pickle), tokenizer=folders.tokenizer)
    if adapter is None:
        return source
    template_folder = adapter if keeps_template(adapter) else source.template_folder
    if folders.tokenizer == adapter:
        say(f"tokenizer: read from the adapter folder {adapter}")
        open_codec(str(adapter)).fit_to_model(source.facts.vocab_size)
        if template_folder is None and recorded_template(adapter) is None and keeps_template(source.folder):
            template_folder = source.folder  # the adapter's tokenizer has no template, so that of the base is used
    return replace(
        source,
        tensors=merge_adapter(source, adapter, allow_pickle=allow_pickle),
        adapter=adapter,
        template=recorded_template(adapter) or source.template,
        template_folder=template_folder,
    )


def _open_model(folder: Path, allow_pickle: bool) -> Source:
    """Open a folder with all weights. The tokenizer of the result is None."""
    facts = _unpadded(read_model_facts(folder), str(folder))
    family = find_family(facts)
    config = plain_configuration(folder, family, facts.raw)
    shapes = weight_shapes(config, family)
    if (folder / MANIFEST).is_file():
        tensors: Tensors = open_checkpoint(folder)
    else:
        tensors = FolderTensors(folder, family, config, shapes, allow_pickle=allow_pickle)
    source = Source(
        folder=folder,
        family=family,
        facts=facts,
        config=config,
        tokenizer=None,
        generation=read_generation(folder),
        template=recorded_template(folder),
        template_folder=folder if (folder / CHAT_TEMPLATE_RECORD).is_file() else None,
        shapes=shapes,
        tensors=tensors,
    )
    for name in shapes:
        if source.dtype(name) not in ITEM_SIZES:
            raise UserError(
                f"{folder}: {name} is stored as {source.dtype(name)}, which is not supported. "
                f"Convert the weights to {', '.join(ITEM_SIZES)}."
            )
    return source


def _unpadded(facts: ModelFacts, where: str) -> ModelFacts:
    """Undo the changes that a run on several ranks makes to the config.json of its checkpoints."""
    raw = dict(facts.raw)
    vocabulary = raw.pop("unpadded_vocab_size", None)
    length = raw.pop("folder_sequence_length", None)
    if vocabulary is not None:
        raw["vocab_size"] = vocabulary
    if length is not None:
        raw["max_sequence_length"] = length
    return facts_from_dict(raw, where=where)
