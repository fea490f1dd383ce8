"""Fields of fine-tuning's data and of its evaluation. Only finetune_generation.py has them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paddle_llm.config.fields.base import BLEND, PATH, Group


class InstructionFields(Group):
    """Instructions"""

    dataset_name_or_path: str | None = Field(
        None,
        json_schema_extra=BLEND,
        description="Instructions: a file (json, jsonl, csv, parquet), a folder with train.json and dev.json, or a weighted "
        'blend such as "0.3 a.jsonl 0.7 b/". Absent: ./data, where PaddleNLP\'s first scripts looked.',
    )
    data_format: Literal[
        "auto", "src_tgt", "content_summary", "alpaca", "sharegpt", "messages", "prompted", "query_response", "prompt_completion",
        "prompt_response", "instruction_response", "question_answer", "question_response", "input_output", "input_target",
        "conversation",
    ] = Field("auto", description="Format of the rows. auto: recognised by their keys, and reported.")  # fmt: skip
    prompt_templates: str | None = Field(
        None,
        json_schema_extra=PATH,
        description="File of templates that turn raw records into inputs and targets (P3, xP3).",
    )
    chat_template: str = Field(
        "auto",
        json_schema_extra=PATH,
        description="How a conversation becomes text: default, llama2, llama3, chatglm, chatglm2, chatglm3, bloomz, alpaca, "
        "chatml, jinja (the tokenizer's own), the name of one in the tokenizer's list, or a file. auto: the one the model was "
        "trained with, else the tokenizer's own, else default.",
    )
    chat_template_date: str | None = Field(
        None,
        description="Date (YYYY-MM-DD) that a template writes which asks for today's (strftime_now). Absent: such a template is "
        "refused, or writes its own fixed date where it has one.",
    )
    special_tokens_in_content: Literal["text", "tokens"] = Field(
        "text",
        description="What the text of a special token inside a message becomes: text, so that data cannot end an answer or open a "
        "turn, or tokens, as in transformers' apply_chat_template. Counted and reported either way.",
    )
    max_length: int = Field(
        2048, ge=2, description="Tokens of a sample, question and answer (PaddleNLP: 2048; before: src + tgt_length)."
    )
    src_length: int | None = Field(
        None,
        ge=1,
        description="Tokens before an answer. Absent: max_length - 1, so that nothing is cut that would fit "
        "(PaddleNLP: 1024).",
    )
    long_samples: Literal["truncate", "refuse", "drop"] = Field(
        "truncate",
        description="Samples that are too long: cut (an answer that is cut gets no EOS), refused, or left out; counted "
        "either way.",
    )
    loss_on: Literal["answers", "last", "all"] = Field(
        "answers", description="Which tokens are learnt: all answers, the last answer, or everything."
    )
    skip_bad_rows: bool = Field(
        False, description="Leave out rows that hold no conversation, and count them. false: refuse the file."
    )
    zero_padding: bool = Field(
        False,
        description="Pack several samples into one row, without attention across them. Off as in PaddleNLP, since it "
        "changes how many samples a step has.",
    )
    pad_to_max_length: bool = Field(
        False, description="Pad every row to --max_length. A pipeline does so always: its stages expect one shape."
    )
    pad_to_multiple_of: int | None = Field(
        None, ge=1, description="Pad rows to a multiple of this. Absent: to the longest of the batch."
    )


class GenerationFields(Group):
    """Evaluation by generating"""

    eval_with_do_generation: bool = Field(
        False, description="Evaluate by generating answers as well: BLEU, ROUGE and exact match (not with a pipeline)."
    )
    save_generation_output: bool = Field(
        True, description="Write what was generated beside the references, one JSON object per line (PaddleNLP: false)."
    )
    generation_max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Longest answer. Absent: what --src_length leaves of --max_length; 256 without --src_length.",
    )
    generation_batch_size: int = Field(
        8,
        ge=1,
        description="Prompts of one rank at a time. Of each the keys and values of prompt and answer are held; "
        "--per_device_eval_batch_size is the loss's.",
    )
    num_beams: int = Field(1, ge=1, description="Beams of the search. 1: none (PaddleNLP before 2.6: 5).")
    top_k: int | None = Field(
        None, ge=0, description="Sample from this many likeliest tokens. 1: the likeliest. 0 or absent: no limit."
    )
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from the likeliest tokens of this mass.")
    temperature: float | None = Field(
        None,
        gt=0,
        description="Sample; below 1 sharpens. Without it, --top_k and --top_p the likeliest token is taken, so that "
        "evaluations can be compared.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many evaluations without a better --metric_for_best_model. Absent: never.",
    )
