"""Evaluates one model: its perplexity, or the scores of its answers, with its size, memory and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.api import check_chat_template, load, open_generator
from paddle_llm.generation.evaluation.inputs import Inputs
from paddle_llm.generation.evaluation.measure import describe_weights, peak_memory, reset_peak_memory, size_on_disk
from paddle_llm.generation.evaluation.windows import ScoredSample, answer_samples, text_samples
from paddle_llm.generation.folders import resolve_folders
from paddle_llm.generation.network import Loaded
from paddle_llm.generation.options import GenerateOptions
from paddle_llm.generation.requests import TemplateSettings, choose_reader
from paddle_llm.generation.scores import numeric_accuracy, score
from paddle_llm.generation.static_network import StaticModel

PERPLEXITY, GENERATION = "perplexity", "generation"
METRICS = (PERPLEXITY, GENERATION)
DEFAULT_CONTEXT_LENGTH = 2048

ShowProgress = Callable[[str, int], AbstractContextManager[Callable[[int], None] | None]]


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of an evaluation.

    Attributes:
        metric: "perplexity" or "generation".
        context_length: Tokens per window or row, for perplexity; None: 2048, or the model's positions if they are fewer.
        stride: Tokens between the beginnings of two windows of a text; None: the context length.
        generate: Options of loading and, for the metric generation, of decoding; `batch_size` is used by both.
    """

    metric: str
    context_length: int | None
    stride: int | None
    generate: GenerateOptions

    def check(self, inputs: Inputs) -> None:
        """Check the options against each other and against the input.

        Raises:
            UserError: If two do not fit together.
        """
        self.generate.check()
        if self.metric == GENERATION:
            if self.context_length is not None or self.stride is not None:
                raise UserError("--context_length and --stride apply to --metric perplexity. Drop them.")
            if not inputs.requests or any(request.conversation is None for request in inputs.requests):
                raise UserError(
                    "--metric generation needs rows of instructions with answers, and --input is plain text."
                )
            return
        if self.generate.max_new_tokens is not None:
            raise UserError("--max_new_tokens applies to --metric generation. Drop it.")
        if self.stride is not None and inputs.requests:
            raise UserError("--stride applies to plain text, and --input has rows of instructions. Drop it.")
        if self.context_length is not None and self.stride is not None and self.stride > self.context_length:
            raise UserError(
                f"--stride {self.stride} is above --context_length {self.context_length}, so tokens between the windows would "
                "not be scored. Use a smaller stride."
            )


@dataclass(frozen=True)
class Evaluation:
    """The row of one model.

    Attributes:
        model: Folder, as the user named it.
        weights: Type of the weights on disk.
        scores: Score by name.
        count: Number of scored tokens (perplexity), or of scored answers.
        tokens_per_second: Tokens read (perplexity) or generated per second, without loading.
        size_on_disk: Size of the weight files, in bytes.
        peak_memory: Peak memory, in bytes: of the process, or on a GPU of its allocations.
        settings: Settings that determine the scores.
    """

    model: str
    weights: str
    scores: dict[str, float]
    count: int
    tokens_per_second: float
    size_on_disk: int
    peak_memory: int
    settings: dict[str, Any]


def evaluate(model: Path, inputs: Inputs, options: EvaluateOptions, show: ShowProgress) -> Evaluation:
    """Evaluate a model folder, or the output folder of a run.

    Args:
        model: The folder.
        inputs: Contents of the input files.
        options: Options.
        show: Function that shows the progress: a noun and the total -> context with a function for the number done.

    Raises:
        UserError: If a folder, an option or the input is wrong.
    """
    options.check(inputs)
    check_chat_template(model, options.generate)
    folder, generate = resolve_folders(model, options.generate)
    disk = size_on_disk(folder, allow_pickle=generate.allow_pickle)
    weights = describe_weights(folder, allow_pickle=generate.allow_pickle)
    reset_peak_memory()
    if options.metric == GENERATION:
        scores, count, speed, device, settings = _of_answers(folder, inputs, generate, show)
    else:
        scores, count, speed, device, settings = _of_tokens(folder, inputs, options, generate, show)
    return Evaluation(str(model), weights, scores, count, speed, disk, peak_memory(device), settings)


