"""Rows of every format become conversations; a bad row gives the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.instructions.conversation import BadRow, Conversation
from paddle_llm.data.instructions.files import load_conversations
from paddle_llm.data.instructions.formats import FORMATS, read_row, recognize
from paddle_llm.data.instructions.messages import Notes
from paddle_llm.data.instructions.prompted_tasks import PromptTemplates
from paddle_llm.data.tokenizers.text_codec import open_codec

U, A, S, T = "user", "assistant", "system", "tool"
ROWS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("src_tgt", {"src": "q", "tgt": "a"}, [(U, "q"), (A, "a")]),
    ("src_tgt", {"src": "", "tgt": "a"}, [(U, ""), (A, "a")]),
    ("src_tgt", {"src": ["q", "r"], "tgt": ["a", "b"]}, [(U, "q"), (A, "a"), (U, "r"), (A, "b")]),
    ("src_tgt", {"src": ["q"], "tgt": ["a"], "context": {"system": "s"}}, [(S, "s"), (U, "q"), (A, "a")]),
    ("content_summary", {"content": "q", "summary": "a"}, [(U, "q"), (A, "a")]),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, [(U, "q"), (A, "a")]),
    ("alpaca", {"instruction": "q", "input": "more", "output": "a"}, [(U, "q\nmore"), (A, "a")]),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "system": "s", "history": [["p", "o"]]},
        [(S, "s"), (U, "p"), (A, "o"), (U, "q"), (A, "a")],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [(S, "s"), (U, "q"), (A, "a")],
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]},
        [(U, "q"), (A, "a")],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "q"}, {"role": "assistant", "content": "call"},
                {"role": "tool", "content": "4"}, {"role": "assistant", "content": "a"},
            ]
        },
        [(U, "q"), (A, "call"), (T, "4"), (A, "a")],
    ),
    ("prompted", {"inputs": "q", "targets": "a", "task": "nli", "language": "zh"}, [(U, "q"), (A, "a")]),
    ("query_response", {"query": "q", "response": "a", "history": None}, [(U, "q"), (A, "a")]),
    ("query_response", {"query": "q", "response": "a", "history": [["p", "o"]], "system": "s"}, [(S, "s"), (U, "p"), (A, "o"), (U, "q"), (A, "a")]),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, [(U, "q"), (A, "a")]),
    (
        "prompt_completion",
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        [(S, "s"), (U, "q"), (A, "a")],
    ),
    ("prompt_response", {"prompt": "q", "response": "a"}, [(U, "q"), (A, "a")]),
    ("instruction_response", {"instruction": "q", "context": "", "response": "a", "category": "qa"}, [(U, "q"), (A, "a")]),
    ("instruction_response", {"instruction": "q", "context": "c", "response": "a"}, [(U, "q\nc"), (A, "a")]),
    ("question_answer", {"question": "q", "answer": "a", "context": "c"}, [(U, "q\nc"), (A, "a")]),
    ("question_response", {"id": 1, "system_prompt": "s", "question": "q", "response": "a"}, [(S, "s"), (U, "q"), (A, "a")]),
    ("input_output", {"input": "q", "output": "a", "instruction": None}, [(U, "q"), (A, "a")]),
    ("alpaca", {"instruction": "", "input": "q", "output": "a"}, [(U, "q"), (A, "a")]),
    ("input_target", {"kind": "NLI", "input": "q", "target": "a"}, [(U, "q"), (A, "a")]),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}, [(U, "q"), (A, "a")]),
    ("conversation", {"system": "s", "conversation": [{"human": "q", "assistant": "a"}]}, [(S, "s"), (U, "q"), (A, "a")]),
    ("conversation", {"conversation": [{"system": "s", "input": "q", "output": "a"}]}, [(S, "s"), (U, "q"), (A, "a")]),
    ("sharegpt", {"conversations": ["q", "a"]}, [(U, "q"), (A, "a")]),
    ("sharegpt", {"conversations": '[{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]'}, [(U, "q"), (A, "a")]),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f"}'},
                {"from": "observation", "value": "4"}, {"from": "gpt", "value": "a"},
            ]
        },
        [(U, "q"), (A, '{"name": "f"}'), (T, "4"), (A, "a")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "turns"), ROWS)
def test_each_format_is_recognized_and_read(name: str, row: dict[str, Any], turns: list[tuple[str, str]]) -> None:
    assert recognize([{"odd": 1}, row], "f") == name
    assert [(turn.role, turn.text) for turn in read_row(row, name).turns] == turns


def test_every_format_has_a_test_row() -> None:
    assert {name for name, _, _ in ROWS} == set(FORMATS)


def test_flags_task_and_language_are_kept() -> None:
    turns = [("user", "q", None), ("assistant", "a", False), ("user", "r", None), ("assistant", "b", True)]
    row = {"messages": [{"role": r, "content": c, **({} if f is None else {"loss": f})} for r, c, f in turns]}
    assert [turn.has_loss for turn in read_row(row, "messages").turns] == [None, False, None, True]
    row["messages"][1] = {"role": "assistant", "content": "a", "weight": 0}
    assert read_row(row, "messages").turns[1].has_loss is False
    prompted = read_row({"inputs": "q", "targets": "a", "task": "nli", "language": "zh"}, "prompted", "f, line 3")
    assert (prompted.task, prompted.language, prompted.where) == ("nli", "zh", "f, line 3")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("src_tgt", {"src": "q"}, "^no key 'tgt'"),
        ("src_tgt", {"src": "q", "tgt": None}, "'tgt' is null, not text"),
        ("src_tgt", {"src": "q", "tgt": " "}, "'tgt' is empty"),
        ("src_tgt", {"src": ["q", "r"], "tgt": ["a"]}, "not lists of equal length"),
        ("src_tgt", {"src": "q", "tgt": ["a"]}, "not lists of equal length"),
        ("alpaca", {"instruction": "", "output": "a"}, "'instruction' is empty"),
        ("alpaca", {"instruction": "q", "output": "a", "history": ["p"]}, "'history' is not a list"),
        ("alpaca", {"instruction": "q", "output": "a", "history": "[['p', 'o']]"}, "'history' is text that is not JSON"),
        ("alpaca", {"instruction": "q", "output": "a", "input": float("nan")}, "'input' is NaN"),
        ("messages", {"messages": []}, "is an empty list"),
        ("messages", {"messages": [{"role": "system", "content": "s"}] * 2}, "a system turn is not the first turn"),
        ("messages", {"messages": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'; known are"),
        ("messages", {"messages": [{"role": "user", "content": "q"}]}, "there is no answer to train"),
        ("messages", {"messages": [{"role": "assistant", "content": "a"}]}, "the first turn is not a user turn"),
        ("messages", {"messages": [{"role": "user", "content": "q"}] * 2}, "the last turn is a user turn"),
        ("messages", {"messages": [{"role": "user", "content": "q", "loss": True}]}, "a user message has a loss flag"),
        ("messages", {"messages": [{"role": "user", "content": "q", "loss": "yes"}]}, "not true, false, 1 or 0"),
        ("messages", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [1]}]},
         "not a list of objects"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts that are not text"),
        ("messages", {"messages": [{"role": "user", "content": ["one", "two"]}]}, "a list of texts"),
        ("src_tgt", ["q", "a"], "^a list, not an object"),
    ],
)  # fmt: skip
def test_a_bad_row_gives_the_reason(name: str, row: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read_row(row, name)


@pytest.mark.parametrize("history", ["", "[]", None, '[["p", "o"]]', [["p", "o"]]])
def test_history_may_be_json_text(history: Any) -> None:
    row = read_row({"instruction": "q", "output": "a", "history": history}, "alpaca")
    before = ["p", "o"] if history and history != "[]" else []
    assert [turn.content for turn in row.turns] == [*before, "q", "a"]


def test_unknown_and_ambiguous_keys_are_errors_with_a_remedy() -> None:
    with pytest.raises(UserError, match="its keys are instruction, ' output'"):
        recognize([{"instruction": "q", " output": "a"}], "f")
    with pytest.raises(UserError, match="its keys are frage, antwort") as unknown:
        recognize([{"frage": "q", "antwort": "a"}], "f.json")
    assert all(name in str(unknown.value) for name in FORMATS) and "--prompt_templates" in str(unknown.value)
    with pytest.raises(UserError, match="src_tgt or query_response.*--data_format src_tgt"):
        recognize([{"src": "", "tgt": "", "query": "", "response": ""}], "f.json")


def test_rounds_and_dropping_the_oldest() -> None:
    row = {"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "1"}, {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "t"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "2"},
        {"role": "assistant", "content": "b"},
    ]}  # fmt: skip
    conversation = read_row(row, "messages")
    rounds = [("".join(t.content for t in r.questions), r.answer and r.answer.content) for r in conversation.rounds()]
    assert rounds == [("1", "call"), ("t", "a"), ("2", "b")]
    shorter = conversation.without_first_round()  # the reply of the tool is dropped with the question
    assert [t.content for t in shorter.turns] == ["s", "2", "b"]
    assert shorter.without_first_round() is shorter
    assert [r.answer for r in shorter.prompt().rounds()] == [None]


PROMPTS = {
    "templates": [
        {"name": "ask", "inputs": "Is this good? {{ text }}", "targets": "{{ answer_choices[label] }}",
         "answer_choices": "no ||| yes", "task": "sentiment", "language": "en"},
        {"name": "only_good", "jinja": "Why? {{ text }} ||| {% if label == 1 %}Because.{% endif %}"},
    ]
}  # fmt: skip
PROMPTSOURCE = """
dataset: imdb
templates:
  0f3a: !Template
    answer_choices: no ||| yes
    id: 0f3a
    jinja: 'Is this good? {{text}} ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      original_task: true
    name: ask
