"""Checks an export for every known mistake with which a folder loads without an error and generates garbage.

The rules for FastDeploy 2.x follow its loader (fastdeploy/model_executor/load_weight_utils.py, config.py), those for
Hugging Face follow `from_pretrained`. Only the headers of weight files are read (contract_weights.py), so
that huge models are checked fast.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.local_files.chat_templates import DEFAULT, find_templates
from paddle_llm.core.artifacts import (
    EXPORT_RECORD,
    GENERATION_CONFIG,
    MODEL_CONFIG,
    PADDLENLP_SENTENCEPIECE_MODEL,
    STATIC_PROGRAM,
    STATIC_STEP,
    STATIC_WEIGHTS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.renderer import Renderer
from paddle_llm.export.source.dtypes import ITEM_SIZES
from paddle_llm.export.verification.contract_weights import AGAIN, lint_files, lint_tensors, lint_types
from paddle_llm.export.verification.gguf_file import lint_file
from paddle_llm.families.shape import facts_from_dict, find_family
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.weights.weight_shapes import weight_shapes

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

_PROGRAM = (STATIC_PROGRAM, STATIC_WEIGHTS, STATIC_STEP, MODEL_CONFIG, TOKENIZER_CONFIG)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# A tokenizer that lost its tokens has only a few; a correct one may be much smaller than the vocabulary.
_MIN_TOKENS = 256


def lint(folder: Path, target: str) -> list[str]:
    """Check an export against the contract of its target.

    Args:
        folder: Folder of the export.
        target: "hf", "fastdeploy", "static" or "gguf".

    Returns:
        A message for each problem, with what to do; [] if there is none.
    """
    if target == "static":
        return list(_lint_static(folder))
    if target == "gguf":
        return list(lint_file(folder))
    raw, problems = _read(folder / MODEL_CONFIG)
    stored, of_files = lint_files(folder, target)
    problems += of_files
    if raw is None:
        return problems
    problems += _config_problems(raw, target)
    stated = [raw[key] for key in ("torch_dtype", "dtype") if key in raw]
    if len(stated) == 1 and stated[0] in ITEM_SIZES:
        problems += lint_types(stored, stated[0], target)
    try:
        family, config, shapes, size = _network(folder, raw)
    except UserError as error:
        return [*problems, f"config.json: {error}"]
    problems += lint_tensors(stored, family, config, shapes) if stored else []
    problems += _id_problems(raw, MODEL_CONFIG, size)
    problems += _tokenizer_problems(folder, target, size)
    problems += _generation_problems(folder, size)
    return [*problems, *_record_problems(folder, target)]


def _read(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the JSON object in a file, or None and the problem."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"{path.name} is missing. {AGAIN}"]
    except (OSError, ValueError) as error:
        return None, [f"{path.name} cannot be read: {error}. {AGAIN}"]
    return (found, []) if isinstance(found, dict) else (None, [f"{path.name} is not a JSON object. {AGAIN}"])


def _config_problems(raw: dict[str, Any], target: str) -> Iterator[str]:
    if not raw.get("architectures"):
        yield 'config.json has no architectures, which select the network. Add it, such as ["LlamaForCausalLM"].'
    keys = [key for key in ("torch_dtype", "dtype") if key in raw]
    if len(keys) == 2:
        yield "config.json has both torch_dtype and dtype, which FastDeploy refuses. Remove dtype (torch_dtype means [out, in] matrices)."
    elif not keys:
        yield "config.json has neither torch_dtype nor dtype, which FastDeploy refuses. Add torch_dtype with the type of the weights."
    elif keys == ["dtype"] and target == "fastdeploy":
        yield "config.json has dtype, which means [in, out] matrices to FastDeploy; these are [out, in]. Rename it to torch_dtype."
    elif raw[keys[0]] not in ITEM_SIZES:
        yield f"config.json has {keys[0]}={raw[keys[0]]!r}. Use one of {', '.join(ITEM_SIZES)}."


def _network(folder: Path, raw: dict[str, Any]) -> tuple[str, PretrainedConfig, dict[str, tuple[int, ...]], int]:
    """Return family, PaddleNLP's configuration, shapes of all weights and vocabulary size, according to config.json."""
    facts = facts_from_dict(raw, where="it")
    family = find_family(facts)
    config = plain_configuration(folder, family, facts.raw)
    return family.name, config, weight_shapes(config, family), facts.vocab_size


def _id_problems(values: dict[str, Any], where: str, size: int) -> Iterator[str]:
    for key in _IDS:
        given = values.get(key)
        for number in given if isinstance(given, list) else [given]:
            if number is not None and not (isinstance(number, int) and 0 <= number < size):
                yield f"{where}: {key} {number!r} is outside the vocabulary of {size} tokens. Correct it, or remove the key."


def _generation_problems(folder: Path, size: int) -> Iterator[str]:
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return
    values, problems = _read(path)
    yield from problems
    if values is not None:
        yield from _id_problems(values, path.name, size)


