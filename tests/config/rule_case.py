"""Cases of rules: a command line that a rule reports, and one that it accepts. Shared by both test files of rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.config.reader import resolve
from paddle_llm.core.errors import ConfigError
from tests.helpers.models.tiny import write_bloom, write_chatglm, write_chatglm2, write_glm, write_llama

WRITERS = {
    "llama": write_llama,
    "chatglm": write_chatglm,
    "chatglm2": write_chatglm2,
    "bloom": write_bloom,
    "glm": write_glm,
}


@dataclass(frozen=True)
class Case:
    """A command line for a tiny model and the message that a rule gives about it.

    Attributes:
        rule: Name of the rule.
        flags: Flags to which the rule responds.
        problem: Expected part of its problem.
        notice: Expected part of its notice.
        fine: Other flags, to which the rule does not respond.
        world: World size.
        device: "cpu" or "gpu".
        model: Family of the model.
        shape: Overrides of config.json.
        here: Whether the run is for this machine, where only the empty folder `there` exists.
        entry: "pretrain" or "finetune".
    """

    rule: str
    flags: str
    problem: str = ""
    notice: str = ""
    fine: str = ""
    world: int = 1
    device: str = "gpu"
    model: str = "llama"
    shape: tuple[tuple[str, Any], ...] = ()
    here: bool = False
    entry: str = "pretrain"


BASES = {
    "pretrain": "--input_dir ./data --max_seq_length 64",
    "finetune": "--max_length 64 --continue_training 0",
}


def resolve_case(case: Case, flags: str, folder: Path) -> tuple[list[str], list[str]]:
    model = WRITERS[case.model](folder, **dict(case.shape))
    base = f"--do_train --model_name_or_path {model} --output_dir ./out {BASES[case.entry]}"
    argv = [*base.split(), *flags.split(), *(["--device", "cpu"] if case.here else [])]
    try:
        return [], resolve(
            argv, world_size=case.world, entry=case.entry, device=None if case.here else case.device
        ).notices
    except ConfigError as error:
        return error.problems, []


def check(case: Case, folder: Path) -> None:
    """Check that the rule reports `flags` exactly once and nothing else is reported, and that it accepts the flags `fine`."""
    problems, notices = resolve_case(case, case.flags, folder)
    found, text = (problems, case.problem) if case.problem else (notices, case.notice)
    assert len([line for line in found if text in line]) == 1, (problems, notices)
    if case.problem:
        assert len(problems) == 1, "one mistake is reported once"
    if case.fine:
        problems, notices = resolve_case(case, case.fine, folder)
        assert problems == []
        assert not [line for line in notices if text in line]
