"""`paddle-llm serve`: answer HTTP requests with a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from paddle_llm.cli.number_option import FiniteNumber, WholeNumber
from paddle_llm.cli.path_option import PATH, PATHLIB
from paddle_llm.core.console import say
from paddle_llm.serving.options import EngineOptions, ServeOptions, read_api_key

_EXAMPLE = """\b
Examples:
  paddle-llm serve output/mine/model
  paddle-llm serve models/llama-7b --adapter output/lora/adapter --served_model_name tuned --port 8080
  paddle-llm serve exports/program --host 0.0.0.0 --api_key_file key.txt --kv_cache_gb 4
"""
_AT_LEAST_ONE = WholeNumber(1)
_ENGINE = ("adapter", "tokenizer", "allow_pickle", "max_length", "kv_cache_gb", "max_batch_size", "prefill_chunk", "cpu_threads")  # fmt: skip


@click.command(epilog=_EXAMPLE)
@click.argument("model_folder", type=PATHLIB)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Others than loopback need an API key or --insecure.",
)
@click.option(
    "--port", default=8000, show_default=True, type=WholeNumber(0, 65535), help="Port to listen on; 0: any free port."
)
@click.option(
    "--served_model_name",
    "served_model_names",
    multiple=True,
    help="Name of the model in requests. Repeat the option for several names. [default: the name of MODEL_FOLDER]",
)
@click.option(
    "--api_key",
    help="Key that every request except /health needs. Other users of the machine see it: prefer --api_key_file.",
)
@click.option("--api_key_file", type=PATHLIB, help="File that contains the key.")
@click.option("--insecure", is_flag=True, help="Listen on any --host without a key.")
@click.option("--tls_certificate", type=PATHLIB, help="PEM file of a certificate chain, for HTTPS.")
@click.option("--tls_key", type=PATHLIB, help="PEM file of the private key of --tls_certificate.")
@click.option("--adapter", type=PATHLIB, help="LoRA or AdaLoRA adapter to merge into the weights of MODEL_FOLDER.")
@click.option(
    "--chat_template",
    type=PATH,
    help="auto: the template of the model's training, else the tokenizer's, else default; or a name, jinja (the tokenizer's) or a "
    "file; none: no chat. [default: auto]",
)
@click.option("--chat_template_date", metavar="YYYY-MM-DD", help="Date for templates that insert today's date.")
@click.option(
    "--max_length",
    type=_AT_LEAST_ONE,
    help="Maximum number of tokens of a prompt and its answer. [default: the model's positions]",
)
@click.option(
    "--kv_cache_gb",
    type=FiniteNumber(0, min_open=True),
    help="Memory for keys and values, in gigabytes. [default: half of the free memory, at most what --max_batch_size full texts need]",
)
@click.option(
    "--max_batch_size",
    default=32,
    show_default=True,
    type=_AT_LEAST_ONE,
    help="Maximum number of texts decoded together.",
)
@click.option(
    "--prefill_chunk",
    default=256,
    show_default=True,
    type=_AT_LEAST_ONE,
    help="Maximum number of prompt tokens that are read between two decoding steps.",
)
@click.option(
    "--max_queue",
    default=256,
    show_default=True,
    type=_AT_LEAST_ONE,
    help="Maximum number of texts that wait. A request beyond it gets status 429.",
)
@click.option(
    "--max_request_mb",
    default=4.0,
    show_default=True,
    type=FiniteNumber(0, min_open=True),
    help="Maximum size of a request, in megabytes.",
)
@click.option(
    "--request_timeout",
    default=600.0,
    show_default=True,
    type=FiniteNumber(0, min_open=True),
    help="Maximum duration of a request, in seconds.",
)
@click.option(
    "--drain_timeout",
    default=30.0,
    show_default=True,
    type=FiniteNumber(0, min_open=True),
    help="Time for unfinished requests after SIGINT or SIGTERM, in seconds.",
)
@click.option(
    "--cpu_threads", type=_AT_LEAST_ONE, help="Number of threads. [default: OMP_NUM_THREADS, else the number of cores]"
)
@click.option("--tokenizer", type=PATHLIB, help="Folder of the tokenizer. [default: MODEL_FOLDER]")
@click.option("--allow_pickle", is_flag=True, help="Read torch's pytorch_model.bin if there are no safetensors.")
def serve(model_folder: Path, api_key: str | None, api_key_file: Path | None, **options: Any) -> None:
    """Serve the model in MODEL_FOLDER by OpenAI's HTTP API, on the CPU.

    MODEL_FOLDER is a model folder, the output folder of a run, a checkpoint, an adapter, or a static export. Other folders
    than a static export are converted to one in a temporary folder, which takes some seconds and the disk space of the
    weights in fp32. Texts are decoded together, and join and leave at any step.
    """
    from paddle_llm.serving.server import EngineLost
    from paddle_llm.serving.server import serve as run

    engine = EngineOptions(model_folder, **{name: options.pop(name) for name in _ENGINE})
    key = read_api_key(api_key, api_key_file)
    try:
        run(ServeOptions(engine, api_key=key, **options))
    except EngineLost:
        say(
            "error: the process of the engine ended unexpectedly, perhaps for lack of memory. Use a smaller --kv_cache_gb."
        )
        sys.exit(1)
