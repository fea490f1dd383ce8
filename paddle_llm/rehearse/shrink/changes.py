"""List what a rehearsal changes in a config, for its report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from paddle_llm.config.device import UNSUPPORTED
from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import fields_of
from paddle_llm.rehearse.shrink.settings import DROPOUTS, METHOD_LIMITS
from paddle_llm.rehearse.shrink.small_model import SmallModel

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
_COMPARED = (
    "max_seq_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "no_recompute_layers",
    "learning_rate",
    "lr_scheduler_type",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    *DROPOUTS,
    "continue_training",
    "max_length",
    "freeze_layers",
    "lora_alpha",
    *METHOD_LIMITS,
)


@dataclass(frozen=True)
class Change:
    """A difference between the config and the rehearsal.

    Attributes:
        what: Name of the setting.
        real: Value in the config.
        rehearsed: Value in the rehearsal.
    """

    what: str
    real: str
    rehearsed: str


def changes_of(real: Resolved, configs: list[Resolved], model: SmallModel) -> list[Change]:
    """Return the settings that differ between the config and its rehearsal.

    Args:
        real: Config of the cluster.
        configs: Config of each sub-layout.
        model: Model that all of them train.
    """
    assert real.facts is not None
    rows = [("layout", str(real.layout), _joined(one.layout for one in configs))]
    rows += [(name, str(getattr(real.facts, name)), str(getattr(model.facts, name))) for name in _SIZES]
    known = fields_of(real.entry)
    for name in (*(name for name in _COMPARED if name in known), *_unsupported_on_cpu(configs)):
        requested = real.requested.get(name, getattr(real.config, name))
        rows.append((name, _shown(requested), _joined(_shown(getattr(one.config, name)) for one in configs)))
    rows += [(key, str(value), "0") for key, value in real.facts.raw.items() if "dropout" in key and value]
    return [Change(*row) for row in rows if row[1] != row[2]]


def _unsupported_on_cpu(configs: list[Resolved]) -> list[str]:
    """Return fields that have no effect on a CPU: the results are the same without them, or those of float32."""
    names = [name for one in configs for name, origin in one.origins.items() if origin == UNSUPPORTED]
    return [name for name in dict.fromkeys(names) if name not in _COMPARED]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
