"""Faults in the weights and samples of a training, and in its loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import paddle
import paddle.distributed as dist

from paddle_llm.data.sampler import GlobalBatchSampler
from paddle_llm.models import loss
from paddle_llm.models.weights import initialization as init
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.rehearse.faults.registry import DP2, FORWARD, TP2, fault
from paddle_llm.training.evaluation import mean_loss as evaluation
from paddle_llm.training.step.loss_normalization import LossNormalizer
from paddle_llm.training.trainers import pretrain_trainer


@fault(
    quantity="weight",
    unaffected=(),
    layout=TP2,
    tensors=r"o_proj\.weight$",
    others_equal=False,
)
def swapped_shards() -> Iterator[None]:
    """The tensor-parallel shards of attention output projections are read in reverse order."""

    def shard_of_the_other(
        family: str, name: str, local_shape: list[int], split: bool, config: Any, degree: int, rank: int
    ) -> Shard:
        if name.endswith("o_proj.weight"):
            rank = degree - 1 - rank
        return shard_of(family, name, local_shape, split, config, degree, rank)

    with patch.object(init, "shard_of", shard_of_the_other):
        yield


@fault(
    quantity="loss",
    unaffected=(),
    layout=DP2,
)
def micro_batch_twice() -> Iterator[None]:
    """The first micro-batch of a step is used again instead of the second one."""
    micro_batches = GlobalBatchSampler.__iter__

    def with_a_repetition(self: GlobalBatchSampler) -> Iterator[list[int]]:
        first: list[int] = []
        for index, batch in enumerate(micro_batches(self)):
            micro_step = index % self.gradient_accumulation_steps
            first = batch if micro_step == 0 else first
            yield first if micro_step == 1 else batch

    with patch.object(GlobalBatchSampler, "__iter__", with_a_repetition):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,  # reported as the mean over all labels
    layout=DP2,
    tensors=".",
)
def mean_of_each_rank() -> Iterator[None]:
    """Each data rank's loss is the mean over its own labels, so ranks with few labels count as much as others."""

    def use_own_labels(self: LossNormalizer, labels: int) -> None:
        self.labels = float(labels)
        self.divisor = labels * self._data_ranks / self._micro_batches

    with patch.object(LossNormalizer, "start_global_batch", use_own_labels):
        yield


@fault(
    quantity="loss",
    unaffected=(),
    layout=DP2,
)
def mean_of_each_micro_batch() -> Iterator[None]:
    """Each micro-batch's loss is the mean over its own labels, as in trainers before 2024."""
    start = LossNormalizer.start_global_batch

    def start_without_divisor(self: LossNormalizer, labels: int) -> None:
        start(self, labels)
        self.divisor = None

    with patch.object(LossNormalizer, "start_global_batch", start_without_divisor):
        yield


@fault(
    quantity="eval_loss",
    unaffected=("loss", "grad_norm", "gradient", "weight", "moment1", "moment2"),
    layout=DP2,
)
def mean_of_ranks_in_evaluation() -> Iterator[None]:
    """The evaluation loss is the mean of the ranks' means, although their numbers of labels differ."""
    mean_loss = evaluation.mean_loss

    def mean_of_means(*args: Any) -> float:
        with patch.object(dist, "get_world_size", lambda group=None: 1):
            own = mean_loss(*args)
        means: list[paddle.Tensor] = []
        dist.all_gather(means, paddle.to_tensor(own, dtype="float64"))
        return sum(float(mean) for mean in means) / len(means)

    with patch.object(pretrain_trainer, "mean_loss", mean_of_means):
        yield


@fault(
    quantity="loss",
    unaffected=(),
    layout=TP2,
)
def padding_in_the_softmax() -> Iterator[None]:
    """The rows that pad the vocabulary to the tensor-parallel degree are part of the softmax."""
    with patch.object(loss, "real_vocab_size", lambda config: config.vocab_size):
        yield
