"""Writes generation_config.json, the chat template, serve.sh and README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.chat_templates import DEFAULT, TrainingTemplate, find_templates
from paddle_llm.core.artifacts import GENERATION_CONFIG, TOKENIZER_CONFIG
from paddle_llm.core.console import say
from paddle_llm.data.chat.jinja_template import JINJA
from paddle_llm.data.chat.selection import AUTO, choose_template, names_a_file
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.source import Source
from paddle_llm.export.verification.compare import Finding
from paddle_llm.generation.stop_tokens import ids_in

# Keys that the GenerationConfigs of transformers and PaddleNLP have in common.
_COMMON_KEYS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "do_sample", "temperature", "top_k", "top_p",
    "min_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_beams", "num_beam_groups", "diversity_penalty",
    "use_cache", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id",
    "suppress_tokens", "bad_words_ids", "stop_strings",
)  # fmt: skip
_STRATEGIES = {
    "sampling": {"do_sample": True},
    "greedy_search": {"do_sample": False},
    "beam_search": {"do_sample": False},
}


def write_generation_config(source: Source, staged: Path) -> None:
    """Write generation_config.json: the ids that begin, end and pad a text, and the source's defaults of sampling.

    A text ends at every id at which it ends in the source (`Source.stop_ids`).
    """
    given = _with_lengths_of_transformers(source.generation)
    values = {key: given[key] for key in _COMMON_KEYS if given.get(key) is not None}
    values |= _STRATEGIES.get(given.get("decode_strategy", ""), {})
    ends = source.stop_ids()
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for name in ("bos_token_id", "pad_token_id"):
        for number in (*ids_in(given.get(name)), *ids_in(getattr(source.config, name, None))):
            if 0 <= number < source.facts.vocab_size:
                values.setdefault(name, number)
    if "pad_token_id" not in values and ends:
        values["pad_token_id"] = ends[0]  # batches need a padding token, and an end token is harmless
    (staged / GENERATION_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _with_lengths_of_transformers(given: dict[str, Any]) -> dict[str, Any]:
    """Rename PaddleNLP's lengths, which count new tokens (0: not set). In transformers they include the prompt."""
    if "paddlenlp_version" not in given and "decode_strategy" not in given:
        return given
    lengths = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
    converted = {key: value for key, value in given.items() if key not in lengths}
    for theirs, ours in lengths.items():
        if given.get(theirs) and not converted.get(ours):
            converted[ours] = given[theirs]
    return {key: value for key, value in converted.items() if value or key not in lengths.values()}


def write_chat_template(source: Source, staged: Path) -> None:
    """Write the chat template into the export's tokenizer_config.json: that of training, else the tokenizer's own.

    A built-in template is written as equivalent Jinja. A missing template is reported.
    """
    path = staged / TOKENIZER_CONFIG
    if source.tokenizer is None or not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    template, reason = chosen_template(source)
    config.pop("chat_template", None)
    if template is None:
        say(f"no chat template: {reason}. Completions work, chat requests do not.")
    else:
        named = [{"name": name, "template": text} for name, text in template.templates.items()]
        config["chat_template"] = template.templates[DEFAULT] if list(template.templates) == [DEFAULT] else named
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if template is not None and is_recorded(source):
        template.write_record(staged)


def is_recorded(source: Source) -> bool:
    """Return whether the chat template of the source's training is known."""
    return source.template_folder is not None or source.template is not None


def chosen_template(source: Source) -> tuple[TrainingTemplate | None, str]:
    """Return the template of the source's training, else the tokenizer's own; None with the reason if there is none.

    Raises:
        UserError: If the text of the template differs from the recorded one.
    """
    assert source.tokenizer is not None
    tokenizer, name = str(source.tokenizer), source.template
    if source.template_folder is not None:
        codec = open_codec(tokenizer)
        chosen = choose_template(AUTO, codec, tokenizer, trained=str(source.template_folder))
        return chosen.as_trained(chosen.special_text_as), ""
    found = find_templates(tokenizer)
    if names_a_file(name) and not Path(str(name)).is_file() and not (found and name in found.by_name):
        return None, f"training used {name}, which does not exist"
    if name in TEMPLATES or names_a_file(name):
        return choose_template(name, open_codec(tokenizer), tokenizer).as_trained(), ""
    if found is not None:
        return TrainingTemplate(JINJA, found.by_name), ""
    if name == AUTO:  # training used this template for a tokenizer without one
        return choose_template("default", open_codec(tokenizer), tokenizer).as_trained(), ""
    return None, "the tokenizer has none, and no fine-tuning is recorded"


def write_serving(source: Source, staged: Path) -> None:
    """Write serve.sh, which serves its folder with FastDeploy 2.x."""
    config = source.config
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "max_sequence_length", None)
    max_model_len = f"--max-model-len {length} " if length else ""
    script = staged / "serve.sh"
    script.write_text(_SERVE.format(max_model_len=max_model_len), encoding="utf-8")
    script.chmod(0o755)


