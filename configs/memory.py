"""Bytes per rank of every configuration in pretrain/, and the table of them in README.md.

    python configs/memory.py            # the table
    python configs/memory.py --write    # put it into README.md; the tests fail while it is not what this prints

An estimate on paper, meant to be too high rather than too low: mixed precision with Adam (bytes per parameter of
Rajbhandari et al., arXiv:1910.02054), activations with recomputation (Korthikanti et al., arXiv:2205.05198). A
configuration is shipped when its sum stays under 90% of its card, the rest being the CUDA context, NCCL's buffers and
fragmentation.

Letters: s sequence, b samples per micro batch, h hidden size, t tensor degree, p stages, v virtual stages per stage,
d sharding degree.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import RunConfig
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts
from paddle_llm.planner.flops import count_parameters

HERE = Path(__file__).parent
USABLE = 0.9
CARDS = {"80 GB": 80e9, "H200": 141e9}  # 80 GB: A100, A800, H100, H800
_BEGIN, _END = "<!-- memory table: configs/memory.py --write -->", "<!-- end of memory table -->"


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the fullest rank."""

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def world_size(raw: dict[str, object]) -> int:
    """Ranks that a shipped configuration is for: the product of the degrees it names, all of which it names."""
    size = 1
    for kind in ("data", "sharding", "tensor", "pipeline"):
        size *= int(str(raw.get(f"{kind}_parallel_degree", 1)))
    return size


def card_of(path: Path) -> str:
    """The card that a file's name promises to fit."""
    return "H200" if path.stem.endswith("_h200") else "80 GB"


def parameters_per_rank(facts: ModelFacts, layout: Layout) -> int:
    """Elements on the fullest rank: its layers, and the larger of the two ends of the pipeline; all divided by t."""
    count = count_parameters(facts)
    layers = -(-facts.num_hidden_layers // layout.pipeline) * count.layers // facts.num_hidden_layers
    first_and_last = (count.lookups, count.head + count.rest)
    ends = sum(first_and_last) if layout.pipeline == 1 else max(first_and_last)
    return -(-(layers + ends) // layout.tensor)


def _activations(config: RunConfig, facts: ModelFacts, layout: Layout) -> float:
    """With full recompute: every layer's input, one layer unfolded (twice: values and their gradients), the logits."""
    s, b, h, t = config.max_seq_length, config.per_device_train_batch_size, facts.hidden_size, layout.tensor
    split = t if layout.sequence_parallel else 1
    p, v = layout.pipeline, layout.virtual_stages
    in_flight = p if v == 1 else p * (1 + (p - 1) / (p * v))  # micro batches that the first stage holds
    inputs = 2 * s * b * h / split * -(-facts.num_hidden_layers // p) * in_flight
    mlp = (6 if facts.model_type in ("llama", "chatglm_v2") else 4) * facts.intermediate_size
    one_layer = 2 * s * b * (8 * h / split + (12 * h + mlp) / t)
    # 16-bit logits, their fp32 copy, its softmax, and the fp32 gradient.
    logits = 14 * s * b * facts.vocab_size / t
    # BLOOM: ALiBi and the causal mask in 16 bits, one for all samples (Press et al., arXiv:2108.12409).
    mask = 2 * s * s * facts.num_attention_heads / t if FAMILIES[facts.model_type].network.positions == "ALiBi" else 0
    return inputs + one_layer + logits + mask


def _visiting(facts: ModelFacts, layout: Layout) -> float:
    """Elements of the largest unit that stage 3 gathers: a layer, the embedding or the head. A rank holds two units."""
    count = count_parameters(facts)
    return max(count.layers / facts.num_hidden_layers, count.lookups, count.head) / layout.tensor


def _in_flight(config: RunConfig, gradients: float, facts: ModelFacts, layout: Layout) -> float:
    """Bytes of gradients that stages 2 and 3 reduce at one time; by default 16 matrices of average size, 32 to 2048 MB.

    As `paddle_llm.parallel.zero.stage2.default_bucket_bytes`, with seven matrices in a layer.
    """
    if config.sharding_comm_buffer_size_MB > 0:
        return config.sharding_comm_buffer_size_MB * 2**20
    matrices = 7 * -(-facts.num_hidden_layers // layout.pipeline)
    return min(max(16 * gradients / matrices, 32 * 2**20), 2 * 2**30)


def memory_per_rank(config: RunConfig, facts: ModelFacts, layout: Layout) -> RankMemory:
    """Bytes on the fullest rank, for mixed precision O2 with AdamW and full recompute."""
    parameters, d = parameters_per_rank(facts, layout), layout.sharding
    gradient = 4 if config.amp_master_grad else 2
    return RankMemory(
        parameters=parameters,
        weights=2 * (parameters / d + 2 * _visiting(facts, layout) if layout.sharding_stage == 3 else parameters),
        gradients=gradient * parameters / d + _in_flight(config, gradient * parameters, facts, layout)
        if layout.sharding_stage >= 2
        else gradient * parameters,
        optimizer=12 * parameters / (d if layout.sharding_stage >= 1 else 1),  # fp32 master weight and two moments
        activations=_activations(config, facts, layout),
    )


def shipped() -> list[Path]:
    """The configurations that need a GPU, by name."""
    return sorted(path for path in (HERE / "pretrain").glob("*.json") if path.stem != "quickstart")


def row(path: Path) -> str:
    """One line of the table."""
    size = world_size(json.loads(path.read_text()))
    resolved = resolve([str(path)], world_size=size, device="gpu")
    config, layout = resolved.config, resolved.layout
    assert resolved.facts is not None, path
    memory = memory_per_rank(config, resolved.facts, layout)
    samples = config.per_device_train_batch_size * config.gradient_accumulation_steps * layout.data_world_size
    card, giga = card_of(path), 1e-9
    cells = [
        f"[{path.stem}](pretrain/{path.name})",
        f"{size} x {card}",
        str(layout),
        f"{samples * config.max_seq_length / 2**20:g}M",
        f"{memory.parameters * giga:.2f}",
        *(f"{part * giga:.1f}" for part in (memory.weights, memory.gradients, memory.optimizer, memory.activations)),
        f"**{memory.total * giga:.0f}** ({memory.total / CARDS[card]:.0%})",
    ]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The whole table, in Markdown."""
    head = (
        "| config | cards | layout | tokens per step | parameters per rank, 1e9 | weights, GB | gradients, GB |"
        " optimizer, GB | activations, GB | sum, GB (of the card) |"
    )
    return "\n".join([head, "|---|---|---|--:|--:|--:|--:|--:|--:|--:|", *(row(path) for path in shipped())])


def with_table(readme: str) -> str:
    """README.md's text with the table as it is now."""
    before, after = readme.split(_BEGIN)[0], readme.split(_END)[1]
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        readme = HERE / "README.md"
        readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
