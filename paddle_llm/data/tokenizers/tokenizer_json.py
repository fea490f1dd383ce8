"""The tokenizer's files in an export: a tokenizer.json that gives the source's ids, and what transformers wants beside
it.

The class is PreTrainedTokenizerFast: every version of transformers takes tokenizer.json for it as it stands, where
LlamaTokenizer of transformers 5 builds another one of its pieces. `init_class` is PaddleNLP's own name for the class,
by which the folder is read here (data/tokenizer.py).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
from paddle_llm.data.corpus.encode import special_tokens
from paddle_llm.data.tokenizer import load_tokenizer, sentencepiece_model
from paddle_llm.data.tokenizers.byte_level import from_tiktoken, from_vocabulary
from paddle_llm.data.tokenizers.folder import Reader, reader_of, token_text
from paddle_llm.data.tokenizers.from_sentencepiece import tokenizer_json
from paddle_llm.data.tokenizers.published_tokenizers import PUBLISHED, write_published
from paddle_llm.data.tokenizers.sentencepiece_model import SentencePieceModel, read_model
from paddle_llm.data.tokenizers.tokenizer_check import check_ids

CLASS = "PreTrainedTokenizerFast"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Classes that only PaddleNLP has, or that transformers would build otherwise than tokenizer.json says.
_OURS = ("PretrainedTokenizerFast", "GPTTokenizer", "GPTTokenizerFast", "Llama3Tokenizer", "BloomTokenizer")


class TokenizerSource(Protocol):
    """Where a tokenizer is read from.

    Attributes:
        folder: the model's folder.
        tokenizer: the folder with tokenizer_config.json, None where it does not exist.
        template: --chat_template of the model's training, where that is recorded.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def tokenizer(self) -> Path | None: ...

    @property
    def template(self) -> str | None: ...


@dataclass
class _Read:
    """A source's tokenizer.

    Attributes:
        config: tokenizer_config.json.
        names: bos_token, eos_token, ... -> the token.
        added: special tokens and what stands behind the vocabulary -> id.
        loaded: the tokenizer that transformers makes of the folder; None where it does not read it.
    """

    folder: Path
    config: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    loaded: Any = None

    @property
    def is_converted(self) -> bool:
        """Whether transformers makes the fast tokenizer of vocabulary files."""
        return self.loaded is not None and self.loaded.is_fast and not (self.folder / TOKENIZER_JSON).is_file()


def write_tokenizer(source: TokenizerSource, staged: Path, target: str) -> None:
    """Write the tokenizer of `source` into the export's folder, as the target loads it.

    hf, fastdeploy: tokenizer.json, tokenizer_config.json, special_tokens_map.json (hf: and tokenizer.model, or whatever
    the vocabulary is kept in); ChatGLM and GLM (hf): the published repository's files. Without a tokenizer nothing is
    written, and said.

    Raises:
        UserError: a tokenizer that the target cannot have: ids would differ from the source's.
    """
    if source.tokenizer is None:
        say(f"{source.folder} has no tokenizer: the export has none either (name one with --tokenizer)")
        return
    read = _read(source.tokenizer)
    name = str(read.config.get("init_class") or read.config.get("tokenizer_class"))
    if name in PUBLISHED:
        write_published(source, name, staged)
        return
    content, originals = _convert(read)
    (staged / TOKENIZER_JSON).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _write_config(read, name, content, staged)
    if target == "hf":
        for file in originals:
            copied = SENTENCEPIECE_MODEL if file.suffix == ".model" else file.name
            shutil.copyfile(file, staged / copied)


def _read(folder: Path) -> _Read:
    config = _json(folder / TOKENIZER_CONFIG)
    transformers_reads = reader_of(str(folder)) is Reader.TRANSFORMERS
    read = _Read(folder, config, loaded=load_tokenizer(str(folder)) if transformers_reads else None)
    mapped = _json(folder / SPECIAL_TOKENS_MAP)
    for name in _NAMES:
        # Where the two files differ, transformers decides.
        token = config.get(name, mapped.get(name)) if read.loaded is None else getattr(read.loaded, name)
        if token:
            read.names[name] = _text(token)
    read.added = {str(token): int(number) for token, number in _json(folder / ADDED_TOKENS).items()}
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        read.added[_text(token)] = int(number)
    return read


