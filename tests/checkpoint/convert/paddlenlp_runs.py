"""Train a tiny LLaMA with PaddleNLP's own Trainer and save its checkpoints; runs inside ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.pretrain_jobs import Toy
from tests.parallel.layout_runs import _check_mesh, _network

STEPS, SAVED = 4, 2
GLOBAL_BATCH = 8
# Name of a format -> the attributes of TrainingArguments that choose it.
FORMATS: dict[str, dict[str, Any]] = {
    "ranks": {},
    "unified": {"unified_checkpoint": True},
    "not merged": {"unified_checkpoint": True, "unified_checkpoint_config": ["ignore_merge_optimizer"]},
    "sharding-io": {"save_sharded_model": True},
}


def train(
    folder: str,
    layout: dict[str, Any],
    model: dict[str, Any],
    formats: list[str],
    resume: str | None = None,
    schedule: str = "linear",
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Train four steps and save the state after step 2 in several formats: `<folder>/<format>/checkpoint-2`.

    Args:
        folder: Output folder.
        layout: Fields of `Layout`.
        model: Fields of LlamaConfig.
        formats: Keys of FORMATS.
        resume: Unified checkpoint to continue from.
        schedule: Schedule of the learning rate.

    Returns:
        (loss by step, this rank's weights and optimizer states after step 2).
    """
    from paddle_llm.config.layout import Layout

    plan = Layout(**layout)
    if plan.world_size > 1:
        from paddle_llm.parallel.gloo.backend import install_gloo_backend

        install_gloo_backend()
    from paddlenlp.trainer import Trainer, TrainingArguments
    from paddlenlp.utils.batch_sampler import DistributedBatchSampler
    from paddlenlp.utils.log import logger

    logger.set_level("ERROR")
    fields = {
        "output_dir": folder,
        "device": "cpu",
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": GLOBAL_BATCH // plan.data_world_size,
        "learning_rate": 1e-2,
        "lr_scheduler_type": schedule,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_steps": SAVED,
        # The trainer prepares both formats; `_save_checkpoint` chooses one after the other.
        "unified_checkpoint": True,
        "save_sharded_model": "sharding-io" in formats,
        "report_to": [],
        "disable_tqdm": True,
        "do_train": True,
        "tensor_parallel_degree": plan.tensor,
        "pipeline_parallel_degree": plan.pipeline,
    }
    if plan.sharding > 1:
        fields |= {"sharding": "stage1", "sharding_parallel_degree": plan.sharding}
    arguments = TrainingArguments(**fields)
    _check_mesh(plan, arguments)
    network = _network(plan, arguments, model)
    losses: list[float] = []
    saved: dict[str, np.ndarray] = {}

    class Recording(Trainer):
        def _save_checkpoint(self, model: Any, metrics: Any = None) -> None:
            if self.state.global_step != SAVED or resume is not None:
                return
            saved.update(tensors_of(self))
            for name in formats:
                chosen = {"unified_checkpoint": False, "unified_checkpoint_config": [], "save_sharded_model": False}
                for key, value in (chosen | FORMATS[name]).items():
                    setattr(self.args, key, value)
                self.args.output_dir = self.args.output_signal_dir = str(Path(folder) / name)
                super()._save_checkpoint(model, metrics)

        def log(self, logs: dict[str, Any], **_: Any) -> None:
            if "train_runtime" not in logs and "loss" in logs:
                losses.append(float(logs["loss"]))

        def _get_train_sampler(self) -> Any:
            args = self.args
            return DistributedBatchSampler(
                self.train_dataset, 1, num_replicas=args.dataset_world_size, rank=args.dataset_rank, drop_last=True
            )

    samples = [Toy(STEPS * GLOBAL_BATCH)[index] for index in range(STEPS * GLOBAL_BATCH)]
    trainer = Recording(model=network, args=arguments, train_dataset=samples)
    trainer.train(resume_from_checkpoint=resume)
    return losses[: STEPS if resume is None else STEPS - SAVED], saved


def tensors_of(trainer: Any) -> dict[str, np.ndarray]:
    """Return this rank's weights and optimizer states: `weights/<name>`, `moment1/<name>`, ..."""
    found: dict[str, np.ndarray] = {}
    inner = trainer.optimizer
    while getattr(inner, "_inner_opt", None) is not None:
        inner = inner._inner_opt
    for name, parameter in trainer.model.state_dict().items():
        found[f"weights/{name}"] = parameter.numpy()
        for kind, states in inner._accumulators.items():
            if parameter.name in states:
                found[f"{kind}/{name}"] = states[parameter.name].numpy()
    return found
