"""Writes the tokenizer of an export: a tokenizer.json with the source's ids, and the files that transformers needs.

The class is PreTrainedTokenizerFast: every version of transformers uses tokenizer.json unchanged for it, whereas
transformers 5 builds a different tokenizer for LlamaTokenizer. `init_class` is PaddleNLP's name of the class, by which this
package reads the folder (data/tokenizer.py).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import (
    ADDED_TOKENS,
    MERGES,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizer import load_tokenizer
from paddle_llm.data.tokenizers.conversion.byte_level import from_tiktoken, from_vocabulary
from paddle_llm.data.tokenizers.conversion.check import check_ids
from paddle_llm.data.tokenizers.conversion.from_sentencepiece import tokenizer_json
from paddle_llm.data.tokenizers.conversion.published import PUBLISHED, write_published
from paddle_llm.data.tokenizers.folder import (
    Reader,
    read_json,
    read_sentencepiece,
    reader_of,
    sentencepiece_model,
    special_tokens,
    token_text,
)
from paddle_llm.data.tokenizers.protocol import TokenizerSource, TransformersTokenizer, is_from_transformers
from paddle_llm.data.tokenizers.sentencepiece_model import SentencePieceModel, read_model

CLASS = "PreTrainedTokenizerFast"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Classes that only PaddleNLP has, or for which transformers does not use tokenizer.json unchanged.
_REPLACED_CLASSES = ("PretrainedTokenizerFast", "GPTTokenizer", "GPTTokenizerFast", "Llama3Tokenizer", "BloomTokenizer")


@dataclass
class _SourceTokenizer:
    """Tokenizer that is exported.

    Attributes:
        folder: Tokenizer folder.
        config: Content of tokenizer_config.json.
        names: Tokens by name (bos_token, eos_token, ...).
        added: Ids of special tokens and of tokens after the vocabulary.
        loaded: Tokenizer loaded by transformers; None if transformers does not read the folder.
    """

    folder: Path
    config: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    loaded: TransformersTokenizer | None = None

    @property
    def is_converted(self) -> bool:
        """Whether transformers converts vocabulary files to the fast tokenizer."""
        return self.loaded is not None and self.loaded.is_fast and not (self.folder / TOKENIZER_JSON).is_file()


def write_tokenizer(source: TokenizerSource, staged: Path, target: str) -> None:
    """Write the tokenizer of `source` to the export's folder in the form that the target loads.

    hf and fastdeploy get tokenizer.json, tokenizer_config.json and special_tokens_map.json; hf also gets the vocabulary
    files. ChatGLM and GLM (hf) get the files of the published repository. If there is no tokenizer, nothing is written,
    and this is reported.

    Args:
        source: Folders of tokenizer and model.
        staged: Folder to write to.
        target: Name of the target.

    Raises:
        UserError: If the target would give other ids than the source.
    """
    if source.tokenizer is None:
        say(f"{source.folder} has no tokenizer, so the export has none. Give one with --tokenizer.")
        return
    tokenizer = _read(source.tokenizer)
    name = str(tokenizer.config.get("init_class") or tokenizer.config.get("tokenizer_class"))
    if name in PUBLISHED:
        write_published(source, name, staged)
        return
    content, originals = _convert(tokenizer)
    (staged / TOKENIZER_JSON).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _write_config(tokenizer, name, content, staged)
    if target == "hf":
        for file in originals:
            copied = SENTENCEPIECE_MODEL if file.suffix == ".model" else file.name
            shutil.copyfile(file, staged / copied)


def _read(folder: Path) -> _SourceTokenizer:
    config = read_json(folder / TOKENIZER_CONFIG)
    loaded = load_tokenizer(str(folder)) if reader_of(str(folder)) is Reader.TRANSFORMERS else None
    tokenizer = _SourceTokenizer(folder, config, loaded=loaded if is_from_transformers(loaded) else None)
    mapped = read_json(folder / SPECIAL_TOKENS_MAP)
    for name in _NAMES:
        # If the two files differ, transformers decides.
        token = config.get(name, mapped.get(name)) if tokenizer.loaded is None else getattr(tokenizer.loaded, name)
        if token:
            tokenizer.names[name] = _text(token)
    tokenizer.added = {str(token): int(number) for token, number in read_json(folder / ADDED_TOKENS).items()}
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        tokenizer.added[_text(token)] = int(number)
    return tokenizer


def _convert(tokenizer: _SourceTokenizer) -> tuple[dict[str, Any], list[Path]]:
    """Return the content of tokenizer.json and the source files it was made from."""
    folder = tokenizer.folder
    pieces = sentencepiece_model(str(folder))
    if tokenizer.loaded is not None and tokenizer.is_converted:
        content = json.loads(tokenizer.loaded.backend_tokenizer.to_str())
        names = (VOCAB_JSON, MERGES, SENTENCEPIECE_MODEL)
        return content, [Path(pieces)] if pieces else [folder / name for name in names if (folder / name).is_file()]
    if (folder / TOKENIZER_JSON).is_file():
        content = read_json(folder / TOKENIZER_JSON)
        named = [folder / name for name in (VOCAB_JSON, MERGES) if (folder / name).is_file()]
        check_ids(content, folder, is_converted=False)
        return content, [Path(pieces)] if pieces else named
    if pieces:
        content = _from_pieces(tokenizer, Path(pieces))
        return content, [Path(pieces)]
    vocabulary, merges, ranks = folder / VOCAB_JSON, folder / MERGES, folder / SENTENCEPIECE_MODEL
    if vocabulary.is_file() and merges.is_file():
        ids = read_json(vocabulary)
        added = _specials(tokenizer, ids)
        _require_no_gap(added, len(ids), folder)
        content = from_vocabulary(tokenizer.config, ids, merges, added, tokenizer.names)
        check_ids(content, folder)
        return content, [vocabulary, merges]
    if ranks.is_file():
        content = from_tiktoken(ranks, tokenizer.config)
        tokenizer.names.setdefault("bos_token", "<|begin_of_text|>")
        tokenizer.names.setdefault("eos_token", "<|end_of_text|>")
        check_ids(content, folder)
        return content, [ranks]
    raise UserError(
        f"tokenizer {folder}: no vocabulary: its class is {tokenizer.config.get('tokenizer_class')}, and it has no {TOKENIZER_JSON}, "
        f"no sentencepiece model ({SENTENCEPIECE_MODEL} or sentencepiece.bpe.model) and no {VOCAB_JSON} with {MERGES}. Use "
        "--tokenizer with a folder that has one."
    )


def _from_pieces(tokenizer: _SourceTokenizer, path: Path) -> dict[str, Any]:
    model = read_model(path)
    _read_bos_and_eos(tokenizer, model, path)
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    added = _specials(
        tokenizer, ids, [t for t in special_tokens(str(tokenizer.folder)) if t not in tokenizer.names.values()]
    )
    _require_no_gap(added, len(ids), tokenizer.folder)
    before = (
        [tokenizer.names["bos_token"]]
        if tokenizer.config.get("add_bos_token", True) and "bos_token" in tokenizer.names
        else []
    )
    after = (
        [tokenizer.names["eos_token"]]
        if tokenizer.config.get("add_eos_token") and "eos_token" in tokenizer.names
        else []
    )
    content = tokenizer_json(model, added, before, after)
    check_ids(content, tokenizer.folder, model=model)
    return content


def _read_bos_and_eos(tokenizer: _SourceTokenizer, model: SentencePieceModel, path: Path) -> None:
    """Take BOS, EOS and UNK from the model file, as PaddleNLP does, and not from tokenizer_config.json."""
    processor = read_sentencepiece(str(path))
    for name, number in (
        ("bos_token", processor.bos_id()),
        ("eos_token", processor.eos_id()),
        ("unk_token", processor.unk_id()),
    ):
        tokenizer.names.pop(name, None)
        if number >= 0:
            tokenizer.names[name] = model.pieces[number].text


def _specials(tokenizer: _SourceTokenizer, ids: dict[str, int], listed: list[str] | None = None) -> dict[str, int]:
    """Return special tokens with their ids; tokens without an id are dropped and reported."""
    found = dict(tokenizer.added)
    for token in [*tokenizer.names.values(), *(listed or [])]:
        if token in ids:
            found.setdefault(token, ids[token])
    for name, token in list(tokenizer.names.items()):
        if token not in found:
            say(f"tokenizer {tokenizer.folder}: {name} {token!r} has no id in the vocabulary; the export omits it")
            del tokenizer.names[name]
    return found


def _require_no_gap(added: dict[str, int], size: int, folder: Path) -> None:
    after = sorted(number for number in added.values() if number >= size)
    if after != list(range(size, size + len(after))):
        raise UserError(
            f"tokenizer {folder}: added tokens have ids {after} after a vocabulary of {size}. tokenizer.json numbers them from "
            f"{size} on without gaps. Fill the gaps with unused tokens in {ADDED_TOKENS}."
        )


def _write_config(tokenizer: _SourceTokenizer, name: str, content: dict[str, Any], staged: Path) -> None:
    kept = (
        "model_max_length",
        "padding_side",
        "add_bos_token",
        "add_eos_token",
        "chat_template",
        "additional_special_tokens",
    )
    keeps_settings = tokenizer.is_converted or (
        (tokenizer.folder / TOKENIZER_JSON).is_file() and name not in _REPLACED_CLASSES
    )
    if keeps_settings:  # a folder of transformers: keep its settings
        config = dict(tokenizer.config if tokenizer.loaded is None else tokenizer.loaded.source_config)
        config |= {key: token for key, token in tokenizer.names.items() if token_text(config.get(key)) != token}
        if not sentencepiece_model(str(tokenizer.folder)) and name.endswith("Fast"):
            config.pop("init_class", None)
        if name == "TokenizersBackend":  # transformers 5's name of the class, unknown to transformers 4
            config["tokenizer_class"] = CLASS
    else:
        config = {key: tokenizer.config[key] for key in kept if tokenizer.config.get(key) is not None}
        config |= {"tokenizer_class": CLASS, "init_class": name, "clean_up_tokenization_spaces": False}
        if name == "LlamaTokenizer":
            config.setdefault("add_bos_token", True)
            config.setdefault("add_eos_token", False)
            if "bos_token" not in tokenizer.names:  # otherwise PaddleNLP would add one after the vocabulary
                config |= {"add_bos_token": False, "bos_token": None}
        config.setdefault("padding_side", "left")
        config |= tokenizer.names
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: token[key] for key in token if key != "id"} for token in content["added_tokens"]
        }
    if config.get("tokenizer_class") == CLASS:
        # Without this setting the class returns token_type_ids, which no network here has and `generate` rejects.
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    (staged / TOKENIZER_CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    listed = tokenizer.config.get("additional_special_tokens")
    mapped: dict[str, Any] = {**tokenizer.names, **({"additional_special_tokens": listed} if listed else {})}
    (staged / SPECIAL_TOKENS_MAP).write_text(json.dumps(mapped, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _text(token: object) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
