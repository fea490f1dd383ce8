"""What is exported: a trained model as full tensors under canonical names, read one at a time, wherever it is kept.

A model folder (PaddleNLP's or Hugging Face's names), the output folder of a run, a checkpoint of any layout
(layout_files.py), an adapter over its base (merged.py). Query, key and value (and the feed-forward's two halves) come
apart, however the network keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddle_llm.config.local_files.chat_templates import keeps_template
from paddle_llm.config.model_facts import read_model_facts
from paddle_llm.core.artifacts import CHAT_TEMPLATE_RECORD, MANIFEST
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.export.source.dtypes import ITEM_SIZES
from paddle_llm.export.source.find import Found, find
from paddle_llm.families import Family
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import facts_from_dict, find_family
from paddle_llm.generation.network import recorded_template
from paddle_llm.generation.stop_tokens import ids_in, known_ids, stop_ids_of_tokenizer
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.generation_settings import read_generation
from paddle_llm.models.weights.files import DOUBLE, WeightFiles
from paddle_llm.models.weights.load import locate_weights
from paddle_llm.models.weights.names import compositions
from paddle_llm.models.weights.outline import outline


class Tensors(Protocol):
    """Full tensors by canonical name, in PaddleNLP's layout ([in, out] matrices), without vocabulary padding."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """Of a weight, as stored: "float32", "bfloat16" or "float16"."""

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, not to be written to; bfloat16 as its bits in uint16. It may be mapped from a file."""


@dataclass(frozen=True)
class Source:
    """A model to be exported: `Tensors` with what else belongs to it.

    Attributes:
        folder: where its weights are.
        facts: of its config.json, the vocabulary without padding.
        config: PaddleNLP's configuration of one process, nothing fused, the vocabulary without padding.
        tokenizer: the folder with tokenizer_config.json, None where there is none.
        generation: generation_config.json, {} where there is none.
        template: --chat_template of its training, where that is recorded.
        trained: Folder with the record of the template that it was trained with; None without a record.
        shapes: canonical name -> shape, in the network's order; a tied head is not among them.
        tensors: where the values come from; fused or not.
        adapter: the adapter that is added to the weights, if any.
    """

    folder: Path
    family: Family
    facts: ModelFacts
    config: Any
    tokenizer: Path | None
    generation: dict[str, Any]
    template: str | None
    shapes: dict[str, tuple[int, ...]]
    tensors: Tensors
    adapter: Path | None = None
    trained: Path | None = None

    def names(self) -> list[str]:
        """Canonical names (models/weights/names.py) in the network's order; a tied head is not among them."""
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """In PaddleNLP's layout ([in, out] for a matrix), without vocabulary padding."""
        return self.shapes[name]

    def dtype(self, name: str) -> str:
        """Of a weight, as stored: "float32", "bfloat16" or "float16"."""
        return self.tensors.dtype(self._stored(name)[0])

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, not to be written to; bfloat16 as its bits in uint16. It may be mapped from a file."""
        if name in self.tensors.names():
            return self.tensors.read(name)
        parts = []
        for piece in compositions(self.family.name, name, self.config):
            whole = self.tensors.read(piece.source)
            parts.append(whole[:, piece.source_start : piece.source_start + piece.stop - piece.start])
        return np.concatenate(parts, axis=1)

    def stop_ids(self) -> list[int]:
        """Return each id at which `paddle-llm generate` ends a text of this model, limited to the vocabulary."""
        ids = [*ids_in(self.generation.get("eos_token_id")), *ids_in(self.config.eos_token_id)]
        if self.tokenizer is not None:
            ids += stop_ids_of_tokenizer(self.tokenizer, self.template, self.trained)
        return known_ids(ids, self.facts.vocab_size)

    def _stored(self, name: str) -> list[str]:
        """The weights of `tensors` that a weight is read from.

        Raises:
            UserError: there are none.
        """
        if name in self.tensors.names():
            return [name]
        stored = [piece.source for piece in compositions(self.family.name, name, self.config)]
        if not stored or not set(stored) <= set(self.tensors.names()):
            raise UserError(f"{self.folder} lacks the weight {name}: it is not complete")
        return stored


def open_source(
    folder: Path, *, adapter: Path | None = None, tokenizer: Path | None = None, allow_pickle: bool = False
) -> Source:
    """Find out what a folder holds and open it; every weight is known to be there and of the right shape.

    Args:
        folder: a model folder; the output folder of a run (its model/, adapter/ or newest checkpoint is taken, and said);
            checkpoint-N of any layout; an adapter's folder or checkpoint (its base is named in it).
        adapter: added to the weights of `folder`.
        tokenizer: folder of the tokenizer, where it is not beside the weights.
        allow_pickle: read torch's pickles, too, where there is nothing else.

    Raises:
        UserError: nothing that can be exported is there, it is incomplete, or the adapter is of another base.
    """
    return open_found(find(Path(folder), adapter=adapter, tokenizer=tokenizer), allow_pickle=allow_pickle)


def open_found(found: Found, *, allow_pickle: bool = False) -> Source:
    """`open_source` of folders that are known already."""
    adapter = found.adapter
    source = replace(_open_whole(found.model, allow_pickle), tokenizer=found.tokenizer)
    if adapter is None:
        return source
    from paddle_llm.export.source.merged_adapter import merge_adapter

    trained = adapter if keeps_template(adapter) else source.trained
    if found.tokenizer == adapter:
        from paddle_llm.data.tokenizers.text_codec import open_codec

        say(f"tokenizer: the one beside the adapter, {adapter}")
        open_codec(str(adapter)).fit_to_model(source.facts.vocab_size)
        if trained is None and recorded_template(adapter) is None and keeps_template(source.folder):
            trained = source.folder  # the tokenizer beside the adapter brings no template: the base's stays
    return replace(
        source,
        tensors=merge_adapter(source, adapter, allow_pickle=allow_pickle),
        adapter=adapter,
        template=recorded_template(adapter) or source.template,
        trained=trained,
    )


def _open_whole(folder: Path, allow_pickle: bool) -> Source:
    """A folder that holds all weights; without its tokenizer."""
    facts = _unpadded(read_model_facts(folder), str(folder))
    family = find_family(facts)
    config = plain_configuration(folder, family, facts.raw)
    shapes = outline(config, family)
    if (folder / MANIFEST).is_file():
        from paddle_llm.export.source.sharded_checkpoint import open_layout

        tensors: Tensors = open_layout(folder)
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
        trained=_with_record(folder),
        shapes=shapes,
        tensors=tensors,
    )
    for name in shapes:
        if source.dtype(name) not in ITEM_SIZES:
            raise UserError(f"{folder}: {name} is stored as {source.dtype(name)}; weights are {', '.join(ITEM_SIZES)}")
    return source


def _with_record(folder: Path) -> Path | None:
    return folder if (folder / CHAT_TEMPLATE_RECORD).is_file() else None


def _unpadded(facts: ModelFacts, where: str) -> ModelFacts:
    """Facts without what a run of several ranks leaves in the config.json of its checkpoints."""
    raw = dict(facts.raw)
    vocabulary = raw.pop("unpadded_vocab_size", None)
    length = raw.pop("folder_sequence_length", None)
    if vocabulary is not None:
        raw["vocab_size"] = vocabulary
    if length is not None:
        raw["max_sequence_length"] = length
    return facts_from_dict(raw, where=where)


class FolderTensors:
    """The weights of a model folder, unfused, whatever names and layouts its files have.

    Args:
        shapes: of every weight that there must be.

    Raises:
        UserError: weights missing or of the wrong shape, files broken or of a refused kind.
    """

    def __init__(
        self, folder: Path, family: Family, config: Any, shapes: dict[str, tuple[int, ...]], *, allow_pickle: bool
    ):
        self._files = WeightFiles(folder, allow_pickle=allow_pickle)
        self._shapes = shapes
        self._columns = locate_weights(self._files, shapes, family, config)

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        stored = self._files.dtype(self._columns[name][0].source)
        return "float32" if stored in DOUBLE else stored

    def read(self, name: str) -> np.ndarray:
        parts = []
        for column in self._columns[name]:
            whole = self._files.view(column.source)
            whole = whole.T if column.transpose else whole
            parts.append(whole[..., column.source_start : column.source_start + column.stop - column.start])
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return whole.astype(np.float32) if whole.dtype == np.float64 else whole
