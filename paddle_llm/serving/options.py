"""The options of `paddle-llm serve`. Importing this module does not import Paddle."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.core.errors import UserError


@dataclass(frozen=True)
class EngineOptions:
    """What the engine loads, and its limits.

    Attributes:
        folder: Model folder, output folder of a run, adapter, checkpoint or static export.
        adapter: Adapter that is merged into the weights of `folder`.
        tokenizer: Folder of the tokenizer; None: the one beside the adapter or the weights.
        allow_pickle: Whether pickle files may be read where no safetensors exist.
        max_length: Maximum number of tokens of a prompt and its answer; None: the positions of the model.
        kv_cache_gb: Memory of the cache in gigabytes; None: half of the free memory.
        max_batch_size: Maximum number of texts that are decoded together.
        prefill_chunk: Maximum number of prompt tokens that are read between two decoding steps.
        cpu_threads: Number of threads; None: OMP_NUM_THREADS, or the number of cores.
    """

    folder: Path
    adapter: Path | None = None
    tokenizer: Path | None = None
    allow_pickle: bool = False
    max_length: int | None = None
    kv_cache_gb: float | None = None
    max_batch_size: int = 32
    prefill_chunk: int = 256
    cpu_threads: int | None = None


@dataclass(frozen=True)
class ServeOptions:
    """How the server answers.

    Attributes:
        engine: Options of the engine.
        host: Address to listen on.
        port: Port to listen on; 0: any free port.
        served_model_names: Names of the model in requests; (): the name of its folder.
        api_key: Key that every request except /health needs; None: no key.
        insecure: Whether an address other than loopback may be used without a key.
        chat_template: "none", "auto", the name of a template, "jinja" or a file; None: "auto".
        chat_template_date: Date (YYYY-MM-DD) for a template that writes the current date.
        max_queue: Maximum number of texts that wait for the engine. A request beyond it gets the status 429.
        max_request_mb: Maximum size of the body of a request, in megabytes.
        request_timeout: Maximum duration of a request, in seconds.
        drain_timeout: Maximum time for unfinished requests after a signal to stop, in seconds.
        tls_certificate, tls_key: Files of a certificate chain and its private key, in PEM; None: HTTP without TLS.
    """

    engine: EngineOptions
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_key: str | None = None
    insecure: bool = False
    chat_template: str | None = None
    chat_template_date: str | None = None
    max_queue: int = 256
    max_request_mb: float = 4.0
    request_timeout: float = 600.0
    drain_timeout: float = 30.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def check(self) -> None:
        """Check the combination of options.

        Raises:
            UserError: If the server would be open to other machines without a key, or a file for TLS cannot be read.
        """
        if self.api_key is None and not self.insecure and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} is open to other machines, and no API key is set. Set one with --api_key_file, or add "
                "--insecure to answer everybody."
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UserError("--tls_certificate and --tls_key need each other. Give both files, or neither.")
        if self.tls_certificate is not None:
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self.tls_certificate, self.tls_key)
            except (OSError, ssl.SSLError) as error:
                reason = error.strerror or error
                raise UserError(
                    f"--tls_certificate {self.tls_certificate} and --tls_key {self.tls_key} cannot be read: {reason}. Give PEM "
                    "files of a certificate and its key."
                ) from None


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_api_key(key: str | None, file: Path | None) -> str | None:
    """Return the API key of --api_key or --api_key_file; None without either.

    Raises:
        UserError: If both are given, or the key cannot be read, is empty, or cannot be sent in a header.
    """
    if key is not None and file is not None:
        raise UserError("--api_key and --api_key_file exclude each other. Drop one of them.")
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(
                f"--api_key_file {file} cannot be read: {reason}. Name a file that contains the key."
            ) from None
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        raise UserError("The API key is empty or has characters other than printable ASCII. Choose another key.")
    return key
