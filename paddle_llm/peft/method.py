"""The settings of a fine-tuning method. Does not import Paddle."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.methods import CHOICES, METHODS, chosen, pattern_matches
from paddle_llm.core.errors import UserError

if TYPE_CHECKING:
    from paddle_llm.config.run_config import RunConfig

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Method:
    """A fine-tuning method and its settings. Each method reads only its own settings.

    Attributes:
        name: "full", "lora", "prefix", "adapter", "freeze", "adalora" or "prompt".
        rank: Rank of LoRA's matrices; for AdaLoRA the average at the end.
        alpha: Numerator of LoRA's scaling alpha / rank (alpha / sqrt(rank) with `rslora`); None: twice the rank.
        dropout: Dropout rate of the input of LoRA's matrices.
        targets: Linear layers of the transformer blocks: the end of a name, a regular expression for a whole name, or
            "all-linear"; () means the same.
        rslora: Whether the scaling is rank-stabilised (Kalajdzievski 2023).
        dora: Whether each output has a trained magnitude (DoRA, Liu et al. 2024).
        ranks: (pattern as in `targets`, rank) of layers with another rank; the first match counts.
        alphas: (pattern as in `targets`, alpha) of layers with another alpha; the first match counts.
        lora_plus_scale: Learning rate of B divided by that of A (LoRA+, Hayou et al. 2024).
        modules_to_save: Patterns of the parts of the base that are trained directly and saved with the adapter.
        num_prefix_tokens: Length of the prefix in tokens (prefix tuning, Li and Liang 2021).
        prefix_projection: Whether a network computes the prefix's keys and values.
        adapter_size: Width of the bottleneck adapters (Houlsby et al. 2019).
        last_layers: For "freeze", the number of last transformer layers that are trained.
        named_parts: For "freeze", patterns of further weights that are trained.
        num_prompt_tokens: Length of the learned prompt in tokens (prompt tuning, Lester et al. 2021).
        initial_rank: For AdaLoRA (Zhang et al. 2023), the rank at the start.
        warmup_ratio: For AdaLoRA, the share of all steps before the budget shrinks.
        final_ratio: For AdaLoRA, the share of all steps after the budget has reached its final size.
        budget_interval: For AdaLoRA, the number of steps between two allocations of the budget.
        orthogonal_weight: For AdaLoRA, the weight of the penalty (gamma).
    """

    name: str
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    lora_plus_scale: float = 1.0
    modules_to_save: tuple[str, ...] = ()
    num_prefix_tokens: int = 64
    prefix_projection: bool = False
    adapter_size: int = 64
    last_layers: int = 0
    named_parts: tuple[str, ...] = ()
    num_prompt_tokens: int = 20
    initial_rank: int = 12
    warmup_ratio: float = 0.1
    final_ratio: float = 0.3
    budget_interval: int = 10
    orthogonal_weight: float = 0.1

    @property
    def scale_alpha(self) -> float:
        """Alpha of the layers that `alphas` does not match."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def rank_of(self, path: str) -> int:
        """Return the rank of LoRA's matrices of a layer, given its canonical name."""
        return next((value for pattern, value in self.ranks if pattern_matches(pattern, path)), self.rank)

    def alpha_of(self, path: str) -> float:
        """Return the alpha of a layer."""
        return next((value for pattern, value in self.alphas if pattern_matches(pattern, path)), self.scale_alpha)

    def scaling_of(self, path: str) -> float:
        """Return the scaling of LoRA's product in a layer."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (rank**0.5 if self.rslora else rank)

    @property
    def scaling(self) -> float:
        """Scaling of LoRA's product in the layers that `ranks` and `alphas` do not match."""
        return self.scale_alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def adds_tensors(self) -> bool:
        """Whether the method adds tensors to the network."""
        return self.name not in ("full", "freeze")

    @property
    def mergeable(self) -> bool:
        """Whether the method can be merged into the weights."""
        return METHODS[self.name].mergeable

    @staticmethod
    def flags() -> dict[str, str]:
        """Return the fields of this class by the fields of RunConfig that set them."""
        return dict(_SETTINGS)

    def describe(self) -> str:
        """Describe the settings that differ from the defaults in one line."""
        settings = [
            f"{field.name} {getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name != "name" and getattr(self, field.name) != field.default
        ]
        return f"{self.name}{' with ' if settings else ''}{', '.join(settings)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for adapter_config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: Path | str = "settings of the method") -> Method:
        """Reverse `as_dict`.

        Args:
            values: Settings by name.
            where: Origin of the settings, for messages.

        Raises:
            UserError: If the method or a setting is unknown.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown or not isinstance(values.get("name"), str) or values["name"] not in METHODS:
            problem = f"unknown settings {unknown}" if unknown else f"unknown method {values.get('name')!r}"
            raise UserError(f"{where}: {problem}. Use the version of the library that wrote them.")
        lists = {key: _as_tuple(value) for key, value in values.items() if isinstance(value, list | tuple)}
        return cls(**{**values, **lists})


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(one) for one in value) if isinstance(value, list | tuple) else value


# Fields of Method by the fields of RunConfig that set them.
_SETTINGS = {
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "targets",
    "rslora": "rslora",
    "dora": "dora",
    "lora_plus_scale": "lora_plus_scale",
    "modules_to_save": "modules_to_save",
    "num_prefix_tokens": "num_prefix_tokens",
    "prefix_projection": "prefix_projection",
    "adapter_size": "adapter_size",
    "freeze_layers": "last_layers",
    "trainable_modules": "named_parts",
    "num_prompt_tokens": "num_prompt_tokens",
    "adalora_init_rank": "initial_rank",
    "adalora_warmup_ratio": "warmup_ratio",
    "adalora_final_ratio": "final_ratio",
    "adalora_budget_interval": "budget_interval",
    "adalora_orthogonal_weight": "orthogonal_weight",
}


def method_of(config: RunConfig) -> Method:
    """Return the method that a configuration selects.

    Raises:
        UserError: If it selects more than one.
    """
    methods = chosen({name: getattr(config, name) for name in CHOICES})
    if len(methods) > 1:
        flags = [f"--{name}" for names in methods.values() for name in names]
        raise UserError(f"{' and '.join(flags)}: select only one method of fine-tuning.")
    settings = {ours: getattr(config, field) for field, ours in _SETTINGS.items()}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
        if value is not None
    }
    # Zhang et al. 2023, section 4: a budget that starts at 1.5 times the final one.
    given.setdefault("initial_rank", math.ceil(1.5 * config.lora_rank))
    return Method(name=next(iter(methods), "full"), **given)
