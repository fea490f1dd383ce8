"""`export`: write a trained model in the format of another library, complete and verified, or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm import __version__
from paddle_llm.core.artifacts import EXPORT_RECORD
from paddle_llm.core.atomic_output import staged_folder
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.export.options import Options
from paddle_llm.export.source.find import Found, find
from paddle_llm.export.targets.output_folder import check_out, check_outside, check_space, human
from paddle_llm.export.verification.report import Proof, check_proof, prove
from paddle_llm.models.configuration.machine_paths import portable_name

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source

TARGETS = {
    "hf": ("paddle_llm.export.targets.hugging_face:write_hf", "Hugging Face's folder"),
    "fastdeploy": ("paddle_llm.export.targets.fastdeploy:write_fastdeploy", "FastDeploy 2.x's folder"),
    "static": ("paddle_llm.export.targets.static.target:write_static", "a static program for paddle.inference"),
}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LEAST_BYTES = 10**6  # of a size that is written without a unit


@dataclass(frozen=True)
class Exported:
    """What an export has come to.

    Attributes:
        folder: where it is.
        files: name -> bytes.
        findings: of the verification, one for each engine; [] without one.
        seconds: for all of it.
    """

    folder: Path
    target: str
    files: dict[str, int]
    findings: list[Any]
    seconds: float


def export(
    folder: str | Path,
    target: str,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    verify: bool = True,
    overwrite: bool = False,
    allow_pickle: bool = False,
    engines: Collection[str] | None = None,
    paddleformers_python: str | Path | None = None,
) -> Exported:
    """Write what `folder` holds to `out` as others load it: complete and verified, or not at all.

    Args:
        folder: a model folder, an output folder of a run, a checkpoint of any layout, an adapter.
        target: "hf", "fastdeploy" or "static".
        adapter: added to the weights of `folder`.
        tokenizer: folder of the tokenizer, where it is not beside the weights.
        dtype: "float32", "bfloat16" or "float16"; None: as stored.
        max_shard_size: of one file of weights, such as "5GB" or "500MB", or (a number) in bytes.
        verify: compare logits and greedy tokens of the export with those of its source.
        overwrite: replace an export that is at `out`.
        allow_pickle: read torch's pickles, too, where there is nothing else.
        engines: that compare: some of export/verification/verify.py's `ENGINES`; None: all that are installed and can load the target.
        paddleformers_python: the Python of an environment with PaddleFormers, for the verification.

    Raises:
        UserError: a mistake of whoever asks; nothing is written.
        ExportFailed: what was written is not equal to its source, breaks the target's contract, or could not be compared.
    """
    begun = time.monotonic()
    if not str(folder) or not str(out):
        raise UserError(
            "CHECKPOINT and OUT name folders; one of them is empty (a variable of the shell that is not set?)"
        )
    out, options = Path(out).expanduser().resolve(), Options(dtype, size_in_bytes(max_shard_size))
    if target not in TARGETS:
        raise UserError(f"--target {target!r}: there are {', '.join(TARGETS)}")
    check_out(out, Path(folder), overwrite)
    proof = Proof(verify, None if engines is None else tuple(engines), paddleformers_python)
    check_proof(target, proof)
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        raise UserError("an export is written by one process: start it without paddle.distributed.launch")
    if target == "static" and options.max_shard_size != Options.max_shard_size:
        say("--max_shard_size has no effect: a static program has one file of weights")
    found = find(Path(folder), adapter=_path(adapter), tokenizer=_path(tokenizer))
    check_outside(out, found.model, found.adapter, found.tokenizer)
    source = _open(found, allow_pickle)
    if target == "fastdeploy" and source.tokenizer is None:
        raise UserError(
            f"--target fastdeploy: {source.folder} has no tokenizer, without which FastDeploy reads no prompt: name its folder "
            "with --tokenizer"
        )
    size = _weigh(source, "float32" if target == "static" else options.dtype)
    check_space(out, size)
    say(f"writing {source.family.title}, {human(size)} of weights, to {out}")
    with staged_folder(out) as staged:
        check_out(out, Path(folder), overwrite)  # again: since then somebody may have written there
        module, _, function = TARGETS[target][0].partition(":")
        getattr(import_module(module), function)(source, staged, options)
        findings = prove(source, staged, target, proof)
        _record(source, staged, target, options, findings)
    files = {str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    return Exported(out, target, files, findings, time.monotonic() - begun)


def size_in_bytes(text: str | int) -> int:
    """5GB -> 5000000000; also MB, KB, GiB, ... or bytes.

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise UserError(f"--max_shard_size {text}: write it like 5GB or 500MB")
    if isinstance(text, str) and not match.group(2) and float(text) < _LEAST_BYTES:
        raise UserError(f"--max_shard_size {text} would be {text.strip()} bytes: write it like 5GB or 500MB")
    return int(float(match.group(1)) * unit)


def _path(named: str | Path | None) -> Path | None:
    return Path(named) if named else None


def _open(found: Found, allow_pickle: bool) -> Source:
    from paddle_llm.generation.network import start_process

    start_process("cpu")
    from paddle_llm.export.source.source import open_found

    return open_found(found, allow_pickle=allow_pickle)


def _weigh(source: Source, dtype: str | None) -> int:
    """Bytes of all weights."""
    from paddle_llm.export.source.dtypes import ITEM_SIZES

    return sum(math.prod(source.shape(name)) * ITEM_SIZES[dtype or source.dtype(name)] for name in source.names())


def _record(source: Source, staged: Path, target: str, options: Options, findings: list[Any]) -> None:
    """What was exported from where, and what was compared: export.json for programs, README.md for people."""
    from paddle_llm.export.targets.serving_files import write_readme

    described = {
        "target": target,
        "source": portable_name(source.folder),
        "adapter": portable_name(source.adapter) if source.adapter else None,
        "family": source.family.title,
        "dtype": _dtype_of(source, target, options),
        "paddle_llm": __version__,
    }
    record = {**described, "verified": [asdict(finding) for finding in findings]}
    (staged / EXPORT_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_readme(staged, target, findings, described)


def _dtype_of(source: Source, target: str, options: Options) -> str:
    """What the export's weights are of, in words: several types only where they were stored so and are not to be of one."""
    from paddle_llm.export.targets.hugging_face import usual_dtype

    if options.dtype or target == "static":
        return options.dtype or "float32"
    usual = usual_dtype(source)
    more = sorted({source.dtype(name) for name in source.names()} - {usual}) if target == "hf" else []
    return " and ".join([usual, *more])
