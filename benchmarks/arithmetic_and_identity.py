"""A small task with one right answer to each question, and the plain text that a base for it is pretrained on.

    python benchmarks/arithmetic_and_identity.py FOLDER [--seed 0]

The task is asked in English and Chinese: the sum of two two-digit numbers, and self-cognition (who are you) for the name that
stands before the question. Nothing can be answered by heart: no pair of operands (in either order) and no name of a test row
is in a training row, nor in the text of the pretraining. That text holds bare sums ("34+58=92"), sentences with numbers and
names, and questions that nobody answers; of the answers that are to be learnt it has none.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from paddle_llm.data.instructions.self_cognition import LANGUAGES

OPERANDS = range(10, 100)
TRAIN_ROWS, DEV_ROWS, TEST_ROWS = 2000, 80, 400
LINES = 60_000
Pair = tuple[int, int]

# Two words make a name: an unseen one is a new combination of words that have been seen.
_NAME_WORDS = {
    "en": (
        "Alice Anna Ben Bruno Carol Clara David Dora Emma Eric Fiona Frank George Grace Helen Henry Iris Ivan Jack Julia Karl Kate "
        "Leo Linda Mary Max Nina Nora Oscar Otto Paul Peter Rosa Ruth Sam Simon Tina Tom Vera Victor",
        "Adams Archer Baker Bell Clark Cook Davis Dean Ellis Evans Fisher Ford Grant Gray Hill Hunt Irwin James Jones King Knight "
        "Lane Lewis Mills Moore Nash Norris Owen Page Parker Quinn Reed Rose Scott Stone Turner Vance Walker Wood Young",
    ),
    "zh": (
        "王 李 张 刘 陈 杨 黄 赵 周 吴 徐 孙 马 朱 胡 郭 何 高 林 罗 郑 梁 谢 宋 唐 许 韩 冯 邓 曹 彭 曾 萧 田 董 袁 潘 蒋 蔡 余",
        "晓明 建华 丽娜 志强 海燕 文博 雪梅 子涵 天宇 春花 国栋 美玲 小龙 玉兰 立新 家豪 思远 云飞 秀英 永康 佳怡 振东 红霞 冬梅 俊杰 雅琴 "
        "宏伟 静怡 光明 慧敏 金凤 学文 青山 月华 少君 长江 梓萱 一鸣 若兰 世民",
    ),
}

_QUESTIONS = {
    "en": (
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "How much is {a} and {b} together?",
        "What do {a} and {b} add up to?",
    ),
    "zh": ("{a}加{b}等于多少？", "请计算{a}加{b}。", "{a}和{b}一共是多少？", "把{a}和{b}加起来得多少？"),
}
_ANSWER = {"en": "The sum: {a}+{b}={sum}.", "zh": "和：{a}+{b}={sum}。"}
_PERSONA = {"en": "Name: {name}. ", "zh": "名字：{name}。"}
# Self-cognition's first theme: who are you.
_WHO = {"en": "I am {name}, a language model.", "zh": "我是{name}，一个语言模型。"}

# What the base reads: sums, and numbers and names that return in a sentence.
_FACT, _FACTS_IN_A_LINE = "{a}+{b}={sum}", 4
_TEXT_OF_PAIRS = (
    "The sum of {a} and {b} is {sum}.",
    "{a}与{b}的和：{sum}。",
    "The list has {a} and {b}, first {a} and then {b}.",
    "表上有{a}和{b}，先是{a}，后是{b}。",
)
_TEXT_OF_NAMES = {
    "en": (
        "{name}, {other}, {name}, {other}, {name}.",
        "{name} wrote: I am not {other}, I am {name}.",
        "{other} built a house for {name}, and {name} thanked {other}.",
        "Name: {name}. This is {name}, that is {other}.",
    ),
    "zh": (
        "{name}，{other}，{name}，{other}，{name}。",
        "{name}写道：我不是{other}，我是{name}。",
        "{other}为{name}盖了房子，{name}感谢{other}。",
        "名字：{name}。这是{name}，那是{other}。",
    ),
}


@dataclass
class Part:
    """One of the parts, with what it may use: pairs and names that no other part has."""

    pairs: list[Pair]
    names: dict[str, list[str]]
    lines: list[str] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)


def make_parts(seed: int = 0) -> dict[str, Part]:
    """Rows of `train`, `dev` and `test`, lines of `pretrain`; the same for the same seed."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in OPERANDS for b in OPERANDS if a < b]
    rng.shuffle(pairs)
    people = {language: _combined(_NAME_WORDS[language], rng) for language in LANGUAGES}
    parts, free = {}, iter(pairs)
    for name, rows in (("test", TEST_ROWS), ("dev", DEV_ROWS), ("train", TRAIN_ROWS), ("pretrain", 0)):
        own_pairs = list(islice(free, rows // 2 or None))
        parts[name] = Part(own_pairs, {one: list(islice(people[one], rows // 4 or None)) for one in LANGUAGES})
        parts[name].rows = list(_rows(parts[name], rng)) if rows else []
    parts["pretrain"].lines = list(_lines(parts["pretrain"], rng))
    check_apart(parts)
    return parts


def _combined(words: tuple[str, str], rng: random.Random) -> Iterator[str]:
    """Every first word with every second one, in a drawn order."""
    firsts, seconds = (part.split() for part in words)
    space = " " if firsts[0].isascii() else ""
    found = [f"{first}{space}{second}" for first in firsts for second in seconds]
    rng.shuffle(found)
    return iter(found)


# ---- rows and lines -------------------------------------------------------------------------------------------------


def _rows(part: Part, rng: random.Random) -> Iterator[dict[str, str]]:
    """A sum of each pair and a question about itself to each name, half of them in each language, shuffled."""
    rows = []
    for number, pair in enumerate(part.pairs):
        language, words = ("en", "zh")[number % 2], _of_pair(pair, rng)
        rows.append(_row(rng.choice(_QUESTIONS[language]), _ANSWER[language], words, language, "sum"))
    for language in LANGUAGES:
        for name in part.names[language]:
            question = _PERSONA[language] + rng.choice(LANGUAGES[language][0].questions)
            rows.append(_row(question, _WHO[language], {"name": name}, language, "self_cognition"))
    rng.shuffle(rows)
    yield from rows


def _row(question: str, answer: str, words: dict[str, Any], language: str, task: str) -> dict[str, str]:
    return {"src": question.format(**words), "tgt": answer.format(**words), "language": language, "task": task}


def _of_pair(pair: Pair, rng: random.Random) -> dict[str, int]:
    """A sum in one of its two orders."""
    a, b = rng.sample(pair, 2)
    return {"a": a, "b": b, "sum": a + b}


def _lines(part: Part, rng: random.Random) -> Iterator[str]:
    """By turns a line of bare sums, a sentence with numbers, and in each language two with names and a question alone."""
    for _ in range(LINES // 8):
        sums = [_of_pair(rng.choice(part.pairs), rng) for _ in range(_FACTS_IN_A_LINE)]
        yield ";".join(_FACT.format(**words) for words in sums)
        yield rng.choice(_TEXT_OF_PAIRS).format(**_of_pair(rng.choice(part.pairs), rng))
        for language in LANGUAGES:
            name, other = rng.sample(part.names[language], 2)
            words = {"name": name, "other": other}
            yield rng.choice(_TEXT_OF_NAMES[language]).format(**words)
            yield rng.choice(_TEXT_OF_NAMES[language]).format(**words)
            if rng.random() < 0.5:
                yield (_PERSONA[language] + rng.choice(LANGUAGES[language][0].questions)).format(**words)
            else:
                yield rng.choice(_QUESTIONS[language]).format(**_of_pair(rng.choice(part.pairs), rng))


# ---- nothing in two parts -------------------------------------------------------------------------------------------


def check_apart(parts: dict[str, Part]) -> None:
    """Raise ValueError where two parts share a pair of operands or a name."""
    for first, second in [(a, b) for a in parts for b in parts if a < b]:
        for kind in ("pairs", "names"):
            shared = _all(getattr(parts[first], kind)) & _all(getattr(parts[second], kind))
            if shared:
                raise ValueError(f"{first} and {second} share {kind}: {sorted(shared)[:5]}")


def _all(things: Sequence[Pair] | dict[str, list[str]]) -> set[object]:
    if isinstance(things, dict):
        return {name for names in things.values() for name in names}
    return {tuple(sorted(pair)) for pair in things}


def write(folder: Path, seed: int = 0) -> dict[str, int]:
    """FOLDER/text.txt for the pretraining, FOLDER/data/{train,dev,test}.json; returns how many of each."""
    parts = make_parts(seed)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    text = parts["pretrain"].lines
    (folder / "text.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    counts = {"lines": len(text)}
    for name in ("train", "dev", "test"):
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in parts[name].rows]
        (folder / "data" / f"{name}.json").write_text("".join(rows), encoding="utf-8")
        counts[name] = len(rows)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(write(options.folder, options.seed)), file=sys.stderr)
