"""Pretrain a language model: `python -m paddle.distributed.launch run_pretrain.py CONFIG.json [--key value ...]`."""

from paddle_llm.core.transformers_import import hide_torch_from_transformers
from paddle_llm.training.run import main

if __name__ == "__main__":
    hide_torch_from_transformers()
    main()
