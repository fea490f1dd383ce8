"""Fields for the data and the evaluation of fine-tuning. Only finetune_generation.py has them."""

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
        'blend such as "0.3 a.jsonl 0.7 b/". Unset: ./data, the folder of PaddleNLP\'s first scripts.',
    )
    data_format: Literal[
        "auto", "src_tgt", "content_summary", "alpaca", "sharegpt", "messages", "prompted", "query_response", "prompt_completion",
        "prompt_response", "instruction_response", "question_answer", "question_response", "input_output", "input_target",
        "conversation",
    ] = Field("auto", description="Format of the rows. auto: detected from their keys, and reported.")  # fmt: skip
    prompt_templates: str | None = Field(
        None,
        json_schema_extra=PATH,
        description="File with templates that convert raw records to inputs and targets (P3, xP3).",
    )
    chat_template: str = Field(
        "auto",
        json_schema_extra=PATH,
        description="How a conversation is written as text: default, llama2, llama3, chatglm, chatglm2, chatglm3, bloomz, alpaca, "
        "chatml, jinja (the tokenizer's template), a name from the tokenizer's list of templates, or a file. auto: the one that the "
        "model was trained with, else the tokenizer's, else default.",
    )
    chat_template_date: str | None = Field(
        None,
        description="Date (YYYY-MM-DD) for templates that write today's date (strftime_now). Unset: such a template is refused, "
        "unless it has a fixed date.",
    )
    special_tokens_in_content: Literal["text", "tokens"] = Field(
        "text",
        description="How the text of a special token inside a message is encoded: as text, so that data cannot end an answer or "
        "open a turn, or as tokens, as in transformers' apply_chat_template. Counted and reported in both cases.",
    )
    max_length: int = Field(
        2048,
        ge=2,
        description="Maximum tokens of a sample, prompt and answer (PaddleNLP 3.0: 2048; earlier: src_length + tgt_length).",
    )
    src_length: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens before an answer. Unset: max_length - 1, so that no sample is truncated that fits (PaddleNLP: 1024).",
    )
    long_samples: Literal["truncate", "refuse", "drop"] = Field(
        "truncate",
        description="Samples that are too long: truncated (a truncated answer has no EOS), refused, or dropped. They are counted "
        "in all cases.",
    )
    loss_on: Literal["answers", "last", "all"] = Field(
        "answers", description="Tokens with a loss: all answers, the last answer, or all tokens."
    )
    skip_bad_rows: bool = Field(
        False, description="Skip and count rows without a conversation. false: refuse the file."
    )
    zero_padding: bool = Field(
        False,
        description="Pack several samples into one row, without attention between them. Off as in PaddleNLP, since it "
        "changes the number of samples per step.",
    )
    pad_to_max_length: bool = Field(
        False, description="Pad every row to --max_length. Always on with a pipeline, whose stages expect one shape."
    )
    pad_to_multiple_of: int | None = Field(
        None, ge=1, description="Pad rows to a multiple of this length. Unset: to the longest row of the batch."
    )


class GenerationFields(Group):
    """Evaluation by generation"""

    eval_with_do_generation: bool = Field(
        False, description="Also evaluate generated answers: BLEU, ROUGE and exact match (not with a pipeline)."
    )
    save_generation_output: bool = Field(
        True, description="Write generated answers and references, one JSON object per line (PaddleNLP: false)."
    )
    generation_max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens of an answer. Unset: --max_length - --src_length; 256 without --src_length.",
    )
    generation_batch_size: int = Field(
        8,
        ge=1,
        description="Prompts that one rank decodes together. Each needs memory for the keys and values of prompt and answer; "
        "--per_device_eval_batch_size applies to the loss.",
    )
    num_beams: int = Field(1, ge=1, description="Number of beams. 1: no beam search (PaddleNLP before 2.6: 5).")
    top_k: int | None = Field(
        None, ge=0, description="Sample from this many most likely tokens. 1: greedy. 0 or unset: no limit."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the most likely tokens with this total probability."
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="Sample with this temperature. Without --temperature, --top_k and --top_p decoding is greedy, so that "
        "evaluations can be compared.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many evaluations without a better --metric_for_best_model. Unset: never.",
    )
