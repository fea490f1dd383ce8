"""paddle_llm: pretraining and fine-tuning of large language models on PaddlePaddle, proven layout by layout."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paddle_llm.training.api import finetune, pretrain
    from paddle_llm.training.trainers.finetune_trainer import FinetuneTrainer
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

__version__ = "0.1.0"
__all__ = ["FinetuneTrainer", "PretrainTrainer", "finetune", "pretrain"]
_HOMES = {
    "FinetuneTrainer": "finetune_trainer",
    "PretrainTrainer": "pretrain_trainer",
    "finetune": "notebook",
    "pretrain": "notebook",
}


def __getattr__(name: str):
    # Importing paddlenlp takes seconds; `import paddle_llm` must not.
    if name in _HOMES:
        return getattr(import_module(f"paddle_llm.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'paddle_llm' has no attribute {name!r}")
