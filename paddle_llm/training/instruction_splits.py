"""Instructions as training samples: chat template, encoder, the samples of a split, and the number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from paddlenlp.trainer import TrainingArguments

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import ChosenTemplate, choose_template
from paddle_llm.data.instructions.conversation import Conversation
from paddle_llm.data.samples.dataset import InstructionDataset, PackedDataset, load_split
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.samples.encoded_samples import encode_all
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.peft.method import Method
from paddle_llm.peft.methods.prompt import PromptedDataset
from paddle_llm.training.epochs import global_batch_of, position_of

Samples = InstructionDataset | PackedDataset | PromptedDataset


class Split(NamedTuple):
    """The samples of a split and the conversations that they were encoded from."""

    samples: Samples
    conversations: Sequence[Conversation]


def make_encoder(config: RunConfig, codec: TextCodec, folder: str) -> InstructionEncoder:
    """Return the encoder of a job and report its chat template.

    Args:
        config: Configuration of the job.
        codec: Tokenizer of the job.
        folder: Folder or name of the tokenizer.
    """
    return encoder_of(config, codec, select_template(config, codec, folder))


def select_template(config: RunConfig, codec: TextCodec, folder: str) -> ChosenTemplate:
    """Choose the chat template of a job and report it.

    Args:
        config: Configuration of the job.
        codec: Tokenizer of the job.
        folder: Folder or name of the tokenizer.
    """
    chosen = choose_template(config.chat_template, codec, folder, date=config.chat_template_date)
    say(f"prompt template: {chosen.template.name} ({chosen.why})")
    for line in chosen.notices:
        say(line)
    return chosen


def encoder_of(config: RunConfig, codec: TextCodec, chosen: ChosenTemplate) -> InstructionEncoder:
    """Return the encoder of a job.

    Args:
        config: Configuration of the job.
        codec: Tokenizer of the job.
        chosen: Chat template of the job.
    """
    return InstructionEncoder(
        codec,
        chosen.template,
        max_length=config.max_length,
        src_length=config.src_length,
        loss_on=config.loss_on,
        special_text_as=config.special_tokens_in_content,
    )


def read_conversations(config: RunConfig, split: str) -> Sequence[Conversation]:
    """Read the conversations of a split.

    Args:
        config: Configuration of the job.
        split: "train", "dev" or "test".

    Raises:
        UserError: If the split does not exist or contains invalid rows.
    """
    found = load_split(
        config.dataset_name_or_path,
        split,
        data_format=config.data_format,
        prompt_templates=config.prompt_templates,
        skip_bad_rows=config.skip_bad_rows,
        seed=config.seed,
    )
    if not found:
        folder = config.dataset_name_or_path or "./data"
        flag = {"dev": " or drop --do_eval", "test": " or drop --do_predict"}.get(split, "")
        raise UserError(f"{folder} has no {split} split. Add {split}.json{flag}.")
    return found


def load_samples(config: RunConfig, encoder: InstructionEncoder, method: Method, name: str) -> Split:
    """Read and encode a split and report its size.

    Args:
        config: Configuration of the job.
        encoder: Encoder of the job.
        method: Fine-tuning method, which may add prompt tokens.
        name: "train", "dev" or "test".

    Raises:
        UserError: If the split does not exist, contains invalid rows, or has no usable sample.
    """
    conversations = read_conversations(config, name)
    encoded = encode_all(
        conversations, encoder, long_samples=config.long_samples, skip_untrainable=config.skip_bad_rows
    )
    say(f"{name}: {encoded.report.samples:,} samples, {encoded.report.answer_tokens:,} tokens with loss")
    samples: Samples
    if config.zero_padding and name == "train":
        samples = PackedDataset(encoded, config.max_seq_length, config.seed)
        say(samples.describe())
    else:
        samples = InstructionDataset(encoded)
    return Split(PromptedDataset(samples, method) if method.name == "prompt" else samples, conversations)


def set_steps(config: RunConfig, args: TrainingArguments, rows: int) -> None:
    """Set `args.max_steps` from the number of epochs if it is not set, and report it.

    Every row is used. The last step is filled with rows of the next epoch.

    Args:
        config: Configuration of the job.
        args: Arguments of the training; changed in place.
        rows: Number of rows of an epoch.
    """
    if args.max_steps > 0:
        return
    batch, wanted, position = global_batch_of(args), config.num_train_epochs * rows, position_of(args)
    args.max_steps = position.step + math.ceil(max(wanted - position.samples, 0) / batch)
    more = max(position.samples_at(args.max_steps, batch) - math.ceil(wanted), 0)
    filled = f", the last one filled with {counted(more, 'row')} of the next epoch" if more else ""
    epochs = f"{config.num_train_epochs:g} {'epoch' if config.num_train_epochs == 1 else 'epochs'}"
    steps = f"{counted(args.max_steps, 'step')} of {counted(batch, 'row')}"
    say(f"{epochs} of {counted(rows, 'row')}: {steps}{filled}")
