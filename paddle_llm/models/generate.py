"""`paddle-llm generate`: continue prompts with a model folder. Imports nothing of training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click

from paddle_llm.config.errors import UserError

_EXAMPLE = """\b
Examples:
  paddle-llm generate output/llama/model --prompt "The old house" --max_new_tokens 40
  paddle-llm generate models/llama-7b --prompt "Once" --temperature 0.8 --top_p 0.9 --seed 7
"""


@click.command(epilog=_EXAMPLE)
@click.argument("model_folder", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to continue. May be given several times.")
@click.option("--max_new_tokens", default=64, show_default=True, type=click.IntRange(1), help="Longest continuation.")
@click.option(
    "--temperature", type=click.FloatRange(0, min_open=True), help="Sample; below 1 sharpens. [default: greedy]"
)
@click.option(
    "--top_p", type=click.FloatRange(0, 1, min_open=True), help="Sample from the likeliest tokens of this mass."
)
@click.option("--top_k", type=click.IntRange(1), help="Sample from this many likeliest tokens.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the sampling.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer. [default: MODEL_FOLDER]")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="[default: the best there is]")
def generate(
    model_folder: Path,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int,
    tokenizer: Path | None,
    device: str | None,
) -> None:
    """Continue --prompt with the model in MODEL_FOLDER (PaddleNLP's or Hugging Face's files) and print the text.

    The likeliest token is taken at each step, unless --temperature, --top_p or --top_k asks for sampling.
    """
    if not model_folder.is_dir():
        raise UserError(f"{model_folder} is no folder; give one with config.json, weights and a tokenizer")
    device = _prepare(device)
    choice = None
    if (temperature, top_p, top_k) != (None, None, None):
        choice = {"temperature": temperature or 1.0, "top_p": top_p or 1.0, "top_k": top_k or 0}
    network, words = load_for_generation(model_folder, tokenizer or model_folder, device)
    for text in continue_prompts(network, words, list(prompts), max_new_tokens, sampling=choice, seed=seed):
        click.echo(text)


def _prepare(device: str | None) -> str:
    """Choose the device and set up the process for it, before paddle is imported."""
    import sys

    from paddle_llm.config.device import find_device, why_no_gpu
    from paddle_llm.parallel.host import import_paddle, prepare_host

    found = find_device()
    if device == "gpu" and found != "gpu":
        raise UserError(f"--device gpu, but {why_no_gpu()}: give --device cpu, or leave it out")
    device = device or found
    if "paddle" not in sys.modules:
        prepare_host(device)
        import_paddle()
    import paddle

    paddle.set_device(device)
    return device


def load_for_generation(folder: Path, tokenizer_folder: Path, device: str) -> tuple[Any, Any]:
    """A network with the folder's weights, in evaluation, and its tokenizer.

    On a GPU weights that are stored in 16 bits stay so; on a CPU they are fp32.

    Raises:
        UserError: the folder or the tokenizer cannot be loaded.
    """
    from paddle_llm.config.layout import Layout
    from paddle_llm.config.model_facts import read_model_facts
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.models.build import build_model

    words = load_tokenizer(tokenizer_folder)
    raw = read_model_facts(folder).raw
    stored = str(raw.get("torch_dtype") or raw.get("dtype") or "float32")
    dtype = stored if device == "gpu" and stored in ("bfloat16", "float16") else "float32"
    run = RunConfig(model_name_or_path=str(folder), continue_training=True, device=device)
    network = build_model(run, Layout(), dtype=dtype)
    network.eval()
    return network, words


def load_tokenizer(folder: Path) -> Any:
    """PaddleNLP's tokenizer of a folder, padding on the left.

    Raises:
        UserError: PaddleNLP cannot make one of what is there.
    """
    from paddlenlp.transformers import AutoTokenizer
    from paddlenlp.utils.log import logger

    logger.set_level("ERROR")
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder} has no tokenizer_config.json; name the folder of the tokenizer with --tokenizer")
    try:
        words = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # PaddleNLP raises whatever comes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the tokenizer in {folder} cannot be loaded: {reason}") from error
    words.padding_side = "left"
    if words.pad_token is None:
        words.pad_token = words.eos_token or words.unk_token
    return words


def continue_prompts(
    network: Any,
    words: Any,
    prompts: list[str],
    max_new_tokens: int,
    *,
    sampling: dict[str, Any] | None = None,
    seed: int = 0,
) -> list[str]:
    """Each prompt with its continuation; prompts are padded on the left and continued together.

    Args:
        sampling: {"temperature", "top_p", "top_k"}; None takes the likeliest token.

    Raises:
        UserError: an empty prompt, or prompt and continuation are longer than the model's positions.
    """
    import paddle

    inputs = _encode(words, prompts)
    _check_length(network.config, inputs["input_ids"].shape[1], max_new_tokens)
    eos = words.eos_token_id if words.eos_token_id is not None else network.config.eos_token_id
    options: dict[str, Any] = (
        {"decode_strategy": "sampling", **sampling} if sampling else {"decode_strategy": "greedy_search"}
    )
    if sampling:
        paddle.seed(seed)
    with paddle.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens_BT, _ = network.generate(
            **inputs, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=words.pad_token_id, **options
        )
    texts = []
    for prompt, tokens in zip(prompts, tokens_BT.tolist(), strict=True):
        ends = set(eos) if isinstance(eos, (list, tuple)) else {eos}
        length = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        texts.append(_decode(words, prompt, tokens[:length]))
    return texts


def _encode(words: Any, prompts: list[str]) -> dict[str, Any]:
    """Token ids and masks of prompts, padded on the left, as int64 tensors."""
    import numpy as np
    import paddle

    encoded = words(prompts, padding=True, return_attention_mask=True)
    names = [name for name in ("input_ids", "attention_mask", "position_ids") if name in encoded]
    ids = encoded["input_ids"]
    if not all(len(row) for row in ids) or not all(prompts):
        raise UserError("--prompt is empty; give at least one word")
    # Without a 2D mask of int64 PaddleNLP's LLaMA makes a wrong one of its own.
    inputs = {name: np.asarray(encoded[name], dtype=np.int64) for name in names}
    if inputs["attention_mask"].ndim == 2:
        inputs.pop("position_ids", None)
    return {name: paddle.to_tensor(value) for name, value in inputs.items()}


def _decode(words: Any, prompt: str, tokens: list[int]) -> str:
    """The prompt and what these tokens add to it.

    A tokenizer of words drops the space before the first piece it is given: it is given the prompt's last ones, too.
    """
    before = words(prompt)["input_ids"]
    text_before = words.decode(before, skip_special_tokens=True)
    text = words.decode(list(before) + tokens, skip_special_tokens=True)
    return prompt + (text[len(text_before) :] if text.startswith(text_before) else words.decode(tokens))


def _check_length(config: Any, length: int, max_new_tokens: int) -> None:
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_sequence_length", None)
    if most is not None and length + max_new_tokens > most:
        raise UserError(
            f"a prompt of {length} tokens and --max_new_tokens {max_new_tokens} are more than the model's {most} positions; "
            f"at most {max(most - length, 0)} new tokens are left"
        )
