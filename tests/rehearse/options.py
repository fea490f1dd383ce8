"""The dimensions of the matrix: kinds of layout, everything else that a training can be told, and which go together.

There are two spaces of rows, of pretraining and of fine-tuning. A `Row` is one choice of everything; `config_of` and `case_of` turn it into what the oracle runs. Whether a row can be run is
the product's own word: its reader says so (`why_not`), so the matrix and the rules of `paddle_llm/config/` cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddle_llm.config.errors import ConfigError
from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import RunConfig
from paddle_llm.rehearse.case import Case
from tests.rehearse.cases import make_case, make_config

Row = dict[str, Any]

# Kinds of layout in the covering array; the matrix has every tuple of degrees beside it.
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

# What a method of training sets. Tensors that begin as zeros show Adam's rounding unmixed: where their gradients are small,
# its epsilon must be above them.
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

# The first value of each is the plain one: it goes with every layout and every other option.
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
    "pipeline_words": ("", "disable_batch_p2p_comm", "enable_delay_scale_loss"),
    "topo_order": ("pp_first", "sharding_first"),
    "release_grads": (False, True),
}
PLAIN: Row = {
    **{name: values[0] for name, values in OPTIONS.items()},
    "entry": "pretrain",
    "samples": "single",
    "label_smoothing": 0.0,
}

# Fine-tuning: samples of unequal lengths; what it shares with pretraining, and what is its own.
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
    """All rows of one script.

    Attributes:
        kinds, options: its dimensions; the first value of an option is the plain one.
        plain: a row without a layout.
        seed: of the covering array; of 30, the one with the fewest rows.
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

# What a family's config.json has no word for.
_LLAMA_ONLY = {"key_value_heads": "all", "tied": False, "fused": ""}
_NO_WORD = {
    "chatglm_v2": {"tied": False, "fused": ""},
    **dict.fromkeys(("chatglm", "bloom", "opt", "glm"), _LLAMA_ONLY),
}
_KEYS = {
    "llama": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"),
    "chatglm_v2": ("hidden_size", "num_layers", "num_attention_heads", "padded_vocab_size", "ffn_hidden_size"),
    "bloom": ("hidden_size", "n_layer", "n_head", "vocab_size", None),
    "chatglm": ("hidden_size", "num_layers", "num_attention_heads", "vocab_size", "inner_hidden_size"),
    "opt": ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "ffn_dim"),
    "glm": ("hidden_size", "num_layers", "num_attention_heads", "vocab_size", None),
}
_KEYS["qwen2"] = _KEYS["llama"]
HEAD_SIZE = 8


def layout_of(row: Row) -> Layout:
    return replace(
        row["layout"],
        virtual_stages=1 if row["virtual_stages"] == 1 else 2,
        sequence_parallel=bool(row["sequence_parallel"]),
    )


def space_of(row: Row) -> Space:
    return FINETUNING if row["entry"] == "finetune" else PRETRAINING


def options_of(row: Row) -> str:
    """What is not plain, beside the layout; of fine-tuning always the method."""
    space = space_of(row)
    tuned = space is FINETUNING
    shown = {
        name: row[name] for name in space.options if row[name] != space.plain[name] or (tuned and name == "method")
    }
    for name, in_layout in (("virtual_stages", 2), ("sequence_parallel", "on")):
        if shown.get(name) == in_layout:
            del shown[name]
    words = [_LABELS.get(name, "{} {}").format(name.replace("_", " "), value) for name, value in shown.items()]
    return ", ".join(["fine-tuning", *words] if tuned else words)


# Where a value says more than the name of its option.
_LABELS = {
    "family": "{1}",
    "method": "{1}",
    "samples": "{1} rows",
    "tied": "tied embeddings",
    "labels": "{1} labels",
    "recompute": "recompute {1}",
    "pipeline_words": "{1}",
    "topo_order": "{1}",
    "release_grads": "release_grads",
}


def name_of(row: Row) -> str:
    return ", ".join(filter(None, [str(layout_of(row)), options_of(row)]))


