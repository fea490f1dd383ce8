"""Fine-tune a language model: `python -m paddle.distributed.launch finetune_generation.py CONFIG.json [--key value ...]`."""

from paddle_llm.training.run import main

if __name__ == "__main__":
    main(entry="finetune")
