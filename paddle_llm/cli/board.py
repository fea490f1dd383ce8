"""`paddle-llm board`: VisualDL's page on the curves of an output folder."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from paddle_llm.cli.number_option import Whole
from paddle_llm.cli.path_option import PATH
from paddle_llm.core.artifacts import CURVES_FOLDER
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, exit_on_user_error

_RECORDS = "vdlrecords.*.log"


def find_logs(folder: str | Path) -> Path:
    """The folder of curves in an output folder, or the folder itself where it holds them.

    Raises:
        UserError: there is no such folder, or there are no curves in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the --output_dir of a run.")
    for candidate in (folder / CURVES_FOLDER, folder):
        if next(candidate.rglob(_RECORDS), None) is not None:
            return candidate
    raise UserError(
        f"no curves in {folder}: neither it nor its {CURVES_FOLDER}/ holds {_RECORDS}. A run writes them with its first"
        " logging step, unless --report_to leaves visualdl out."
    )


def _with_language(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """VisualDL 2.5.3 answers 500 to a client that names no language (curl, a health check): name English for it."""

    def named(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_LANGUAGE", "en")
        return app(environ, start_response)

    return named


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket of ours, so that a taken port is a message and port 0 can be told by number.

    Raises:
        UserError: the address cannot be had.
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
        raise UserError(f"cannot listen on {host}:{port}: {reason}. Choose another --port (0: any free one).") from None
    return listener


def serve(logs: Path, host: str, port: int) -> None:
    """Serve the curves in `logs` until interrupted; the page's address is the one line on stdout.

    Raises:
        UserError: the address cannot be had.
    """
    from visualdl.server.app import create_app
    from visualdl.server.args import ParseArgs
    from werkzeug.serving import WSGIRequestHandler, make_server

    class QuietHandler(WSGIRequestHandler):
        def log_request(self, *_: Any, **__: Any) -> None:
            """Keep requests off the terminal: the page asks for new points every few seconds."""

    with _bind(host, port) as listener:
        port = listener.getsockname()[1]
        # Telemetry off: VisualDL would report its use to its vendor.
        app = create_app(ParseArgs(logdir=[str(logs)], host=host, port=port, telemetry=False))
        app.wsgi_app = _with_language(app.wsgi_app)
        server = make_server(host, port, app, fd=listener.fileno(), request_handler=QuietHandler)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/app/scalar", flush=True)
        say(f"curves of {logs}; Ctrl-C ends")
        server.serve_forever()


@click.command(
    epilog="Example: paddle-llm board output/llama_7b --port 8040. On another machine's run: ssh -L 8040:localhost:8040."
)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--port", default=8040, show_default=True, type=Whole(0, 65535), help="0 takes any free one.")
@click.option("--host", default="localhost", show_default=True, help="0.0.0.0 lets other machines in.")
def board(folder: str, port: int, host: str) -> None:
    """Show the curves (loss, speed, ...) of the run in DIR in a browser; prints the page's address, runs until Ctrl-C.

    DIR is the --output_dir of a run; curves of a running job grow while you look.
    """
    with exit_on_user_error():
        logs = find_logs(folder)
        serve(logs, host, port)
