"""Writes the file of the target `gguf`."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.local_files.chat_templates import DEFAULT
from paddle_llm.core.artifacts import GGUF, TOKENIZER_JSON
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.conversion.tokenizer_json import write_tokenizer
from paddle_llm.export.options import Options
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.gguf.tensors import (
    Q8_0,
    GgufTensor,
    facts_of,
    ggml_type,
    gguf_tensors,
    rope_factors,
)
from paddle_llm.export.targets.gguf.vocabulary import Vocabulary, vocabulary_of
from paddle_llm.export.targets.hugging_face import usual_dtype
from paddle_llm.export.targets.serving_files import chosen_template
from paddle_llm.export.targets.shard_writer import progress
from paddle_llm.models.configuration.to_hugging_face import hugging_face_config

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_gguf(source: Source, staged: Path, options: Options) -> None:
    """Write the file: metadata, tokenizer, chat template and weights.

    Raises:
        UserError: If llama.cpp has no equal network or tokenizer.
    """
    from gguf import GGUFWriter

    logging.getLogger("gguf").setLevel(logging.WARNING)  # it logs every file that it writes
    config = hugging_face_config(source.family.name, source.config, dtype=options.dtype or usual_dtype(source))
    tensors = gguf_tensors(source, options.dtype)
    writer = GGUFWriter(staged / GGUF, facts_of(source).architecture)
    _add_network(writer, source, config)
    writer.add_file_type(_file_type(options.dtype or usual_dtype(source)))
    writer.add_quantization_version(2)
    _add_tokenizer(writer, source)
    _write(writer, tensors, _rope_tensor(config))
    _report_types(tensors, options.dtype)


def _add_network(writer: GGUFWriter, source: Source, config: dict[str, Any]) -> None:
    """Add the shape of the network."""
    width = config["hidden_size"] // config["num_attention_heads"]
    writer.add_name(source.family.title)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config["rope_theta"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif scaling.get("rope_type") not in (None, "llama3"):
        raise UserError(
            f"--target gguf: llama.cpp has no RoPE of the type {scaling['rope_type']!r}. Export with --target hf instead."
        )


def _context_length(config: dict[str, Any]) -> int:
    """Return the number of positions; llama.cpp has no sliding window for this network, so a window limits it."""
    length, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    if window is None or window >= length:
        return length
    say(f"context length: {window}, the sliding window, because llama.cpp would attend to all {length} positions")
    return int(window)


def _rope_tensor(config: dict[str, Any]) -> Any:
    """Return the divisors of the rotary frequencies for RoPE of the type "llama3"; None for other types."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    return rope_factors(scaling, config["rope_theta"], config["hidden_size"] // config["num_attention_heads"])


def _file_type(dtype: str) -> int:
    from gguf import LlamaFileType as Kind

    return {"float32": Kind.ALL_F32, "float16": Kind.MOSTLY_F16, "bfloat16": Kind.MOSTLY_BF16, Q8_0: Kind.MOSTLY_Q8_0}[
        dtype
    ]


def _add_tokenizer(writer: GGUFWriter, source: Source) -> None:
    """Add the tokenizer and the chat template."""
    content = _tokenizer_json(source)
    found = vocabulary_of(content, source.config.vocab_size)
    if found.normalizes:
        say("tokenizer: llama.cpp does not compose characters (NFC), so decomposed accents get other ids there")
    _add_vocabulary(writer, found)
    before, after = _added_ids(content)
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    ends = source.stop_ids()
    if before:
        writer.add_bos_token_id(before[0])
    if ends:
        writer.add_eos_token_id(ends[0])
    else:
        say("end tokens: the model has none, and llama.cpp ends a text at the id that it uses by default")
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if len(ends) > 2:
        say(
            f"end tokens: a GGUF file names two; {ends[2:]} are left to llama.cpp, which knows the usual ones by their text"
        )
    template, reason = chosen_template(source)
    if template is None:
        say(f"no chat template: {reason}. Completions work, chat requests do not.")
        return
    named = [{"name": name, "template": text} for name, text in template.templates.items()]
    writer.add_chat_template(template.templates[DEFAULT] if list(template.templates) == [DEFAULT] else named)


def _add_vocabulary(writer: GGUFWriter, found: Vocabulary) -> None:
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.rules)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.scores:
        writer.add_token_scores(found.scores)
    if found.merges:
        writer.add_token_merges(found.merges)
    if found.model == "llama":
        writer.add_add_space_prefix(found.space_prefix)


def _tokenizer_json(source: Source) -> dict[str, Any]:
    """Return the content of the source's tokenizer.json, converted if it has another format."""
    with tempfile.TemporaryDirectory(prefix="paddle_llm_gguf_") as folder:
        write_tokenizer(source, Path(folder), "hf")
        content: dict[str, Any] = json.loads((Path(folder) / TOKENIZER_JSON).read_text(encoding="utf-8"))
        return content


def _added_ids(content: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after every text.

    Raises:
        UserError: If it puts more than one token on a side, which a GGUF file cannot express.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(content))
    whole, inner = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    starts = [at for at in range(len(whole) - len(inner) + 1) if whole[at : at + len(inner)] == inner]
    before, after = whole[: starts[0]], whole[starts[0] + len(inner) :]
    if len(before) > 1 or len(after) > 1:
        raise UserError(
            f"--target gguf: the tokenizer puts {len(before)} tokens before and {len(after)} after a text. llama.cpp puts at "
            "most one. Export with --target hf instead."
        )
    return before, after


def _write(writer: GGUFWriter, tensors: list[GgufTensor], factors: Any) -> None:
    """Write the file, one tensor at a time."""
    import numpy as np

    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        kind = ggml_type(tensor.dtype)
        writer.add_tensor_info(tensor.name, tensor.source.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    with progress(sum(tensor.nbytes for tensor in tensors)) as advance:
        for tensor in tensors:
            writer.write_tensor_data(tensor.read())
            advance(tensor.nbytes)
    writer.close()


def _report_types(tensors: list[GgufTensor], dtype: str | None) -> None:
    """Report matrices that have another type than the requested one."""
    others = [tensor for tensor in tensors if len(tensor.source.shape) > 1 and dtype and tensor.dtype != dtype]
    if others:
        say(
            f"{len(others)} matrices are {others[0].dtype}: their rows are not a multiple of 32 values, as {dtype} needs"
        )
