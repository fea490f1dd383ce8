"""Is an export its source? Configuration, tokenizer, and what every engine that is installed answers to a few prompts."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.core.artifacts import STATIC_STEP
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.export.verification.chat_template import template_differences
from paddle_llm.export.verification.compare import Finding, compare
from paddle_llm.export.verification.engines import in_paddle, in_processes, in_static
from paddle_llm.export.verification.engines.in_processes import PADDLEFORMERS_PYTHON
from paddle_llm.export.verification.engines.question import Answers, EngineEnded, EngineFailed, NotRun, Question
from paddle_llm.export.verification.files import configuration_differences, other_ids, tokenizer_differences
from paddle_llm.families import FAMILIES
from paddle_llm.models.prompt import Prompt

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source

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
    """Attributes:
    targets: that it can load.
    families: None: all.
    lacking: what to say of other families.
    """

    name: str
    targets: tuple[str, ...]
    answer: Callable[[Question, Path | None], Answers]
    families: tuple[str, ...] | None = None
    lacking: str = ""


_ENGINES = (
    _Engine("paddle", ("hf", "fastdeploy"), lambda question, _: in_paddle.answer(question)),
    _Engine("paddle.inference", ("static",), lambda question, _: in_static.answer(question)),
    _Engine(
        "transformers",
        ("hf", "fastdeploy"),
        lambda question, _: in_processes.answer_of_transformers(question),
        _IN_TRANSFORMERS,
        "transformers has no network of this family without remote code",
    ),
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
    """Compare an export with its source. The process is set up for paddle already (generation/network.py's start_process).

    The network of the source and that of the export are not in memory at once.

    Args:
        target: "hf", "fastdeploy" or "static".
        prompts: texts, or tokens as they are; by default a handful in English and Chinese, or random tokens where the source
            has no tokenizer.
        engines: some of `ENGINES`; by default all that can load the target. What is not installed is among the findings.
        paddleformers_python: the Python of PaddleFormers' environment; by default what the environment variable names.

    Returns:
        one finding for each comparison; a difference is a finding with `passed=False`, never an exception.

    Raises:
        UserError: engines that are none or cannot load the target, no such Python, texts without a tokenizer, or a source that cannot be read.
    """
    check_engines(engines, target)
    python = find_paddleformers(paddleformers_python) if uses_paddleformers(target, engines) else None
    say("running the source")
    question, findings = _question(source, folder, prompts, new_tokens)
    findings += _of_files(source, question)
    expected = in_paddle.answer_of_source(source, question, _stored_dtypes(source, folder, target))
    gc.collect()
    for engine in _ENGINES:
        if target in engine.targets and (engines is None or engine.name in engines):
            findings += _of_engine(engine, question, expected, source.stop_ids(), python)
            gc.collect()
    return findings


def check_engines(engines: Collection[str] | None, target: str) -> None:
    """Raise UserError for a name that no engine has, or where none of them can load the target."""
    if engines is None:
        return
    unknown = sorted(set(engines) - set(ENGINES))
    if unknown:
        raise UserError(f"there is no engine {unknown[0]!r} to verify with; there are {', '.join(ENGINES)}")
    able = [engine.name for engine in _ENGINES if target in engine.targets]
    if not set(engines) & set(able):
        raise UserError(
            f"none of the engines {', '.join(engines) or '(none)'} loads the target {target}: {', '.join(able)} can"
        )


def uses_paddleformers(target: str, engines: Collection[str] | None) -> bool:
    """Whether it is among those that a verification asks."""
    return target in next(engine.targets for engine in _ENGINES if engine.name == "paddleformers") and (
        engines is None or "paddleformers" in engines
    )


def find_paddleformers(named: Path | None) -> Path | None:
    """The Python of PaddleFormers' environment, named or in the environment variable; None: neither.

    Raises:
        UserError: it is no program.
    """
    named = named or (Path(os.environ[PADDLEFORMERS_PYTHON]) if os.environ.get(PADDLEFORMERS_PYTHON) else None)
    named = named.expanduser() if named is not None else None
    if named is not None and not (named.is_file() and os.access(named, os.X_OK)):
        raise UserError(
            f"--paddleformers_python (or {PADDLEFORMERS_PYTHON}) {named}: there is no such program; name DIR/bin/python of an "
            "environment that launch/paddleformers_env.sh DIR has made"
        )
    if named is not None and not in_processes.has_paddleformers(named):
        raise UserError(
            f"--paddleformers_python (or {PADDLEFORMERS_PYTHON}) {named}: it is no Python with PaddleFormers; "
            "launch/paddleformers_env.sh DIR makes an environment, of which DIR/bin/python is one"
        )
    return named


# ---- the question ---------------------------------------------------------------------------------------------------


def _question(
    source: Source, folder: Path, prompts: Sequence[str | Prompt] | None, new_tokens: int
) -> tuple[Question, list[Finding]]:
    """The prompts in ids of the source, short enough for its positions; a finding where its tokenizer is not of its size."""
    from paddle_llm.families.positions import position_limit

    given = list(prompts) if prompts is not None else list(TEXTS) if source.tokenizer else _random_prompts(source)
    texts = [prompt for prompt in given if isinstance(prompt, str)] or list(TEXTS if source.tokenizer else ())
    encoded = dict(zip(texts, _encoded(source, texts), strict=True))
    found = [encoded[prompt] if isinstance(prompt, str) else prompt for prompt in given]
    findings = []
    if any(max(prompt.ids) >= source.config.vocab_size for prompt in found):
        note = f"ids beyond the vocabulary of {source.config.vocab_size}: it is not this model's tokenizer"
        findings.append(Finding("source", "tokenizer", len(texts), passed=False, note=note))
        found = _random_prompts(source)
    positions = position_limit(source.config) or 1 << 20
    new_tokens = min(new_tokens, max(positions // 2, 1))
    found = [_cut(prompt, positions - new_tokens) for prompt in found]
    ids = [list(encoded[text].ids) for text in texts]
    return Question(folder, source.family.name, found, texts, ids, new_tokens), findings


def _encoded(source: Source, texts: Sequence[str]) -> list[Prompt]:
    from paddle_llm.data.tokenizers.text_codec import open_codec
    from paddle_llm.generation.prompts import encode_text

    if not texts:
        return []
    if source.tokenizer is None:
        raise UserError(f"{source.folder} has no tokenizer to read texts with; give prompts as tokens")
    codec = open_codec(str(source.tokenizer))
    return [encode_text(codec, text) for text in texts]


def _random_prompts(source: Source) -> list[Prompt]:
    """Return prompts of unequal lengths, the same in every run; ChatGLM-6B's end in its two marks."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, source.config.vocab_size, length).tolist() for length in _GENERATED_LENGTHS]
    marks = [getattr(source.config, name) for name in source.family.network.prompt_marks]
    if not marks:
        return [Prompt(row) for row in rows]
    return [Prompt([*row, *marks], len(row) + 1) for row in rows]


def _cut(prompt: Prompt, room: int) -> Prompt:
    gone = max(len(prompt) - room, 0)
    return replace(prompt, ids=prompt.ids[gone:], prefix=max(prompt.prefix - gone, 0))


def _stored_dtypes(source: Source, folder: Path, target: str) -> dict[str, str]:
    """What the export keeps each weight in, by canonical name."""
    if target == "static":
        dtype = json.loads((folder / STATIC_STEP).read_text(encoding="utf-8"))["dtype"]
        return dict.fromkeys(source.names(), dtype)
    from paddle_llm.models.weights.files import WeightFiles
    from paddle_llm.models.weights.names import hugging_face

    files = WeightFiles(folder)
    spelled = {name: hugging_face(source.family.name, name, len(source.shape(name))).name for name in source.names()}
    # A weight that is not there is for the engines to find.
    return {name: files.dtype(there) if there in files else "float32" for name, there in spelled.items()}


# ---- the findings ---------------------------------------------------------------------------------------------------


def _of_files(source: Source, question: Question) -> Iterator[Finding]:
    """What logits of a few short texts need not show."""
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
    engine: _Engine, question: Question, expected: Answers, ends: Collection[int], python: Path | None
) -> Iterator[Finding]:
    what = "logits and greedy tokens"
    try:
        if engine.families is not None and question.family not in engine.families:
            raise NotRun(engine.lacking)
        say(f"running {engine.name}")
        answers = engine.answer(question, python)
    except NotRun as reason:
        yield Finding(engine.name, what, passed=None, note=f"not run: {reason}")
        return
    except (EngineFailed, UserError) as reason:
        yield Finding(engine.name, what, len(question.prompts), passed=False, note=str(reason))
        return
    except Exception as reason:  # of a broken export an engine makes whatever comes
        note = str(reason) if isinstance(reason, EngineEnded) else f"it ended with {type(reason).__name__}: {reason}"
        yield Finding(engine.name, what, len(question.prompts), passed=False, note=note, ended=True)
        return
    yield compare(expected, answers)
    if answers.tokenizer_problem:
        yield _tokenizer_finding(answers.engine, question, [answers.tokenizer_problem])
    elif answers.text_ids is not None:
        differences = other_ids(question.texts, question.text_ids, answers.text_ids)
        yield _tokenizer_finding(answers.engine, question, differences)
    if answers.end_ids is not None and not set(ends) <= set(answers.end_ids):
        note = f"it ends texts at {sorted(answers.end_ids)}, the source at {sorted(ends)}"
        yield Finding(answers.engine, "end tokens", passed=False, note=note)


def _tokenizer_finding(engine: str, question: Question, differences: Sequence[str]) -> Finding:
    return Finding(engine, "tokenizer", len(question.texts), passed=not differences, note="; ".join(differences))
