"""Fields that say which weights fine-tuning trains, and which new ones. Without any of them: all weights."""

from __future__ import annotations

from pydantic import Field

from paddle_llm.config.fields.base import PATH, Group


class MethodFields(Group):
    """Method"""

    lora: bool = Field(False, description="LoRA (Hu et al. 2021): low-rank matrices beside the linear layers.")
    lora_rank: int = Field(8, ge=1, description="Rank r (also of AdaLoRA, where it is the average that is kept).")
    lora_alpha: float | None = Field(
        None, gt=0, description="The update is scaled by alpha / r. Absent: twice the rank, as PaddleNLP has fixed."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the low-rank matrices.")
    lora_target_modules: list[str] = Field(
        ["all-linear"],
        description="Layers that get them: names (q_proj), patterns, or all-linear, which reaches full fine-tuning where "
        "attention alone does not (Dettmers et al. 2023).",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023): for high ranks.")
    dora: bool = Field(
        False, description="DoRA (Liu et al. 2024): LoRA that also trains the magnitude of each output. With --lora."
    )
    lora_plus_scale: float = Field(
        1.0, gt=0, description="Learning rate of B over that of A (LoRA+, Hayou et al. 2024, who advise 16). 1: plain."
    )
    modules_to_save: list[str] | None = Field(
        None, description="Layers trained whole beside the method and saved with it, such as the head."
    )
    lora_path: str | None = Field(
        None, json_schema_extra=PATH, description="Folder of a LoRA or AdaLoRA adapter to go on from."
    )
    adalora: bool = Field(
        False, description="AdaLoRA (Zhang et al. 2023): LoRA that moves its ranks to where they count."
    )
    adalora_init_rank: int | None = Field(
        None, ge=1, description="Rank at the start. Absent: 1.5 times --lora_rank, as in the paper."
    )
    adalora_warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Share of all steps before ranks are cut (the paper: about a tenth)."
    )
    adalora_final_ratio: float = Field(
        0.3, ge=0, lt=1, description="Share of all steps, at the end, with the ranks fixed (the paper: 0.3 to 0.6)."
    )
    adalora_budget_interval: int = Field(10, ge=1, description="Steps between two cuts (the paper: 10 to 100).")
    adalora_orthogonal_weight: float = Field(
        0.1, ge=0, description="Weight of the penalty that keeps P and Q orthogonal (the paper: 0.1 to 0.5)."
    )
    prefix_tuning: bool = Field(
        False, description="Prefix tuning (Li & Liang 2021): trained keys and values in front of each layer's own."
    )
    num_prefix_tokens: int = Field(64, ge=1, description="Length of the prefix (PaddleNLP: 10, 64 or 128 by release).")
    prefix_projection: bool = Field(
        False, description="Make the prefix by a small network that is left out after training."
    )
    prefix_path: str | None = Field(None, json_schema_extra=PATH, description="Folder of a prefix to go on from.")
    prompt_tuning: bool = Field(
        False, description="Prompt tuning (Lester et al. 2021): trained embeddings in front of the text."
    )
    num_prompt_tokens: int = Field(20, ge=1, description="How many. More than 20 gains little (Lester et al. 2021).")
    adapter: bool = Field(
        False, description="Bottleneck adapters (Houlsby et al. 2019) behind attention and feed-forward of each layer."
    )
    adapter_size: int = Field(64, ge=1, description="Width of the bottleneck; 64 is the paper's best fixed size.")
    freeze_layers: int | None = Field(
        None, ge=1, description="Freeze all but the last n layers: this is n, the layers that are trained."
    )
    trainable_modules: list[str] | None = Field(
        None, description="Train the weights whose names match these patterns, freeze the rest."
    )
    merge_weights: bool = Field(
        False, description="At the end, write the model with the method merged into its weights, too (LoRA, AdaLoRA)."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the loss (before 2.6: 0.1).")
    lr_decay_ratio: float | None = Field(
        None, ge=0, le=1, description="--min_learning_rate as a share of --learning_rate."
    )
