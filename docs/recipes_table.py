"""The table of the memory of every recipe of pretraining, in configs/README.md.

`python -m docs.generate` writes it. A test compares it with the planner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from paddle_llm.config.reader import Resolved, resolve
from paddle_llm.planner.gpus import find_gpu
from paddle_llm.planner.job import job_of
from paddle_llm.planner.memory.plan import RankMemory, fullest_rank

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
README = CONFIGS / "README.md"
_BEGIN, _END = "<!-- memory table: python -m docs.generate -->", "<!-- end of memory table -->"
_DEGREES = ("data", "sharding", "tensor", "pipeline")
_HEAD = (
    "| config | cards | layout | tokens per step | weights, GB | gradients, GB | optimizer, GB | activations, GB | logits, GB |"
    " others, GB | sum, GB (of the card) | largest |"
)


def world_size(path: Path) -> int:
    """Return the number of ranks that a recipe is for: the product of its degrees."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return math.prod(int(raw.get(f"{kind}_parallel_degree", 1)) for kind in _DEGREES)


def card_of(path: Path) -> str:
    """Return the card that a recipe is for; "a100-80g" for all cards of 80 GB."""
    return "h200" if path.stem.endswith("_h200") else "a100-80g"


def resolved_of(path: Path) -> Resolved:
    """Return a recipe, read for GPUs."""
    entry = "finetune" if path.parent.name == "finetune" else "pretrain"
    return resolve([str(path.relative_to(CONFIGS.parent))], world_size=world_size(path), entry=entry, device="gpu")


def memory_of(path: Path) -> RankMemory:
    """Return the memory of the fullest rank of a recipe."""
    return fullest_rank(job_of(resolved_of(path)))


def pretraining_recipes() -> list[Path]:
    """Return the recipes that need a GPU, by name."""
    return sorted(path for path in (CONFIGS / "pretrain").glob("*.json") if path.stem != "quickstart")


def with_table(readme: str) -> str:
    """Return the text of configs/README.md with the current table."""
    before, after = readme.split(_BEGIN)[0], readme.split(_END)[1]
    return f"{before}{_BEGIN}\n{chr(10).join(_lines())}\n{_END}{after}"


def _lines() -> Iterator[str]:
    yield _HEAD
    yield "|---|---|---|" + "--:|" * 8 + "---|"
    for path in pretraining_recipes():
        job, memory, card = job_of(resolved_of(path)), memory_of(path), card_of(path)
        parts = (
            memory.weights + memory.gathered,
            memory.gradients + memory.buckets,
            memory.master_weights + memory.moments,
            memory.activations,
            memory.logits,
            memory.tables + memory.framework + memory.slack,
        )
        share = memory.total / find_gpu(card).memory_bytes
        cells = [
            f"[{path.stem}](pretrain/{path.name})",
            f"{world_size(path)} x {'80 GB' if card == 'a100-80g' else 'H200'}",
            str(job.layout),
            f"{job.tokens_per_step / 2**20:g}M",
            *(f"{part / 1e9:.1f}" for part in parts),
            f"**{memory.total / 1e9:.0f}** ({share:.0%})",
            memory.phase + (f" of stage {memory.stage}" if job.layout.pipeline > 1 else ""),
        ]
        yield "| " + " | ".join(cells) + " |"
