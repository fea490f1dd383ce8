"""Train a tiny LLaMA with PaddleNLP's own Trainer in a layout, with the same weights and data; runs inside ranks."""

from __future__ import annotations

import tempfile
import zlib
from typing import Any

import numpy as np

VOCABULARY, SEQUENCE, STEPS = 128, 16, 3


def train(layout: dict[str, Any], model: dict[str, Any]) -> tuple[list[float], dict[str, np.ndarray]]:
    """Three optimizer steps on the same global batches.

    Args:
        layout: fields of `Layout`.
        model: fields of LlamaConfig.

    Returns:
        (loss by step, full trained weights by name on tensor rank 0 of each stage and {} elsewhere).
    """
    from paddle_llm.config.layout import Layout

    plan = Layout(**layout)
    if plan.world_size > 1:
        from paddle_llm.parallel.gloo.backend import install_gloo_backend

        install_gloo_backend()
    from paddlenlp.utils.log import logger

    logger.set_level("ERROR")
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(plan, folder)
        _check_mesh(plan, arguments)
        network = _network(plan, arguments, model)
        losses = _run(network, arguments)
    from paddle_llm.models.weights.full_weights import full_weights

    weights = {name: array for name, array in full_weights(network, "llama", plan) if array is not None}
    return losses, weights


def _arguments(plan: Any, folder: str) -> Any:
    from paddlenlp.trainer import TrainingArguments

    fields: dict[str, Any] = {
        "output_dir": folder,
        "device": "cpu",
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16 // plan.data_world_size,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "do_train": True,
        "tensor_parallel_degree": plan.tensor,
        "pipeline_parallel_degree": plan.pipeline,
    }
    if plan.sharding > 1:
        fields |= {"sharding": "stage1", "sharding_parallel_degree": plan.sharding}
    return TrainingArguments(**fields)


def _check_mesh(plan: Any, arguments: Any) -> None:
    """Check that the position of this rank is the one that PaddleNLP uses."""
    from paddle_llm.parallel.mesh import AXES, current_mesh
    from paddle_llm.planner.mesh import groups_of

    mesh = current_mesh(plan)
    planned = {found.axis: found.groups for found in groups_of(plan, "pp_first", 8)}
    assert planned.keys() == {name for name in AXES if getattr(plan, name) > 1}
    assert all(getattr(mesh, name).ranks in groups for name, groups in planned.items())
    for name in AXES:
        axis = getattr(mesh, name)
        assert axis.size == getattr(plan, name) == len(axis.ranks), name
        assert axis.ranks[axis.rank] == arguments.process_index, name
        assert (axis.group is None) == (axis.size == 1), name
    assert mesh.data_rank == arguments.dataset_rank
    assert mesh.tensor.rank == max(arguments.tensor_parallel_rank, 0)
    assert mesh.pipeline.rank == max(arguments.pipeline_parallel_rank, 0)


def _network(plan: Any, arguments: Any, model: dict[str, Any]) -> Any:
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM
    from paddlenlp.transformers.llama.modeling_pp import LlamaForCausalLMPipe

    from paddle_llm.parallel.paddle_fixes import count_shared_weights_once

    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "seq_length": SEQUENCE,
        **model,
    }
    shapes = {name: list(t.shape) for name, t in LlamaForCausalLM(LlamaConfig(**fields)).state_dict().items()}
    config = LlamaConfig(
        **fields,
        tensor_parallel_degree=plan.tensor,
        tensor_parallel_rank=max(arguments.tensor_parallel_rank, 0),
    )
    network = (LlamaForCausalLMPipe if plan.pipeline > 1 else LlamaForCausalLM)(config)
    if plan.pipeline > 1:
        count_shared_weights_once(network)
    splits = network.get_tensor_parallel_convert_actions(config, list(shapes)) if plan.tensor > 1 else {}
    import paddle

    for name, tensor in network.state_dict().items():
        array = initial(name, shapes[name], config.tie_word_embeddings)
        tensor.set_value(paddle.to_tensor(np.asarray(splits[name](array) if name in splits else array)))
    return network


def initial(name: str, shape: list[int], tied: bool) -> np.ndarray:
    """Return the initial values of a tensor, which depend on its name only."""
    name = "llama.embed_tokens.weight" if tied and name == "lm_head.weight" else name
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.1, shape)
    return (values + ("norm" in name)).astype("float32")


def _run(network: Any, arguments: Any) -> list[float]:
    from paddlenlp.trainer import Trainer
    from paddlenlp.utils.batch_sampler import DistributedBatchSampler

    losses: list[float] = []

    class Recording(Trainer):
        def log(self, logs: dict[str, Any], **_: Any) -> None:
            if "train_runtime" not in logs and "loss" in logs:
                losses.append(float(logs["loss"]))

        def _get_train_sampler(self) -> Any:
            args = self.args
            return DistributedBatchSampler(
                self.train_dataset, 1, num_replicas=args.dataset_world_size, rank=args.dataset_rank, drop_last=True
            )

    # Few different sequences, so that the loss falls quickly and a wrong update shows at once.
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, SEQUENCE + 1)).repeat(4, axis=0)
    samples = [{"input_ids": row[:-1], "labels": row[1:]} for row in np.tile(tokens, (STEPS, 1)).astype("int64")]
    Recording(model=network, args=arguments, train_dataset=samples).train()
    return losses[:STEPS]
