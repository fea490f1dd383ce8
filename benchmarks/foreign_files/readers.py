"""One function for each kind of file: write a hostile variant, read it as the commands do, compare with the owner's library.

Each function returns "equal" (to the reference), "accepted" (no cheap reference) or raises `Different`. A refusal is a `UserError`.
"""

from __future__ import annotations

import functools
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from foreign_files import samples
from foreign_files.mutate import as_bytes, damage, flip, mutate

EQUAL, ACCEPTED = "equal", "accepted"
Kind = Callable[[Path, random.Random], str]
TEXTS = ("Hello world", " two  blanks ", "你好 😀", "<|im_end|></s>", "", "a\u0301\n\t1234")
_FACTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)


class Different(Exception):
    """What was accepted differs from the reference.

    Attributes:
        what: What differs, the same for all items of one cause.
    """

    def __init__(self, what: str, detail: str = ""):
        self.what = what
        super().__init__(f"{what}: {detail}")


# ---- model folders -----------------------------------------------------------------------------------------------------


def config(folder: Path, rng: random.Random) -> str:
    """config.json: facts, family, positions, translation to PaddleNLP's configuration."""
    from paddle_llm.config.local_files.model_folder import read_model_facts
    from paddle_llm.families.shape import find_family
    from paddle_llm.models.configuration.configure import translate

    (folder / "config.json").write_bytes(as_bytes(mutate(rng.choice(samples.CONFIGS), rng), rng))
    facts = read_model_facts(folder)
    _ = facts.position_limit, facts.rope_is_scaled
    family = find_family(facts)
    translate(family, facts.raw, str(folder))
    if family.name not in ("llama", "qwen2", "opt", "bloom"):
        return ACCEPTED
    import transformers

    try:
        theirs = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception:
        return ACCEPTED
    for name in _FACTS:
        same = bool if name.startswith("tie_") else int
        if hasattr(theirs, name) and same(getattr(theirs, name)) != same(getattr(facts, name)):
            raise Different(name, f"{getattr(theirs, name)!r} in transformers, {getattr(facts, name)!r} here")
    return EQUAL


def generation(folder: Path, rng: random.Random) -> str:
    """generation_config.json."""
    from paddle_llm.models.configuration.generation_settings import (
        describe_unapplied,
        end_ids,
        read_generation,
        settings_to_save,
    )

    (folder / "generation_config.json").write_bytes(as_bytes(mutate(samples.GENERATION, rng), rng))
    settings = read_generation(folder)
    described = mutate(samples.CONFIGS[0], rng)
    described = described if isinstance(described, dict) else {}
    end_ids(settings, described, folder)
    describe_unapplied(settings, (), folder)
    settings_to_save(settings, samples.CONFIGS[0], [3], 64)
    return ACCEPTED


@functools.cache
def _shapes() -> tuple[Any, Any, Any]:
    """(family, PaddleNLP's configuration, shapes of the weights) of the first configuration."""
    import tempfile

    from paddle_llm.families.shape import facts_from_dict, find_family
    from paddle_llm.generation.network import start_process

    start_process("cpu")
    from paddle_llm.models.build import plain_configuration
    from paddle_llm.models.weights.weight_shapes import weight_shapes

    raw = dict(samples.CONFIGS[0])
    family = find_family(facts_from_dict(raw, where="sample"))
    with tempfile.TemporaryDirectory() as folder:
        described = plain_configuration(Path(folder), family, raw)
    return family, described, weight_shapes(described, family)


