"""Measured step times of other people's trainings, as jobs for the planner.

`vtrain` and `simumax` read tables of public repositories (VIA-Research/vTrain, MooreThreads/SimuMax).
The others are typed from papers:

- Narayanan et al., arXiv:2104.04473, table 1: GPT models, vocabulary 51,200, sequence 2,048, full recompute, on A100-80G with
  eight 200 Gb/s ports per machine. The paper uses the interleaved schedule; it gives neither the micro-batch nor the virtual
  stages, so the fastest ones count.
- Korthikanti et al., arXiv:2205.05198, tables 3 and 5: full recompute, and sequence parallelism with recompute of the
  attention product, on the same machines.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from paddle_llm.config.layout import Layout
from paddle_llm.families.facts import ModelFacts
from paddle_llm.planner.job import Job, Kernels, Precision, Recompute

_FP16 = Precision(weights="float16", compute="float16", gradients="float16", master_weights=True)
_BF16_MAIN_GRAD = Precision(weights="bfloat16", compute="bfloat16", gradients="float32", master_weights=True)
_APEX = Kernels(flash_attention=False, fused_rms_norm=True, fused_rope=True)
_TRANSFORMER_ENGINE = Kernels(fused_rms_norm=True, fused_rope=True, fused_qkv=True, fused_gate_up=True)
_FULL = Recompute(part="full")

# parameters in billions, heads, hidden size, layers, tensor, pipeline, GPUs, batch, TFLOP/s per GPU
_NARAYANAN = (
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 137),
    (3.6, 32, 3072, 30, 2, 1, 64, 512, 138),
    (7.5, 32, 4096, 36, 4, 1, 128, 512, 142),
    (18.4, 48, 6144, 40, 8, 1, 256, 1024, 135),
    (39.1, 64, 8192, 48, 8, 2, 512, 1536, 138),
    (76.1, 80, 10240, 60, 8, 4, 1024, 1792, 140),
    (145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148),
    (310.1, 128, 16384, 96, 8, 16, 1920, 2160, 155),
    (529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163),
    (1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 163),
)
# name, heads, hidden size, layers, pipeline, virtual stages, batch, micro-batch, seconds with full recompute, with the paper's
_KORTHIKANTI = (
    ("22B", 64, 6144, 48, 1, 1, 4, 4, 1.42, 1.10),
    ("175B", 96, 12288, 96, 8, 3, 64, 1, 18.13, 13.75),
    ("530B", 128, 20480, 105, 35, 3, 280, 1, 49.05, 37.83),
    ("1T", 160, 25600, 128, 64, 1, 512, 1, 94.42, 71.49),
)


def gpt(hidden: int, heads: int, layers: int) -> ModelFacts:
    """A GPT model of Megatron-LM. BLOOM has the same matrices, norms and tied head."""
    return ModelFacts(
        model_type="bloom",
        architectures=(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        vocab_size=51200,
        max_position_embeddings=None,
        tie_word_embeddings=True,
    )


def llama(hidden: int, heads: int, layers: int, feed_forward: int) -> ModelFacts:
    """A model of LLaMA 3: 8 key-value heads, vocabulary 128,256."""
    return ModelFacts(
        model_type="llama",
        architectures=(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=hidden // heads,
        intermediate_size=feed_forward,
        vocab_size=128256,
        max_position_embeddings=None,
        tie_word_embeddings=False,
    )


def _gpt_job(model: ModelFacts, layout: Layout, batch: int, micro_batch: int, sequence: int) -> Job:
    return Job(
        model=model,
        layout=layout,
        seq_length=sequence,
        micro_batch=micro_batch,
        accumulation=batch // (micro_batch * layout.data_world_size),
        precision=_FP16,
        recompute=_FULL,
        kernels=_APEX,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        rank_order="sharding_first",
    )


def vtrain(path: Path) -> Iterator[tuple[list[Job], float]]:
    """Yield the job and the measured seconds of each row of a vTrain table."""
    with path.open() as file:
        for row in csv.DictReader(file):
            degrees = {name: int(row[f"{name} parallelism"]) for name in ("data", "tensor", "pipeline")}
            model = gpt(*(int(row[name]) for name in ("hidden size", "attention heads", "# layers")))
            numbers = (int(row[name]) for name in ("global batch", "micro batch", "sequence length"))
            yield [_gpt_job(model, Layout(**degrees), *numbers)], float(row["iteration time (ms)"]) / 1e3


def simumax(path: Path) -> Iterator[tuple[list[Job], float]]:
    """Yield the job and the measured seconds of each row of SimuMax's B200 table."""
    shapes = {"llama3-70b": (8192, 64, 28672), "llama3-405b": (16384, 128, 53248)}
    with path.open() as file:
        for row in csv.DictReader(file):
            hidden, heads, feed_forward = shapes[row["model"]]
            tensor, pipeline, data = int(row["tp"]), int(row["pp"]), int(row["dp"])
            layout = Layout(
                tensor=tensor,
                pipeline=pipeline,
                sharding=data,
                sharding_stage=int(data > 1),
                sequence_parallel=tensor > 1,
            )
            yield (
                [
                    Job(
                        model=llama(hidden, heads, int(row["layers"]), feed_forward),
                        layout=layout,
                        seq_length=int(row["seq"]),
                        micro_batch=int(row["micro_batch"]),
                        accumulation=int(row["micro_batches"]),
                        precision=_BF16_MAIN_GRAD,
                        kernels=_TRANSFORMER_ENGINE,
                        rank_order="sharding_first",
                    )
                ],
                float(row["step_ms"]) / 1e3,
            )


def narayanan() -> Iterator[tuple[list[Job], float]]:
    """Yield the possible jobs and the seconds of each row; the seconds follow from the FLOP/s by the paper's equation 3."""
    for _, heads, hidden, layers, tensor, pipeline, gpus, batch, speed in _NARAYANAN:
        data = gpus // (tensor * pipeline)
        flops = 96 * batch * 2048 * layers * hidden**2 * (1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden))
        jobs = []
        for micro_batch in (1, 2, 4, 8):
            micro_batches, rest = divmod(batch, data * micro_batch)
            for virtual in range(1, layers // pipeline + 1 if pipeline > 2 and not micro_batches % pipeline else 2):
                if rest == 0 and layers % (pipeline * virtual) == 0:
                    layout = Layout(data=data, tensor=tensor, pipeline=pipeline, virtual_stages=virtual)
                    jobs.append(_gpt_job(gpt(hidden, heads, layers), layout, batch, micro_batch, 2048))
        yield jobs, flops / (speed * 1e12 * gpus)


def korthikanti() -> Iterator[tuple[list[Job], float]]:
    """Yield the job and the seconds of each entry: full recompute, then sequence parallelism with selective recompute."""
    for _, heads, hidden, layers, pipeline, virtual, batch, micro_batch, full, present in _KORTHIKANTI:
        layout = Layout(tensor=8, pipeline=pipeline, virtual_stages=virtual)
        job = _gpt_job(gpt(hidden, heads, layers), layout, batch, micro_batch, 2048)
        yield [job], full
        layout = replace(layout, sequence_parallel=True)
        yield [replace(job, layout=layout, recompute=Recompute(part="core_attn"))], present
