"""paddle_llm: pretraining and fine-tuning of large language models on PaddlePaddle, proven layout by layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paddle_llm.training.finetune_trainer import FinetuneTrainer
    from paddle_llm.training.pretrain_trainer import PretrainTrainer

__version__ = "0.1.0"
__all__ = ["FinetuneTrainer", "PretrainTrainer"]


def __getattr__(name: str):
    # Importing paddlenlp takes seconds; `import paddle_llm` must not.
    if name == "PretrainTrainer":
        from paddle_llm.training.pretrain_trainer import PretrainTrainer

        return PretrainTrainer
    if name == "FinetuneTrainer":
        from paddle_llm.training.finetune_trainer import FinetuneTrainer

        return FinetuneTrainer
    raise AttributeError(f"module 'paddle_llm' has no attribute {name!r}")
