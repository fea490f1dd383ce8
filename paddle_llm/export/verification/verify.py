"""Compares an export with its source: configuration, tokenizer, and answers of every installed engine."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paddle_llm.core.artifacts import STATIC_STEP
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.source import Source
from paddle_llm.export.verification import gguf_file
from paddle_llm.export.verification.chat_template import template_differences
from paddle_llm.export.verification.compare import LOGITS_AND_TOKENS, Finding, compare
from paddle_llm.export.verification.engines import in_paddle, in_processes, in_static
from paddle_llm.export.verification.engines.in_processes import PADDLEFORMERS_PYTHON
from paddle_llm.export.verification.engines.question import Answers, EngineEnded, EngineFailed, NotRun, Question
from paddle_llm.export.verification.files import configuration_differences, other_ids, tokenizer_differences
from paddle_llm.families import FAMILIES
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.prompts import encode_text
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.names import hugging_face

NEW_TOKENS = 16
TEXTS = (
    "The",
    "Paddle is a framework for deep learning; a model is trained once and",
    "人工智能的发展",
    "def add(a, b):\n    return a +",
    "今天天气很好，我们一起去公园散步，然后 go to the library to read 3 books.",
)
_GENERATED_LENGTHS = (1, 9, 5, 14, 23)
_IN_TRANSFORMERS = tuple(name for name, family in FAMILIES.items() if family.engines.transformers)
_IN_PADDLEFORMERS = tuple(name for name, family in FAMILIES.items() if family.engines.paddleformers)


@dataclass(frozen=True)
class _Engine:
    """An engine that can run an export.

    Attributes:
        name: Name for --engines.
        targets: Targets that it can load.
        answer: Function that answers a question, given the Python of an environment with PaddleFormers.
        families: Families that it supports; None: all.
        unsupported: Reason why it does not support the others.
    """

    name: str
    targets: tuple[str, ...]
    answer: Callable[[Question, Path | None], Answers]
    families: tuple[str, ...] | None = None
    unsupported: str = ""


_ENGINES = (
    _Engine("paddle", ("hf", "fastdeploy"), lambda question, _: in_paddle.answer(question)),
    _Engine("paddle.inference", ("static",), lambda question, _: in_static.answer(question)),
    _Engine(
        "transformers",
        ("hf", "fastdeploy", "gguf"),
        lambda question, _: in_processes.answer_of_transformers(question),
        _IN_TRANSFORMERS,
        "transformers has no network of this family without remote code",
    ),
    _Engine("llama.cpp", ("gguf",), lambda question, _: in_processes.answer_of_llama_cpp(question)),
    _Engine(
        "paddleformers",
        ("hf", "fastdeploy"),
        in_processes.answer_of_paddleformers,
        _IN_PADDLEFORMERS,
        "PaddleFormers has no network of this family for the CPU",
    ),
)
ENGINES = tuple(engine.name for engine in _ENGINES)


def verify(
    source: Source,
    folder: Path,
    target: str,
    *,
    prompts: Sequence[str | Prompt] | None = None,
    engines: Collection[str] | None = None,
    new_tokens: int = NEW_TOKENS,
    paddleformers_python: Path | None = None,
) -> list[Finding]:
    """Compare an export with its source. The process must be started (`start_process` in generation/network.py).

    The networks of the source and of the export are not in memory at the same time.

    Args:
        source: The source.
        folder: Folder of the export.
        target: "hf", "fastdeploy", "static" or "gguf".
        prompts: Texts or encoded prompts; None: some in English and Chinese, or random tokens if the source has no
            tokenizer.
        engines: Names from `ENGINES`; None: all that can load the target. The findings include those that are not
            installed.
        new_tokens: Number of tokens generated for each prompt.
        paddleformers_python: Python of an environment with PaddleFormers; None: the one that the environment variable
            names.

    Returns:
        At least one finding per comparison. A difference is a finding with `passed=False`, never an exception.

    Raises:
        UserError: If an engine is unknown or cannot load the target, the Python does not exist, texts are given
            without a tokenizer, or the source cannot be read.
    """
    check_engines(engines, target)
    python = find_paddleformers(paddleformers_python) if uses_paddleformers(target, engines) else None
    say("running the source")
    positions = gguf_file.context_length(folder) if target == "gguf" else position_limit(source.config)
    question, findings = _question(source, folder, prompts, new_tokens, positions or 1 << 20)
    if target == "gguf":
        findings.append(gguf_file.of_weights(source, folder))
        expected_source = gguf_file.rounded(source, folder)
    else:
        findings += _of_files(source, question)
        expected_source = source
    expected = in_paddle.answer_of_source(expected_source, question, _stored_dtypes(source, folder, target))
    gc.collect()
    for engine in _ENGINES:
        if target in engine.targets and (engines is None or engine.name in engines):
            findings += _of_engine(engine, question, expected, source.stop_ids(), python)
            gc.collect()
    return findings


def check_engines(engines: Collection[str] | None, target: str) -> None:
    """Check the names of engines.

    Raises:
        UserError: If a name is unknown, or none of the engines can load the target.
    """
    if engines is None:
        return
    unknown = sorted(set(engines) - set(ENGINES))
    if unknown:
        raise UserError(f"--engines: {unknown[0]!r} is unknown. Use some of {', '.join(ENGINES)}.")
    able = [engine.name for engine in _ENGINES if target in engine.targets]
    if not set(engines) & set(able):
        raise UserError(
            f"--engines {','.join(engines) or '(none)'} cannot load the target {target}. Use some of {', '.join(able)}."
        )


def uses_paddleformers(target: str, engines: Collection[str] | None) -> bool:
    """Return whether PaddleFormers is among the engines of a verification."""
    return target in next(engine.targets for engine in _ENGINES if engine.name == "paddleformers") and (
        engines is None or "paddleformers" in engines
    )


def find_paddleformers(named: Path | None) -> Path | None:
    """Return the Python of an environment with PaddleFormers: the named one, else that of the environment variable.

    Args:
        named: Value of --paddleformers_python.

    Returns:
        The Python; None if neither is set.

    Raises:
        UserError: If it is not a program, or its environment has no PaddleFormers.
    """
    named = named or (Path(os.environ[PADDLEFORMERS_PYTHON]) if os.environ.get(PADDLEFORMERS_PYTHON) else None)
    named = named.expanduser() if named is not None else None
    if named is not None and not (named.is_file() and os.access(named, os.X_OK)):
        raise UserError(
            f"--paddleformers_python (or {PADDLEFORMERS_PYTHON}) {named} is not a program. Create an environment with "
            "launch/paddleformers_env.sh DIR, and give DIR/bin/python."
        )
    if named is not None and not in_processes.has_paddleformers(named):
        raise UserError(
            f"--paddleformers_python (or {PADDLEFORMERS_PYTHON}) {named} is not a Python with PaddleFormers. Create an "
            "environment with launch/paddleformers_env.sh DIR, and give DIR/bin/python."
        )
    return named


# ---- the question ---------------------------------------------------------------------------------------------------


def _question(
    source: Source, folder: Path, prompts: Sequence[str | Prompt] | None, new_tokens: int, positions: int
) -> tuple[Question, list[Finding]]:
    """Encode and truncate the prompts. The findings report a tokenizer that exceeds the vocabulary."""
    given = list(prompts) if prompts is not None else list(TEXTS) if source.tokenizer else _random_prompts(source)
    texts = [prompt for prompt in given if isinstance(prompt, str)] or list(TEXTS if source.tokenizer else ())
    encoded = dict(zip(texts, _encoded(source, texts), strict=True))
    found = [encoded[prompt] if isinstance(prompt, str) else prompt for prompt in given]
    findings = []
    if any(max(prompt.ids) >= source.config.vocab_size for prompt in found):
        note = f"ids exceed the vocabulary of {source.config.vocab_size}: it is not the tokenizer of this model"
        findings.append(Finding("source", "tokenizer", len(texts), passed=False, note=note))
        found = _random_prompts(source)
    new_tokens = min(new_tokens, max(positions // 2, 1))
    found = [_truncated(prompt, positions - new_tokens) for prompt in found]
    ids = [list(encoded[text].ids) for text in texts]
    return Question(folder, source.family.name, found, texts, ids, new_tokens), findings


def _encoded(source: Source, texts: Sequence[str]) -> list[Prompt]:
    if not texts:
        return []
    if source.tokenizer is None:
        raise UserError(f"{source.folder} has no tokenizer, which text prompts need. Give prompts as tokens.")
    codec = open_codec(str(source.tokenizer))
    return [encode_text(codec, text) for text in texts]


def _random_prompts(source: Source) -> list[Prompt]:
    """Return prompts of unequal lengths, the same in every run; those of ChatGLM-6B end with its two special tokens."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, source.config.vocab_size, length).tolist() for length in _GENERATED_LENGTHS]
    marks = [getattr(source.config, name) for name in source.family.network.prompt_marks]
    if not marks:
        return [Prompt(row) for row in rows]
    return [Prompt([*row, *marks], len(row) + 1) for row in rows]


