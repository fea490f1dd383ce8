"""LLaMA-Factory's dataset_info.json: columns, tags and preference data of the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.data_files import find_files
from paddle_llm.data.instructions.files import load_conversations

U, A, S, T = "user", "assistant", "system", "tool"
ALPACA = {"frage": "q", "mehr": "m", "antwort": "a", "rolle": "s", "bisher": [["p", "o"]], "id": 1}
SHAREGPT = {
    "dialog": [
        {"who": "USER", "says": "q"}, {"who": "CALL", "says": '{"name": "f", "arguments": {}}'}, {"who": "SEES", "says": "4"},
        {"who": "BOT", "says": "a"},
    ],
    "werkzeug": '[{"name": "f"}]', "rolle": "s",
}  # fmt: skip
TAGS = {
    "role_tag": "who", "content_tag": "says", "user_tag": "USER", "assistant_tag": "BOT", "observation_tag": "SEES", "function_tag": "CALL",
}  # fmt: skip
PREFERENCE = {"instruction": "q", "chosen": "a", "rejected": "b"}


def folder(tmp_path: Path, info: dict[str, Any], **files: Any) -> Path:
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def turns(*files: Path) -> list[list[tuple[str, str]]]:
    return [[(t.role, t.text) for t in c.turns] for c in load_conversations(map(str, files)).conversations]


def test_columns_and_tags_are_used(tmp_path: Path, capsys) -> None:
    columns = {"prompt": "frage", "query": "mehr", "response": "antwort", "system": "rolle", "history": "bisher"}
    info = {
        "poems": {"file_name": "poems.json", "columns": columns, "num_samples": 5},
        "talks": {
            "file_name": "talks.json", "formatting": "sharegpt", "tags": TAGS,
            "columns": {"messages": "dialog", "tools": "werkzeug", "system": "rolle"},
        },
        "far": {"hf_hub_url": "someone/something"},
    }  # fmt: skip
    folder(tmp_path, info, poems=[ALPACA], talks=[SHAREGPT])
    assert find_files(str(tmp_path)) == [str(tmp_path / "poems.json"), str(tmp_path / "talks.json")]
    assert turns(tmp_path / "poems.json") == [[(S, "s"), (U, "p"), (A, "o"), (U, "q\nm"), (A, "a")]]
    shown = capsys.readouterr().err
    assert "according to " in shown and "ignored keys: id (1)" in shown and "num_samples" in shown
    (talk,) = load_conversations([str(tmp_path / "talks.json")]).conversations
    assert [t.role for t in talk.turns] == [S, U, A, T, A] and talk.turns[2].fields["tool_calls"][0]["function"][
        "name"
    ] == "f"
    assert talk.fields == {"tools": [{"name": "f"}]}
    (tmp_path / "poems.json").write_text(json.dumps([{"instruction": "q", "output": "a"}]))
    with pytest.raises(UserError, match="no column 'frage', which dataset_info.json names for prompt in poems"):
        load_conversations([str(tmp_path / "poems.json")])


def test_defaults_equal_llama_factory(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    info = {
        "plain": {"file_name": "plain.json"}, "talk": {"file_name": "talk.json", "formatting": "sharegpt"},
        "open": {"file_name": "open.json", "formatting": "openai", "columns": {"messages": "messages"}},
    }  # fmt: skip
    talk = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    folder(tmp_path, info, plain=[{"instruction": "q", "output": "a"}], talk=[talk], open=[{"messages": messages}])
    assert turns(*sorted(tmp_path.glob("[opt]*.json"))) == [[(U, "q"), (A, "a")]] * 3


def test_preference_data_is_skipped_in_folders_and_an_error_if_named(tmp_path: Path, capsys) -> None:
    info = {
        "dpo": {"file_name": "dpo.json", "ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}},
        "kto": {"file_name": "kto.json", "columns": {"prompt": "instruction", "response": "output", "kto_tag": "label"}},
        "sft": {"file_name": "sft.json"},
    }  # fmt: skip
    rows = [{"instruction": "q", "output": "a"}]
    folder(tmp_path, info, dpo=[PREFERENCE], kto=[{**rows[0], "label": True}], sft=rows)
    assert find_files(str(tmp_path)) == [str(tmp_path / "sft.json")]
    shown = capsys.readouterr().err
    assert "skipped: dpo.json, kto.json" in shown and "preference data" in shown
    with pytest.raises(UserError, match=r"dpo.json: preference data, according to .*dataset_info.json"):
        find_files(str(tmp_path / "dpo.json"))
    with pytest.raises(UserError, match="Use the file that it names"):
        find_files(str(tmp_path / "dataset_info.json"))


def test_unrelated_files_of_that_name_are_ignored(tmp_path: Path) -> None:
    folder(
        tmp_path,
        {"features": {"a": {"dtype": "string"}}, "splits": {"train": {"num_examples": 1}}},
        a=[{"src": "q", "tgt": "a"}],
    )
    assert turns(*map(Path, find_files(str(tmp_path)))) == [[(U, "q"), (A, "a")]]
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json", "columns": {"promt": "src"}}}))
    with pytest.raises(UserError, match="unknown columns or tags: promt"):
        find_files(str(tmp_path))


def test_a_missing_column_is_an_error_and_unnamed_columns_are_reported(tmp_path: Path, capsys) -> None:
    columns = {"prompt": "q", "query": "more", "response": "output"}
    rows = [{"q": "q", "output": "a"}, {"q": "r", "output": "b", "more": "m", "input": "left out"}]
    folder(tmp_path, {"a": {"file_name": "sub\\a.json", "columns": columns}})
    (tmp_path / "sub").mkdir()
    folder(tmp_path / "sub", {}, a=rows)
    assert turns(tmp_path / "sub" / "a.json") == [[(U, "q"), (A, "a")], [(U, "r\nm"), (A, "b")]]
    assert "ignored keys: input (not in dataset_info.json) (1)" in capsys.readouterr().err
    folder(tmp_path / "sub", {}, a=rows[:1])
    with pytest.raises(UserError, match="dataset_info.json names 'more' as a column, which no row has"):
        load_conversations([str(tmp_path / "sub" / "a.json")])


def test_contradicting_entries_are_an_error(tmp_path: Path) -> None:
    swapped = {"prompt": "output", "response": "instruction"}
    rows = [{"instruction": "q", "output": "a"}]
    folder(tmp_path, {"x": {"file_name": "a.json"}, "y": {"file_name": "a.json"}}, a=rows)
    assert turns(tmp_path / "a.json") == [[(U, "q"), (A, "a")]]
    folder(tmp_path, {"x": {"file_name": "a.json"}, "y": {"file_name": "a.json", "columns": swapped}})
    with pytest.raises(UserError, match="the entries x and y of .* describe the file differently"):
        load_conversations([str(tmp_path / "a.json")])
    folder(tmp_path, {"x": {"file_name": "a.json", "format": "sharegpt"}})
    with pytest.raises(UserError, match="Did you mean LLaMA-Factory's 'formatting'"):
        load_conversations([str(tmp_path / "a.json")])
