"""`paddle-llm pretrain` and `paddle-llm finetune`: check a config, then train on one process or many."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import UnprocessedParamType

from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.cli.path_option import PATH
from paddle_llm.config.help import help_text
from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import Entry, fields_of
from paddle_llm.core.console import say
from paddle_llm.training.launch.elastic import ElasticNodes
from paddle_llm.training.launch.options import LaunchOptions, launch_command, launch_environment
from paddle_llm.training.launch.preflight import JOB_RULES, tokenizer_is_complete
from paddle_llm.training.launch.restart import restart_flags
from paddle_llm.training.launch.supervisor import supervise

_OPTIONS = (
    click.option(
        "--nproc_per_node",
        type=WholeNumber(min=1),
        help="Processes on this machine. Default: one per card of --gpus, else 1.",
    ),
    click.option("--gpus", metavar="0,1,...", help="Cards of this machine. Default: the first visible ones."),
    click.option(
        "--nnodes", type=WholeNumber(min=1), default=1, show_default=True, help="Machines; start the command on each."
    ),
    click.option(
        "--min_nodes",
        type=WholeNumber(min=1),
        help="Restart with at least this many machines, if others are lost; the global batch stays. Default: --nnodes.",
    ),
    click.option(
        "--master", metavar="HOST:PORT", help="First machine and a port that is free there; for --nnodes > 1."
    ),
    click.option(
        "--node_rank", type=WholeNumber(min=0), help="Number of this machine, from 0. Default: in order of arrival."
    ),
    click.option(
        "--max_restarts",
        type=WholeNumber(min=0),
        default=0,
        show_default=True,
        help="Restarts after a failure, each from the newest checkpoint.",
    ),
    click.option("--log_dir", type=PATH, default="log", show_default=True, help="Folder for the output of each rank."),
)
# Paragraph of --help of both commands, between the first one and the examples.
_PROCESSES = """The config is checked first: all its mistakes are reported together before a process is started. With several
processes, the output of rank 0 is shown, and --log_dir gets that of all ranks and of Paddle's launcher."""


class _Word(UnprocessedParamType):
    """A config or a flag of the job; the shell completes names of files."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete the name of a file."""
        return [CompletionItem(incomplete, type="file")]


class TrainingCommand(click.Command):
    """A command whose help also lists the flags of a config."""

    entry: Entry = "pretrain"

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Append the flags of a config, grouped."""
        formatter.write("\n" + help_text(self.entry, formatter.width, usage=False))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the options and flags that begin with the typed text."""
        flags = [f"--{name}" for name in fields_of(self.entry)] if incomplete.startswith("-") else []
        return [
            *super().shell_complete(ctx, incomplete),
            *(CompletionItem(flag) for flag in flags if flag.startswith(incomplete)),
        ]


class FinetuneCommand(TrainingCommand):
    """`paddle-llm finetune`."""

    entry: Entry = "finetune"


def _command(cls: type[TrainingCommand]) -> Callable[[Callable[..., None]], click.Command]:
    def decorate(function: Callable[..., None]) -> click.Command:
        for option in reversed(_OPTIONS):
            function = option(function)
        words = click.argument("words", nargs=-1, type=_Word(), metavar="[CONFIG.json] [--key value ...]")
        settings = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
        purpose, examples = inspect.cleandoc(function.__doc__ or "").split("\n\n", 1)
        text = f"{purpose}\n\n{_PROCESSES}\n\n{examples}"
        return click.command(cls.entry, cls=cls, help=text, context_settings=settings)(words(function))

    return decorate


@_command(TrainingCommand)
def pretrain(words: tuple[str, ...], **options: Any) -> None:
    """Pretrain a language model.

    \b
    Examples:
      paddle-llm pretrain pretrain.json
      paddle-llm pretrain pretrain.json --gpus 0,1,2,3,4,5,6,7 --max_restarts 3
      paddle-llm pretrain pretrain.json --device cpu --nproc_per_node 8 --max_steps 100
      paddle-llm pretrain pretrain.json --nproc_per_node 8 --nnodes 4 --master 10.0.0.1:37777
    """
    _train("pretrain", list(words), LaunchOptions(**options))


@_command(FinetuneCommand)
def finetune(words: tuple[str, ...], **options: Any) -> None:
    """Fine-tune a language model on instructions: all weights, LoRA, prefix tuning and others.

    \b
    Examples:
      paddle-llm finetune lora.json
      paddle-llm finetune lora.json --gpus 0,1 --max_restarts 3
      paddle-llm finetune --model_name_or_path my_model --dataset_name_or_path my_rows.jsonl --lora 1 --output_dir out
    """
    _train("finetune", list(words), LaunchOptions(**options))


def _train(entry: Entry, words: list[str], options: LaunchOptions) -> None:
    options.check()
    if not options.needs_launcher:
        from paddle_llm.training.run import main

        main(words, entry)
        return
    # Rank 0 checks an output folder that several machines share; here they would disturb each other.
    rules = JOB_RULES if options.nnodes == 1 else [tokenizer_is_complete]
    resolved = resolve(words, world_size=options.world_size, entry=entry, further_rules=rules)
    device = str(resolved.config.device)

    elastic = None
    if options.min_nodes is not None:
        elastic = ElasticNodes(
            resolved,
            nodes=options.nnodes,
            min_nodes=options.min_nodes,
            master=str(options.master),
            node_rank=options.node_rank,
        )

    def command(more: list[str]) -> list[str]:
        if elastic is not None:
            start = elastic.next_start()
            return launch_command(options, entry, device, [*words, *more, *start.flags], (start.nodes, start.rank))
        line = launch_command(options, entry, device, [*words, *more])
        if options.nnodes > 1:
            say(
                f"Waiting for {options.nnodes} machines at {options.master}. The launcher's log is in {options.log_folder}."
            )
        return line

    code = supervise(
        command,
        launch_environment(options, device),
        options.log_folder,
        options.max_restarts,
        lambda started: restart_flags(started, words),
    )
    sys.exit(code)
