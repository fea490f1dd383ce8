"""The target `fastdeploy`: a folder for FastDeploy 2.x, with torch's layout, Hugging Face's names and one dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.export.options import Options
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.hugging_face import usual_dtype, write_config, write_text_files, write_weights
from paddle_llm.export.targets.serving_files import write_serving
from paddle_llm.families import FAMILIES


def check_fastdeploy(source: Source) -> None:
    """Check that FastDeploy has a network for the family of a source.

    Raises:
        UserError: If it has none; the message names other targets.
    """
    if not source.family.engines.fastdeploy:
        able = " and ".join(family.title for family in FAMILIES.values() if family.engines.fastdeploy)
        raise UserError(
            f"--target fastdeploy does not support {source.family.title}: FastDeploy 2.x supports only {able}. "
            "Use --target hf (other servers) or --target static (paddle.inference)."
        )


def write_fastdeploy(source: Source, staged: Path, options: Options) -> None:
    """Write the folder.

    All weights have one type, and config.json names it as `torch_dtype` only. FastDeploy refuses an additional `dtype`
    key, which would also mean that matrices have Paddle's layout.

    Raises:
        UserError: If FastDeploy has no network for the family.
    """
    check_fastdeploy(source)
    reason = "as requested by --dtype" if options.dtype else "FastDeploy reads one type"
    options = replace(options, dtype=options.dtype or usual_dtype(source))
    others = sorted({source.dtype(name) for name in source.names()} - {options.dtype})
    if others:
        say(f"weights stored as {' and '.join(others)} are converted to {options.dtype}: {reason}")
    write_config(source, staged, options)
    write_text_files(source, staged, "fastdeploy")
    write_serving(source, staged)
    write_weights(source, staged, options)