def model_of(row: Row) -> dict[str, Any]:
    """config.json's numbers: heads that the tensor degree divides, layers that the stages divide or not."""
    layout, family = layout_of(row), row["family"]
    heads = next(n for n in (8, 6, 5, 7) if n % layout.tensor == 0)
    width = {8: 96, 6: 96, 5: 80, 7: 112}[heads]
    chunks = layout.pipeline * layout.virtual_stages
    few = (2,) if row["entry"] == "finetune" else ()
    layers = next(n for n in (*few, 4, 6, chunks) if n % chunks == 0) + (row["layers"] != "divide")
    numbers = (HEAD_SIZE * heads, layers, heads, row["vocabulary"], width)
    model = {key: number for key, number in zip(_KEYS[family], numbers, strict=True) if key}
    groups = heads if row["key_value_heads"] == "all" else row["key_value_heads"]
    if family in ("llama", "qwen2"):
        model |= {"num_key_value_heads": groups, "tie_word_embeddings": row["tied"]}
    elif family == "chatglm_v2":
        model |= {"kv_channels": HEAD_SIZE, "multi_query_group_num": groups}
    elif family == "opt":
        model |= {"word_embed_proj_dim": model["hidden_size"]}
    elif family == "chatglm":  # its marks have numbers within the smaller vocabulary, too
        model |= {f"{name}_token_id": 110 + number for number, name in enumerate(("mask", "gmask", "bos", "eos"))}
    return model


def _settings(row: Row) -> dict[str, Any]:
    layout, micro = layout_of(row), row["micro_batch_size"]
    overlap = ["enable_overlap_p2p_comm"] if row["virtual_stages"] == "2 overlapped" else []
    settings = {
        "family": row["family"],
        "model": model_of(row),
        "global_batch": micro * row["micro_batches"] * layout.data_world_size,
        "per_device_train_batch_size": micro,
        "max_grad_norm": row["clipping"],
        "weight_decay": row["weight_decay"],
        "pipeline_parallel_config": " ".join([*row["pipeline_words"].split(), *overlap]),
        "hybrid_parallel_topo_order": row["topo_order"],
        "release_grads": row["release_grads"],
        "fuse_sequence_parallel_allreduce": row["sequence_parallel"] == "fused",
        **{f"fuse_attention_{part}": True for part in row["fused"].split()},
        **METHODS[row["method"]],
    }
    if row["entry"] == "finetune":
        settings |= {
            "entry": "finetune",
            "packed": row["samples"] == "packed",
            "label_smoothing": row["label_smoothing"],
        }
    if row["recompute"]:
        settings |= {"recompute": True, "recompute_granularity": row["recompute"]}
    return settings


def config_of(folder: Path, row: Row) -> RunConfig:
    return make_config(folder, layout_of(row), **_settings(row))


def case_of(folder: Path, row: Row, name: str = "") -> Case:
    settings = _settings(row)
    batch = settings["global_batch"]
    return make_case(
        folder,
        layout_of(row),
        evaluation=batch + 3 if row["evaluation"] == "uneven" else batch,
        ignored_labels=row["labels"] != "all",
        name=name or name_of(row),
        **settings,
    )


class Judge:
    """Which rows can be run, in the words of the product's reader; remembers what it was asked.

    Args:
        folder: for the config.json of models.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen: dict[tuple[Any, ...], str] = {}

    def why_not(self, row: Row) -> str:
        """Why this row is not in the matrix; "" if it is."""
        key = tuple(row.items())
        if key not in self._seen:
            self._seen[key] = self._ask(row)
        return self._seen[key]

    def _ask(self, row: Row) -> str:
        family = row["family"]
        for name, only in _NO_WORD.get(family, {}).items():
            if row[name] != only:
                return f"config.json of {family} has no word for {name}"
        config, layout = config_of(self._folder, row), layout_of(row)
        if row["layers"] != PLAIN["layers"] and layout.pipeline == 1:
            return "there are no stages to divide the layers by"
        try:
            resolved = resolve(_argv(config, row), world_size=layout.world_size, entry=row["entry"], device="cpu")
        except ConfigError as error:
            return str(error)
        assert resolved.layout == layout, (resolved.layout, layout)
        return next((line for line in resolved.notices if " no effect" in line), "")


def _argv(config: RunConfig, row: Row) -> list[str]:
    """The command line that asks for `config`."""
    data = "--input_dir" if row["entry"] == "pretrain" else "--dataset_name_or_path"
    words = ["--do_train", "--do_eval", "--eval_steps", "1", data, "corpus", "--output_dir", "output"]
    for name in sorted(config.model_fields_set):
        value = getattr(config, name)
        if value == "":
            continue
        values = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        words += [f"--{name}", *map(str, values)]
    return words
