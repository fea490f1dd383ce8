"""The `paddle-llm` command. The module of a subcommand is imported only when it runs."""

from __future__ import annotations

import difflib
import signal
import sys
from importlib import import_module
from typing import Any

import click

from paddle_llm import __version__
from paddle_llm.cli.completion import completion_option
from paddle_llm.core.atomic_output import disk_problem
from paddle_llm.core.console import escape_unencodable, say
from paddle_llm.core.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error, was_interrupted
from paddle_llm.core.transformers_import import hide_torch_from_transformers
from paddle_llm.parallel.process.failure_detection import exit_on_lost_rank

# Name -> module and attribute of the click command, its line in --help.
COMMANDS = {
    "pretrain": ("paddle_llm.cli.train:pretrain", "Pretrain a model on one process or many."),
    "finetune": ("paddle_llm.cli.train:finetune", "Fine-tune a model on instructions, on one process or many."),
    "recipes": ("paddle_llm.cli.recipes:recipes", "List, show and copy the configs that come with the package."),
    "tokenizer": ("paddle_llm.cli.data:tokenizer", "Train a sentencepiece tokenizer on your text."),
    "data": ("paddle_llm.cli.data:data", "Tokenize text into a corpus; inspect a corpus or instruction data."),
    "check-model": (
        "paddle_llm.cli.check_model:check_model",
        "Report how a model, tokenizer or adapter folder is read.",
    ),
    "check": ("paddle_llm.cli.check:check", "Report every mistake of a config, and what the job would do."),
    "plan": ("paddle_llm.cli.plan:plan", "Estimate the step time and memory of a config on GPUs."),
    "simulate": (
        "paddle_llm.cli.simulate:simulate",
        "Simulate step times, failures and checkpoints of a job on many ranks.",
    ),
    "rehearse": (
        "paddle_llm.cli.rehearse:rehearse",
        "Check a config for a cluster on CPU ranks before it runs on GPUs.",
    ),
    "generate": ("paddle_llm.cli.generate:generate", "Continue prompts, answer a file, or chat with a model."),
    "serve": ("paddle_llm.cli.serve:serve", "Serve a model by OpenAI's HTTP API."),
    "evaluate": (
        "paddle_llm.cli.evaluate:evaluate",
        "Print perplexity, or scores of answers, of several models in one table.",
    ),
    "export": (
        "paddle_llm.cli.export:export_command",
        "Write a model for Hugging Face, FastDeploy, llama.cpp or paddle.inference.",
    ),
    "merge": ("paddle_llm.cli.merge:merge", "Merge several LoRA adapters of one base into one adapter."),
    "quantize": (
        "paddle_llm.cli.quantize:quantize_command",
        "Quantize the linear layers of a model to 8, 4 or 3 bits (RTN, GPTQ).",
    ),
    "convert": (
        "paddle_llm.cli.convert:convert",
        "Convert a LoRA adapter to or from the format of Hugging Face's PEFT.",
    ),
    "checkpoint": ("paddle_llm.cli.checkpoint:checkpoint", "List, verify and convert checkpoints."),
    "board": ("paddle_llm.cli.board:board", "Show the curves of an output folder (VisualDL)."),
}


class LazyGroup(click.Group):
    """A group that imports the modules of its commands on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and report a Ctrl-C or an error of the disk in one line.

        On a Ctrl-C, click itself exits with the same code as for other errors.
        """
        try:
            return super().invoke(ctx)
        except SystemExit as end:
            if end.code == EXIT_INTERRUPTED:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the exit
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; name a similar one if it does not exist."""
        close = difflib.get_close_matches(args[0], COMMANDS, 1) if args and args[0] not in COMMANDS else []
        if close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if it does not exist."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@completion_option
@click.version_option(__version__, prog_name="paddle-llm")
def paddle_llm() -> None:
    """Train large language models on PaddlePaddle. Every parallel layout also runs on a CPU.

    \b
    Example:
      paddle-llm tokenizer train --input my_text/ --output_dir tok --vocab_size 8000
      paddle-llm data build --input my_text/ --tokenizer tok --output_prefix corpus/mine --workers 2
      paddle-llm pretrain pretrain.json --gpus 0,1,2,3
    """


def main() -> None:
    """Run the command line. A mistake of the user is one message and exit code 2."""
    hide_torch_from_transformers()
    escape_unencodable()
    with exit_on_user_error(), exit_on_lost_rank():
        paddle_llm(prog_name="paddle-llm")
