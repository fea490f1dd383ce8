"""`paddle-llm export`: write a model in the format of another library."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import EXIT_INTERRUPTED
from paddle_llm.export.api import DTYPES, TARGETS, Exported, export
from paddle_llm.export.targets.output_folder import human
from paddle_llm.export.verification.report import ExportFailed, report_findings

_EXAMPLE = """\b
Examples:
  paddle-llm export output/llama_7b --target hf exports/llama_7b
  paddle-llm export output/llama_7b/checkpoint-2000 --target fastdeploy exports/served --dtype bfloat16
  paddle-llm export models/llama-7b --adapter output/lora/adapter --target hf exports/tuned --max_shard_size 2GB
  paddle-llm export models/chatglm3-6b --target static exports/program
  paddle-llm export output/llama_7b --target gguf exports/llama_7b_gguf --dtype q8_0
"""


@click.command(name="export", epilog=_EXAMPLE)
@click.argument("checkpoint", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--target",
    required=True,
    type=click.Choice(list(TARGETS), case_sensitive=False),
    help="; ".join(f"{name}: {what}" for name, (_, what) in TARGETS.items()) + ".",
)
@click.option("--adapter", type=PATHLIB, help="LoRA or AdaLoRA adapter to merge into the weights of CHECKPOINT.")
@click.option("--tokenizer", type=PATHLIB, help="Folder of the tokenizer. [default: CHECKPOINT]")
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Type of the weights; q8_0 with --target gguf only. [default: as stored]"
)
@click.option(
    "--max_shard_size", default="5GB", show_default=True, help="Maximum size of a file with weights, such as 500MB."
)
@click.option("--no_verify", is_flag=True, help="Do not compare the export with its source (for huge models).")
@click.option(
    "--engines",
    callback=lambda context, option, names: names if names is None else [name.strip() for name in names.split(",")],
    help="Engines to compare with, separated by commas: paddle, paddle.inference, transformers, paddleformers, llama.cpp. "
    "[default: all that are installed]",
)
@click.option(
    "--paddleformers_python",
    type=PATHLIB,
    help="Python of an environment with PaddleFormers, to compare with that engine; launch/paddleformers_env.sh creates one.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing export at OUT.")
@click.option("--allow_pickle", is_flag=True, help="Read torch's pytorch_model.bin if there are no safetensors.")
def export_command(checkpoint: str, out: str, target: str, no_verify: bool, **options: Any) -> None:
    """Write the model in CHECKPOINT to the folder OUT in the format of another library.

    CHECKPOINT is a model folder, the output folder of a run, a checkpoint of any layout, or an adapter. The export is
    compared with its source in every installed engine. OUT appears only after all comparisons have passed.
    """
    try:
        done = export(checkpoint, target, out, verify=not no_verify, **options)
    except ExportFailed as failure:
        say(f"failed: {failure}\n{out} was not written")
        sys.exit(1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the exit
        say(f"interrupted; {out} was not written")
        sys.exit(EXIT_INTERRUPTED)
    report_findings(done.findings)
    if no_verify:
        say("not compared with its source (--no_verify)")
    _print_summary(done)


def _print_summary(done: Exported) -> None:
    """Print the result on stdout."""
    shards = [size for name, size in done.files.items() if name.endswith((".safetensors", ".pdiparams", ".gguf"))]
    count = counted(len(shards) or 1, "file of weights", "files of weights")
    click.echo(
        f"{done.folder}: {TARGETS[done.target][1]}, {human(sum(done.files.values()))}, {count}, {done.seconds:.1f} s"
    )