def _convert(read: _Read) -> tuple[dict[str, Any], list[Path]]:
    """tokenizer.json, and the source's files that it was made of."""
    folder = read.folder
    pieces = sentencepiece_model(str(folder))
    if read.is_converted:
        content = json.loads(read.loaded.backend_tokenizer.to_str())
        names = (VOCAB_JSON, MERGES, SENTENCEPIECE_MODEL)
        return content, [Path(pieces)] if pieces else [folder / name for name in names if (folder / name).is_file()]
    if (folder / TOKENIZER_JSON).is_file():
        content = _json(folder / TOKENIZER_JSON)
        named = [folder / name for name in (VOCAB_JSON, MERGES) if (folder / name).is_file()]
        check_ids(content, folder, own=False)
        return content, [Path(pieces)] if pieces else named
    if pieces:
        content = _from_pieces(read, Path(pieces))
        return content, [Path(pieces)]
    vocabulary, merges, ranks = folder / VOCAB_JSON, folder / MERGES, folder / SENTENCEPIECE_MODEL
    if vocabulary.is_file() and merges.is_file():
        ids = _json(vocabulary)
        added = _specials(read, ids)
        _require_no_gap(added, len(ids), folder)
        content = from_vocabulary(read.config, ids, merges, added, read.names)
        check_ids(content, folder)
        return content, [vocabulary, merges]
    if ranks.is_file():
        content = from_tiktoken(ranks, read.config)
        read.names.setdefault("bos_token", "<|begin_of_text|>")
        read.names.setdefault("eos_token", "<|end_of_text|>")
        check_ids(content, folder)
        return content, [ranks]
    raise UserError(
        f"tokenizer {folder}: its class is {read.config.get('tokenizer_class')}, and it holds no tokenizer.json, no sentencepiece "
        f"model ({SENTENCEPIECE_MODEL} or sentencepiece.bpe.model) and no vocab.json with merges.txt. Name a folder that does with --tokenizer"
    )


def _from_pieces(read: _Read, path: Path) -> dict[str, Any]:
    model = read_model(path)
    _name_the_ends(read, model, path)
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    added = _specials(read, ids, [t for t in special_tokens(str(read.folder)) if t not in read.names.values()])
    _require_no_gap(added, len(ids), read.folder)
    before = [read.names["bos_token"]] if read.config.get("add_bos_token", True) and "bos_token" in read.names else []
    behind = [read.names["eos_token"]] if read.config.get("add_eos_token") and "eos_token" in read.names else []
    content = tokenizer_json(model, added, before, behind)
    check_ids(content, read.folder, model=model)
    return content


def _name_the_ends(read: _Read, model: SentencePieceModel, path: Path) -> None:
    """PaddleNLP takes BOS and EOS from the model file, whatever tokenizer_config.json calls them."""
    from paddle_llm.data.tokenizer import read_sentencepiece

    processor = read_sentencepiece(str(path))
    for name, number in (
        ("bos_token", processor.bos_id()),
        ("eos_token", processor.eos_id()),
        ("unk_token", processor.unk_id()),
    ):
        read.names.pop(name, None)
        if number >= 0:
            read.names[name] = model.pieces[number].text


def _specials(read: _Read, ids: dict[str, int], listed: list[str] | None = None) -> dict[str, int]:
    """Every special token with its id; one that the vocabulary lacks and no file numbers has none, and is left out."""
    found = dict(read.added)
    for token in [*read.names.values(), *(listed or [])]:
        if token in ids:
            found.setdefault(token, ids[token])
    for name, token in list(read.names.items()):
        if token not in found:
            say(f"tokenizer {read.folder}: its {name} {token!r} has no id in the vocabulary; the export names none")
            del read.names[name]
    return found


def _require_no_gap(added: dict[str, int], size: int, folder: Path) -> None:
    behind = sorted(number for number in added.values() if number >= size)
    if behind != list(range(size, size + len(behind))):
        raise UserError(
            f"tokenizer {folder}: its added tokens have the ids {behind}, behind a vocabulary of {size}. tokenizer.json numbers them "
            f"from {size} on without a gap: fill it with tokens that nothing uses (in {ADDED_TOKENS})"
        )


def _write_config(read: _Read, name: str, content: dict[str, Any], staged: Path) -> None:
    kept = (
        "model_max_length",
        "padding_side",
        "add_bos_token",
        "add_eos_token",
        "chat_template",
        "additional_special_tokens",
    )
    carried = read.is_converted or ((read.folder / TOKENIZER_JSON).is_file() and name not in _OURS)
    if carried:  # transformers' own folder: it knows best
        config = dict(read.config if read.loaded is None else read.loaded.source_config)
        config |= {key: token for key, token in read.names.items() if token_text(config.get(key)) != token}
        if not sentencepiece_model(str(read.folder)) and name.endswith("Fast"):
            config.pop("init_class", None)
        if name == "TokenizersBackend":  # transformers 5's name of the class, which transformers 4 lacks
            config["tokenizer_class"] = CLASS
    else:
        config = {key: read.config[key] for key in kept if read.config.get(key) is not None}
        config |= {"tokenizer_class": CLASS, "init_class": name, "clean_up_tokenization_spaces": False}
        if name == "LlamaTokenizer":
            config.setdefault("add_bos_token", True)
            config.setdefault("add_eos_token", False)
            if "bos_token" not in read.names:  # PaddleNLP would make one, behind the vocabulary
                config |= {"add_bos_token": False, "bos_token": None}
        config.setdefault("padding_side", "left")
        config |= read.names
        config["added_tokens_decoder"] = {
            str(token["id"]): {key: token[key] for key in token if key != "id"} for token in content["added_tokens"]
        }
    if config.get("tokenizer_class") == CLASS:
        # This class alone gives token_type_ids, too, unless it is told; no network here has them, and `generate` refuses.
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    (staged / TOKENIZER_CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    listed = read.config.get("additional_special_tokens")
    mapped: dict[str, Any] = {**read.names, **({"additional_special_tokens": listed} if listed else {})}
    (staged / SPECIAL_TOKENS_MAP).write_text(json.dumps(mapped, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}.") from error
    return found if isinstance(found, dict) else {}
