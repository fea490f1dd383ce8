"""Fields that choose the network and its kernels."""

from __future__ import annotations

from pydantic import Field

from paddle_llm.config.fields.base import PATH, Group
from paddle_llm.families import FAMILIES


class ModelFields(Group):
    """Model"""

    model_name_or_path: str = Field(
        "",
        json_schema_extra=PATH,
        description="Folder of the model (a config.json is enough for random weights), or a name built into PaddleNLP, "
        "whose weights are downloaded. Required.",
    )
    tokenizer_name_or_path: str | None = Field(
        None,
        json_schema_extra=PATH,
        description="Folder or built-in name of the tokenizer. Unset: the one in --model_name_or_path.",
    )
    model_type: str | None = Field(
        None,
        description=f"Family: {', '.join(FAMILIES)}. Optional; compared with config.json if given.",
    )
    continue_training: bool = Field(
        False, description="true: load the folder's weights. false: random weights from its config.json."
    )
    allow_pickle: bool = Field(
        False,
        description="Read torch's pytorch_model.bin if a folder has no safetensors; only tensors are read from it.",
    )
    num_hidden_layers: int | None = Field(
        None, ge=1, description="Number of layers; overrides config.json. Only with random weights."
    )
    hidden_dropout_prob: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout on hidden states. Unset: as in config.json (PaddleNLP: 0.1 for all models).",
    )
    attention_probs_dropout_prob: float | None = Field(
        None, ge=0, lt=1, description="Dropout on attention probabilities. Unset: as in config.json."
    )
    use_flash_attention: bool = Field(False, description="Flash attention kernels (GPU).")
    use_fused_rms_norm: bool | None = Field(
        None,
        description="Fused RMSNorm (LLaMA, Qwen2, ChatGLM2/3). Unset: on for a CPU, where it makes a step 2 to 5% faster; off for a GPU.",
    )
    use_fused_rope: bool = Field(False, description="Fused rotary embedding kernel (GPU, LLaMA).")
    fuse_attention_qkv: bool | None = Field(
        None, description="One matrix for query, key and value (LLaMA). Unset: as in config.json."
    )
    fuse_attention_ffn: bool | None = Field(
        None, description="One matrix for gate and up projection (LLaMA). Unset: as in config.json."
    )
