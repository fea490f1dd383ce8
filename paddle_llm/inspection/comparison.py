"""Section "transformers" of the report: whether transformers reads a folder as this package does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.console import collected
from paddle_llm.core.transformers_import import import_transformers
from paddle_llm.data.tokenizers.protocol import TransformersTokenizer
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.export.verification.compare import LOGITS_AND_TOKENS
from paddle_llm.export.verification.verify import verify
from paddle_llm.generation.network import start_process
from paddle_llm.inspection.report import Level, Section
from paddle_llm.inspection.tokenizer import SAMPLE

# Names of transformers' configuration -> attributes of ModelFacts.
_NUMBERS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "tie_word_embeddings": "tie_word_embeddings",
}
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " leading blank, two  blanks, trailing blank ",
    "今天天气很好，我们去公园。",
    "def f(x):\n    return x ** 2  # a\tb\n",
    "naïve café, e\u0301, ﬁ, Ⅷ, 👩‍👩‍👧, 3.14159, 10,000",
    "",
)


def compare(folder: Path, *, model: bool, codec: TextCodec | None, sample_ids: list[int] | None = None) -> Section:
    """Compare config.json, the tokenizer and the chat template of a folder with transformers, without torch.

    Args:
        folder: Folder to compare.
        model: Whether the folder has a supported config.json.
        codec: Tokenizer of the folder; None to skip its comparison.
        sample_ids: Token ids of the sample conversation, written by the chat template of the folder; None to skip the
            comparison.
    """
    section = Section("transformers")
    transformers = import_transformers()
    section.facts["version"] = transformers.__version__
    transformers.logging.set_verbosity_error()
    if model:
        _compare_config(section, folder, transformers)
    if codec is not None:
        _compare_tokenizer(section, folder, codec, sample_ids, transformers)
    return section


def _compare_config(section: Section, folder: Path, transformers: ModuleType) -> None:
    facts = read_model_facts(folder)
    try:
        theirs = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises any exception here
        section.add(Level.NOT_COMPARED, f"configuration: transformers does not read it: {_first_line(error)}")
        return
    other = [
        f"{name} {getattr(theirs, name)} in transformers, {getattr(facts, ours)} here"
        for name, ours in _NUMBERS.items()
        if hasattr(theirs, name) and getattr(theirs, name) != getattr(facts, ours)
    ]
    if other:
        section.add(Level.DIFFERS, f"configuration: {'; '.join(other)}")
    else:
        section.add(Level.AGREES, f"configuration: {type(theirs).__name__} has the same sizes")


def _compare_tokenizer(
    section: Section, folder: Path, codec: TextCodec, sample_ids: list[int] | None, transformers: ModuleType
) -> None:
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is a BaseException
        section.add(Level.NOT_COMPARED, f"tokenizer: transformers does not read it: {_first_line(error)}")
        return
    problems = [
        f"{name} {there} in transformers, {here} here"
        for name, there, here in (
            ("bos id", theirs.bos_token_id, codec.bos_id),
            ("eos id", theirs.eos_token_id, codec.eos_id),
        )
        if there != here
    ]
    if theirs.pad_token_id is not None and theirs.pad_token_id != codec.pad_id:
        problems.append(f"pad id {theirs.pad_token_id} in transformers, {codec.pad_id} here")
    for text in _TEXTS:
        wanted, found = theirs(text, add_special_tokens=False)["input_ids"], codec.encode(text)
        if list(wanted) != list(found):
            problems.append(f"ids of {text!r} are {_short(wanted)} in transformers, {_short(found)} here")
    for problem in problems:
        section.add(Level.DIFFERS, f"tokenizer: {problem}")
    if not problems:
        section.add(
            Level.AGREES,
            f"tokenizer: {type(theirs).__name__} gives the same ids for {len(_TEXTS)} texts and BOS, EOS, pad",
        )

    if sample_ids is not None:
        _compare_template(section, theirs, codec, sample_ids)


def _compare_template(section: Section, theirs: TransformersTokenizer, codec: TextCodec, sample_ids: list[int]) -> None:
    for turns in (SAMPLE.turns, SAMPLE.turns[1:]):
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            wanted = list(theirs.apply_chat_template(messages))
        except Exception as error:  # a template may raise any exception
            reason = _first_line(error)
            continue
        # A sample ends with its last answer; EOS is added where the template writes no end token.
        if wanted[: len(sample_ids)] == sample_ids or [*wanted, codec.eos_id] == sample_ids:
            section.add(Level.AGREES, f"chat template: the same {len(sample_ids)} ids for the sample conversation")
        else:
            at = next((i for i, pair in enumerate(zip(wanted, sample_ids, strict=False)) if pair[0] != pair[1]), None)
            where = f"from token {at + 1} on" if at is not None else "in their number"
            section.add(
                Level.DIFFERS,
                f"chat template: the ids of the sample conversation differ {where}: {len(wanted)} in transformers, "
                f"{len(sample_ids)} here",
            )
        return
    section.add(Level.NOT_COMPARED, f"chat template: transformers does not render the sample: {reason}")


def compare_networks(section: Section, folder: Path) -> None:
    """Compare logits and greedy tokens with transformers on torch, which runs in a separate process.

    Args:
        section: Section to which the results are added.
        folder: Model folder.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        section.add(Level.NOT_COMPARED, f"logits: not installed: {', '.join(missing)}. Install paddle_llm[hf].")
        return
    with section.collect_messages():
        start_process("cpu")
        from paddle_llm.export.source.open import open_source  # imports Paddle

        with collected():  # the report has no lines about progress
            findings = verify(open_source(folder), folder, "hf", engines=["transformers"])
        for finding in findings:
            if finding.what != LOGITS_AND_TOKENS:
                continue
            level = {True: Level.AGREES, False: Level.DIFFERS, None: Level.NOT_COMPARED}[finding.passed]
            measured = (
                f"{finding.tokens_equal} of {finding.tokens} greedy tokens equal, logits differ by at most "
                f"{finding.largest_logit_difference:.1e} deviations (limit {finding.limit:g})"
                if finding.largest_logit_difference is not None
                else ""
            )
            section.add(level, f"{finding.engine}: {'. '.join(part for part in (measured, finding.note) if part)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _short(ids: Iterable[int]) -> str:
    numbers = [int(number) for number in ids]
    return str(numbers) if len(numbers) <= 12 else f"{str(numbers[:12])[:-1]}, ...]"