def _truncated(prompt: Prompt, max_length: int) -> Prompt:
    excess = max(len(prompt) - max_length, 0)
    return replace(prompt, ids=prompt.ids[excess:], prefix=max(prompt.prefix - excess, 0))


def _stored_dtypes(source: Source, folder: Path, target: str) -> dict[str, str]:
    """Return the type of each weight in the export, by canonical name."""
    if target == "static":
        dtype = json.loads((folder / STATIC_STEP).read_text(encoding="utf-8"))["dtype"]
        return dict.fromkeys(source.names(), dtype)
    if target == "gguf":
        return gguf_file.stored_dtypes(source, folder)
    files = WeightFiles(folder)
    foreign = {name: hugging_face(source.family.name, name, len(source.shape(name))).name for name in source.names()}
    # The engines report a missing weight.
    return {name: files.dtype(there) if there in files else "float32" for name, there in foreign.items()}


# ---- the findings ---------------------------------------------------------------------------------------------------


def _of_files(source: Source, question: Question) -> Iterator[Finding]:
    """Compare what the logits of a few short texts may not show."""
    differences = configuration_differences(source, question.folder)
    yield Finding("files", "configuration and end tokens", passed=not differences, note="; ".join(differences))
    compared = template_differences(source, question.folder)
    if compared is not None:
        count, differences = compared
        yield Finding("files", "chat template", count, passed=not differences, note="; ".join(differences))
    if question.texts:
        engine, differences = tokenizer_differences(question.folder, question.texts, question.text_ids)
        yield _tokenizer_finding(engine, question, differences)


