"""`generate`: text generation from Python, and the machinery that `paddle-llm generate` shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.data.chat.selection import check_template
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.folders import resolve_folders
from paddle_llm.generation.network import Loaded, load_network, open_static, start_process
from paddle_llm.generation.options import DecodeOptions, GenerateOptions
from paddle_llm.generation.requests import NONE, PromptReader, Request, TemplateSettings, choose_reader
from paddle_llm.generation.texts import Answer, Generator, repetition_notice
from paddle_llm.models.configuration.generation_settings import describe_unapplied, read_generation
from paddle_llm.parallel.mesh import current_mesh

MAX_NEW_TOKENS, MAX_NEW_TOKENS_OF_ANSWER = 64, 512  # defaults for plain text and with a template
_UNLIMITED = 1 << 20  # tokens; used for models without a limit of positions
_STRATEGY_DEFAULTS = {"repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 1.0}


def generate(model_folder: str | Path, prompts: str | Sequence[str], **options: Any) -> list[str]:
    """Generate a text for each prompt, as `paddle-llm generate` does.

    The model is loaded on each call, so pass all prompts together.

    Example:
        >>> from paddle_llm import generate
        >>> generate("output/llama/model", ["The old house"], max_new_tokens=40, temperature=0.8)  # doctest: +SKIP

    Args:
        model_folder: Model folder, output folder of a run or, with `static=True`, folder of a static export.
        prompts: One prompt or several. Without a template they are continued as plain text; with one
            (`chat_template="auto"`) they are answered as questions.
        options: Fields of `paddle_llm.generation.options.GenerateOptions`: max_new_tokens, temperature, top_p, top_k,
            num_beams, seed, stop_on_repetition, adapter, tokenizer, chat_template, system, batch_size, device, ...

    Returns:
        The generated texts, without the prompts, in the order of the prompts. Under paddle.distributed.launch all ranks
        get the same texts.

    Raises:
        UserError: If a folder, an option or a prompt is wrong.
        TypeError: If an option is unknown.
    """
    settings = GenerateOptions(**{name: _as_path(name, value) for name, value in options.items()})
    settings.check()
    check_chat_template(Path(model_folder), settings)
    folder, settings = resolve_folders(Path(model_folder), settings)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    requests = [Request(text, where=f"prompt {number}") for number, text in enumerate(texts, 1)]
    if not requests:
        return []
    generator, reader = open_generator(folder, requests, settings)
    from paddle_llm.generation.eval_mode import generating  # imports Paddle

    encoded = [reader(request) for request in requests]
    if reader.encoder is None:
        for prompt in encoded:
            generator.check_length(prompt)
    with generating(generator.model):
        answers = generator(encoded, range(len(encoded)), settings.batch_size)
    notice = repetition_notice(
        answers, [request.where for request in requests], "Without stop_on_repetition they are complete."
    )
    if notice:
        say(notice)
    if reader.encoder is not None:
        return [answer.text for answer in answers]
    return [continuation(text, answer, generator.codec) for text, answer in zip(texts, answers, strict=True)]


def open_generator(
    folder: Path, requests: Sequence[Request], options: GenerateOptions
) -> tuple[Generator, PromptReader]:
    """Load a network and choose the template of its prompts.

    Args:
        folder: The model folder; see `resolve_folders`.
        requests: Requests to answer; empty for a chat.
        options: Options with resolved folders.

    Raises:
        UserError: If a file cannot be loaded, or the template does not fit the requests.
    """
    loaded = load(folder, options)
    if not options.static:
        _report_unapplied_settings(folder, options)
    positions = position_limit(loaded.model.config) or _UNLIMITED
    answer_default = min(MAX_NEW_TOKENS_OF_ANSWER, positions // 2)
    reader = choose_reader(
        requests,
        loaded.codec,
        TemplateSettings(
            requested=options.chat_template,
            trained_with=loaded.template,
            record_folder=loaded.template_folder,
            tokenizer_folder=str(options.tokenizer or folder),
            src_length=max(positions - (options.max_new_tokens or answer_default), 1),
            date=options.chat_template_date,
            system=options.system,
        ),
    )
    default = MAX_NEW_TOKENS if reader.encoder is None else answer_default
    stop_ids = frozenset(loaded.stop_ids) | reader.stop_ids
    tensor = None if options.static else current_mesh(loaded.layout).tensor
    decode_options = DecodeOptions(
        loaded.family, stop_ids, options.strategy, tensor, stop_on_repetition=options.stop_on_repetition
    )
    return Generator(loaded.model, loaded.codec, decode_options, options.max_new_tokens or default), reader


def check_chat_template(folder: Path, options: GenerateOptions) -> None:
    """Check the name of the chat template before anything is loaded.

    Raises:
        UserError: If the template does not exist.
    """
    if options.chat_template is not None and options.chat_template != NONE:
        check_template(options.chat_template, str(options.tokenizer or folder))


def continuation(text: str, answer: Answer, codec: TextCodec) -> str:
    """Return the text generated after a plain-text prompt.

    A word tokenizer drops the space before the first piece that it decodes, so the prompt is decoded too.
    """
    before = codec.encode(text)
    decoded_prompt = codec.decode(before)
    whole = codec.decode([*before, *answer.tokens])
    return whole[len(decoded_prompt) :] if whole.startswith(decoded_prompt) else answer.text


def load(folder: Path, options: GenerateOptions) -> Loaded:
    """Load the network of a folder, or open a static export, as the options select it.

    Args:
        folder: The model folder; see `resolve_folders`.
        options: Options with resolved folders.

    Raises:
        UserError: If a file cannot be loaded.
    """
    if options.static:
        return open_static(folder, options.tokenizer)
    device, layout = start_process(options.device)
    return load_network(
        folder,
        device,
        layout,
        tokenizer=options.tokenizer,
        adapter=options.adapter,
        allow_pickle=options.allow_pickle,
    )


def _report_unapplied_settings(folder: Path, options: GenerateOptions) -> None:
    """Report the defaults of generation_config.json that are not applied."""
    given = [
        name for name, value in vars(options).items() if value is not None and value != _STRATEGY_DEFAULTS.get(name)
    ]
    if {"temperature", "top_p", "top_k"} & set(given):
        given += ["do_sample", "decode_strategy"]
    line = describe_unapplied(read_generation(folder), given, folder)
    if line:
        say(line)


def _as_path(name: str, value: Any) -> Any:
    return Path(value) if name in ("adapter", "tokenizer") and value is not None else value
