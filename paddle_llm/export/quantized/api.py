"""`quantize` writes a model with quantized linear layers in the GPTQ layout of Hugging Face, completely or not at all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm import __version__
from paddle_llm.checkpoint.locate import locate_export_source
from paddle_llm.core.artifacts import EXPORT_RECORD, MODEL_CONFIG
from paddle_llm.core.atomic_output import staged_folder
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.export.options import Options
from paddle_llm.export.quantized.calibration import DEFAULT_LENGTH, DEFAULT_SAMPLES, read_calibration
from paddle_llm.export.source.dtypes import widened
from paddle_llm.export.source.source import Source
from paddle_llm.export.targets.hugging_face import planned, write_config, write_text_files
from paddle_llm.export.targets.output_folder import check_out, check_outside
from paddle_llm.export.targets.shard_writer import PlannedTensor, write_shards
from paddle_llm.generation.network import start_process
from paddle_llm.models.configuration.machine_paths import portable_name
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.weights.gptq.format import CONFIG_KEY, PARTS, format_written, read_settings
from paddle_llm.models.weights.names import hugging_face
from paddle_llm.quantization.gptq import GPTQOptions
from paddle_llm.quantization.grid import Grid
from paddle_llm.quantization.partial import PartialResults, partial_results
from paddle_llm.quantization.quantize import (
    OnLayer,
    Weights,
    check_shapes,
    linear_groups,
    quantize_network,
    quantize_rtn,
)

RTN, GPTQ = "rtn", "gptq"
METHODS = (RTN, GPTQ)
BITS = (8, 4, 3)


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of a quantization.

    Attributes:
        method: "rtn" (round to nearest) or "gptq".
        bits: 8, 4 or 3.
        group_size: Inputs that share a scale; -1: all inputs of an output.
        symmetric: Whether the grid is symmetric around 0.
        act_order: GPTQ: whether inputs are quantized in the order of their activations.
        damping: GPTQ: share of the mean of the Hessian's diagonal that is added to it.
        calibration: GPTQ: files of the calibration samples.
        samples, length: GPTQ: maximum number of calibration samples, and their length in tokens.
        dtype: Type of the other weights: "float32", "bfloat16" or "float16"; None: as stored.
        max_shard_size: Maximum bytes of a weight file.
    """

    method: str = GPTQ
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = False
    damping: float = 0.01
    calibration: tuple[Path, ...] = ()
    samples: int | None = None
    length: int | None = None
    dtype: str | None = None
    max_shard_size: int = field(default=Options.max_shard_size)

    def check(self) -> None:
        """Check the options.

        Raises:
            UserError: If two do not fit together.
        """
        if self.group_size != -1 and self.group_size < 8:
            raise UserError(
                f"--group_size {self.group_size} is too small. Use 8 or more, or -1 for one group per output."
            )
        if self.method == GPTQ:
            if not self.calibration:
                raise UserError(
                    "--method gptq needs --calibration FILE with text like that of the model's use. Add it."
                )
            return
        given = [
            name
            for name, value in (
                ("--calibration", self.calibration),
                ("--act_order", self.act_order),
                ("--calibration_samples", self.samples),
                ("--calibration_length", self.length),
            )
            if value
        ]
        if given:
            raise UserError(f"{given[0]} applies to --method gptq. Drop it.")


@dataclass(frozen=True)
class Quantized:
    """The result.

    Attributes:
        folder: Folder of the model.
        size: Size of its files in bytes.
        errors: Relative error of each linear layer, one mapping per transformer layer.
        seconds: Duration.
    """

    folder: Path
    size: int
    errors: list[dict[str, float]]
    seconds: float


def quantize(
    folder: Path,
    out: Path,
    options: QuantizeOptions,
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    allow_pickle: bool = False,
    on_layer: Callable[[int, int, dict[str, float]], None] = lambda index, count, errors: None,
) -> Quantized:
    """Quantize the linear layers of all transformer layers and write the model to a folder.

    Embeddings, norms, biases and the head are not quantized. An interrupted run continues with its finished layers if it is
    started again with the same options.

    Args:
        folder: Model folder, output folder of a run, or checkpoint of any layout.
        out: Folder of the result.
        options: Options.
        tokenizer: Folder of the tokenizer; None: that of the model.
        overwrite: Whether an existing export at `out` is replaced.
        allow_pickle: Whether torch's pickles may be read if there are no safetensors.
        on_layer: Function called after each layer with its index, the number of layers and the error of each linear layer.

    Raises:
        UserError: If an option or a folder is wrong, or the model cannot be quantized; nothing is written.
    """
    start = time.monotonic()
    options.check()
    out = out.expanduser().resolve()
    check_out(out, folder, overwrite)
    folders = locate_export_source(folder, adapter=None, tokenizer=tokenizer)
    check_outside(out, folders.model, folders.adapter, folders.tokenizer)
    start_process("cpu")
    from paddle_llm.export.source.open import open_located  # imports Paddle

    source = open_located(folders, allow_pickle=allow_pickle)
    _check_source(source)
    layers = int(getattr(source.config, source.family.config_json.layers))
    weights = Weights(
        source.family, layers, lambda name: widened(source.read(name)), lambda name: _layer_name(source, name)
    )
    check_shapes(weights, source.shape, options.bits)
    prompts: list[Prompt] = []
    if options.method == GPTQ:
        length = options.length or DEFAULT_LENGTH
        prompts = read_calibration(source, options.calibration, options.samples or DEFAULT_SAMPLES, length)
    with partial_results(out, _identity(source, options, prompts)) as results:
        _run(weights, source, options, prompts, results, lambda index, errors: on_layer(index, layers, errors))
        with staged_folder(out) as staged:
            check_out(out, folder, overwrite)  # again, because another process may have written there in the meantime
            _write(source, staged, weights, options, results)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Quantized(out, size, results.errors, time.monotonic() - start)


