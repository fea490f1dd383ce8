"""Fields that choose the trained weights of fine-tuning and the weights that are added. Without any: all weights."""

from __future__ import annotations

from pydantic import Field

from paddle_llm.config.fields.base import PATH, Group


class MethodFields(Group):
    """Method"""

    lora: bool = Field(False, description="LoRA (Hu et al. 2021): low-rank matrices beside the linear layers.")
    lora_rank: int = Field(8, ge=1, description="Rank r; for AdaLoRA the average final rank.")
    lora_alpha: float | None = Field(
        None, gt=0, description="The update is scaled by alpha / r. Unset: twice the rank, as in PaddleNLP."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the low-rank matrices.")
    lora_target_modules: list[str] = Field(
        ["all-linear"],
        description="Layers with low-rank matrices: names (q_proj), patterns, or all-linear, which matches full fine-tuning where "
        "attention layers alone do not (Dettmers et al. 2023).",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023): for high ranks.")
    dora: bool = Field(
        False, description="DoRA (Liu et al. 2024): LoRA that also trains the magnitude of each output. With --lora."
    )
    lora_plus_scale: float = Field(
        1.0,
        gt=0,
        description="Learning rate of B relative to that of A (LoRA+, Hayou et al. 2024, who recommend 16). 1: plain LoRA.",
    )
    modules_to_save: list[str] | None = Field(
        None, description="Layers that are fully trained and saved with the adapter, such as the head."
    )
    lora_path: str | None = Field(
        None, json_schema_extra=PATH, description="Folder of a LoRA or AdaLoRA adapter to continue from."
    )
    adalora: bool = Field(False, description="AdaLoRA (Zhang et al. 2023): LoRA that allocates ranks by importance.")
    adalora_init_rank: int | None = Field(
        None, ge=1, description="Initial rank. Unset: 1.5 times --lora_rank, as in the paper."
    )
    adalora_warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Share of steps before ranks are reduced (the paper: about a tenth)."
    )
    adalora_final_ratio: float = Field(
        0.3, ge=0, lt=1, description="Share of steps at the end with fixed ranks (the paper: 0.3 to 0.6)."
    )
    adalora_budget_interval: int = Field(10, ge=1, description="Steps between two reductions (the paper: 10 to 100).")
    adalora_orthogonal_weight: float = Field(
        0.1, ge=0, description="Weight of the penalty that keeps P and Q orthogonal (the paper: 0.1 to 0.5)."
    )
    prefix_tuning: bool = Field(
        False, description="Prefix tuning (Li & Liang 2021): trained keys and values before those of each layer."
    )
    num_prefix_tokens: int = Field(
        64, ge=1, description="Length of the prefix (PaddleNLP: 10, 64 or 128, depending on the release)."
    )
    prefix_projection: bool = Field(
        False, description="Compute the prefix with a small network that is dropped after training."
    )
    prefix_path: str | None = Field(
        None, json_schema_extra=PATH, description="Folder of a prefix adapter to continue from."
    )
    prompt_tuning: bool = Field(
        False, description="Prompt tuning (Lester et al. 2021): trained embeddings before the text."
    )
    num_prompt_tokens: int = Field(
        20, ge=1, description="Number of trained embeddings. More than 20 gain little (Lester et al. 2021)."
    )
    adapter: bool = Field(
        False, description="Bottleneck adapters (Houlsby et al. 2019) after attention and feed-forward of each layer."
    )
    adapter_size: int = Field(64, ge=1, description="Width of the bottleneck; 64 is the best fixed size in the paper.")
    freeze_layers: int | None = Field(None, ge=1, description="Train only this many last layers, freeze the others.")
    trainable_modules: list[str] | None = Field(
        None, description="Train the weights whose names match these patterns, freeze the others."
    )
    merge_weights: bool = Field(
        False, description="At the end, also write the model with merged weights (LoRA, AdaLoRA)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing of the loss (PaddleNLP before 2.6: 0.1)."
    )
    lr_decay_ratio: float | None = Field(
        None, ge=0, le=1, description="--min_learning_rate as a share of --learning_rate."
    )