_SERVE = """#!/bin/sh
# Serves the model in this folder over an OpenAI-compatible API, with FastDeploy 2.x on a GPU:
#   sh serve.sh [PORT] [more arguments of the server, such as --tensor-parallel-size 2 or --quantization wint8]
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
port=${{1:-8180}}
[ "$#" -eq 0 ] || shift
case $port in
    '' | *[!0-9]*) echo "usage: sh serve.sh [PORT] [arguments of the server]" >&2; exit 2 ;;
esac
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("fastdeploy") is None)' || {{
    echo "serve.sh: FastDeploy 2.x is not installed for $(command -v python || echo python): https://github.com/PaddlePaddle/FastDeploy" >&2
    exit 1
}}
exec python -m fastdeploy.entrypoints.openai.api_server \\
    --model "$here" --port "$port" {max_model_len}--load-choices default_v1 "$@"
"""

_TITLES = {
    "hf": "for Hugging Face's transformers",
    "fastdeploy": "for FastDeploy 2.x",
    "static": "as a static program for paddle.inference",
    "gguf": "for llama.cpp",
}
_NOT_VERIFIED = {
    "hf": "Only the engines in the table were run.",
    "fastdeploy": (
        "FastDeploy 2.x itself was not run: it needs a GPU. The folder satisfies its contract (config.json, names, layout and types of "
        "the weights, tokenizer.json), and the engines in the table, which read the same files, were run."
    ),
    "static": "The program was run on a CPU only.",
    "gguf": "Only the engines in the table were run. The tokenizer was compared only if llama.cpp is among them.",
}
_NOTHING_VERIFIED = {
    "hf": "No engine was run, so whether it computes the same as its source is unknown.",
    "fastdeploy": (
        "Neither an engine nor FastDeploy 2.x was run, so whether it computes the same as its source is unknown. The folder satisfies "
        "FastDeploy's contract (config.json, names, layout and types of the weights, tokenizer.json)."
    ),
    "static": "The program was not run.",
    "gguf": "No engine was run, so whether it computes the same as its source is unknown.",
}
_USE = {
    "hf": 'Load it with `AutoModelForCausalLM.from_pretrained("this folder")`.',
    "fastdeploy": "Serve it with `sh serve.sh 8180` on a machine with FastDeploy 2.x.",
    "static": 'Generate with `paddle-llm generate --static "this folder"`.',
    "gguf": "Run it with `llama-cli -m model.gguf` or any other program that is built on llama.cpp.",
}


def write_readme(staged: Path, target: str, findings: Sequence[Finding], described: dict[str, Any]) -> None:
    """Write README.md: what was exported, and what was and was not verified.

    Args:
        staged: The folder.
        target: "hf", "fastdeploy", "static" or "gguf".
        findings: Findings of the verification; [] without one.
        described: The record of export.json (source, adapter, family, dtype, paddle_llm).
    """
    adapter = f", with the adapter `{described['adapter']}`" if described.get("adapter") else ""
    lines = [
        f"# {described['family']} {_TITLES[target]}",
        "",
        f"Exported from `{described['source']}`{adapter} by paddle_llm {described['paddle_llm']}; weights: {described['dtype']}. "
        + _USE[target],
        "",
        "## What was verified",
        "",
        *_verified(findings),
        "",
        "## What was not verified",
        "",
        (_NOT_VERIFIED if any(finding.passed is not None for finding in findings) else _NOTHING_VERIFIED)[target],
        *_missing_template(staged, target),
        "",
        *(
            f"- {finding.engine}: not run: {finding.note.removeprefix('not run: ')}"
            for finding in findings
            if finding.passed is None
        ),
    ]
    (staged / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _missing_template(staged: Path, target: str) -> list[str]:
    path = staged / TOKENIZER_CONFIG
    if (
        target == "fastdeploy"
        and path.is_file()
        and "chat_template" not in json.loads(path.read_text(encoding="utf-8"))
    ):
        return ["It has no chat template, because its source has none: completions work, chat requests do not."]
    return []


def _verified(findings: Sequence[Finding]) -> list[str]:
    ran = [finding for finding in findings if finding.passed is not None]
    if not ran:
        return ["Nothing: the export was not compared with its source (`--no_verify`)."]
    rows = []
    for finding in ran:
        tokens = f"{finding.tokens_equal} of {finding.tokens}" if finding.tokens else "-"
        difference, limit = _figure(finding.largest_logit_difference), _figure(finding.limit)
        result = f"{'passed' if finding.passed else 'FAILED'} {finding.note}"
        rows.append(
            f"| {finding.engine} | {finding.what} | {finding.prompts or '-'} | {tokens} | {difference} | {limit} | {result} |"
        )
    return [
        "Each engine got the same prompts as the source, and its answers were compared. Differences of logits are in standard deviations "
        "of the source's logits. A row about the tokenizer compares its ids for the same prompts.",
        "",
        "| engine | what | prompts | greedy tokens equal | largest difference of logits | limit | |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
