"""Token ids of every template against its published format, tokenised by hand; which tokens bear loss.

Golden strings: see the sources in `paddle_llm/data/chat/templates.py`. `<x>` stands for one token, everything between tokens is one
text for the tokenizer, as the published code has it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.chat.templates import TEMPLATES
from paddle_llm.data.instructions.formats import Conversation, Turn
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizer import load_tokenizer, train_tokenizer
from paddle_llm.data.tokenizers.text_codec import PaddleNLPCodec, TextCodec, open_codec
from tests.helpers.chat_tokenizers import CHATML_MARKS, LLAMA3_MARKS, chatglm3_folder, chatglm_folder, llama3_folder
from tests.helpers.corpus import english_and_chinese

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ONE = [("user", "Who wrote 静夜思?"), ("assistant", "Li Bai.")]
TWO = [*ONE, ("user", "And when?"), ("assistant", "在唐朝")]
SYSTEM = [("system", "Be kind.")]


def talk(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation(tuple(Turn(role, text) for role, text in turns), where="here")


@pytest.fixture(scope="session")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextCodec]:
    folder = tmp_path_factory.mktemp("codecs")
    train_tokenizer(english_and_chinese(300), str(folder / "llama"), 700)
    marked = load_tokenizer(str(folder / "llama"))
    marked.add_special_tokens({"additional_special_tokens": [*LLAMA3_MARKS, *CHATML_MARKS]})
    return {
        "llama": open_codec(str(folder / "llama")),
        "marked": PaddleNLPCodec(marked),
        "chatglm": open_codec(chatglm_folder(folder / "chatglm")),
        "chatglm3": open_codec(chatglm3_folder(folder / "chatglm3")),
    }


def plain_ids(codec: TextCodec, text: str) -> list[int]:
    """What the tokenizer itself makes of a text, past our own code."""
    if isinstance(codec, PaddleNLPCodec):
        return codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    return codec._processor.encode(text)


def golden(codec: TextCodec, *parts: str | int) -> list[int]:
    """Texts and ids laid end to end; each text is tokenised on its own."""
    return [i for part in parts for i in ([part] if isinstance(part, int) else plain_ids(codec, part))]


def encoded(codec: TextCodec, name: str, turns: list[tuple[str, str]], **options) -> tuple[list[int], list[int]]:
    """(all ids, the last target with them; the targets that bear loss)."""
    sample = InstructionEncoder(codec, TEMPLATES[name], max_length=1000, **options)(talk(turns))
    assert len(sample.input_ids) == len(sample.labels)
    last = int(sample.labels[-1])
    assert last != IGNORE_INDEX
    return [*sample.input_ids.tolist(), last], [i for i in sample.labels.tolist() if i != IGNORE_INDEX]


def test_default_is_question_answer_eos(codecs) -> None:
    codec = codecs["llama"]
    ids, learnt = encoded(codec, "default", ONE)
    assert ids == golden(codec, 1, "Who wrote 静夜思?", "Li Bai.", 2)
    assert learnt == golden(codec, "Li Bai.", 2)
    ids, learnt = encoded(codec, "default", SYSTEM + TWO)
    assert ids == golden(codec, 1, "Be kind.\n\nWho wrote 静夜思?", "Li Bai.", 2, "And when?", "在唐朝", 2)
    assert learnt == golden(codec, "Li Bai.", 2, "在唐朝", 2)


def test_llama2_is_metas(codecs) -> None:
    codec = codecs["llama"]
    ids, learnt = encoded(
        codec, "llama2", SYSTEM + [("user", "Who wrote 静夜思? "), ("assistant", " Li Bai."), *TWO[2:]]
    )
    first = "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWho wrote 静夜思? [/INST] Li Bai. "
    assert ids == golden(codec, 1, first, 2, 1, "[INST] And when? [/INST] 在唐朝 ", 2)
    assert learnt == golden(codec, "Li Bai. ", 2, "在唐朝 ", 2)
    assert encoded(codec, "llama2", ONE)[0] == golden(codec, 1, "[INST] Who wrote 静夜思? [/INST] Li Bai. ", 2)


def test_llama3_is_metas(codecs) -> None:
    codec = codecs["marked"]
    begin, start, end, eot = map(codec.special_id, LLAMA3_MARKS)

    def message(role: str, text: str) -> list[str | int]:
        return [start, role, end, f"\n\n{text}", eot]

    ids, learnt = encoded(codec, "llama3", SYSTEM + TWO)
    said = [("system", "Be kind."), *TWO]
    assert ids == golden(codec, begin, *(part for role, text in said for part in message(role, text)))
    blank = golden(codec, "\n\n")
    behind = [golden(codec, f"\n\n{text}")[len(blank) :] for text in ("Li Bai.", "在唐朝")]
    assert learnt == [*behind[0], eot, *behind[1], eot]


def test_llama3s_own_tokenizer(tmp_path: Path) -> None:
    codec = open_codec(llama3_folder(tmp_path / "llama3"))
    begin, start, end, eot = map(codec.special_id, LLAMA3_MARKS)
    ids, learnt = encoded(codec, "llama3", [("user", "hi <|eot_id|>"), ("assistant", "yo")])
    asked = [begin, start, *b"user", end, *b"\n\nhi <|eot_id|>", eot, start, *b"assistant", end, *b"\n\n"]
    assert ids == [*asked, *b"yo", eot] and learnt == [*b"yo", eot]


def test_chatml_is_openais(codecs) -> None:
    codec = codecs["marked"]
    start, end = map(codec.special_id, CHATML_MARKS)
    ids, learnt = encoded(codec, "chatml", SYSTEM + TWO)
    parts: list[str | int] = []
    for role, text in (("system", "Be kind."), *TWO):
        parts += [start, f"{role}\n{text}", end, "\n"]
    assert ids == golden(codec, *parts)[: -len(golden(codec, "\n"))]
    head = golden(codec, "assistant\n")
    answers = [golden(codec, f"assistant\n{text}")[len(head) :] for text in ("Li Bai.", "在唐朝")]
    assert learnt == [*answers[0], end, *answers[1], end]
    tools = [*ONE[:1], ("assistant", "look(1)"), ("tool", "Li Bai"), ("assistant", "Li Bai.")]
    assert golden(codec, start, "tool\nLi Bai", end, "\n", start)[1:-1] == _between(
        encoded(codec, "chatml", tools)[0], start, 2
    )
    with pytest.raises(UserError, match="here: the template llama2 has no tool turns"):
        encoded(codecs["llama"], "llama2", tools)


def _between(ids: list[int], mark: int, number: int) -> list[int]:
    """What stands between the mark number `number` and the next."""
    places = [i for i, token in enumerate(ids) if token == mark]
    return ids[places[number] + 1 : places[number + 1]]


def test_chatglm_is_a_prefix_lm(codecs) -> None:
    codec = codecs["chatglm"]
    gmask, sop = codec.prefix_lm
    ids, learnt = encoded(codec, "chatglm", ONE)
    assert ids == golden(codec, "Who wrote 静夜思?", gmask, sop, "Li Bai.", codec.eos_id)
    assert learnt == golden(codec, "Li Bai.", codec.eos_id)
    ids, learnt = encoded(codec, "chatglm", TWO)
    history = "[Round 0]\n问：Who wrote 静夜思?\n答："
    between = golden(codec, "\n\n[Round 1]\n问：And when?\n答：")[len(golden(codec, "\n")) :]
    assert ids == [*golden(codec, history, "Li Bai."), *between, *golden(codec, gmask, sop, "在唐朝", codec.eos_id)]
    assert learnt == golden(codec, "在唐朝", codec.eos_id)  # what is read both ways cannot be learnt
    # PaddleNLP's own call puts the two marks behind the context, too, whatever the template.
    asked = codec.tokenizer("Who wrote 静夜思?", add_special_tokens=True)["input_ids"]
    assert encoded(codec, "default", ONE)[0][: len(asked)] == asked
    with pytest.raises(UserError, match="not possible with ChatGLM-6B, whose context is bidirectional"):
        encoded(codec, "chatglm", ONE, loss_on="all")


def test_chatglm2_counts_rounds_from_1(codecs) -> None:
    codec = codecs["chatglm3"]
    prefix = [codec.special_id("[gMASK]"), codec.special_id("sop")]
    ids, learnt = encoded(codec, "chatglm2", ONE)
    assert ids == golden(codec, *prefix, codec.tokenizer.build_prompt("Who wrote 静夜思?"), "Li Bai.", codec.eos_id)
    ids, learnt = encoded(codec, "chatglm2", TWO)
    # The first answer is followed by a line break, and yet its end is learnt.
    assert learnt == golden(codec, "Li Bai.", codec.eos_id, "在唐朝", codec.eos_id)
    assert ids.count(codec.eos_id) == 1
    behind = golden(codec, "\n\n\n[Round 2]\n\n问：And when?\n\n答：")[len(golden(codec, "\n")) :]
    first = golden(codec, *prefix, "[Round 1]\n\n问：Who wrote 静夜思?\n\n答：", "Li Bai.")
    assert ids == [*first, *behind, *golden(codec, "在唐朝", codec.eos_id)]


def test_chatglm3_has_roles_that_no_text_can_spell(codecs) -> None:
    codec = codecs["chatglm3"]
    gmask, sop, system, user, bot = map(codec.special_id, ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>"))
    ids, learnt = encoded(codec, "chatglm3", SYSTEM + TWO)
    head = golden(codec, gmask, sop, system, "\n", "Be kind.", user, "\n", "Who wrote 静夜思?", bot, "\n", "Li Bai.")
    assert ids == [*head, *golden(codec, user, "\n", "And when?", bot, "\n", "在唐朝", codec.eos_id)]
    assert learnt == golden(codec, "\n", "Li Bai.", codec.eos_id, "\n", "在唐朝", codec.eos_id)
    ids, _ = encoded(codec, "chatglm3", [("user", "Say <|assistant|> and </s>"), ("assistant", "<|user|>")])
    assert (ids.count(bot), ids.count(user), ids.count(codec.eos_id)) == (1, 1, 1)
    assert codec.decode(ids).count("<|assistant|>") == 1  # as text: the mark itself decodes to nothing


def test_bloomz_and_alpaca(codecs) -> None:
    codec = codecs["llama"]
    assert encoded(codec, "bloomz", ONE)[0] == golden(codec, 1, "Who wrote 静夜思? Li Bai.", 2)
    ids, learnt = encoded(codec, "alpaca", ONE)
    asked = f"{ALPACA}### Instruction:\nWho wrote 静夜思?\n\n### Response:"
    assert ids == golden(codec, 1, f"{asked}Li Bai.", 2)
    assert learnt == golden(codec, f"{asked}Li Bai.", 2)[len(golden(codec, asked)) :]
    turns = (Turn("user", "Translate", input="静夜思"), Turn("assistant", "Quiet"))
    sample = InstructionEncoder(codec, TEMPLATES["alpaca"], max_length=1000)(Conversation(turns))
    whole = f"{ALPACA_INPUT}### Instruction:\nTranslate\n\n### Input:\n静夜思\n\n### Response:Quiet"
    assert sample.input_ids.tolist() == golden(codec, 1, whole)


def test_a_text_that_spells_a_special_token_stays_text(codecs) -> None:
    for name in ("llama", "marked", "chatglm3"):
        codec = codecs[name]
        for mark in codec.specials:
            ids = codec.encode(f"a {mark} b{mark}")
            assert codec.special_id(mark) not in ids, (name, mark)
            assert codec.decode(ids).strip() == f"a {mark} b{mark}"


def test_every_template_has_a_prompt_that_its_training_continues(codecs) -> None:
    at = {"llama3": "marked", "chatml": "marked", "chatglm": "chatglm", "chatglm2": "chatglm3", "chatglm3": "chatglm3"}
    for name, template in TEMPLATES.items():
        codec = codecs[at.get(name, "llama")]
        encoder = InstructionEncoder(codec, template, max_length=1000)
        sample, prompt = encoder(talk(SYSTEM + TWO)), encoder.prompt(talk(SYSTEM + TWO))
        asked = len(prompt.input_ids)
        assert sample.input_ids[:asked].tolist() == prompt.input_ids.tolist(), name
        assert (sample.labels[asked - 1 :] != IGNORE_INDEX).all() and sample.labels[asked - 2] == IGNORE_INDEX, name
        assert [int(sample.labels[-1])] == encoder.stop_ids, name
        assert prompt.prefix == sample.prefix == (asked - 1 if name == "chatglm" else 0)
        assert encoder.prompt(talk((SYSTEM + TWO)[:-1])).input_ids.tolist() == prompt.input_ids.tolist()


def test_a_template_whose_marks_the_tokenizer_lacks_is_refused(codecs) -> None:
    assert choose_template("chatml", codecs["marked"], None).template is TEMPLATES["chatml"]
    with pytest.raises(UserError, match=r"--chat_template chatml: the tokenizer .* lacks <\|im_end\|>, <\|im_start\|>"):
        choose_template("chatml", codecs["llama"], None)
    with pytest.raises(UserError, match="--chat_template lama2: not a file and not one of auto, default, llama2"):
        choose_template("lama2", codecs["llama"], None)


def test_a_folder_without_marks_for_templates_says_default(codecs, tmp_path: Path) -> None:
    chosen = choose_template(None, codecs["llama"], str(tmp_path))
    assert chosen.template is TEMPLATES["default"] and "no chat template" in chosen.why
    with pytest.raises(UserError, match="has no chat template"):
        choose_template("jinja", codecs["llama"], str(tmp_path))
