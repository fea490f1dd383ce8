"""The script that `paddle.distributed.launch` runs on every rank of `paddle-llm pretrain`."""

from paddle_llm.core.transformers_import import hide_torch_from_transformers
from paddle_llm.training.run import main

if __name__ == "__main__":
    hide_torch_from_transformers()
    main(entry="pretrain")
