"""Fields for the data of pretraining."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import BLEND, PATH, Group


class DataFields(Group):
    """Data"""

    input_dir: str = Field(
        "",
        json_schema_extra=BLEND,
        description="Corpus: a folder of .bin/.idx pairs, the prefix of one pair, or a weighted blend of prefixes such as "
        '"0.3 /a/prefix 0.7 /b/prefix". Required.',
    )
    split: str = Field(
        "949,50,1", description="Shares of the corpus for training, evaluation and prediction, by documents."
    )
    max_seq_length: int = Field(
        2048,
        ge=2,
        description="Tokens per sample. 2048 is what LLaMA 1 was trained with; PaddleNLP's default is 1024. Fine-tuning: tokens of "
        "a packed row (--zero_padding); unset: --max_length.",
    )
    data_impl: Literal["mmap", "lazy"] = Field(
        "mmap", description="Format of the corpus. Both are read through the same memory map."
    )
    data_cache: str | None = Field(
        None, json_schema_extra=PATH, description="Folder for the sample index. Unset: index-cache/ beside the corpus."
    )
    share_folder: bool = Field(
        False,
        description="All machines share the folders: one rank of the job builds the index, not one per machine.",
    )
    dataloader_num_workers: int = Field(
        0,
        ge=0,
        description="Processes that read ahead. 0: the training process reads, which is usually fast enough with a memory map.",
    )
    data_seed: int | None = Field(None, ge=0, lt=2**32, description="Seed of the order of samples. Unset: --seed.")
