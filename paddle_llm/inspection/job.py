"""Describe a job from its config alone: arguments, mesh, batch, steps and parameters. Does not import Paddle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from paddle_llm.config.reader import Resolved, entry_of, resolve_for_cluster, resolved_as_json
from paddle_llm.config.rules.engine import Findings, Problem, Rule, Run
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.console import collected
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import parse_weighted_paths
from paddle_llm.data.corpus.dataset import samples_per_epoch
from paddle_llm.data.instructions.data_files import find_files
from paddle_llm.data.samples.dataset import load_split
from paddle_llm.planner.job import Job, job_of, row_length
from paddle_llm.planner.mesh import Groups, groups_of
from paddle_llm.planner.shapes.weights import all_weights, weights_of_stage

_RANKS_PER_MACHINE = 8
# Instructions are counted by reading them; reading more bytes than this takes longer than a second.
_MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class Steps:
    """Length of a training.

    Attributes:
        samples_per_epoch: Rows of one pass over the data; None if they cannot be counted here.
        per_epoch: Optimizer steps of one pass; None if the samples are not counted.
        total: Optimizer steps of the training; None if it is given in epochs and the samples are not counted.
        note: Source of the count, or why the samples are not counted.
    """

    samples_per_epoch: int | None
    per_epoch: float | None
    total: int | None
    note: str


@dataclass(frozen=True)
class StageParameters:
    """Parameters of a rank of one pipeline stage.

    Attributes:
        stage: Number of the stage.
        total: Elements of all weights before sharding.
        trainable: Elements of the trained weights before sharding.
    """

    stage: int
    total: int
    trainable: int


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model.

    Attributes:
        total: Elements of all weights, each counted once, without padding of the vocabulary.
        trainable: Elements of the trained weights.
        per_rank: Elements on the ranks of each pipeline stage.
    """

    total: int
    trainable: int
    per_rank: tuple[StageParameters, ...]


@dataclass(frozen=True)
class JobReport:
    """A job without mistakes.

    Attributes:
        resolved: Resolved config.
        entry_note: How the entry was chosen.
        nodes: Number of machines.
        mesh: Groups of every axis with more than one rank.
        global_batch: Rows per optimizer step.
        row_length: Longest row in tokens.
        steps: Length of the training.
        parameters: Parameters; None if the shape of the model is not known here.
    """

    resolved: Resolved
    entry_note: str
    nodes: int
    mesh: list[Groups]
    global_batch: int
    row_length: int
    steps: Steps
    parameters: Parameters | None

    @property
    def ranks_per_machine(self) -> int:
        """Ranks on one machine."""
        return self.resolved.layout.world_size // self.nodes

    def as_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        resolved = self.resolved
        return {
            "valid": True,
            "problems": [],
            "notices": resolved.notices,
            "entry": resolved.entry,
            "entry_note": self.entry_note,
            **resolved_as_json(resolved),
            "nodes": self.nodes,
            "ranks_per_machine": self.ranks_per_machine,
            "mesh": [asdict(groups) for groups in self.mesh],
            "global_batch": self.global_batch,
            "tokens_per_step": self.global_batch * self.row_length,
            "steps": asdict(self.steps),
            "parameters": asdict(self.parameters) if self.parameters else None,
            "translated": translated(resolved),
        }