_Found = tuple[dict[str, float], int, float, str, dict[str, Any]]


def _of_tokens(
    folder: Path, inputs: Inputs, options: EvaluateOptions, generate: GenerateOptions, show: ShowProgress
) -> _Found:
    from paddle_llm.generation.eval_mode import generating  # imports Paddle
    from paddle_llm.generation.evaluation.perplexity import measure_perplexity

    loaded = load(folder, generate)
    assert not isinstance(loaded.model, StaticModel), "there is no option for static exports"
    context_length = _context_length(loaded, options.context_length)
    settings: dict[str, Any] = {"context_length": context_length}
    if inputs.texts:
        if options.stride is not None and options.stride > context_length:
            raise UserError(
                f"--stride {options.stride} is above the context of {context_length} tokens. Use a smaller one."
            )
        settings["stride"] = options.stride or context_length
        samples: Sequence[ScoredSample] = text_samples(loaded.codec, inputs.texts, context_length, settings["stride"])
    else:
        samples = _samples_of_rows(folder, inputs, loaded, context_length, generate)
        settings["rows"] = len(samples)
    with generating(loaded.model), show("windows" if inputs.texts else "rows", len(samples)) as on_batch:
        found = measure_perplexity(loaded.model, loaded.family, samples, generate.batch_size, on_batch)
    return {PERPLEXITY: found.value}, found.scored, found.tokens_per_second, _device(), settings


def _samples_of_rows(
    folder: Path, inputs: Inputs, loaded: Loaded, context_length: int, generate: GenerateOptions
) -> Sequence[ScoredSample]:
    reader = choose_reader(
        inputs.requests,
        loaded.codec,
        TemplateSettings(
            requested=generate.chat_template,
            trained_with=loaded.template,
            record_folder=loaded.template_folder,
            tokenizer_folder=str(generate.tokenizer or folder),
            src_length=context_length - 1,
            date=generate.chat_template_date,
            system=generate.system,
        ),
    )
    say(reader.notice)
    return answer_samples(reader, inputs.requests)


def _of_answers(folder: Path, inputs: Inputs, generate: GenerateOptions, show: ShowProgress) -> _Found:
    from paddle_llm.generation.eval_mode import generating  # imports Paddle

    requests = [request for request in inputs.requests if request.reference is not None]
    if len(requests) < len(inputs.requests):
        say(f"{counted(len(inputs.requests) - len(requests), 'row')} of {len(inputs.requests)} skipped: no answer")
    if not requests:
        raise UserError("--input has no row with an answer. Add answers to compare with.")
    generator, reader = open_generator(folder, requests, generate)
    say(reader.notice)
    encoded = [reader(request) for request in requests]
    with generating(generator.model), show("answers", len(encoded)) as on_batch:
        started = time.perf_counter()
        answers = generator(encoded, range(len(encoded)), generate.batch_size, on_batch)
        seconds = time.perf_counter() - started
    cut = sum(prompt.is_cut or prompt.dropped_rounds > 0 for prompt in encoded)
    if cut:
        say(f"{counted(cut, 'prompt')} of {len(encoded)} shortened to the positions of the model")
    texts, references = [answer.text for answer in answers], [str(request.reference) for request in requests]
    scores = score(texts, references)
    accuracy, numbers = numeric_accuracy(texts, references)
    if accuracy is not None:
        scores["numeric_accuracy"] = accuracy
        if numbers < len(references):
            say(f"numeric_accuracy: {counted(numbers, 'reference')} of {len(references)} with a number")
    tokens = sum(len(answer.tokens) for answer in answers)
    return scores, len(answers), tokens / seconds, _device(), {"max_new_tokens": generator.max_new_tokens}


def _context_length(loaded: Loaded, requested: int | None) -> int:
    limit = position_limit(loaded.model.config)
    if requested is not None and limit is not None and requested > limit:
        raise UserError(f"--context_length {requested} exceeds the model's {limit} positions. Use {limit} or less.")
    return requested or min(DEFAULT_CONTEXT_LENGTH, limit or DEFAULT_CONTEXT_LENGTH)


def _device() -> str:
    import paddle

    return str(paddle.device.get_device().split(":")[0])
