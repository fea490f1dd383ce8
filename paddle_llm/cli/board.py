"""`paddle-llm board`: show the curves of an output folder with VisualDL."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from paddle_llm.cli.number_option import WholeNumber
from paddle_llm.cli.path_option import PATH
from paddle_llm.core.artifacts import CURVES_FOLDER
from paddle_llm.core.console import say
from paddle_llm.core.errors import EXIT_INTERRUPTED, UserError, exit_on_user_error

_RECORDS = "vdlrecords.*.log"


def find_logs(folder: str | Path) -> Path:
    """Return the folder with the curves: the one in an output folder, or the folder itself.

    Raises:
        UserError: If the folder does not exist or has no curves.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the --output_dir of a run.")
    for candidate in (folder / CURVES_FOLDER, folder):
        if next(candidate.rglob(_RECORDS), None) is not None:
            return candidate
    raise UserError(
        f"{folder} has no curves: neither it nor its {CURVES_FOLDER}/ contains {_RECORDS}. A run writes them from its first "
        "logging step on, if --report_to includes visualdl."
    )


def _with_language(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Set the language of requests without one (curl, a health check), to which VisualDL 2.5.3 responds with status 500."""

    def with_default(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_LANGUAGE", "en")
        return app(environ, start_response)

    return with_default


def _bind(host: str, port: int) -> socket.socket:
    """Open the listening socket, so that a port that is in use is reported, and the number for port 0 is known.

    Raises:
        UserError: If the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}. Choose another --port (0: any free port)."
        ) from None
    return listener


def serve(logs: Path, host: str, port: int) -> None:
    """Serve the curves in `logs` until interrupted. Prints the address of the page on stdout.

    Raises:
        UserError: If the address is not available.
    """
    from visualdl.server.app import create_app
    from visualdl.server.args import ParseArgs
    from visualdl.server.log import logger
    from werkzeug.serving import WSGIRequestHandler, make_server

    logger.setLevel(logging.ERROR)  # it warns of every update of its cache

    class QuietHandler(WSGIRequestHandler):
        def log_request(self, *_: Any, **__: Any) -> None:
            """Do not print requests: the page requests new points every few seconds."""

    with _bind(host, port) as listener:
        port = listener.getsockname()[1]
        # Without telemetry=False, VisualDL reports its use to its vendor.
        app = create_app(ParseArgs(logdir=[str(logs)], host=host, port=port, telemetry=False))
        app.wsgi_app = _with_language(app.wsgi_app)
        server = make_server(host, port, app, fd=listener.fileno(), request_handler=QuietHandler)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/app/scalar", flush=True)
        say(f"serving the curves in {logs}. Press Ctrl-C to stop.")
        server.serve_forever()


@click.command(
    epilog="Example: paddle-llm board output/llama_7b --port 8040. For a run on another machine: ssh -L 8040:localhost:8040."
)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--port", default=8040, show_default=True, type=WholeNumber(0, 65535), help="0: any free port.")
@click.option("--host", default="localhost", show_default=True, help="0.0.0.0: accept connections from other machines.")
def board(folder: str, port: int, host: str) -> None:
    """Show the curves (loss, speed, ...) of the run in DIR in a browser. Prints the address of the page and runs until Ctrl-C.

    DIR is the --output_dir of a run, or a folder with several runs, which are shown together. The curves of a running job
    are updated.
    """
    with exit_on_user_error():
        logs = find_logs(folder)
        try:
            serve(logs, host, port)
        except KeyboardInterrupt:  # the message of `exit_on_user_error` is about training
            sys.exit(EXIT_INTERRUPTED)
