"""Numbers on the command line: a number that is not finite is refused, as in a config."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from paddle_llm.cli.generate import generate

FLAGS = ("--temperature", "--top_p", "--repetition_penalty", "--length_penalty")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused(flag: str, value: str) -> None:
    result = CliRunner().invoke(generate, ["model", "--prompt", "x", f"{flag}={value}"])
    assert result.exit_code == 2 and flag in result.output
