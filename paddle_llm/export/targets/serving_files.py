"""What a server reads beside weights and tokenizer: generation_config.json, the chat template, serve.sh; and the
export's README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.local_files.chat_templates import DEFAULT, TrainingTemplate, find_templates
from paddle_llm.core.artifacts import GENERATION_CONFIG, TOKENIZER_CONFIG
from paddle_llm.core.console import say
from paddle_llm.data.chat.jinja_template import JINJA
from paddle_llm.data.chat.selection import AUTO, choose_template, names_a_file
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.generation.stop_tokens import ids_in

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source
    from paddle_llm.export.verification.compare import Finding

# What transformers' GenerationConfig and PaddleNLP's have in common; the rest of PaddleNLP's means nothing elsewhere.
_KEPT = (
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
    """Write generation_config.json: the ids that begin, end and pad a text, and how the source samples by default.

    What ends a text is all that ends one of the source (ends.py).
    """
    given = _as_transformers_means(source.generation)
    values = {key: given[key] for key in _KEPT if given.get(key) is not None}
    values |= _STRATEGIES.get(given.get("decode_strategy", ""), {})
    ends = source.stop_ids()
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for name in ("bos_token_id", "pad_token_id"):
        for number in (*ids_in(given.get(name)), *ids_in(getattr(source.config, name, None))):
            if 0 <= number < source.facts.vocab_size:
                values.setdefault(name, number)
    if "pad_token_id" not in values and ends:
        values["pad_token_id"] = ends[0]  # a batch is padded with something; what ends a text does no harm
    (staged / GENERATION_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _as_transformers_means(given: dict[str, Any]) -> dict[str, Any]:
    """PaddleNLP's max_length counts the new tokens (0: not set), that of transformers the prompt's, too."""
    if "paddlenlp_version" not in given and "decode_strategy" not in given:
        return given
    lengths = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
    found = {key: value for key, value in given.items() if key not in lengths}
    for theirs, meant in lengths.items():
        if given.get(theirs) and not found.get(meant):
            found[meant] = given[theirs]
    return {key: value for key, value in found.items() if value or key not in lengths.values()}


def write_chat_template(source: Source, staged: Path) -> None:
    """Put a chat template into the export's tokenizer_config.json: that of the training, else the tokenizer's own.

    A built-in template is written as Jinja that gives the same text. A missing template is reported.
    """
    path = staged / TOKENIZER_CONFIG
    if source.tokenizer is None or not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    template, why = chosen_template(source)
    config.pop("chat_template", None)
    if template is None:
        say(f"no chat template: {why}. Completions work, chat requests do not")
    else:
        named = [{"name": name, "template": text} for name, text in template.templates.items()]
        config["chat_template"] = template.templates[DEFAULT] if list(template.templates) == [DEFAULT] else named
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if template is not None and is_recorded(source):
        template.write_record(staged)


def is_recorded(source: Source) -> bool:
    """Whether it is known which chat template the source was trained with."""
    return source.template_folder is not None or source.template is not None


def chosen_template(source: Source) -> tuple[TrainingTemplate | None, str]:
    """The template that the source was trained with, else the tokenizer's own; or None, and why.

    Raises:
        UserError: If the template found is not the recorded one.
    """
    assert source.tokenizer is not None
    from paddle_llm.data.tokenizers.text_codec import open_codec

    tokenizer, name = str(source.tokenizer), source.template
    if source.template_folder is not None:
        codec = open_codec(tokenizer)
        chosen = choose_template(AUTO, codec, tokenizer, trained=str(source.template_folder))
        return chosen.as_trained(chosen.special_text_as), ""
    found = find_templates(tokenizer)
    if names_a_file(name) and not Path(str(name)).is_file() and not (found and name in found.by_name):
        return None, f"the training used {name}, which does not exist"
    if name in TEMPLATES or names_a_file(name):
        return choose_template(name, open_codec(tokenizer), tokenizer).as_trained(), ""
    if found is not None:
        return TrainingTemplate(JINJA, found.by_name), ""
    if name == AUTO:  # what the training took for a tokenizer without one
        return choose_template("default", open_codec(tokenizer), tokenizer).as_trained(), ""
    return None, "the tokenizer brings none, and no fine-tuning is on record"


def write_serving(source: Source, staged: Path) -> None:
    """Write serve.sh, which serves the folder that it lies in with FastDeploy 2.x."""
    length = getattr(source.config, "max_position_embeddings", None) or getattr(
        source.config, "max_sequence_length", None
    )
    longest = f"--max-model-len {length} " if length else ""
    script = staged / "serve.sh"
    script.write_text(_SERVE.format(longest=longest), encoding="utf-8")
    script.chmod(0o755)


_SERVE = """#!/bin/sh
# Serves the model in this folder over an API like OpenAI's, with FastDeploy 2.x on a GPU:
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
    --model "$here" --port "$port" {longest}--load-choices default_v1 "$@"
