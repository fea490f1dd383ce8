"""`paddle-llm serve`: refused options, what is loaded, and a missing extra. No server listens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_llm.cli.serve import serve
from paddle_llm.core.errors import UserError
from paddle_llm.generation.static.program import read_description
from paddle_llm.serving.engine.budget import available_bytes, bytes_per_token, longest_text, tokens_in_budget


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as refusal:
        CliRunner().invoke(serve, [*map(str, arguments)], catch_exceptions=False)
    return str(refusal.value)


def test_another_address_needs_a_key(program, tmp_path):
    for host in ("0.0.0.0", "::", "example.org"):
        message = refused(program, "--host", host)
        assert f"--host {host} is open to other machines" in message and "--insecure" in message
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    empty.write_text("\n")
    assert "The API key is empty" in refused(program, "--api_key_file", empty)
    assert "cannot be read" in refused(program, "--api_key_file", missing)
    assert "exclude each other" in refused(program, "--api_key_file", empty, "--api_key", "a")
    assert "printable ASCII" in refused(program, "--api_key", "a b")
    assert "need each other" in refused(program, "--tls_key", empty)
    assert "cannot be read" in refused(program, "--tls_key", empty, "--tls_certificate", empty)


def test_what_cannot_be_served(program, llama, tmp_path):
    assert "is not a folder" in refused(tmp_path / "none")
    assert "contains no model" in refused(tmp_path)
    assert "Export the model with its --adapter" in refused(program, "--adapter", tmp_path)
    assert "contains no pickles" in refused(program, "--allow_pickle")
    assert "exceeds the model's 256 positions. Use 256 or less" in refused(program, "--max_length", "257")
    assert "template" in refused(program, "--chat_template", "unknown_name", "--port", "0")
    with pytest.raises(UserError, match="cannot listen on 203.0.113.1:0"):
        CliRunner().invoke(
            serve, [str(program), "--host", "203.0.113.1", "--insecure", "--port", "0"], catch_exceptions=False
        )


def test_a_cache_that_cannot_hold_one_text_is_refused_with_a_number(program):
    description = read_description(program)
    assert bytes_per_token(description) == 2 * 2 * 2 * description.head_width * 4
    message = refused(program, "--kv_cache_gb", "0.000001")
    assert "--kv_cache_gb 1e-06 holds the keys and values of" in message and "one full sequence has 256" in message
    enough = float(message.split("Use --kv_cache_gb ")[1].split()[0])
    assert tokens_in_budget(description, 256, 32, enough) >= 256
    with pytest.raises(UserError):
        tokens_in_budget(description, 256, 32, enough * 0.9)
    shorter = int(message.split("--max_length ")[1].split()[0])
    assert tokens_in_budget(description, shorter, 32, 0.000001) >= shorter
    assert tokens_in_budget(description, 256, 32, 50) == 256 * 32  # more has no use
    assert tokens_in_budget(description, 256, 10**9, None) <= available_bytes() // bytes_per_token(description)
    assert longest_text(description, None) == 256 and longest_text(description, 100) == 100


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_one_message(program, library):
    code = (
        f"import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: None if name == {library!r} else find(name)\n"
        f"import sys; sys.argv = ['paddle-llm', 'serve', {str(program)!r}]\n"
        "from paddle_llm.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: paddle-llm serve needs {library}. Install them: pip install")