def check_job(argv: list[str], *, world_size: int, nodes: int | None, entry: str | None) -> JobReport:
    """Read a config as a cluster would and describe the job.

    Args:
        argv: `[CONFIG.json] [--key value ...]`.
        world_size: Number of ranks of the job.
        nodes: Number of machines; None: machines of eight ranks.
        entry: "pretrain" or "finetune"; None: by the keys of the config.

    Raises:
        ConfigError: If the config has mistakes; the error lists all of them.
    """
    chosen = entry or entry_of(argv)
    note = "as requested" if entry else "by the keys of the config; --entry chooses it"
    rules = [_machines_rule(nodes)] if nodes else []
    resolved = resolve_for_cluster(argv, world_size=world_size, entry=chosen, further_rules=rules)
    config, layout = resolved.config, resolved.layout
    nodes = nodes or _usual_nodes(world_size)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * layout.data_world_size
    return JobReport(
        resolved=resolved,
        entry_note=note,
        nodes=nodes,
        mesh=groups_of(layout, config.hybrid_parallel_topo_order, world_size // nodes),
        global_batch=batch,
        row_length=row_length(config, resolved.entry),
        steps=_steps(resolved, batch),
        parameters=_parameters(job_of(resolved)) if resolved.facts is not None else None,
    )


def translated(resolved: Resolved) -> dict[str, str]:
    """Return the old name or key of each field that was given under another name."""
    return {
        name: origin.removeprefix("translated from ")
        for name, origin in resolved.origins.items()
        if origin.startswith("translated from ")
    }


def _machines_rule(nodes: int) -> Rule:
    def machines_are_alike(run: Run) -> Findings:
        if run.world_size % nodes:
            yield Problem(
                f"--nodes {nodes} does not divide --world_size {run.world_size}. Use machines with equal numbers of ranks."
            )

    return machines_are_alike


def _usual_nodes(world_size: int) -> int:
    return world_size // _RANKS_PER_MACHINE if world_size % _RANKS_PER_MACHINE == 0 else 1


def _parameters(job: Job) -> Parameters:
    weights = list(all_weights(job))
    stages = tuple(_of_stage(job, stage) for stage in range(job.layout.pipeline))
    return Parameters(
        total=sum(weight.full_size for weight in weights),
        trainable=sum(weight.full_size for weight in weights if weight.trained),
        per_rank=stages,
    )


def _of_stage(job: Job, stage: int) -> StageParameters:
    weights = weights_of_stage(job, stage)
    return StageParameters(
        stage=stage,
        total=sum(weight.size for weight in weights),
        trainable=sum(weight.size for weight in weights if weight.trained),
    )


def _steps(resolved: Resolved, batch: int) -> Steps:
    """Return the length of the training, if its data can be read here."""
    config = resolved.config
    given = config.max_steps if config.max_steps > 0 else None
    if not config.do_train:
        return Steps(None, None, 0, "do_train is false")
    with collected():  # the readers report what they find; training prints it
        try:
            rows, note = _rows(config, resolved.entry)
        except UserError as error:
            return Steps(None, None, given, f"the data cannot be read here: {error}")
    if rows is None:
        return Steps(None, None, given, note)
    epochs = config.num_train_epochs * rows / batch
    total = int(epochs) if resolved.entry == "pretrain" else -int(-epochs // 1)
    return Steps(rows, rows / batch, given or total, note)


def _rows(config: RunConfig, entry: str) -> tuple[int | None, str]:
    """Return the rows of an epoch and the source of the number; None with the reason if they are not counted."""
    if entry == "pretrain":
        return samples_per_epoch(
            config, config.max_seq_length
        ), f"samples of {config.max_seq_length:,} tokens in {config.input_dir}"
    size = sum(os.path.getsize(file) for file in _files(config.dataset_name_or_path))
    if size > _MAX_BYTES:
        return None, f"the instructions have {size / 2**20:,.0f} MiB, which take longer to read than this check"
    rows = len(
        load_split(
            config.dataset_name_or_path,
            data_format=config.data_format,
            prompt_templates=config.prompt_templates,
            skip_bad_rows=config.skip_bad_rows,
            seed=config.seed,
            report_files=False,
        )
    )
    if config.zero_padding:
        return None, f"{counted(rows, 'conversation')}, which are packed into rows after they are tokenized"
    return rows, f"conversations in {config.dataset_name_or_path}"


def _files(value: str | None) -> Iterator[str]:
    """Yield the training files of a file, a folder, a pattern or a blend."""
    weighted = parse_weighted_paths(value, "--dataset_name_or_path") if value and not os.path.exists(value) else None
    for path in [value] if weighted is None else [path for _, path in weighted]:
        yield from find_files(path)