"""

_TITLES = {
    "hf": "for Hugging Face's transformers",
    "fastdeploy": "for FastDeploy 2.x",
    "static": "as a static program for paddle.inference",
}
_NOT_PROVEN = {
    "hf": "Nothing but the engines in the table has been asked.",
    "fastdeploy": (
        "FastDeploy 2.x itself was not run: it needs a GPU. The folder keeps its contract (config.json, names, layout and types of the "
        "weights, tokenizer.json), and the engines in the table, which read the same files, were asked."
    ),
    "static": "The program has been run on a CPU only.",
}
_NOTHING_PROVEN = {
    "hf": "Whether it computes what its source does: no engine has been asked.",
    "fastdeploy": (
        "Whether it computes what its source does: no engine has been asked, and FastDeploy 2.x itself was not run. The folder keeps its "
        "contract (config.json, names, layout and types of the weights, tokenizer.json)."
    ),
    "static": "The program has not been run.",
}
_USE = {
    "hf": 'Load it with `AutoModelForCausalLM.from_pretrained("this folder")`.',
    "fastdeploy": "Serve it with `sh serve.sh 8180` where FastDeploy 2.x is installed.",
    "static": 'Answer prompts with `paddle-llm generate --static "this folder"`.',
}


def write_readme(staged: Path, target: str, findings: Sequence[Finding], described: dict[str, Any]) -> None:
    """Write README.md: what was exported, and what was and was not proven.

    Args:
        findings: of the verification; [] where there was none.
        described: the record that goes into export.json (source, adapter, family, dtype, paddle_llm).
    """
    adapter = f", with the adapter `{described['adapter']}`" if described.get("adapter") else ""
    lines = [
        f"# {described['family']} {_TITLES[target]}",
        "",
        f"Exported from `{described['source']}`{adapter} by paddle_llm {described['paddle_llm']}; weights: {described['dtype']}. "
        + _USE[target],
        "",
        "## What was proven",
        "",
        *_proven(findings),
        "",
        "## What was not",
        "",
        (_NOT_PROVEN if any(one.passed is not None for one in findings) else _NOTHING_PROVEN)[target],
        *_lacking_words(staged, target),
        "",
        *(f"- {one.engine}: not run: {one.note.removeprefix('not run: ')}" for one in findings if one.passed is None),
    ]
    (staged / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _lacking_words(staged: Path, target: str) -> list[str]:
    """What a server will miss."""
    path = staged / TOKENIZER_CONFIG
    if (
        target == "fastdeploy"
        and path.is_file()
        and "chat_template" not in json.loads(path.read_text(encoding="utf-8"))
    ):
        return ["It has no chat template, as its source has none: completions work, chat requests do not."]
    return []


def _proven(findings: Sequence[Finding]) -> list[str]:
    ran = [one for one in findings if one.passed is not None]
    if not ran:
        return ["Nothing: the export was not compared with its source (`--no_verify`)."]
    rows = [
        f"| {one.engine} | {one.what} | {one.prompts or '-'} | {f'{one.tokens_equal} of {one.tokens}' if one.tokens else '-'} "
        f"| {_figure(one.largest_logit_difference)} | {_figure(one.limit)} | {'passed' if one.passed else 'FAILED'} {one.note} |"
        for one in ran
    ]
    return [
        "Each engine was given the same prompts as the source and its answers compared. Differences of logits are in standard deviations of "
        "the source's logits. Where a row is of the tokenizer, its ids for the same prompts were compared.",
        "",
        "| engine | what | prompts | greedy tokens equal | largest difference of logits | limit | |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
