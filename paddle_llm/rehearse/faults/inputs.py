"""Faults in what a training computes from: weights and samples; and in what it calls its loss."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

from paddle_llm.rehearse.faults.registry import DP2, FORWARD, TP2, fault


@fault(
    "The output projections of attention are read with their tensor-parallel shards in the other order.",
    shows="weight",
    spares=(),
    layout=TP2,
    tensors=r"o_proj\.weight$",
    alone=False,
)
def swapped_shards() -> Iterator[None]:
    from paddle_llm.models.weights import initialization as init

    shard_of = init.shard_of

    def shard_of_the_other(family, name, local_shape, split, config, degree, rank):
        if name.endswith("o_proj.weight"):
            rank = degree - 1 - rank
        return shard_of(family, name, local_shape, split, config, degree, rank)

    with patch.object(init, "shard_of", shard_of_the_other):
        yield


@fault(
    "The first micro batch of a step is used again in place of the second.",
    shows="loss",
    spares=(),
    layout=DP2,
)
def micro_batch_twice() -> Iterator[None]:
    from paddle_llm.data.sampler import GlobalBatchSampler

    micro_batches = GlobalBatchSampler.__iter__

    def with_a_repetition(self):
        first = None
        for index, batch in enumerate(micro_batches(self)):
            micro_step = index % self.gradient_accumulation_steps
            first = batch if micro_step == 0 else first
            yield first if micro_step == 1 else batch

    with patch.object(GlobalBatchSampler, "__iter__", with_a_repetition):
        yield


@fault(
    "Each data rank's loss is the mean over its own labels, and ranks with few count as much as those with many.",
    shows="gradient",
    spares=FORWARD,  # reported as the mean over all labels
    layout=DP2,
    tensors=".",
)
def mean_of_each_rank() -> Iterator[None]:
    from paddle_llm.training.step.loss_normalization import LossNormalizer

    def use_own_labels(self, labels):
        self.labels = float(labels)
        self.divisor = labels * self._data_ranks / self._micro_batches

    with patch.object(LossNormalizer, "start_global_batch", use_own_labels):
        yield


@fault(
    "Each micro batch's loss is the mean over its own labels, as trainers divided before 2024: those with few count as much.",
    shows="loss",
    spares=(),
    layout=DP2,
)
def mean_of_each_micro_batch() -> Iterator[None]:
    from paddle_llm.training.step.loss_normalization import LossNormalizer

    start = LossNormalizer.start_global_batch

    def start_without_divisor(self, labels):
        start(self, labels)
        self.divisor = None

    with patch.object(LossNormalizer, "start_global_batch", start_without_divisor):
        yield


@fault(
    "The evaluation's loss is the mean of the ranks' means, though their numbers of labels differ.",
    shows="eval_loss",
    spares=("loss", "grad_norm", "gradient", "weight", "moment1", "moment2"),
    layout=DP2,
)
def mean_of_ranks_in_evaluation() -> Iterator[None]:
    import paddle
    import paddle.distributed as dist

    from paddle_llm.training.evaluation import mean_loss as evaluation
    from paddle_llm.training.trainers import pretrain_trainer

    mean_loss = evaluation.mean_loss

    def mean_of_means(*args):
        with patch.object(dist, "get_world_size", lambda group=None: 1):
            own = mean_loss(*args)
        means: list[paddle.Tensor] = []
        dist.all_gather(means, paddle.to_tensor(own, dtype="float64"))
        return sum(float(mean) for mean in means) / len(means)

    with patch.object(pretrain_trainer, "mean_loss", mean_of_means):
        yield


@fault(
    "The rows that pad the vocabulary to the tensor-parallel degree take part in the softmax.",
    shows="loss",
    spares=(),
    layout=TP2,
)
def padding_in_the_softmax() -> Iterator[None]:
    from paddle_llm.models import loss

    with patch.object(loss, "real_vocab_size", lambda config: config.vocab_size):
        yield
