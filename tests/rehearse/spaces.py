"""The dimensions of the matrix: kinds of layout and all other options of a training.

Pretraining and fine-tuning have one space of rows each. A `Row` has one value of every dimension; `options.py` turns it
into a training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddle_llm.config.layout import Layout

Row = dict[str, Any]

# Kinds of layout in the covering array. The matrix also has every tuple of degrees.
KINDS = (
    Layout(data=2),
    Layout(sharding=2, sharding_stage=1),
    Layout(sharding=2, sharding_stage=2),
    Layout(sharding=2, sharding_stage=3),
    Layout(tensor=2),
    Layout(tensor=4),
    Layout(pipeline=2),
    Layout(pipeline=3),
    Layout(pipeline=4),
    Layout(tensor=2, pipeline=2),
    Layout(sharding=2, sharding_stage=1, pipeline=2),
    Layout(sharding=2, sharding_stage=2, pipeline=2),
    Layout(sharding=2, sharding_stage=2, tensor=2),
    Layout(sharding=2, sharding_stage=3, tensor=2),
    Layout(data=2, sharding=2, sharding_stage=2),
    Layout(sharding=2, sharding_stage=2, pipeline=3),
    Layout(tensor=2, pipeline=3),
    Layout(sharding=2, sharding_stage=2, tensor=2, pipeline=2),
)

# Settings of each method. Steps of tensors that start at zero consist of Adam's rounding: if their gradients are small, epsilon
# must be larger.
_FINAL_NORM = r".*(\.norm|ln_f|final_layer_?norm)"
_EMBEDDING = r".*(embed_tokens|word_embeddings)"
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": True},
    "LoRA with parts": {
        "lora": True,
        "rslora": True,
        "lora_plus_scale": 4.0,
        "modules_to_save": [_FINAL_NORM, _EMBEDDING],
    },
    "DoRA": {"lora": True, "dora": True, "rslora": True, "adam_epsilon": 1e-2},
    "prefix": {"prefix_tuning": True, "num_prefix_tokens": 4},
    "projected prefix": {"prefix_tuning": True, "num_prefix_tokens": 4, "prefix_projection": True},
    "adapter": {"adapter": True, "adapter_size": 4, "adam_epsilon": 1e-2},
    "freeze": {"freeze_layers": 1},
    "AdaLoRA": {
        "adalora": True,
        "lora_rank": 2,
        "adalora_init_rank": 4,
        "max_steps": 4,
        "adalora_warmup_ratio": 0.5,
        "adalora_final_ratio": 0.25,
        "adalora_budget_interval": 1,
        "adam_epsilon": 1e-2,
    },
    "prompt": {"prompt_tuning": True, "num_prompt_tokens": 4},
}

# The first value of each option is the plain one, which is allowed with every layout and every other option.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "family": ("llama", "chatglm_v2", "bloom"),
    "method": ("full",),
    "virtual_stages": (1, 2, "2 overlapped"),
    "layers": ("divide", "do not divide"),  # by the pipeline's stages
    "micro_batches": (8, 4, 2, 1),  # per rank and step: more than stages, as many, fewer
    "micro_batch_size": (1, 2),
    "sequence_parallel": ("", "on", "fused"),
    "recompute": ("", "full", "full_attn", "core_attn"),
    "key_value_heads": ("all", 2, 1),
    "tied": (False, True),
    "fused": ("", "qkv", "qkv ffn"),
    "vocabulary": (128, 121),  # 121 is padded in every tensor-parallel layout
    "clipping": (0.05, 0.0),  # at every step; never
    "weight_decay": (0.1, 0.0),
    "evaluation": ("uneven", "even"),  # the last batch
    "labels": ("all", "some ignored"),
    "pipeline_switches": ("", "disable_batch_p2p_comm", "enable_delay_scale_loss"),
    "topo_order": ("pp_first", "sharding_first"),
    "release_grads": (False, True),
}
PLAIN: Row = {
    **{name: values[0] for name, values in OPTIONS.items()},
    "entry": "pretrain",
    "samples": "single",
    "label_smoothing": 0.0,
}

# Fine-tuning has samples of unequal lengths, some options of pretraining, and some separate ones.
FINETUNE_KINDS = (
    Layout(data=2),
    Layout(sharding=2, sharding_stage=2),
    Layout(sharding=2, sharding_stage=3),
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(tensor=2, pipeline=2),
    Layout(sharding=2, sharding_stage=2, tensor=2),
)
FINETUNE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "family": ("llama", "chatglm", "chatglm_v2", "bloom", "opt", "glm", "qwen2"),
    "method": tuple(METHODS),
    "samples": ("single", "packed"),
    "label_smoothing": (0.0, 0.1),
    "micro_batches": (4, 2, 1),
    "micro_batch_size": (1, 2),
    "sequence_parallel": ("", "on"),
    "recompute": ("", "full"),
    "key_value_heads": ("all", 2, 1),
    "tied": (False, True),
    "vocabulary": (128, 121),
}


@dataclass(frozen=True)
class Space:
    """The rows of one script.

    Attributes:
        kinds: Kinds of layout.
        options: Values of each option; the first one is the plain one.
        plain: Row of plain values, without a layout.
        seed: Seed of the covering array; of 30 seeds, the one with the fewest rows.
    """

    kinds: tuple[Layout, ...]
    options: dict[str, tuple[Any, ...]]
    plain: Row
    seed: int

    @property
    def dimensions(self) -> dict[str, tuple[Any, ...]]:
        return {"layout": self.kinds, **self.options}


PRETRAINING = Space(KINDS, OPTIONS, PLAIN, seed=13)
_OWN = {name: values[0] for name, values in FINETUNE_OPTIONS.items()}
FINETUNING = Space(FINETUNE_KINDS, FINETUNE_OPTIONS, {**PLAIN, **_OWN, "entry": "finetune"}, seed=13)


def space_of(row: Row) -> Space:
    return FINETUNING if row["entry"] == "finetune" else PRETRAINING
