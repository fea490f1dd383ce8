"""A fixed sample of texts on which tokenizers are compared."""

from __future__ import annotations

import random
from collections.abc import Sequence

_TEXTS = 1500
_WORDS = (
    "The quick brown fox; jumps (over) 13 lazy dogs, doesn't it?\n"
    "def add(a, b):\n    return a + b  # 0x1F\n\tif x != y: {'k': [1, 2.5]}\r\n"
    "今天天气很好，我们一起去公园散步。人工智能的发展：大模型训练、推理与部署！繁體中文。こんにちは 안녕하세요 Привет мир\n"
    "😀👩‍👩‍👧🇨🇳👍🏽 café naïve ﬁ Ａｂｃ　… — \u00a0\u200b\ufeff e\u0301 \u2581 <0x41> ½ ①"
)


def sample_texts(pieces: Sequence[str], number: int = _TEXTS) -> list[str]:
    """Return a fixed list of texts: words of several languages, code, emoji, random bytes, and joined pieces.

    Args:
        pieces: Pieces of a vocabulary.
        number: Number of texts.
    """
    generator = random.Random(0)
    texts = []
    for index in range(number):
        length = generator.randrange(1, 60)
        if index % 4 == 0:
            start = generator.randrange(len(_WORDS))
            texts.append(_WORDS[start : start + length])
        elif index % 4 == 1:
            texts.append(bytes(generator.randrange(256) for _ in range(length)).decode("utf-8", "replace"))
        elif index % 4 == 2:
            texts.append("".join(generator.choice(_WORDS + "    \n11--") for _ in range(length)))
        else:
            texts.append("".join(generator.choice(pieces) for _ in range(length // 6 + 1)))
    return texts