def _of_engine(
    engine: _Engine, question: Question, expected: Answers, stop_ids: Collection[int], python: Path | None
) -> Iterator[Finding]:
    what = LOGITS_AND_TOKENS
    try:
        if engine.families is not None and question.family not in engine.families:
            raise NotRun(engine.unsupported)
        say(f"running {engine.name}")
        answers = engine.answer(question, python)
    except NotRun as reason:
        yield Finding(engine.name, what, passed=None, note=f"not run: {reason}")
        return
    except (EngineFailed, UserError) as reason:
        yield Finding(engine.name, what, len(question.prompts), passed=False, note=str(reason))
        return
    except Exception as reason:  # a broken export may cause any exception in an engine
        note = str(reason) if isinstance(reason, EngineEnded) else f"it ended with {type(reason).__name__}: {reason}"
        yield Finding(engine.name, what, len(question.prompts), passed=False, note=note, ended=True)
        return
    if answers.not_compared:
        say(f"{answers.engine}: logits are not compared, because {answers.not_compared}")
    else:
        yield compare(expected, answers)
    if answers.tokenizer_problem:
        yield _tokenizer_finding(answers.engine, question, [answers.tokenizer_problem])
    elif answers.text_ids is not None:
        differences = other_ids(question.texts, question.text_ids, answers.text_ids)
        yield _tokenizer_finding(answers.engine, question, differences)
    if answers.end_ids is not None and not set(stop_ids) <= set(answers.end_ids):
        note = f"it ends texts at {sorted(answers.end_ids)}, the source at {sorted(stop_ids)}"
        yield Finding(answers.engine, "end tokens", passed=False, note=note)


def _tokenizer_finding(engine: str, question: Question, differences: Sequence[str]) -> Finding:
    return Finding(engine, "tokenizer", len(question.texts), passed=not differences, note="; ".join(differences))
