"""Evaluation by generation: the last answer of each conversation is generated and compared with the reference."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle.distributed as dist

from paddle_llm.config.layout import Layout
from paddle_llm.config.rules.decoding import generation_problems
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import Conversation
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
from paddle_llm.training.evaluation.interruption import stop_if_requested

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

_DEFAULT_NEW_TOKENS = 256
Row = dict[str, Any]


class GenerationEvaluation:
    """Generates and scores answers during a training, without changing the training.

    Args:
        codec: Tokenizer of the training.
        encoder: Encoder of the training, which makes the prompts.
        config: Configuration; the fields of `GenerationFields`, `seed` and `output_dir` are used.
        layout: Layout of the job.
        family: Family of the network.

    Raises:
        UserError: If the layout does not support generation.
    """

    def __init__(
        self, codec: TextCodec, encoder: InstructionEncoder, config: RunConfig, layout: Layout, family: Family
    ):
        check_layout(layout)
        self._codec, self._encoder, self._config = codec, encoder, config
        self._layout, self._family = layout, family

    def __call__(
        self, trainer: PretrainTrainer, conversations: Sequence[Conversation], prefix: str = "eval"
    ) -> dict[str, float]:
        """Generate the last answers and return their scores, the same on all ranks. Collective over all ranks.

        The conversations are divided between the data ranks. The answers do not depend on the layout, even with
        sampling. With `save_generation_output` the first rank writes <output_dir>/generated-<step>.jsonl (for another
        prefix than "eval": generated-<prefix>-<step>.jsonl).

        Args:
            trainer: Trainer with the network.
            conversations: Conversations of the split.
            prefix: Prefix of the names of the scores.

        Returns:
            "<prefix>_bleu", "<prefix>_rouge1" and others (see `scores.score`), and "<prefix>_generated", the number of
            answers.

        Raises:
            EvaluationStopped: If a rank was asked to stop.
        """
        started, mesh = time.perf_counter(), current_mesh(self._layout)
        mine = range(mesh.data_rank, len(conversations), self._layout.data_world_size)
        most = -(-len(conversations) // self._layout.data_world_size)  # of one rank
        batches = -(-most // self._config.generation_batch_size)
        rows = self._generate(trainer, {number: conversations[number] for number in mine}, batches)
        rows = _of_all_ranks(rows if mesh.tensor.rank == 0 else {})

        def finish() -> dict[str, float]:
            ordered = [rows[number] for number in range(len(conversations))]
            say(self._summary(ordered, time.perf_counter() - started))
            if self._config.save_generation_output:
                write_rows(self._file(trainer, prefix), ordered)
            return score([row["generated"] for row in ordered], [row["reference"] for row in ordered])

        found = on_first_rank(finish)
        return {f"{prefix}_{name}": value for name, value in {**found, "generated": len(conversations)}.items()}

    def _generate(
        self, trainer: PretrainTrainer, conversations: dict[int, Conversation], batches: int
    ) -> dict[int, Row]:
        """Generate answers and return the rows of the file, by the numbers of the conversations.

        Args:
            trainer: Trainer with the network.
            conversations: Conversations of this rank by their numbers.
            batches: Largest number of batches of a rank. All ranks agree as often whether to stop.
        """
        remaining = iter(range(batches))

        def between_batches(done: int) -> None:
            if next(remaining, None) is not None:
                stop_if_requested(trainer)

        prompts = {number: self._prompt(conversation) for number, conversation in conversations.items()}
        valid = {number: prompt for number, prompt in prompts.items() if prompt is not None}
        config = self._config
        stop_ids = stop_ids_of_encoder(self._encoder) | set(ids_in(trainer.generation_settings.get("eos_token_id")))
        options = DecodeOptions(self._family.name, stop_ids, strategy_of(config), current_mesh(self._layout).tensor)
        generator = Generator(trainer.model, self._codec, options, max_new_tokens(config))
        with generating(trainer.model), trainer.autocast_smart_context_manager():
            answers = generator(list(valid.values()), list(valid), config.generation_batch_size, between_batches)
            for _ in remaining:  # batches of other ranks
                stop_if_requested(trainer)
        generated = dict(zip(valid, answers, strict=True))
        return {
            number: {
                "prompt": self._codec.show(valid[number].ids) if number in valid else "",
                "reference": conversation.turns[-1].content,
                "generated": generated[number].text if number in generated else "",
                "tokens": len(generated[number].tokens) if number in generated else 0,
                "where": conversation.where,
            }
            for number, conversation in conversations.items()
        }

    def _prompt(self, conversation: Conversation) -> Prompt | None:
        """Return the prompt; None if the template is longer than `src_length`, which counts as a wrong answer."""
        try:
            return encode_prompt(self._encoder, conversation)
        except PromptTooLong:
            return None

    def _summary(self, rows: list[Row], seconds: float) -> str:
        tokens, empty = sum(row["tokens"] for row in rows), sum(not row["prompt"] for row in rows)
        lost = f"; prompts that do not fit in --src_length and count as wrong: {empty}" if empty else ""
        return f"{counted(len(rows), 'answer')} of {tokens:,} tokens generated in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s){lost}"

    def _file(self, trainer: PretrainTrainer, prefix: str) -> Path:
        name = "generated" if prefix == "eval" else f"generated-{prefix}"
        return Path(trainer.args.output_dir) / f"{name}-{trainer.state.global_step}.jsonl"


def check_layout(layout: Layout) -> None:
    """Check that a layout supports generation.

    Raises:
        UserError: If it does not.
    """
    for problem in generation_problems(layout):
        raise UserError(problem)


def strategy_of(config: RunConfig) -> DecodeStrategy:
    """Return the decoding strategy of a config."""
    return DecodeStrategy(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        num_beams=config.num_beams,
        seed=config.seed,
    )


def max_new_tokens(config: RunConfig) -> int:
    """Return the largest number of tokens of an answer, as `generation_max_new_tokens` describes it."""
    if config.generation_max_new_tokens is not None:
        return config.generation_max_new_tokens
    return _DEFAULT_NEW_TOKENS if config.src_length is None else config.max_length - config.src_length


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write one JSON object per line, completely or not at all."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _of_all_ranks(mine: dict[int, Row]) -> dict[int, Row]:
    if dist.get_world_size() == 1:
        return mine
    parts: list[dict[int, Row]] = []
    dist.all_gather_object(parts, mine)
    return {number: row for part in parts for number, row in part.items()}
