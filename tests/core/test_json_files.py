"""A JSON file that cannot be read is one message, for every kind of mistake."""

from __future__ import annotations

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number with too many digits"),
        (b'{"a": "\xff"}', "cannot be read"),
        (b"{,}", "line 1, column 2"),
        (b"[]", "must contain a JSON object, not a list"),
    ],
    ids=["depth", "digits", "bytes", "syntax", "list"],
)
def test_unreadable_files_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json_object(tmp_path / "config.json")
