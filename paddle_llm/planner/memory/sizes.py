"""Bytes of the tensors of a layer on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llm.planner.job import BYTES, Job


@dataclass(frozen=True)
class Sizes:
    """Bytes of the tensors of a layer on one rank.

    Attributes:
        rows, length: Rows of the micro-batch and positions per row.
        heads, groups, width: Query heads, key-value heads and head width of this rank.
        hidden: Hidden states between the parts of a layer; a part of the sequence with sequence parallelism.
        full: Hidden states of the whole sequence.
        inner: Activations of the feed-forward network.
        vocabulary: Number of columns of this rank's logits.
        element: Bytes of one number.
    """

    rows: int
    length: int
    heads: int
    groups: int
    width: int
    hidden: int
    full: int
    inner: int
    vocabulary: int
    element: int

    @classmethod
    def of(cls, job: Job) -> Sizes:
        """Return the sizes of a job."""
        facts, tensor = job.model, job.layout.tensor
        element, tokens = BYTES[job.precision.compute], job.micro_batch * job.seq_length
        groups = facts.num_key_value_heads
        full = tokens * facts.hidden_size * element
        return cls(
            rows=job.micro_batch,
            length=job.seq_length,
            heads=facts.num_attention_heads // tensor,
            groups=groups // tensor if groups % tensor == 0 else groups,
            width=facts.head_dim,
            hidden=full // tensor if job.layout.sequence_parallel else full,
            full=full,
            inner=tokens * (facts.intermediate_size // tensor) * element,
            vocabulary=-(-facts.vocab_size // tensor),
            element=element,
        )

    @property
    def tokens(self) -> int:
        """Number of tokens of a micro-batch."""
        return self.rows * self.length

    @property
    def queries(self) -> int:
        """Bytes of the queries."""
        return self.tokens * self.heads * self.width * self.element

    @property
    def keys(self) -> int:
        """Bytes of the keys, and of the values."""
        return self.tokens * self.groups * self.width * self.element

    def scores(self, queries: int, keys: int) -> int:
        """Return the bytes of the scores of some queries and keys."""
        return self.rows * self.heads * queries * keys * self.element

    def logits(self, element: int) -> int:
        """Return the bytes of this rank's logits in numbers of `element` bytes."""
        return self.tokens * self.vocabulary * element