def weights(folder: Path, rng: random.Random) -> str:
    """Safetensors: one file, or shards with an index, with damaged headers, bytes, shapes, dtypes and offsets."""
    from paddle_llm.models.weights.files import WeightFiles
    from paddle_llm.models.weights.load import locate_weights

    tensors = samples.weights()
    names = list(tensors)
    if rng.random() < 0.5:
        cut = rng.randrange(1, len(names))
        parts = {"model-00001-of-00002.safetensors": names[:cut], "model-00002-of-00002.safetensors": names[cut:]}
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {name: file for file, part in parts.items() for name in part},
        }
        if rng.random() < 0.6:
            index = mutate(index, rng)
        (folder / "model.safetensors.index.json").write_bytes(as_bytes(index, rng))
        if rng.random() < 0.3:
            parts["model.safetensors"] = names
    else:
        parts = {"model.safetensors": names}
    for file, part in parts.items():
        data = save({name: tensors[name] for name in part}, metadata={"format": "pt"})
        (folder / file).write_bytes(_damaged_safetensors(data, rng) if rng.random() < 0.6 else data)
    if len(parts) > 1 and rng.random() < 0.2:
        (folder / rng.choice(list(parts))).unlink()
    (folder / "config.json").write_text(json.dumps(samples.CONFIGS[0]))
    files = WeightFiles(folder)
    values = {name: files.view(name) for name in files.names() if files.is_weight(name)}
    family, described, shapes = _shapes()
    locate_weights(files, shapes, family, described)
    return _same_as_safetensors(folder, values)


def _same_as_safetensors(folder: Path, values: dict[str, np.ndarray]) -> str:
    single = folder / "model.safetensors"
    index = (
        {}
        if single.is_file()
        else json.loads((folder / "model.safetensors.index.json").read_text("utf-8-sig"))["weight_map"]
    )
    for name, value in values.items():
        file = single if single.is_file() else folder / index[name]
        try:
            with safe_open(file, framework="np") as opened:
                if opened.get_slice(name).get_dtype() == "BF16":
                    continue
                theirs = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise Different("refused by safetensors and read here", f"{file.name}: {error}") from None
        if theirs.shape != value.shape or theirs.tobytes() != np.ascontiguousarray(value).tobytes():
            raise Different("other values than in safetensors", name)
    return EQUAL


def _damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    kind = rng.randrange(6)
    if kind == 0:
        return data[: rng.randint(0, len(data))]
    if kind == 1:
        return flip(data, rng)
    if kind == 2:
        return struct.pack("<Q", rng.choice((0, 1, length - 1, length + 8, 2**40, 2**63))) + data[8:]
    if kind == 3:
        return data[:8] + flip(data[8 : 8 + length], rng) + data[8 + length :]
    header = json.loads(data[8 : 8 + length])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    change = rng.randrange(4)
    if change == 0:
        entry["shape"] = rng.choice(([64], [32, 64], [], [0], [-1, 4], [2**62, 2], [32.0], None, "32"))
    elif change == 1:
        entry["dtype"] = rng.choice(("F16", "BF16", "F64", "I32", "BOOL", "F8_E4M3", "X", None, 3))
    elif change == 2:
        at = rng.randrange(2)
        entry["data_offsets"][at] = rng.choice((0, -4, entry["data_offsets"][at] + 4, 2**63, None, 1.5))
    else:
        header = mutate(header, rng)
    written = as_bytes(header, rng)
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


def pickles(folder: Path, rng: random.Random) -> str:
    """PaddleNLP's .pdparams, with changed bytes."""
    import pickle

    from paddle_llm.models.weights.files import WeightFiles

    tensors = {name: value for name, value in samples.weights().items() if ".0." in name}
    data = pickle.dumps(tensors, protocol=rng.choice((2, 4)))
    (folder / "model_state.pdparams").write_bytes(flip(data, rng) if rng.random() < 0.8 else damage(data, rng))
    files = WeightFiles(folder)
    for name in files.names():
        files.view(name)
    return ACCEPTED


