"""`paddle-llm evaluate`: perplexity of models, or scores of their answers, in one table."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.cli.progress_bar import show_progress
from paddle_llm.core.console import collected, say
from paddle_llm.core.errors import UserError
from paddle_llm.generation.options import GenerateOptions

if TYPE_CHECKING:
    from paddle_llm.generation.evaluation.evaluate import EvaluateOptions, Evaluation
    from paddle_llm.generation.evaluation.inputs import Inputs

_EXAMPLE = """\b
Examples:
  paddle-llm evaluate models/llama-7b --input wiki.test.txt --context_length 2048
  paddle-llm evaluate models/llama-7b quantized/llama-7b-4bit --input wiki.test.txt --stride 512
  paddle-llm evaluate output/tuned --input dev.jsonl --metric generation --format json
"""
_AT_LEAST_ONE = WholeNumber(1)
_BATCH_SIZES = {"perplexity": 1, "generation": 8}


@click.command(epilog=_EXAMPLE)
@click.argument("models", nargs=-1, required=True, type=PATHLIB, metavar="MODEL...")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    type=PATHLIB,
    help="File with plain text, with documents (rows with the key text) or with rows of instructions in any fine-tuning "
    "format. Repeat the option for several files of one kind.",
)
@click.option(
    "--metric",
    type=click.Choice(["perplexity", "generation"]),
    default="perplexity",
    show_default=True,
    help="perplexity: of all tokens of a text, or of the answers of rows. generation: answers are generated greedily and "
    "compared with those of the rows (BLEU, ROUGE, exact match, numeric accuracy).",
)
@click.option(
    "--context_length",
    type=WholeNumber(2),
    help="Tokens that the model reads together, for perplexity. [default: 2048, or the model's positions if fewer]",
)
@click.option(
    "--stride",
    type=_AT_LEAST_ONE,
    help="Tokens between the beginnings of two windows of a text. Smaller ones give each token more context. "
    "[default: --context_length]",
)
@click.option("--max_new_tokens", type=_AT_LEAST_ONE, help="Maximum length of a generated answer. [default: 512]")
@click.option(
    "--batch_size",
    type=_AT_LEAST_ONE,
    help="Windows or rows processed together. [default: 1 for perplexity, 8 for generation]",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
    help="Format of the result on stdout.",
)
@click.option("--adapter", type=PATHLIB, help="Folder of an adapter, which is added to every MODEL.")
@click.option(
    "--chat_template",
    "--template",
    "chat_template",
    type=PATH,
    help="Template of the rows: auto, or the name of a template, jinja or a file. [default: auto]",
)
@click.option("--chat_template_date", metavar="YYYY-MM-DD", help="Date for templates that insert today's date.")
@click.option("--system", default="", help="System message for conversations that have none.")
@click.option(
    "--data_format",
    default="auto",
    show_default=True,
    help="Format of the rows of --input; auto: detected from their keys.",
)
@click.option("--tokenizer", type=PATHLIB, help="Folder of the tokenizer. [default: the MODEL]")
@click.option("--allow_pickle", is_flag=True, help="Read torch's pytorch_model.bin if there are no safetensors.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="[default: gpu if available]")
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    models: tuple[Path, ...],
    inputs: tuple[Path, ...],
    metric: str,
    output_format: str,
    data_format: str,
    **options: Any,
) -> None:
    """Print a table of models: perplexity or scores of answers, size on disk, peak memory and tokens per second.

    A MODEL is a model folder, a Hugging Face folder, a quantized folder or the output folder of a run. With several, each is
    evaluated in a separate process, one after the other, so that peak memory and speed can be compared.
    """
    from paddle_llm.generation.evaluation.evaluate import EvaluateOptions
    from paddle_llm.generation.evaluation.inputs import read_inputs
    from paddle_llm.generation.evaluation.report import as_json, as_markdown

    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        raise UserError("evaluate runs in one process. Start it without paddle.distributed.launch.")
    context_length, stride = options.pop("context_length"), options.pop("stride")
    batch_size = options.pop("batch_size") or _BATCH_SIZES[metric]
    settings = EvaluateOptions(metric, context_length, stride, GenerateOptions(batch_size=batch_size, **options))
    content = read_inputs(inputs, data_format)
    settings.check(content)
    rows = _rows(context, models, content, settings)
    click.echo((as_json if output_format == "json" else as_markdown)(metric, inputs, rows))


def _rows(
    context: click.Context, models: Sequence[Path], content: Inputs, settings: EvaluateOptions
) -> list[Evaluation]:
    from paddle_llm.generation.api import check_chat_template
    from paddle_llm.generation.evaluation.evaluate import evaluate as evaluate_one
    from paddle_llm.generation.evaluation.report import from_json
    from paddle_llm.generation.folders import resolve_folders

    if len(models) == 1:
        return [evaluate_one(models[0], content, settings, show_progress)]
    with collected():  # a mistake in the last one is reported before the first one runs
        for model in models:
            check_chat_template(model, settings.generate)
            resolve_folders(model, settings.generate)
    rows = []
    for number, model in enumerate(models, 1):
        say(f"{number} of {len(models)}: {model}")
        words = [sys.executable, "-m", "paddle_llm.cli", "evaluate", str(model), *_option_words(context)]
        done = subprocess.run([*words, "--format", "json"], stdout=subprocess.PIPE, text=True)
        if done.returncode:  # it has printed the reason
            sys.exit(done.returncode)
        rows += from_json(done.stdout)
    return rows


def _option_words(context: click.Context) -> list[str]:
    """Return the options of this command line, except --format, as words."""
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not is_given or not isinstance(option, click.Option) or name == "output_format":
            continue
        value = context.params[name]
        for one in value if option.multiple else (value,):
            words += [option.opts[0]] if option.is_flag else [option.opts[0], str(one)]
    return words
