"""Short pretraining runs for tests: a tiny LLaMA, synthetic data, the real trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig
from tests.helpers.models.tiny import write_llama

SEQUENCE, VOCABULARY, EPOCH = 16, 128, 40


class Toy:
    """A dataset in global order: item i is a function of i alone."""

    def __init__(self, length: int, samples_per_epoch: int = EPOCH):
        self.length, self.samples_per_epoch = length, samples_per_epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        order = np.random.RandomState(index // EPOCH).permutation(EPOCH)
        tokens = np.random.RandomState(order[index % EPOCH]).randint(3, VOCABULARY, SEQUENCE + 1).astype(np.int64)
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}

    def sample_ids(self, index: int) -> str:
        return f"toy sample {index}"


def config(folder: Path, **changes: Any) -> RunConfig:
    """Return the RunConfig of a short run in `folder` on a CPU."""
    if not (folder / "llama").exists():
        write_llama(folder / "llama", vocab_size=VOCABULARY)
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder / "llama"),
        "output_dir": str(folder / "output"),
        "do_train": True,
        "do_eval": True,
        "device": "cpu",
        "max_steps": 12,
        "logging_steps": 3,
        "eval_steps": 6,
        "eval_iters": 3,
        "save_steps": 5,
        "max_seq_length": SEQUENCE,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "report_to": ["none"],
        "disable_tqdm": True,
    }
    return RunConfig(**(settings | changes))


def make_trainer(run: RunConfig, layout: Layout | None = None, train=None, evaluation=None, **options: Any):
    """Return the trainer of one rank, as run_pretrain.py creates it, with the toy data."""
    import paddle

    from paddle_llm.models.build import build_model
    from paddle_llm.training.arguments import training_arguments
    from paddle_llm.training.options import TrainerOptions
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

    layout = layout or Layout()
    args = training_arguments(run, layout)
    with paddle.utils.unique_name.guard():
        model = build_model(run, layout, dtype="float32")
    batch = run.per_device_train_batch_size * run.gradient_accumulation_steps * layout.data_world_size
    toy = Toy(max(run.max_steps, 0) * batch, options.pop("samples_per_epoch", EPOCH))
    policies = {name: getattr(run, name) for name in ("nan_policy", "max_rollbacks", "spike_policy")}
    options = {"min_learning_rate": 1e-3, "curves": False, **policies} | options
    return PretrainTrainer(
        model=model,
        args=args,
        layout=layout,
        options=TrainerOptions(**options),
        train_dataset=train or toy,
        eval_dataset=evaluation or Toy(8),
    )


def make_poisoned_trainer(run: RunConfig):
    """Return a trainer whose activations overflow in the fourth step, which gives a real NaN in the loss."""
    trainer = make_trainer(run)

    def overflow(layer, inputs, output):
        return output * float("nan") if trainer.state.global_step == 3 and trainer.model.training else output

    trainer.model.llama.embed_tokens.register_forward_post_hook(overflow)
    return trainer


def rows(output: Path) -> list[dict]:
    """Return the rows of metrics.jsonl about steps, evaluations and events."""
    return [row for row in all_rows(output) if not is_about_checkpoint(row)]


def checkpoint_rows(output: Path) -> list[dict]:
    """Return the rows of metrics.jsonl about saves and loads, which an interruption of a run adds and omits."""
    return [row for row in all_rows(output) if is_about_checkpoint(row)]


def all_rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def is_about_checkpoint(row: dict) -> bool:
    return "save_seconds" in row or "load_seconds" in row


def numbers(output: Path) -> list[tuple]:
    """Return the rows of metrics.jsonl without times: these must not depend on interruptions of a run."""
    clocks = {
        "tokens_per_second",
        "tokens_per_second_per_device",
        "step_seconds",
        "data_wait_seconds",
        "peak_memory_bytes",
    }
    return [tuple(sorted((k, v) for k, v in row.items() if k not in clocks)) for row in rows(output)]


def whole_weights(trainer) -> dict[str, np.ndarray]:
    """Return all weights of this rank's part of the network, also with sharding stage 3. Collective over all ranks."""
    if trainer.sharded_weights is None:
        return weights(trainer.model)
    with trainer.sharded_weights.whole():
        return weights(trainer.model)


def weights(model) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}