"""


def pairs(templates: PromptTemplates, row: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[Conversation] = list(templates.conversations(row, "f, line 1"))
    return [(c.turns[0].content, c.turns[1].content, c.task, c.language) for c in found]


def test_templates_turn_raw_records_into_conversations(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(PROMPTS))
    templates = PromptTemplates(str(path))
    good, bad = {"text": "Fine", "label": 1}, {"text": "Dull", "label": 0, "language": "de"}
    first = ("Is this good? Fine", "yes", "sentiment", "en")
    assert pairs(templates, good) == [first, ("Why? Fine", "Because.", "only_good", "")]
    assert pairs(templates, bad) == [("Is this good? Dull", "no", "sentiment", "en")]
    assert pairs(templates, {**good, "task": "other"}) == [("Why? Fine", "Because.", "other", "")]
    assert templates.applied == {"ask": 2, "only_good": 2}
    with pytest.raises(BadRow, match="no template applies"):
        pairs(templates, {"text": "x", "label": 0, "task": "other"})
    with pytest.raises(BadRow, match="'ask' cannot be filled: UndefinedError: 'text' is undefined"):
        pairs(templates, {"label": 1})


def test_promptsource_files_are_read_and_templates_cannot_reach_python(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(PROMPTSOURCE)
    assert pairs(PromptTemplates(str(path)), {"text": "Dull", "label": 0}) == [("Is this good? Dull", "no", "ask", "")]
    path.write_text("- {name: evil, inputs: \"{{ ''.__class__.__mro__ }}\", targets: x}")
    with pytest.raises(BadRow, match="SecurityError"):
        pairs(PromptTemplates(str(path)), {})
    path.write_text("- !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="neither JSON nor YAML"):
        PromptTemplates(str(path))
    path.write_text("- {name: broken, inputs: '{{ x', targets: y}")
    with pytest.raises(UserError, match="template 1 .broken.: not valid Jinja"):
        PromptTemplates(str(path))
    path.write_text("- {name: x, input: y}")
    with pytest.raises(UserError, match="no inputs and targets; its keys are name, input"):
        PromptTemplates(str(path))


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLS = {
    "conversations": [
        {"from": "human", "value": "q"}, {"from": "Function_Call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
        {"from": "observation", "value": "4"}, {"from": "gpt", "value": "a", "reasoning_content": "r", "score": 1},
    ],
    "tools": '[{"name": "f"}]', "id": 7, "images": [],
}  # fmt: skip


def test_tools_calls_and_reasoning_become_fields_and_other_keys_are_counted() -> None:
    notes = Notes()
    found = read_row(CALLS, "sharegpt", "f", notes)
    assert found.fields == {"tools": [{"name": "f"}]}
    assert found.turns[1].fields == {"content": "", "tool_calls": [CALL]} and found.turns[3].fields == {
        "reasoning_content": "r"
    }
    assert notes.ignored == {"id": 1, "score of messages": 1} and notes.calls_as_text == 1
    legacy = {
        "messages": [
            {"role": "user", "content": "q", "name": "Ann"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "4"}, {"role": "assistant", "content": "a", "tool_calls": None},
        ],
        "functions": [{"name": "f"}], "documents": [{"title": "t"}], "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    openai = read_row(legacy, "messages")
    assert openai.turns[1].fields == {
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    }
    assert openai.turns[0].fields == {"name": "Ann"} and openai.turns[3].fields == {} and openai.turns[1].content == ""
    assert openai.fields == {
        "tools": [{"type": "function", "function": {"name": "f"}}], "documents": [{"title": "t"}], "enable_thinking": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "call"),
    [("{{ m.tool_calls[0].function.arguments.x if m.tool_calls }}", "1"), ("", CALLS["conversations"][1]["value"])],
)
def test_calls_that_are_text_in_the_data_are_calls_or_text(
    template: str, call: str, tmp_path: Path, tokenizer_folder: str
) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + template + "</s>{% endfor %}"
    (tmp_path / "t.jinja").write_text(source)
    codec = open_codec(tokenizer_folder)
    chosen = choose_template(str(tmp_path / "t.jinja"), codec, tokenizer_folder).template
    written = chosen.render(read_row(CALLS, "sharegpt"))
    assert written.text == f"<user>q</s><assistant>{call}</s><tool>4</s><assistant>a</s>"
    assert [written.text[a.begin : a.end].removeprefix("<assistant>") for a in written.answers] == [
        f"{call}</s>",
        "a</s>",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "q"}], "images": ["a.png"]}, "the key 'images': multimodal"),
        ({"prompt": "q", "completion": "a", "input": "more"}, "the key 'input', which the format prompt_completion does not use"),
        ({"query": "q", "response": "a", "weight": 0.5}, "the key 'weight': rows cannot be weighted"),
        ({"messages": [{"role": "user", "content": "q", "videos": ["v"]}]}, "a message has the key 'videos'"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]}, "not true, false, 1 or 0"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0, "loss": True}]}, "contradict"),
        ({"messages": [{"role": "user", "content": "q\ud83d"}, {"role": "assistant", "content": "a"}]}, r"lone surrogate .ud83d"),
        ({"messages": "[{"}, "'messages' is text that is not JSON"),
        ({"src": "q", "tgt": "a", "context": "c"}, "add it to src"),
        ({"query": "q", "response": "a", "context": {"page": 3}}, "the key 'context'"),
        ({"instruction": "q", "response": "a", "input": "c", "context": "d"}, "both contain text"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "f"}, "'tools' is text"),
        ({"system": "s", "system_prompt": "t", "query": "q", "response": "a"}, "different system texts"),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": "a"}, "not both texts or both lists"),
    ],
)  # fmt: skip
def test_keys_that_would_change_the_training_are_rejected(row: dict[str, Any], reason: str) -> None:
    (name,) = [name for name, known in FORMATS.items() if known.matches(row)]
    with pytest.raises(BadRow, match=reason):
        read_row(row, name)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [{"role": "user", "content": "q"}], "rejected": []},
        {"prompt": "q", "completion": "a", "label": True},
        {"query": "q", "response": "a", "rejected_response": "b"},
        {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
        {"messages": [], "kto_tag": True},
    ],
)
def test_preference_data_is_an_error(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="f: preference data"):
        recognize([row], "f")


def test_answers_in_a_prompt_of_messages_are_not_trained() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"prompt": [*turns, turns[0]], "completion": [turns[1]]}
    assert [turn.has_loss for turn in read_row(row, "prompt_completion").turns] == [None, False, None, None]


def test_other_orders_are_left_to_the_chat_template() -> None:
    turns = [{"role": r, "content": r} for r in ("user", "user", "assistant", "assistant")]
    found = read_row({"messages": turns}, "messages")
    assert [turn.role for turn in found.turns] == ["user", "user", "assistant", "assistant"]
    with pytest.raises(UserError, match="two user turns in a row, which the template default cannot write"):
        TEMPLATES["default"].render(found)


@pytest.mark.parametrize("key", ["loss", "weight", "train", "training", "train_on_turn"])
def test_loss_flags_of_other_trainers_are_used(key: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", key: False}]
    assert read_row({"messages": turns}, "messages").turns[1].has_loss is False


@pytest.mark.parametrize("key", ["masked", "mask", "loss_mask", "training_detail"])
def test_keys_that_mask_parts_of_a_turn_are_rejected(key: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", key: True}]
    with pytest.raises(BadRow, match=f"'{key}'"):
        read_row({"messages": turns}, "messages")


@pytest.mark.parametrize("label", [True, False, 0, 1, "false", "True"])
def test_labels_of_answers_are_preference_data(label: object, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a", "label": label}))
    with pytest.raises(UserError, match="preference data"):
        load_conversations([str(path)])


def test_tools_of_the_text_null_count_as_absent() -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "null"}
    assert read_row(row, "messages").fields == {}
