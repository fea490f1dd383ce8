"""The `paddle-llm` command. A room is imported only when one of its sub-commands runs."""

from __future__ import annotations

import difflib
import signal
import sys
from importlib import import_module
from typing import Any

import click

from paddle_llm import __version__
from paddle_llm.core.atomic_output import disk_problem
from paddle_llm.core.console import escape_unencodable, say
from paddle_llm.core.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error, was_interrupted
from paddle_llm.core.transformers_import import hide_torch_from_transformers
from paddle_llm.parallel.process.failure_detection import exit_on_lost_rank

# name -> (where the click command stands, its line in --help)
COMMANDS = {
    "tokenizer": ("paddle_llm.cli.data:tokenizer", "Train a sentencepiece tokenizer on your text."),
    "data": ("paddle_llm.cli.data:data", "Turn text into a tokenised corpus; look into one."),
    "check-model": (
        "paddle_llm.cli.check_model:check_model",
        "Print what is understood of a model, tokenizer or adapter folder.",
    ),
    "rehearse": (
        "paddle_llm.cli.rehearse:rehearse",
        "Prove a cluster's config on CPU ranks, before paying for GPUs.",
    ),
    "generate": ("paddle_llm.cli.generate:generate", "Continue prompts, answer a file, or chat with a model."),
    "export": (
        "paddle_llm.cli.export:export_command",
        "Write a model as Hugging Face, FastDeploy or inference load it.",
    ),
    "convert": (
        "paddle_llm.cli.convert:convert",
        "Write a LoRA adapter in the format of Hugging Face's PEFT, or take one over.",
    ),
    "board": ("paddle_llm.cli.board:board", "Show the curves of an output folder (VisualDL)."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        """What a command raises becomes one line: a Ctrl-C, wherever it comes (click's own answer is the exit code that
        errors have), and troubles of the disk."""
        try:
            return super().invoke(ctx)
        except SystemExit as end:
            if end.code == EXIT_INTERRUPTED:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would break into the exit
            raise
        except (Exception, KeyboardInterrupt) as error:
            if was_interrupted(error):
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                say("interrupted")
                sys.exit(EXIT_INTERRUPTED)
            problem = disk_problem(error)
            if problem is not None:
                raise UserError(problem) from error
            raise

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        close = difflib.get_close_matches(args[0], COMMANDS, 1) if args and args[0] not in COMMANDS else []
        if close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Training itself: python -m paddle.distributed.launch run_pretrain.py CONFIG.json [--key value ...]",
)
@click.version_option(__version__, prog_name="paddle-llm")
def paddle_llm() -> None:
    """Train large language models on PaddlePaddle; every parallel layout runs on a CPU, too.

    \b
    Example:
      paddle-llm tokenizer train --input my_text/ --output_dir tok --vocab_size 8000
      paddle-llm data build --input my_text/ --tokenizer tok --output_prefix corpus/mine --workers 2
    """


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    hide_torch_from_transformers()
    escape_unencodable()
    with exit_on_user_error(), exit_on_lost_rank():
        paddle_llm(prog_name="paddle-llm")