def _record_problems(folder: Path, target: str) -> Iterator[str]:
    """Check that export.json, which the export writes last, names this target."""
    record = _read(folder / EXPORT_RECORD)[0]
    if record is not None and record.get("target") not in (None, target):
        yield f"export.json names the target {record['target']}, not {target}. Name the right target, or export again."


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def _tokenizer_problems(folder: Path, target: str, size: int) -> Iterator[str]:
    if (folder / PADDLENLP_SENTENCEPIECE_MODEL).is_file():
        yield (
            "sentencepiece.bpe.model is left over. Without a tokenizer.json it is silently read as a tokenizer of 3 tokens. Remove "
            "it (Hugging Face's name of the file is tokenizer.model)."
        )
    config = folder / TOKENIZER_CONFIG
    if not config.is_file():
        if target == "fastdeploy":
            yield f"{TOKENIZER_CONFIG} is missing, which FastDeploy needs. Give a tokenizer folder with --tokenizer."
        return
    values, problems = _read(config)
    yield from problems
    if values is None:
        return
    if (folder / TOKENIZER_JSON).is_file():
        yield from _vocabulary_problems(folder, values, size)
    elif target == "fastdeploy" or "auto_map" not in values:
        yield f"tokenizer.json is missing, so {values.get('tokenizer_class')} would silently load almost no tokens. {AGAIN}"
    if values.get("chat_template") is not None:
        yield from _template_problems(folder, values)


def _vocabulary_problems(folder: Path, config: dict[str, Any], size: int) -> Iterator[str]:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_JSON))
    except Exception as error:  # the library's own errors are bare Exceptions
        yield f"tokenizer.json cannot be read: {error}. {AGAIN}"
        return
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= size:
        yield f"the tokenizer has ids up to {highest}, but the model has a vocabulary of {size}. Give its own tokenizer with --tokenizer."
    elif tokenizer.get_vocab_size(with_added_tokens=True) < min(_MIN_TOKENS, size // 2):
        yield (
            f"the tokenizer has only {tokenizer.get_vocab_size(with_added_tokens=True)} tokens, but the model has a vocabulary of "
            f"{size}: it is incomplete or belongs to another model. Give the right one with --tokenizer."
        )
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and tokenizer.token_to_id(text) is None:
            yield f"{TOKENIZER_CONFIG}: {key} {text!r} is not in tokenizer.json and would get an id outside the vocabulary. Correct it."


def _template_problems(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    try:
        found = find_templates(folder)
    except UserError as error:
        yield str(error)
        return
    template = found.by_name.get(DEFAULT) if found else None
    if not template or not template.strip():
        yield f"{TOKENIZER_CONFIG}: chat_template is empty. Add a template, or remove the key."
        return
    tokens = {key: value for key, value in config.items() if key.endswith("_token") and not key.startswith("add_")}
    values = {key: token["content"] if isinstance(token, dict) else token for key, token in tokens.items() if token}
    question = [{"role": "user", "content": "7*6?"}]
    conversation = [*question, {"role": "assistant", "content": "It is 42."}, {"role": "user", "content": "Sure?"}]
    try:
        renderer = Renderer(template, TOKENIZER_CONFIG, values, date="2024-07-26")
        texts = [renderer(messages, add_generation_prompt=True).text for messages in (question, conversation)]
    except UserError as error:
        yield f"the chat template does not render: {error} Correct chat_template in {TOKENIZER_CONFIG}."
        return
    if "7*6?" not in texts[0] or "Sure?" not in texts[1]:
        yield f"the chat template drops the user's message: {texts[1]!r}. Correct chat_template in {TOKENIZER_CONFIG}."


# ---- static ---------------------------------------------------------------------------------------------------------


def _lint_static(folder: Path) -> Iterator[str]:
    absent = [name for name in _PROGRAM if not (folder / name).is_file()]
    if absent:
        yield f"{', '.join(absent)} missing. {AGAIN}"
        return
    raw, problems = _read(folder / MODEL_CONFIG)
    step, more = _read(folder / STATIC_STEP)
    yield from [*problems, *more]
    if raw is None or step is None:
        return
    facts = facts_from_dict(raw, where=MODEL_CONFIG)
    of_config = {
        "family": facts.model_type,
        "vocab_size": facts.vocab_size,
        "layers": facts.num_hidden_layers,
        "kv_heads": facts.num_key_value_heads,
        "head_width": facts.head_dim,
    }
    for key, value in of_config.items():
        if step.get(key) != value:
            yield f"step.json has {key}={step.get(key)!r}, config.json {value!r}: the program belongs to another network. {AGAIN}"
    ends = {f"end_ids[{i}]": number for i, number in enumerate(step.get("end_ids") or [])}
    for key, number in ends.items():
        if not (isinstance(number, int) and 0 <= number < facts.vocab_size):
            yield f"step.json: {key} {number!r} is outside the vocabulary of {facts.vocab_size} tokens. {AGAIN}"
    if step.get("dtype") != "float32":
        yield f"step.json has dtype {step.get('dtype')!r}, but a static program computes in float32. {AGAIN}"
    if (folder / STATIC_WEIGHTS).stat().st_size < 4 * facts.vocab_size * facts.hidden_size:
        yield f"model.pdiparams is smaller than the embedding: it is truncated. {AGAIN}"
    yield from _generation_problems(folder, facts.vocab_size)