def adapter(folder: Path, rng: random.Random) -> str:
    """adapter_config.json and adapter_model.safetensors."""
    from paddle_llm.checkpoint.locate import locate_adapter, locate_base
    from paddle_llm.peft.adapter_files import read_method

    settings = samples.ADAPTER if rng.random() < 0.85 else samples.OWN_ADAPTER
    (folder / "adapter_config.json").write_bytes(as_bytes(mutate(settings, rng), rng))
    data = save(samples.lora_tensors(), metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(_damaged_safetensors(data, rng) if rng.random() < 0.2 else data)
    locate_base(locate_adapter(folder))
    read_method(folder)
    return ACCEPTED


# ---- tokenizers and templates ------------------------------------------------------------------------------------------


def _write_tokenizer(folder: Path, kind: str, rng: random.Random, *, hostile: bool) -> None:
    fast = kind == "byte level"
    config = samples.BYTE_LEVEL_CONFIG if fast else samples.SENTENCEPIECE_CONFIG
    files: dict[str, Any] = {"tokenizer_config.json": config}
    if fast:
        files["tokenizer.json"] = samples.byte_level_tokenizer()
    else:
        (folder / rng.choice(("tokenizer.model", "sentencepiece.bpe.model"))).write_bytes(
            samples.sentencepiece_model(kind)
        )
    if hostile and rng.random() < 0.4:
        files["special_tokens_map.json"] = samples.SPECIALS
    if hostile and rng.random() < 0.3:
        files["added_tokens.json"] = {"<|im_start|>": 400, "<x>": 401}
    damaged = rng.choice(list(files)) if hostile else None
    for name, value in files.items():
        if name == damaged:
            value = mutate(value, rng)
        (folder / name).write_bytes(as_bytes(value, rng) if name == damaged else json.dumps(value).encode())


def tokenizer(folder: Path, rng: random.Random) -> str:
    """tokenizer_config.json, tokenizer.json, special_tokens_map.json, added_tokens.json."""
    from paddle_llm.data.corpus.encode import open_encoder
    from paddle_llm.data.tokenizer import fingerprint
    from paddle_llm.data.tokenizers.text_codec import open_codec

    _write_tokenizer(folder, rng.choice(("byte level", "byte level", "unigram", "bpe")), rng, hostile=True)
    codec = open_codec(str(folder))
    found = {text: codec.encode(text) for text in TEXTS}
    codec.decode([0, 5, 10**6, 299])
    codec.show([*codec.prefix_ids, 7])
    open_encoder(str(folder)).encode(["Hello"])
    fingerprint(str(folder))
    return _same_as_transformers(folder, codec, found)


def _same_as_transformers(folder: Path, codec: Any, found: dict[str, list[int]]) -> str:
    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        wanted = {text: list(theirs(text, add_special_tokens=False)["input_ids"]) for text in TEXTS}
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:
        return ACCEPTED
    for text, ids in wanted.items():
        written = any(token in text for token in codec.specials)  # special tokens written as text are protected here
        if not written and ids != found[text]:
            raise Different("ids", f"of {text!r}: {ids[:8]} in transformers, {found[text][:8]} here")
    if theirs.eos_token_id != codec.eos_id or theirs.bos_token_id != codec.bos_id:
        raise Different(
            f"bos, eos {theirs.bos_token_id, theirs.eos_token_id} in transformers, {codec.bos_id, codec.eos_id} here"
        )
    return EQUAL


@functools.cache
def _chat_tokenizer() -> tuple[str, Any, Any]:
    """(folder, our codec, transformers' tokenizer) of an undamaged byte-level tokenizer."""
    import tempfile

    import transformers

    from paddle_llm.data.tokenizers.text_codec import open_codec

    folder = tempfile.mkdtemp(prefix="foreign-")
    config = {key: value for key, value in samples.BYTE_LEVEL_CONFIG.items() if key != "chat_template"}
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
    Path(folder, "tokenizer.json").write_text(json.dumps(samples.byte_level_tokenizer()))
    return folder, open_codec(folder), transformers.AutoTokenizer.from_pretrained(folder)


def template(folder: Path, rng: random.Random) -> str:
    """Chat templates: valid ones with changes, and random sequences of Jinja."""
    from paddle_llm.core.artifacts import IGNORE_INDEX
    from paddle_llm.core.errors import UserError
    from paddle_llm.data.chat.selection import choose_template
    from paddle_llm.data.instructions.conversation import Conversation, Turn
    from paddle_llm.data.samples.encode import InstructionEncoder, PromptTooLong

    source_folder, codec, theirs = _chat_tokenizer()
    parts = [rng.choice(samples.TEMPLATE_PARTS) for _ in range(rng.randint(1, 14))]
    whole = rng.choice(samples.WHOLE_TEMPLATES)
    at = rng.randrange(len(whole))
    source = rng.choice(("".join(parts), whole[:at] + parts[0] + whole[at:], whole, whole[: rng.randrange(len(whole))]))
    for file in Path(source_folder).iterdir():
        os.symlink(file, folder / file.name)
    (folder / "chat_template.jinja").write_bytes(source.encode("utf-8", "surrogatepass"))
    texts = ("hi", " hi\n", "", "<|im_end|>", "{{ 1 }}", "你好")
    roles = rng.choice((["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"] * 2))
    turns = tuple(Turn(role, rng.choice(texts)) for role in roles)
    chosen = choose_template(None, codec, str(folder))
    try:
        sample = InstructionEncoder(codec, chosen.template, max_length=2000)(Conversation(turns, where="row 1"))
    except PromptTooLong as error:  # a bad row in the commands
        raise UserError(str(error)) from None
    if any("<|" in turn.content for turn in turns):
        return ACCEPTED  # special tokens written as text are protected here
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        wanted = theirs.apply_chat_template(messages, chat_template=source.replace("\r\n", "\n"))
    except Exception as error:
        raise Different("refused by transformers and rendered here", str(error)) from None
    ids = [
        *map(int, sample.input_ids[:1]),
        *(int(i) for i in sample.input_ids[1:]),
        *(int(i) for i in sample.labels[-1:] if i != IGNORE_INDEX),
    ]
    # What stands behind the last answer is not part of a sample; EOS is added where the template writes no end token.
    if not ids and not wanted:
        return EQUAL
    if not ids:
        raise Different("nothing is rendered", repr(theirs.decode(wanted)))
    if ids[:-1] != list(wanted)[: len(ids) - 1] or ids[-1] not in (codec.eos_id, *wanted[len(ids) - 1 : len(ids)]):
        raise Different("ids", f"{theirs.decode(wanted)!r} in transformers, {theirs.decode(ids)!r} here, of {messages}")
    return EQUAL


# ---- rows, prompts, corpora, configurations of runs --------------------------------------------------------------------


def rows(folder: Path, rng: random.Random) -> str:
    """Instruction files of every kind."""
    from paddle_llm.data.instructions.files import load_conversations

    file = _write_rows(folder, rng)
    skip = rng.random() < 0.5
    loaded = load_conversations([str(file)], skip_bad_rows=skip)
    assert loaded.conversations
    return ACCEPTED


def _write_rows(folder: Path, rng: random.Random) -> Path:
    values: Any = list(rng.choice(samples.ROWS)) * rng.choice((1, 2, 5))
    if rng.random() < 0.8:
        values = mutate(values, rng)
    listed = values if isinstance(values, list) else [values]
    kind = rng.choice((".jsonl", ".jsonl", ".json", ".json", ".csv", ".parquet"))
    file = folder / f"train{kind}{rng.choice(('', '', '', '.gz', '.zst'))}"
    if kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        file = folder / "train.parquet"
        try:
            table = pyarrow.Table.from_pylist(
                [one for one in listed if isinstance(one, dict)] or [{"src": "a", "tgt": "b"}]
            )
            pyarrow.parquet.write_table(table, file)
        except (pyarrow.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
            file.write_bytes(b"PAR1")
        data = file.read_bytes()
    elif kind == ".csv":
        keys = [str(key) for key in (listed[0] if listed and isinstance(listed[0], dict) else {"src": 1, "tgt": 2})]
        lines = [",".join(keys)] + [
            ",".join(f'"{one}"' for one in row.values()) for row in listed if isinstance(row, dict)
        ]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
    elif kind == ".json":
        data = as_bytes(values, rng)
    else:
        data = b"\n".join(
            json.dumps(one, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass") for one in listed
        )
    if rng.random() < 0.25:
        data = damage(data, rng)
    if file.suffix == ".gz":
        import gzip

        data = gzip.compress(data)[: None if rng.random() < 0.9 else -5]
    elif file.suffix == ".zst":
        import zstandard

        data = zstandard.compress(data)[: None if rng.random() < 0.9 else -5]
    file.write_bytes(data)
    return file


def prompts(folder: Path, rng: random.Random) -> str:
    """Files for `generate --input`."""
    from paddle_llm.generation.requests import read_requests

    if rng.random() < 0.6:
        file = _write_rows(folder, rng)
    else:
        file = folder / f"prompts.txt{rng.choice(('', '', '.gz'))}"
        file.write_bytes(damage("one\ntwo\u2028three\n\x0cfour\n你好\n".encode(), rng))
    assert read_requests(file)
    return ACCEPTED


def corpus(folder: Path, rng: random.Random) -> str:
    """.bin/.idx pairs."""
    from paddle_llm.data.corpus.checks import verify_index
    from paddle_llm.data.corpus.indexed import open_corpus
    from paddle_llm.data.corpus.mmap_format import SizesFile, write_index

    sizes = np.array([rng.randint(1, 9) for _ in range(20)], "<i4")
    (folder / "c.bin").write_bytes(np.arange(int(sizes.sum()), dtype="<u2").tobytes())
    with open(folder / "c.spool", "wb+") as spool, open(folder / "c.idx", "wb") as index:
        blocks = SizesFile(spool)
        blocks.append(sizes)
        write_index(index, np.dtype("<u2"), len(sizes), blocks)
    damaged = folder / rng.choice(("c.idx", "c.idx", "c.idx", "c.bin"))
    data = damaged.read_bytes()
    head = flip(data[:60], rng) + data[60:]
    at = rng.randrange(len(data))
    one = data[:at] + rng.randbytes(1) + data[at + 1 :]
    damaged.write_bytes(rng.choice((head, flip(data, rng), one, one, data[: rng.randint(0, len(data))])))
    opened = open_corpus(str(folder / "c"))
    verify_index(opened)
    return ACCEPTED


def run(folder: Path, rng: random.Random) -> str:
    """The JSON file of a run, pretraining or fine-tuning."""
    from paddle_llm.config.reader import resolve, resolved_as_json

    entry = rng.choice(("pretrain", "finetune"))
    values = dict(samples.RUN if entry == "pretrain" else samples.FINETUNE)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_bytes(
        as_bytes(mutate(samples.CONFIGS[0], rng), rng)
        if rng.random() < 0.2
        else json.dumps(samples.CONFIGS[0]).encode()
    )
    values = {key: str(folder / one) if key.endswith(("_path", "_dir")) else one for key, one in values.items()}
    (folder / "run.json").write_bytes(as_bytes(mutate(values, rng), rng))
    resolved = resolve([str(folder / "run.json")], world_size=1, entry=entry, device="cpu")
    json.dumps(resolved_as_json(resolved))
    return ACCEPTED


def whole_folder(folder: Path, rng: random.Random) -> str:
    """A model folder with several damaged files, through check-model."""
    from paddle_llm.inspection.inspect import inspect_folder

    _write_tokenizer(folder, rng.choice(("byte level", "unigram")), rng, hostile=rng.random() < 0.5)
    for name, value in (("config.json", samples.CONFIGS[0]), ("generation_config.json", samples.GENERATION)):
        (folder / name).write_bytes(as_bytes(mutate(value, rng) if rng.random() < 0.4 else value, rng))
    if rng.random() < 0.2:
        (folder / "adapter_config.json").write_bytes(as_bytes(mutate(samples.ADAPTER, rng), rng))
    if rng.random() < 0.2:  # a folder where a file is expected
        name = rng.choice(("config.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"))
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    data = save(samples.weights(), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(data)
    report = inspect_folder(folder, quick=True)
    json.dumps(report.as_dict())
    return ACCEPTED


KINDS: dict[str, Kind] = {
    "config.json": config, "generation_config.json": generation, "safetensors": weights, "pdparams": pickles, "adapter": adapter,
    "tokenizer": tokenizer, "chat template": template, "instruction rows": rows, "prompts": prompts, "corpus": corpus,
    "run configuration": run, "whole folder": whole_folder,
}  # fmt: skip
