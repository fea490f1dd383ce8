"""`paddle-llm simulate`: step times, goodput and checkpoint interval of a job on many ranks, by event simulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from paddle_llm.cli.number_option import FiniteNumber, WholeNumber
from paddle_llm.cli.path_option import PATHLIB
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.planner.pipeline.schedules import SCHEDULES
from paddle_llm.planner.simulation.drawings import chrome_trace, svg
from paddle_llm.planner.simulation.goodput import Failures
from paddle_llm.planner.simulation.report import failure_result, result_lines, step_result
from paddle_llm.planner.simulation.scenario import Scenario
from paddle_llm.planner.simulation.step_times import simulate_steps, slowest_timeline

_DEGREE = WholeNumber(min=1)
_SHARE = FiniteNumber(min=0, max=1)
_AMOUNT = FiniteNumber(min=0)


class Milliseconds(click.ParamType[Any]):
    """One number for all pipeline ranks, or one for each, separated by commas."""

    name = "ms,ms,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Convert text to seconds.

        Raises:
            click.BadParameter: If a part is not a finite number of at least 0.
        """
        if isinstance(value, tuple):
            return value
        return tuple(_AMOUNT(part.strip(), param, ctx) / 1e3 for part in str(value).split(","))


class SlowRank(click.ParamType[Any]):
    """A rank and the factor on its times."""

    name = "RANK:FACTOR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """Convert text such as `17:1.3`.

        Raises:
            click.BadParameter: If it is not a rank and a factor.
        """
        if isinstance(value, tuple):
            return value
        rank, _, factor = str(value).partition(":")
        return (
            WholeNumber(min=0)(rank, param, ctx),
            FiniteNumber(min=0, min_open=True)(factor, param, ctx),
        )


_MILLISECONDS = Milliseconds()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--schedule", type=click.Choice(list(SCHEDULES)), default="1f1b", show_default=True, help="Pipeline schedule."
)
@click.option(
    "--pipeline_parallel_degree", "pipeline", type=_DEGREE, default=1, show_default=True, help="Pipeline ranks."
)
@click.option(
    "--virtual_pp_degree",
    "virtual_stages",
    type=_DEGREE,
    default=1,
    show_default=True,
    help="Virtual stages per pipeline rank.",
)
@click.option(
    "--tensor_parallel_degree", "tensor", type=_DEGREE, default=1, show_default=True, help="Tensor-parallel ranks."
)
@click.option(
    "--replicas", type=_DEGREE, default=1, show_default=True, help="Data-parallel ranks: data times sharding degree."
)
@click.option(
    "--micro_batches", type=_DEGREE, required=True, help="Micro-batches of a step (gradient_accumulation_steps)."
)
@click.option(
    "--forward_ms",
    "forward",
    type=_MILLISECONDS,
    required=True,
    help="Forward pass of a micro-batch: one number, or one per pipeline rank.",
)
@click.option(
    "--backward_ms", "backward", type=_MILLISECONDS, required=True, help="Backward pass of a micro-batch, likewise."
)
@click.option(
    "--weight_ms",
    "weight",
    type=_MILLISECONDS,
    help="Part of the backward pass that computes gradients of weights, for zero-bubble. Default: half of it.",
)
@click.option(
    "--transfer_ms",
    type=_AMOUNT,
    default=0.0,
    show_default=True,
    help="Transfer of a micro-batch between pipeline ranks.",
)
@click.option(
    "--update_ms", type=_AMOUNT, default=0.0, show_default=True, help="Reduction of gradients and optimizer step."
)
@click.option(
    "--jitter",
    type=_AMOUNT,
    default=0.0,
    show_default=True,
    help="Standard deviation of a rank's compute time per step, as a share of the mean.",
)
@click.option(
    "--link_jitter", type=_AMOUNT, default=0.0, show_default=True, help="The same for the links between pipeline ranks."
)
@click.option(
    "--stragglers", type=_SHARE, default=0.0, show_default=True, help="Probability that a rank is slow in a step."
)
@click.option(
    "--slowdown", type=FiniteNumber(min=1), default=1.5, show_default=True, help="Factor on the times of such a rank."
)
@click.option(
    "--slow_rank",
    "slow_ranks",
    type=SlowRank(),
    multiple=True,
    help="Rank that is slow in every step, and the factor on its times.",
)
@click.option(
    "--samples", type=WholeNumber(min=1, max=1_000_000), default=1000, show_default=True, help="Simulated steps."
)
@click.option(
    "--mtbf_hours",
    type=FiniteNumber(min=0, min_open=True),
    help="Mean time between failures of one device. Without it no failures are simulated.",
)
@click.option(
    "--checkpoint_seconds",
    type=FiniteNumber(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time that one checkpoint stops training.",
)
@click.option(
    "--restart_seconds", type=_AMOUNT, default=300.0, show_default=True, help="Time from a failure to the next step."
)
@click.option("--max_steps", type=WholeNumber(min=1), help="Steps of the job, for its duration.")
@click.option("--seed", type=WholeNumber(min=0), default=0, show_default=True, help="Seed of the random numbers.")
@click.option(
    "--svg",
    "svg_file",
    type=PATHLIB,
    metavar="FILE",
    help="Write the first simulated step of the slowest pipeline as a picture.",
)
@click.option(
    "--trace", "trace_file", type=PATHLIB, metavar="FILE", help="Write it as a trace for chrome://tracing or Perfetto."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def simulate(svg_file: Path | None, trace_file: Path | None, as_json: bool, **options: Any) -> None:
    """Simulate the steps of a job on many ranks, and its failures.

    The passes of every micro-batch through every pipeline rank are simulated as events, with unequal stages, random noise,
    stragglers and slow links. Tensor-parallel ranks wait for the slowest of their group, a step waits for the slowest
    pipeline. Ranks are numbered as in training: tensor fastest, then pipeline, then replicas.

    With --mtbf_hours, failures are simulated for a range of checkpoint intervals. The best one is printed beside the
    intervals by the formulas of Young and Daly. The same --seed gives the same result.

    \b
    Example:
      paddle-llm simulate --pipeline_parallel_degree 8 --tensor_parallel_degree 8 --replicas 16 --micro_batches 32 \\
        --forward_ms 21 --backward_ms 42 --transfer_ms 0.4 --update_ms 180 --jitter 0.02 --stragglers 0.001 \\
        --mtbf_hours 40000 --checkpoint_seconds 45 --max_steps 100000 --svg step.svg
    """
    scenario = _scenario(options)
    seed = options["seed"]
    for file in (svg_file, trace_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{file}: the folder {file.parent} does not exist. Create it, or choose another file.")
    steps = simulate_steps(scenario, options["samples"], seed)
    result: dict[str, Any] = {"world_size": scenario.world_size, "step": step_result(steps)}
    if options["mtbf_hours"] is not None:
        mean_time = options["mtbf_hours"] * 3600 / scenario.world_size
        failures = Failures(mean_time, options["checkpoint_seconds"], options["restart_seconds"])
        result["failures"] = failure_result(steps, failures, options["max_steps"], seed)
    elif options["max_steps"]:
        result["job_hours"] = options["max_steps"] * steps.mean / 3600
    if svg_file or trace_file:
        timeline, slowest = slowest_timeline(scenario, seed)
        title = f"{scenario.schedule}, {counted(scenario.micro_batches, 'micro-batch', 'micro-batches')}, pipeline {slowest}"
        if svg_file:
            write_atomically(svg_file, svg(timeline, title).encode())
        if trace_file:
            write_atomically(trace_file, chrome_trace(timeline, slowest).encode())
    print(json.dumps(result, indent=2) if as_json else "\n".join(result_lines(result)))


def _scenario(options: dict[str, Any]) -> Scenario:
    """Return the scenario that the options describe.

    Raises:
        UserError: If options contradict each other.
    """
    ranks, schedule = options["pipeline"], options["schedule"]
    forward, backward = (_by_rank(options[name], ranks, f"--{name}_ms") for name in ("forward", "backward"))
    weight = (0.0,) * ranks
    if schedule == "zero-bubble":
        if options["weight"] is None:
            say("--weight_ms is not given: half of --backward_ms is taken for the gradients of the weights.")
            weight = tuple(one / 2 for one in backward)
        else:
            weight = _by_rank(options["weight"], ranks, "--weight_ms")
        if any(part > whole for part, whole in zip(weight, backward, strict=True)):
            raise UserError("--weight_ms is more than --backward_ms, of which it is a part. Use less.")
        backward = tuple(whole - part for whole, part in zip(backward, weight, strict=True))
    elif options["weight"] is not None:
        raise UserError(
            f"--weight_ms has no effect on the schedule {schedule}. Drop it, or use --schedule zero-bubble."
        )
    if max(forward) + max(backward) <= 0:
        raise UserError("--forward_ms and --backward_ms are 0. Give the times of a micro-batch.")
    slow = dict(options["slow_ranks"])
    scenario = Scenario(
        schedule=schedule,
        pipeline=ranks,
        virtual_stages=options["virtual_stages"],
        micro_batches=options["micro_batches"],
        replicas=options["replicas"],
        tensor=options["tensor"],
        forward=forward,
        backward=backward,
        weight=weight,
        transfer=options["transfer_ms"] / 1e3,
        update=options["update_ms"] / 1e3,
        jitter=options["jitter"],
        link_jitter=options["link_jitter"],
        straggler_share=options["stragglers"],
        slowdown=options["slowdown"],
        slow_ranks=slow,
    )
    outside = [rank for rank in slow if rank >= scenario.world_size]
    if outside:
        raise UserError(
            f"--slow_rank {outside[0]} is not one of the {scenario.world_size} ranks. Use 0 to {scenario.world_size - 1}."
        )
    return scenario


def _by_rank(seconds: tuple[float, ...], ranks: int, option: str) -> tuple[float, ...]:
    if len(seconds) == 1:
        return seconds * ranks
    if len(seconds) != ranks:
        raise UserError(
            f"{option} has {len(seconds)} numbers for {counted(ranks, 'pipeline rank')}. Give one number, or one per rank."
        )
    return seconds
