"""The loss of every family: mean cross entropy over the labels in fp32.

PaddleNLP's criteria differ. LLaMA's omits tokens whose loss is exactly zero, and silently drops the parallel cross
entropy if the vocabulary does not divide. ChatGLM-6B's divides by all positions in one process and by the number of
labels under tensor parallelism. BLOOM's indexes with a mask, so the host must wait for the size of the result. This
criterion replaces all of them.

Shapes: B rows, S positions, V vocabulary (this rank's part of it under tensor parallelism).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import paddle
import paddle.distributed.fleet.meta_parallel as mpu
import paddle.nn.functional as F
from paddle.distributed import fleet
from paddle.distributed.fleet.layers.mpu import mp_ops

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.models.weights.vocabulary import real_vocab_size

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

# Far below any logit; not -inf, since -inf - -inf is not a number.
_NEVER = -1e30


class CausalLMLoss(paddle.nn.Layer):
    """Mean cross entropy of the next token over the labels that are not -100; zero if there are none.

    Labels are shifted: `labels_BS[b, s]` is the token after `input_ids[b, s]`.

    Args:
        config: PaddleNLP's configuration, whose vocabulary is padded to a multiple of the tensor-parallel degree.

    Attributes:
        label_smoothing: Share of the target's probability that is spread over the whole vocabulary without its padding
            (Szegedy et al. 2016, section 7). Default 0.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self._divisor: tuple[float | paddle.Tensor | None] = (None,)
        self.label_smoothing = 0.0
        degree = max(config.tensor_parallel_degree, 1)
        self.parallel = degree > 1 and config.tensor_parallel_output
        local = config.vocab_size // degree if self.parallel else config.vocab_size
        first = config.tensor_parallel_rank * local if self.parallel else 0
        self.first, self.vocab_size = first, real_vocab_size(config)
        self.real_columns = min(max(self.vocab_size - first, 0), local)
        self.padding = local - self.real_columns
        self.parallel_cross_entropy = mpu.ParallelCrossEntropy(ignore_index=IGNORE_INDEX) if self.parallel else None

    @contextmanager
    def divided_by(self, divisor: float | paddle.Tensor | None) -> Iterator[None]:
        """Divide the sum of each batch by `divisor` instead of by its number of labels.

        It is for batches with unequal numbers of labels whose losses are averaged afterwards.

        Args:
            divisor: Number or scalar in float32; None for the batch's own number of labels.
        """
        # In a tuple, because Paddle makes a buffer of an attribute that is a tensor.
        before, self._divisor = self._divisor, (divisor,)
        try:
            yield
        finally:
            self._divisor = before

    @contextmanager
    def without_smoothing(self) -> Iterator[None]:
        """Compute the loss without label smoothing."""
        before, self.label_smoothing = self.label_smoothing, 0.0
        try:
            yield
        finally:
            self.label_smoothing = before

    def forward(self, logits_BSV: paddle.Tensor, labels_BS: paddle.Tensor) -> paddle.Tensor:
        """Return the loss, a scalar in fp32."""
        with paddle.amp.auto_cast(False):
            logits_BSV = logits_BSV.astype("float32")
            # On a CPU, Paddle's softmax (3.3.1) turns a row of NaN into equal probabilities, so the loss would be
            # ln(V). This term is NaN if a logit is not finite.
            nan_if_not_finite = 0.0 * logits_BSV.detach().sum() if logits_BSV.place.is_cpu_place() else 0.0
            if self.padding:
                real_V = paddle.arange(logits_BSV.shape[-1]) < self.real_columns
                logits_BSV = paddle.where(real_V, logits_BSV, paddle.full([1], _NEVER))
            if self.parallel_cross_entropy is not None:
                loss_BS = self.parallel_cross_entropy(logits_BSV, labels_BS.unsqueeze(-1)).squeeze(-1)
            else:
                loss_BS = F.cross_entropy(logits_BSV, labels_BS, ignore_index=IGNORE_INDEX, reduction="none")
            if self.label_smoothing:
                loss_BS = loss_BS.reshape(labels_BS.shape) + self.label_smoothing * self._lead_over_mean(
                    logits_BSV, labels_BS
                )
            counts_BS = (labels_BS != IGNORE_INDEX).astype("float32")
            (divisor,) = self._divisor
            if divisor is None:
                divisor = counts_BS.sum().clip(min=1.0)
            loss = (loss_BS.reshape(labels_BS.shape) * counts_BS).sum() / divisor
            return loss + nan_if_not_finite

    def _lead_over_mean(self, logits_BSV: paddle.Tensor, labels_BS: paddle.Tensor) -> paddle.Tensor:
        """Return the difference between the target's logit and the mean logit of the vocabulary, [B, S].

        Smoothed cross entropy, (1 - e) nll + e mean(-log p), is nll + e times this: both have the same log-sum-exp.
        """
        columns = logits_BSV.shape[-1]
        local_BS = labels_BS - self.first
        is_here_BS = (local_BS >= 0) & (local_BS < columns)
        indices_BS1 = paddle.where(is_here_BS, local_BS, paddle.zeros_like(local_BS)).unsqueeze(-1)
        target_BS = paddle.take_along_axis(logits_BSV, indices_BS1, axis=-1).squeeze(-1) * is_here_BS.astype("float32")
        lead_BS = target_BS - logits_BSV[..., : self.real_columns].sum(axis=-1) / self.vocab_size
        if self.parallel:
            group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
            lead_BS = mp_ops._mp_allreduce(
                lead_BS, group=group, use_calc_stream=True, use_model_parallel=True
            )  # its gradient is the identity: each rank has the whole loss
        return lead_BS
