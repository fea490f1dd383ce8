"""Commands `paddle-llm data inspect --finetune` and `paddle-llm data self-cognition`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import click

from paddle_llm.cli.path_option import BLEND, PATH
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.instructions.file_reports import describe_data
from paddle_llm.data.instructions.self_cognition import write_self_cognition
from paddle_llm.data.samples.dataset import load_split
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.samples.statistics import SampleStatistics, compute_statistics, mark_loss
from paddle_llm.data.tokenizers.text_codec import open_codec

_OPTIONS = [
    click.option("--finetune", type=BLEND, metavar="FILE", help='Instruction data: a file, a folder with train.json, or "0.3 a.jsonl 0.7 b/".'),
    click.option("--data_format", default="auto", show_default=True, help="Format of all files; auto: by the keys of their rows."),
    click.option("--prompt_templates", type=PATH, metavar="FILE", help="Templates that turn raw records into inputs and targets."),
    click.option("--skip_bad_rows", is_flag=True, help="Skip and count rows without a conversation."),
    click.option(
        "--chat_template", "--template", "chat_template", type=PATH, default="auto", show_default=True,
        help="Chat template: a name, jinja (the tokenizer's own), a name in its list, or a file; auto: the one the model was "
        "trained with, else the tokenizer's own, else default.",
    ),
    click.option("--chat_template_date", metavar="YYYY-MM-DD", help="Date for templates that insert today's date."),
    click.option(
        "--special_tokens_in_content", type=click.Choice(["text", "tokens"]), default="text", show_default=True,
        help="How the text of a special token inside a message is encoded.",
    ),
    click.option(
        "--loss_on", type=click.Choice(["answers", "last", "all"]), default="answers", show_default=True,
        help="Tokens with a loss: all answers, the last answer, or all tokens.",
    ),
    click.option("--max_length", type=int, default=2048, show_default=True, help="Maximum number of tokens of a sample."),
    click.option("--src_length", type=int, help="Maximum number of tokens before an answer."),
    click.option("--tgt_length", type=int, help="Maximum number of tokens of an answer."),
    click.option("--row_length", type=int, help="Number of tokens of a packed row; default: max_length."),
]  # fmt: skip


@dataclass(frozen=True)
class InstructionOptions:
    """Values of the options that `finetune_options` adds, without --finetune itself."""

    data_format: str
    prompt_templates: str | None
    skip_bad_rows: bool
    chat_template: str
    chat_template_date: str | None
    special_tokens_in_content: str
    loss_on: str
    max_length: int
    src_length: int | None
    tgt_length: int | None
    row_length: int | None


def finetune_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --finetune and its options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def show_finetune(path: str, tokenizer: str | None, samples: int, options: InstructionOptions) -> None:
    """Print samples and statistics of instruction data.

    Args:
        path: File, folder or blend.
        tokenizer: Tokenizer folder.
        samples: Number of samples to print.
        options: Format of the rows, chat template and lengths.

    Raises:
        UserError: If no tokenizer is given, or the data cannot be read.
    """
    if tokenizer is None:
        raise UserError("--finetune without --tokenizer. Give the tokenizer folder with which the samples are encoded.")
    described = describe_data(
        path, options.data_format, options.prompt_templates
    )  # before importing the tokenizer's libraries
    codec = open_codec(tokenizer)
    chosen = choose_template(options.chat_template, codec, tokenizer, date=options.chat_template_date)
    encoder = InstructionEncoder(
        codec,
        chosen.template,
        max_length=options.max_length,
        src_length=options.src_length,
        tgt_length=options.tgt_length,
        loss_on=options.loss_on,
        special_text_as=options.special_tokens_in_content,
    )
    click.echo("\n".join([*described, ""]))
    conversations = load_split(
        path,
        data_format=options.data_format,
        prompt_templates=options.prompt_templates,
        skip_bad_rows=options.skip_bad_rows,
        flag="--finetune",
        report_files=False,
    )
    say(f"template {chosen.template.name}: {chosen.why}")
    for line in chosen.notices:
        say(line)
    found = compute_statistics(conversations, encoder, row_length=options.row_length or options.max_length)
    colours = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("[[", "]]")
    for number in range(0, len(found.samples), max(len(found.samples) // max(samples, 1), 1))[:samples]:
        sample = found.samples[number]
        counts = f"{len(sample.input_ids)} tokens, {sample.answer_tokens} bearing loss"
        click.echo(f"--- {found.samples.origins[number]} ({counts})\n{mark_loss(sample, codec, *colours)}\n")
    _print_figures(found)


def _print_figures(found: SampleStatistics) -> None:
    report = found.report
    share = 100 * report.answer_tokens / report.tokens
    click.echo(f"samples: {report.samples}, skipped: {report.skipped}")
    click.echo(f"tokens: {report.tokens}, of which {report.answer_tokens} have a loss ({share:.1f}%)")
    truncated = f"{report.cut_questions} questions, {report.cut_answers} answers (without EOS)"
    click.echo(f"truncated: {truncated}, samples that lost rounds: {report.dropped_rounds}")
    lengths = ", ".join(f"{'longest' if p == 100 else f'{p}%'} {n}" for p, n in found.percentiles.items())
    click.echo(f"tokens per sample: {lengths}")
    for what, counts in (("task", found.tasks), ("language", found.languages)):
        if counts:
            click.echo(f"by {what}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common(20)))
    click.echo(
        f"padding: {100 * found.padding_batch:.1f}% in batches of {found.batch} padded to the longest sample, "
        f"{100 * found.padding_fixed:.1f}% with one sample per row of {found.row_length}, "
        f"{100 * found.padding_packed:.2f}% packed ({counted(found.rows, 'row')})"
    )


@click.command("self-cognition")
@click.option(
    "--name", required=True, help="Name that the model gives itself; for two languages `zh=小鹏,en=Little Peng`."
)
@click.option("--author", required=True, help="Author of the model; by language in the same way.")
@click.option("--output", required=True, type=PATH, metavar="FILE", help="jsonl file to write.")
@click.option("--language", default="zh,en", show_default=True, help="Languages, separated by commas.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def self_cognition(name: str, author: str, output: str, language: str, overwrite: bool) -> None:
    """Write questions and answers that teach a model its name and its author.

    \b
    Example:
      paddle-llm data self-cognition --name 小鹏 --author "Our Lab" --output me.jsonl
    """
    languages = [part.strip() for part in language.split(",") if part.strip()]
    names, authors = (_by_language(value, languages) for value in (name, author))
    counts = write_self_cognition(names, authors, languages, output, overwrite)
    say(f"{output}: " + ", ".join(f"{count} rows {language}" for language, count in counts.items()))


def _by_language(value: str, languages: list[str]) -> dict[str, str]:
    """Parse `zh=A,en=B`, or one value for all languages."""
    parts = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
    if parts and set(languages) <= {key.strip() for key in parts}:
        return {key.strip(): text.strip() for key, text in parts.items()}
    return dict.fromkeys(languages, value)
