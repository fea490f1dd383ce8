"""Convert rows of the matrix (`spaces.py`) to trainings, and decide which of them can be run.

`config_of` and `case_of` turn a row into what the oracle runs. The product's own reader decides whether a row can be run
(`RowChecker`), so that the matrix always agrees with the rules of `paddle_llm/config/`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.config.reader import resolve
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import ConfigError
from paddle_llm.rehearse.case import Case
from tests.rehearse.cases import make_case, make_config
from tests.rehearse.spaces import FINETUNING, METHODS, PLAIN, Row, space_of

# Options that the config.json of a family cannot express, with their only value.
_LLAMA_ONLY = {"key_value_heads": "all", "tied": False, "fused": ""}
_NOT_IN_CONFIG = {
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


def options_of(row: Row) -> str:
    """Return the options that differ from the plain row, without the layout; for fine-tuning also the method."""
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


# Options whose value is clear without their name.
_LABELS = {
    "family": "{1}",
    "method": "{1}",
    "samples": "{1} rows",
    "tied": "tied embeddings",
    "labels": "{1} labels",
    "recompute": "recompute {1}",
    "pipeline_switches": "{1}",
    "topo_order": "{1}",
    "release_grads": "release_grads",
}


def name_of(row: Row) -> str:
    return ", ".join(filter(None, [str(layout_of(row)), options_of(row)]))


def model_of(row: Row) -> dict[str, Any]:
    """Return the sizes in config.json: the tensor degree divides the heads; the stages divide the layers if the row says so."""
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
    elif family == "chatglm":  # the ids of its marks are within the smaller vocabulary, too
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
        "pipeline_parallel_config": " ".join([*row["pipeline_switches"].split(), *overlap]),
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


class RowChecker:
    """Asks the product's reader which rows can be run, and caches its answers.

    Args:
        folder: Folder below which the config.json of models is written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen: dict[tuple[Any, ...], str] = {}

    def rejection_of(self, row: Row) -> str:
        """Return why a row cannot be run; "" if it can."""
        key = tuple(row.items())
        if key not in self._seen:
            self._seen[key] = self._ask(row)
        return self._seen[key]

    def _ask(self, row: Row) -> str:
        family = row["family"]
        for name, only in _NOT_IN_CONFIG.get(family, {}).items():
            if row[name] != only:
                return f"config.json of {family} has no key for {name}"
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
    """Return the command line of a config."""
    data = "--input_dir" if row["entry"] == "pretrain" else "--dataset_name_or_path"
    words = ["--do_train", "--do_eval", "--eval_steps", "1", data, "corpus", "--output_dir", "output"]
    for name in sorted(config.model_fields_set):
        value = getattr(config, name)
        if value == "":
            continue
        values = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        words += [f"--{name}", *map(str, values)]
    return words
