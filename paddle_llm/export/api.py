"""`export` writes a trained model in the format of another library, completely and verified, or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from paddle_llm import __version__
from paddle_llm.checkpoint.locate import locate_export_source
from paddle_llm.core.artifacts import EXPORT_RECORD
from paddle_llm.core.atomic_output import staged_folder
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.export.options import Options
from paddle_llm.export.source.dtypes import ITEM_SIZES
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.gguf.tensors import Q8_0, gguf_tensors
from paddle_llm.export.targets.hugging_face import usual_dtype
from paddle_llm.export.targets.output_folder import check_out, check_outside, check_space, human
from paddle_llm.export.targets.serving_files import write_readme
from paddle_llm.export.verification.compare import Finding
from paddle_llm.export.verification.report import VerificationOptions, check_options, verify_export
from paddle_llm.families import FAMILIES
from paddle_llm.generation.network import start_process
from paddle_llm.models.configuration.machine_paths import portable_name

TARGETS = {
    "hf": ("paddle_llm.export.targets.hugging_face:write_hf", "Hugging Face's folder"),
    "fastdeploy": ("paddle_llm.export.targets.fastdeploy:write_fastdeploy", "FastDeploy 2.x's folder"),
    "static": ("paddle_llm.export.targets.static.target:write_static", "a static program for paddle.inference"),
    "gguf": ("paddle_llm.export.targets.gguf.target:write_gguf", "one GGUF file for llama.cpp"),
}
DTYPES = ("float32", "bfloat16", "float16", Q8_0)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MIN_BYTES = 10**6  # a smaller size without a unit probably lacks MB or GB


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: Folder of the export.
        target: "hf", "fastdeploy", "static" or "gguf".
        files: Name -> size in bytes.
        findings: Findings of the verification, at least one per engine; [] without verification.
        seconds: Duration of the export.
    """

    folder: Path
    target: str
    files: dict[str, int]
    findings: list[Finding]
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
    """Write a model in the format of another library. If the export is wrong, nothing is written.

    Args:
        folder: Model folder, output folder of a run, checkpoint of any layout, or adapter.
        target: "hf", "fastdeploy", "static" or "gguf".
        out: Folder of the export.
        adapter: Adapter that is merged into the weights of `folder`.
        tokenizer: Folder of the tokenizer; None: the one beside the adapter or the weights.
        dtype: "float32", "bfloat16" or "float16"; for gguf also "q8_0"; None: as stored.
        max_shard_size: Maximum size of a weight file, such as "5GB" or "500MB", or a number of bytes.
        verify: Whether logits and greedy tokens of the export are compared with those of its source.
        overwrite: Whether an existing export at `out` is replaced.
        allow_pickle: Whether torch's pickles may be read if there are no safetensors.
        engines: Names of the engines to compare with, from `ENGINES` in export/verification/verify.py; None: all that
            are installed and can load the target.
        paddleformers_python: Python of an environment with PaddleFormers, for the verification.

    Raises:
        UserError: If an argument or a folder is wrong; nothing is written.
        ExportFailed: If the export differs from its source, breaks the target's contract, or could not be compared.
    """
    start = time.monotonic()
    if not str(folder) or not str(out):
        raise UserError("CHECKPOINT or OUT is empty. Give both folders; a shell variable may not be set.")
    folder, out, options = Path(folder), Path(out).expanduser().resolve(), Options(dtype, size_in_bytes(max_shard_size))
    if target not in TARGETS:
        raise UserError(f"--target {target} is unknown. Use {', '.join(TARGETS)}.")
    check_out(out, folder, overwrite)
    verification = VerificationOptions(verify, None if engines is None else tuple(engines), paddleformers_python)
    check_options(target, verification)
    _check_process()
    _check_dtype(target, dtype)
    if target in ("static", "gguf") and options.max_shard_size != Options.max_shard_size:
        say(f"--max_shard_size has no effect: {TARGETS[target][1]} has one file of weights")
    source = _open_source(folder, adapter, tokenizer, out, allow_pickle=allow_pickle)
    _check_source(source, target, out, options)
    with staged_folder(out) as staged:
        check_out(out, folder, overwrite)  # again, because another process may have written there in the meantime
        module, _, function = TARGETS[target][0].partition(":")
        getattr(import_module(module), function)(source, staged, options)
        findings = verify_export(source, staged, target, verification)
        _write_record(source, staged, target, options, findings)
    files = {str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    return Exported(out, target, files, findings, time.monotonic() - start)


def size_in_bytes(text: str | int) -> int:
    """Convert a size such as "5GB", "500MB" or "1GiB", or a number of bytes.

    Raises:
        UserError: If it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise UserError(f"--max_shard_size {text} is not a size. Write it as 5GB or 500MB.")
    if isinstance(text, str) and not match.group(2) and float(text) < _MIN_BYTES:
        raise UserError(f"--max_shard_size {text} would be {text.strip()} bytes. Write it as 5GB or 500MB.")
    return int(float(match.group(1)) * unit)


def _check_dtype(target: str, dtype: str | None) -> None:
    """Check the type of the weights, and that the library of a target is installed.

    Raises:
        UserError: If the type is unknown to the target, or the library is missing.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is unknown. Use {', '.join(DTYPES)}.")
    if dtype == Q8_0 and target != "gguf":
        raise UserError(f"--dtype {dtype} is a type of GGUF files. Use it with --target gguf.")
    if target == "gguf" and find_spec("gguf") is None:
        raise UserError("--target gguf needs the package gguf. Install it: pip install 'paddle_llm[gguf]'.")


def _check_process() -> None:
    """Raise UserError if this process is one of several ranks."""
    ranks = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    if ranks > 1:
        raise UserError(f"An export cannot run on {ranks} ranks. Start it in one process, without the launcher.")


def _open_source(
    folder: Path, adapter: str | Path | None, tokenizer: str | Path | None, out: Path, *, allow_pickle: bool
) -> Source:
    """Locate and open the model, and check that the output is apart from its folders."""
    folders = locate_export_source(
        folder, adapter=Path(adapter) if adapter else None, tokenizer=Path(tokenizer) if tokenizer else None
    )
    check_outside(out, folders.model, folders.adapter, folders.tokenizer)
    start_process("cpu")
    from paddle_llm.export.source.open import open_located  # imports Paddle

    return open_located(folders, allow_pickle=allow_pickle)


def _check_source(source: Source, target: str, out: Path, options: Options) -> None:
    """Check that the source has what the target needs and that the disk has space, and report what is written."""
    if target == "gguf" and source.family.engines.gguf is None:
        able = ", ".join(family.title for family in FAMILIES.values() if family.engines.gguf)
        raise UserError(f"--target gguf does not support {source.family.title}. It supports {able}. Use --target hf.")
    if target in ("fastdeploy", "gguf") and source.tokenizer is None:
        raise UserError(
            f"--target {target} needs a tokenizer, and {source.folder} has none. Give one with --tokenizer."
        )
    size = _weight_bytes(source, target, options.dtype)
    check_space(out, size)
    say(f"writing {source.family.title}, {human(size)} of weights, to {out}")


def _weight_bytes(source: Source, target: str, dtype: str | None) -> int:
    """Return the size of all weights in a dtype; None: as stored."""
    if target == "gguf":
        return sum(tensor.nbytes for tensor in gguf_tensors(source, dtype))
    dtype = "float32" if target == "static" else dtype
    return sum(math.prod(source.shape(name)) * ITEM_SIZES[dtype or source.dtype(name)] for name in source.names())


def _write_record(source: Source, staged: Path, target: str, options: Options, findings: list[Finding]) -> None:
    """Write export.json, for programs, and README.md, for people: the source, the settings and the findings."""
    described = {
        "target": target,
        "source": portable_name(source.folder),
        "adapter": portable_name(source.adapter) if source.adapter else None,
        "family": source.family.title,
        "dtype": _describe_dtype(source, target, options),
        "paddle_llm": __version__,
    }
    record = {**described, "verified": [asdict(finding) for finding in findings]}
    (staged / EXPORT_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_readme(staged, target, findings, described)


def _describe_dtype(source: Source, target: str, options: Options) -> str:
    """Name the types of the export's weights. There are several only if the source has several and keeps them."""
    if options.dtype or target == "static":
        return options.dtype or "float32"
    usual = usual_dtype(source)
    others = sorted({source.dtype(name) for name in source.names()} - {usual}) if target in ("hf", "gguf") else []
    return " and ".join([usual, *others])
