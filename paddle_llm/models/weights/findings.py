"""Missing, wrong and unused tensors of a folder of weights: collected on each rank, agreed on and reported once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from paddle_llm.core.console import say, say_once
from paddle_llm.core.counts import counted, counted_are
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.files import DOUBLE, WeightFiles
from paddle_llm.models.weights.names import IGNORED_ENDS
from paddle_llm.models.weights.wrapper_names import why_adapter, why_empty, why_wrapped

_SHOWN = 8


@dataclass
class Findings:
    """Results of looking for a network's weights in a folder.

    Attributes:
        missing: Weights that the files do not contain, each with its shape.
        wrong: Descriptions of weights with a wrong shape, type or value.
        not_finite: Names in the files of weights with NaN or infinity.
        used: Names in the files of tensors that belong to the network.
    """

    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def agree(findings: Findings, problem: str | None) -> Findings:
    """Return the union of all ranks' findings, so that all ranks report the same. Collective over all ranks.

    Args:
        findings: Findings of this rank.
        problem: Message of an error that stopped this rank; None without one.

    Raises:
        UserError: If a rank could not read the files; with the problem of the first such rank.
    """
    import paddle.distributed as dist

    everyone: list[tuple[Findings, str | None]] = [(findings, problem)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everyone = []
        dist.all_gather_object(everyone, (findings, problem))
    for _, problem in everyone:
        if problem:
            raise UserError(problem)
    union = Findings()
    for one, _ in everyone:
        union.missing += [line for line in one.missing if line not in union.missing]
        union.wrong += [line for line in one.wrong if line not in union.wrong]
        union.not_finite += [line for line in one.not_finite if line not in union.not_finite]
        union.used |= one.used
    return union


def report(folder: Path, files: WeightFiles, findings: Findings) -> None:
    """Report the files and tensors of the folder that were not read.

    Args:
        folder: Folder of the weights.
        files: Its weight files.
        findings: Findings of all ranks.

    Raises:
        UserError: If weights are missing or wrong.
    """
    if findings.missing or findings.wrong or findings.not_finite:
        raise UserError(_describe(folder, files, findings))
    unexpected = sorted(name for name in files.names() if name not in findings.used and not name.endswith(IGNORED_ENDS))
    if unexpected:
        say(
            f"{folder}: {counted_are(len(unexpected), 'tensor')} not part of this model and ignored: {_shorten(unexpected)}"
        )
    if files.quantized:
        description, nbytes = files.quantized
        full = sum(4 * math.prod(files.shape(name)) for name in files.packed_names())
        say_once(
            f"{folder}: {counted_are(len(files.packed_names()), 'linear layer')} quantized ({description}) and dequantized while it is read: "
            f"{nbytes / 1e6:,.1f} MB in the files, {full / 1e6:,.1f} MB in memory as float32"
        )
    double = sorted(name for name in findings.used if name in files and files.dtype(name) in DOUBLE)
    if double:
        say(f"{folder}: {counted_are(len(double), 'weight')} stored in float64 and read as float32: {_shorten(double)}")
    if files.copies:
        say(
            f"{folder}: {counted_are(len(files.copies), 'tensor')} in more than one file: {_shorten(sorted(files.copies))}. "
            "The copy in the file that the index names is read."
        )
    if files.unlisted:
        say(
            f"{folder}: {counted_are(len(files.unlisted), 'tensor')} not in the index and not read: {_shorten(sorted(files.unlisted))}"
        )
    if files.unread:
        say(f"{folder}: {counted_are(len(files.unread), 'other file')} not read: {_shorten(list(files.unread))}")


def describe_not_finite(folder: Path, sources: list[str]) -> str:
    """Return the message about weights that are NaN or infinite.

    Args:
        folder: Folder of the weights.
        sources: Names of the weights in the files.
    """
    return (
        f"{folder}: NaN or infinity in {counted(len(sources), 'weight')}: {_shorten(sources)}. Use a checkpoint from before the training "
        "failed, or fetch the folder again."
    )


def _describe(folder: Path, files: WeightFiles, findings: Findings) -> str:
    lines = []
    if findings.missing:
        lines.append(f"{folder}: {counted_are(len(findings.missing), 'weight')} missing: {_shorten(findings.missing)}")
    if findings.wrong:
        lines.append(
            f"{folder}: wrong shape or value of {counted(len(findings.wrong), 'weight')}: {_shorten(findings.wrong)}"
        )
    if findings.not_finite:
        lines.append(describe_not_finite(folder, findings.not_finite))
    if findings.missing or findings.wrong:
        unused = [name for name in files.names() if name not in findings.used]
        cause = why_adapter(files.names()) or why_wrapped(unused)
        cause = cause or why_empty({name: files.shape(name) for name in files.names()})
        lines.append(cause or "config.json and the weights belong to different models. Fetch the folder again.")
    return "\n".join(lines)


def _shorten(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