def _check_source(source: Source) -> None:
    if read_settings(source.facts.raw) is not None:
        raise UserError(f"{source.folder} is quantized already. Use the folder with full-precision weights.")


def _layer_name(source: Source, name: str) -> str:
    """Return the name in Hugging Face's files of the layer that a weight belongs to."""
    return hugging_face(source.family.name, name, 2).name.removesuffix(".weight")


def _run(
    weights: Weights,
    source: Source,
    options: QuantizeOptions,
    prompts: Sequence[Prompt],
    results: PartialResults,
    on_layer: OnLayer,
) -> None:
    grid = Grid(options.bits, options.symmetric)
    if options.method == RTN:
        quantize_rtn(weights, grid, options.group_size, results, on_layer)
        return
    from paddle_llm.quantization.layers import LayeredNetwork

    network = LayeredNetwork(source.config, source.family, weights.read)
    say(f"calibration: {len(prompts)} samples of {len(prompts[0])} tokens")
    gptq = GPTQOptions(options.group_size, options.act_order, options.damping)
    quantize_network(weights, network, prompts, grid, gptq, results, on_layer)


def _identity(source: Source, options: QuantizeOptions, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what determines the packed tensors. The model is identified by names, sizes and times of its files."""
    tokens = np.array([prompt.ids for prompt in prompts], np.int64)
    files = [file for file in sorted(source.folder.iterdir()) if file.is_file()]
    model = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    names = ("method", "bits", "group_size", "symmetric", "act_order", "damping")
    return {
        **{name: getattr(options, name) for name in names},
        "calibration": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "model": hashlib.sha256(json.dumps(model).encode()).hexdigest(),
        "version": __version__,
    }


# ---- files ----------------------------------------------------------------------------------------------------------


def _write(source: Source, staged: Path, weights: Weights, options: QuantizeOptions, results: PartialResults) -> None:
    others = Options(options.dtype, options.max_shard_size)
    write_config(source, staged, others)
    config = read_json_object(staged / MODEL_CONFIG)
    config[CONFIG_KEY] = _quantization_config(source, options)
    (staged / MODEL_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_text_files(source, staged, "hf")
    linear = [weights.linear_name(index, one) for index in range(weights.layers) for one in _linear_layers(weights)]
    quantized = {weights.file_name(name) + ".weight" for name in linear}
    whole = [tensor for tensor in planned(source, options.dtype) if tensor.name not in quantized]
    packed = [tensor for index in range(weights.layers) for tensor in _packed(results, index)]
    write_shards(staged, [*whole, *packed], options.max_shard_size)
    record = {
        "target": "gptq",
        "source": portable_name(source.folder),
        "family": source.family.title,
        "paddle_llm": __version__,
        **{key: value for key, value in asdict(options).items() if key not in ("calibration", "max_shard_size")},
        "calibration": [file.name for file in options.calibration],
        "relative_errors": results.errors,
    }
    (staged / EXPORT_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _linear_layers(weights: Weights) -> list[str]:
    return [linear for group in linear_groups(weights.family) for linear in group]


def _packed(results: PartialResults, index: int) -> list[PlannedTensor]:
    files = results.open(index)
    return [
        PlannedTensor(name, files.shape(name), _dtype(name), _dtype(name), lambda name=name: files.view(name))  # type: ignore[misc]
        for name in files.names()
        if name.endswith(PARTS)
    ]


def _dtype(name: str) -> str:
    return "float16" if name.endswith(".scales") else "int32"


def _quantization_config(source: Source, options: QuantizeOptions) -> dict[str, Any]:
    """Return the settings as gptqmodel writes them."""
    return {
        "quant_method": "gptq",
        "checkpoint_format": format_written(options.bits),
        "bits": options.bits,
        "group_size": options.group_size,
        "sym": options.symmetric,
        "desc_act": options.act_order,
        "damp_percent": options.damping,
        "true_sequential": True,
        "static_groups": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"paddle_llm:{__version__}"]},
    }
