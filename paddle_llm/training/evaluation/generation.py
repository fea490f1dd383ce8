"""Evaluation by generating: the last answer of each conversation is generated and scored against what stands there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle.distributed as dist

from paddle_llm.config.layout import Layout
from paddle_llm.config.rules.decoding import generation_problems
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.data.samples.encode import InstructionEncoder, PromptTooLong
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.families import Family
from paddle_llm.generation.eval_mode import generating
from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.generation.prompts import encode_prompt
from paddle_llm.generation.scores import score
from paddle_llm.generation.stop_tokens import ids_in, stop_ids_of_encoder
from paddle_llm.generation.texts import Generator
from paddle_llm.models.prompt import Prompt
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.process.first_rank import on_first_rank

_USUAL_ROOM = 256
Row = dict[str, Any]


class GenerationEvaluation:
    """Generates and scores in the middle of a training, which goes on afterwards as if nothing had been.

    Args:
        encoder: makes prompts as the training does.
        config: the fields of `GenerationFields`, `seed`, `output_dir`.

    Raises:
        UserError: a layout in which words cannot be generated.
    """

    def __init__(
        self, codec: TextCodec, encoder: InstructionEncoder, config: RunConfig, layout: Layout, family: Family
    ):
        refuse_layout(layout)
        self._codec, self._encoder, self._config = codec, encoder, config
        self._layout, self._family = layout, family

    def __call__(self, trainer: Any, conversations: Sequence[Conversation], prefix: str = "eval") -> dict[str, float]:
        """Scores of the last answers; the same on all ranks. Collective over all ranks.

        Data ranks share the conversations; what is generated, drawn ones included, does not depend on the layout.
        With `save_generation_output` the first rank writes <output_dir>/generated-<step>.jsonl
        (for another prefix than "eval": generated-<prefix>-<step>.jsonl).

        Returns:
            {"<prefix>_bleu", "<prefix>_rouge1", ...: see `scores.score`, "<prefix>_generated": number of answers}.
        """
        started, mesh = time.perf_counter(), current_mesh(self._layout)
        mine = range(mesh.data_rank, len(conversations), self._layout.data_world_size)
        rows = self._generate(trainer, {number: conversations[number] for number in mine})
        rows = _of_all_ranks(rows if mesh.tensor.rank == 0 else {})

        def finish() -> dict[str, float]:
            ordered = [rows[number] for number in range(len(conversations))]
            say(self._told(ordered, time.perf_counter() - started))
            if self._config.save_generation_output:
                write_rows(self._file(trainer, prefix), ordered)
            return score([row["generated"] for row in ordered], [row["reference"] for row in ordered])

        found = on_first_rank(finish)
        return {f"{prefix}_{name}": value for name, value in {**found, "generated": len(conversations)}.items()}

    def _generate(self, trainer: Any, conversations: dict[int, Conversation]) -> dict[int, Row]:
        """Rows of the file by the conversations' numbers."""
        prompts = {number: self._prompt(conversation) for number, conversation in conversations.items()}
        asked = {number: prompt for number, prompt in prompts.items() if prompt is not None}
        config = self._config
        stop_ids = stop_ids_of_encoder(self._encoder) | set(ids_in(trainer.generation_settings.get("eos_token_id")))
        options = DecodeOptions(self._family.name, stop_ids, choice_of(config), current_mesh(self._layout).tensor)
        generator = Generator(trainer.model, self._codec, options, room_of(config))
        with generating(trainer.model), trainer.autocast_smart_context_manager():
            answers = generator(list(asked.values()), list(asked), config.generation_batch_size)
        said = dict(zip(asked, answers, strict=True))
        return {
            number: {
                "prompt": self._codec.show(asked[number].ids) if number in asked else "",
                "reference": conversation.turns[-1].content,
                "generated": said[number].text if number in said else "",
                "tokens": len(said[number].tokens) if number in said else 0,
                "where": conversation.where,
            }
            for number, conversation in conversations.items()
        }

    def _prompt(self, conversation: Conversation) -> Prompt | None:
        """None where the template alone is longer than `src_length`: it counts as a wrong answer."""
        try:
            return encode_prompt(self._encoder, conversation)
        except PromptTooLong:
            return None

    def _told(self, rows: list[Row], seconds: float) -> str:
        tokens, empty = sum(row["tokens"] for row in rows), sum(not row["prompt"] for row in rows)
        lost = f"; {empty} prompts have no room within --src_length and count as wrong" if empty else ""
        return f"{len(rows)} answers of {tokens:,} tokens generated in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s){lost}"

    def _file(self, trainer: Any, prefix: str) -> Path:
        name = "generated" if prefix == "eval" else f"generated-{prefix}"
        return Path(trainer.args.output_dir) / f"{name}-{trainer.state.global_step}.jsonl"


def refuse_layout(layout: Layout) -> None:
    """Raise UserError for a layout that cannot generate token by token."""
    for problem in generation_problems(layout):
        raise UserError(problem)


def choice_of(config: RunConfig) -> DecodeStrategy:
    """How words are chosen, as a training's config says it."""
    return DecodeStrategy(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        num_beams=config.num_beams,
        seed=config.seed,
    )


def room_of(config: RunConfig) -> int:
    """The longest answer in tokens, as `generation_max_new_tokens` describes it."""
    if config.generation_max_new_tokens is not None:
        return config.generation_max_new_tokens
    return _USUAL_ROOM if config.src_length is None else config.max_length - config.src_length


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object per line, all or nothing."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _of_all_ranks(mine: dict[int, Row]) -> dict[int, Row]:
    if dist.get_world_size() == 1:
        return mine
    parts: list[dict[int, Row]] = []
    dist.all_gather_object(parts, mine)
    return {number: row for part in parts for number, row in part.items()}
