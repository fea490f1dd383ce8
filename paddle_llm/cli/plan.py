"""`paddle-llm plan`: estimated step time of a config on GPUs, without Paddle and without GPUs."""

from __future__ import annotations

import json

import click

from paddle_llm.cli.number_option import FiniteNumber, WholeNumber
from paddle_llm.cli.path_option import PATH
from paddle_llm.config.reader import entry_of, resolve_for_cluster
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.planner.gpus import find_gpu
from paddle_llm.planner.job import job_of
from paddle_llm.planner.memory.report import memory_lines, memory_of, notes_on_memory
from paddle_llm.planner.time.report import estimate, estimate_lines


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.json [--key value ...]")
@click.option("--world_size", type=WholeNumber(min=1), required=True, help="Number of ranks (GPUs) of the job.")
@click.option(
    "--gpu", required=True, type=PATH, help="Kind of the GPUs, such as a100-80g, h100 or b200, or a JSON file."
)
@click.option(
    "--entry", type=click.Choice(["pretrain", "finetune"]), help="Kind of the job.  [default: by the keys of CONFIG]"
)
@click.option("--tokens", type=FiniteNumber(min=1), help="Tokens of the training.  [default: those of max_steps]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def plan(
    words: tuple[str, ...], world_size: int, gpu: str, entry: str | None, tokens: float | None, as_json: bool
) -> None:
    """Estimate the step time of a config on GPUs.

    The config is checked as the cluster would read it. The time of every matrix product, of attention, element-wise
    kernels, collectives, waiting pipeline stages and the optimizer step is estimated from the shapes and the device.
    The memory of the fullest rank is listed by component. Any --key value of the config may be given, as in training.

    \b
    Example:
      paddle-llm plan configs/pretrain/llama_2_70b_tp8_pp4.json --world_size 32 --gpu a100-80g --tokens 1e9
      paddle-llm plan my.json --world_size 16 --gpu h100 --gradient_accumulation_steps 32 --json
    """
    device = find_gpu(gpu)
    argv = list(words)
    resolved = resolve_for_cluster(argv, world_size=world_size, entry=entry or entry_of(argv))
    for line in resolved.notices:
        say(line)
    if resolved.config.device == "cpu":
        raise UserError("device = cpu: step times on a CPU are not estimated. Drop --device cpu.")
    if resolved.facts is None:
        name = resolved.config.model_name_or_path
        raise UserError(
            f"config.json of {name} is not on this machine, so its shape is not known. Use a folder of this machine."
        )
    job = job_of(resolved, ranks_per_machine=device.per_machine)
    config = resolved.config
    if resolved.entry == "finetune" and not (config.pad_to_max_length or config.zero_padding):
        say(f"Every row is taken to have {job.seq_length} tokens (max_length). Shorter rows take less time.")
    max_steps = config.max_steps
    result, message = estimate(job, device, tokens=tokens, max_steps=max_steps if max_steps > 0 else None)
    result["memory"] = memory_of(job, device)
    for line in (message, *notes_on_memory(job)):
        say(line)
    lines = [*estimate_lines(result), *memory_lines(result["memory"])]
    print(json.dumps(result, indent=1) if as_json else "\n".join(lines))
