"""paddle_llm: pretraining and fine-tuning of large language models on PaddlePaddle, proven layout by layout."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddle_llm.generation.api import generate
    from paddle_llm.training.api import finetune, pretrain
    from paddle_llm.training.trainers.finetune_trainer import FinetuneTrainer
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

__version__ = "0.3.0"
__all__ = ["FinetuneTrainer", "PretrainTrainer", "finetune", "generate", "pretrain"]
_MODULES = {
    "FinetuneTrainer": "training.trainers.finetune_trainer",
    "PretrainTrainer": "training.trainers.pretrain_trainer",
    "finetune": "training.api",
    "generate": "generation.api",
    "pretrain": "training.api",
}


def __getattr__(name: str) -> Any:
    # Importing PaddleNLP takes seconds; `import paddle_llm` must not.
    if name in _MODULES:
        return getattr(import_module(f"paddle_llm.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'paddle_llm' has no attribute {name!r}")
