"""Target fastdeploy: the folder that FastDeploy 2.x's api_server reads: torch's layout, Hugging Face's names, one dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.export.targets.hugging_face import usual_dtype, write_config, write_weights, write_words
from paddle_llm.export.targets.serving_files import write_serving
from paddle_llm.families import FAMILIES

if TYPE_CHECKING:
    from paddle_llm.export.options import Options
    from paddle_llm.export.source.source import Source


def check_fastdeploy(source: Source) -> None:
    """Raise UserError for a family that FastDeploy has no network for, naming the target that can hold it."""
    if not source.family.engines.fastdeploy:
        able = " and ".join(family.title for family in FAMILIES.values() if family.engines.fastdeploy)
        raise UserError(
            f"--target fastdeploy: FastDeploy 2.x has no network for {source.family.title}, neither of its own nor through "
            f"PaddleFormers; it has {able}. Use --target hf (other servers) or --target static (paddle.inference)"
        )


def write_fastdeploy(source: Source, staged: Path, options: Options) -> None:
    """Write the folder. All weights are of one type, which `torch_dtype` alone names: a `dtype` beside it is an error there,
    and says that matrices lie as Paddle keeps them.

    Raises:
        UserError: FastDeploy has no network for the family.
    """
    check_fastdeploy(source)
    why = "as --dtype says" if options.dtype else "FastDeploy reads one type"
    options = replace(options, dtype=options.dtype or usual_dtype(source))
    others = sorted({source.dtype(name) for name in source.names()} - {options.dtype})
    if others:
        say(f"weights that are stored as {' and '.join(others)} become {options.dtype}: {why}")
    write_config(source, staged, options)
    write_words(source, staged, "fastdeploy")
    write_serving(source, staged)
    write_weights(source, staged, options)
