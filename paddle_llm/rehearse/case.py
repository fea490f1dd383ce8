"""A short training that is run in a layout and in one process, so that the two can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.config.run_config import RunConfig

Sample = dict[str, np.ndarray]


class OrderedSamples(list[Sample]):
    """Samples in the order of the training: global batch g consists of the items g*G to (g+1)*G - 1."""

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples."""
        return len(self)


@dataclass(frozen=True)
class Case:
    """A short training. Ranks receive it through a pipe, so it can be pickled.

    Attributes:
        layout: Layout to compare with one process.
        config: Config of one rank of the layout; `model_name_or_path` is a local folder. The oracle sets the output
            folder, logging, evaluation and saving, and turns dropout off.
        train: Samples in the order of the training, at least `max_steps` global batches.
        evaluation: Samples of the evaluation after every step; [] for none.
        name: Name for tables.
        fault: Name in `faults.FAULTS` of a fault that is injected into the layout's ranks and not into the reference;
            None for no fault.
        entry: Kind of the job: "pretrain", or "finetune" for the config's method and samples of unequal length.
    """

    layout: Layout
    config: RunConfig
    train: list[Sample]
    evaluation: list[Sample] = field(default_factory=list)
    name: str = ""
    fault: str | None = None
    entry: str = "pretrain"

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.layout.data_world_size

    def in_one_process(self) -> Case:
        """Return the same training in one process, with the same micro-batches."""
        config = self.config.model_copy(
            update={
                **_ONE_PROCESS,
                "gradient_accumulation_steps": self.global_batch // self.config.per_device_train_batch_size,
                "per_device_eval_batch_size": self.config.per_device_train_batch_size,  # one for all layouts
            }
        )
        return replace(self, layout=Layout(), config=config, fault=None)

    def with_other_micro_batches(self) -> Case | None:
        """Return the training in one process with micro-batches of another size, which differs by rounding only.

        Returns:
            The case; None if a global batch is one sample.
        """
        single, batch = self.in_one_process(), self.global_batch
        if batch == 1:
            return None
        micro = single.config.per_device_train_batch_size
        other = 2 * micro if batch % (2 * micro) == 0 else batch if micro < batch else 1
        update = {"per_device_train_batch_size": other, "gradient_accumulation_steps": batch // other}
        return replace(single, config=single.config.model_copy(update=update))


_ONE_PROCESS: dict[str, Any] = {
    "tensor_parallel_degree": 1,
    "pipeline_parallel_degree": 1,
    "virtual_pp_degree": 1,
    "data_parallel_degree": 1,
    "sharding_parallel_degree": 1,
    "sharding": "",
    "sequence_parallel": False,
    "fuse_sequence_parallel_allreduce": False,
    "tensor_parallel_config": "",
    "pipeline_parallel_config": "",
    "sharding_parallel_config": "",
    "sharding_comm_buffer_size_MB": -1,
    # Settings that change memory and not results. The reference runs without them, so that they are compared, too.
    "recompute": False,
    "no_recompute_layers": None,
    "release_grads": False,
}
