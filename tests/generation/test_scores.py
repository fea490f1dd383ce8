"""Scores in English and Chinese, compared with figures calculated by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from paddle_llm.config.run_config import SCORES
from paddle_llm.generation.scores import CharacterTokenizer, is_chinese, score


def test_right_and_wrong_answers():
    texts = ["the cat sat on the mat", "我叫小鹏，是一个助手"]
    best = score([f" {text}\n" for text in texts], texts)
    assert tuple(best) == SCORES
    assert best == pytest.approx({"bleu": 100.0, "rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "exact_match": 1.0})
    worst = score(["", "x"], texts)
    assert worst == dict.fromkeys(SCORES, 0.0)
    assert score([texts[0], "x"], texts)["exact_match"] == 0.5
    assert score([], []) == {}


def test_english_by_hand():
    found = score(["the cat sat on a mat"], ["The cat sat on the mat"])
    # Without case, 5 of 6 words and 3 of 5 bigrams match. BLEU is case-sensitive: 5/6, 2/5, 1/4, and half of 1/3.
    assert found["rouge1"] == found["rougeL"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["bleu"] == pytest.approx(100 * math.exp(sum(map(math.log, (5 / 6, 2 / 5, 1 / 4, 1 / 6))) / 4))


def test_chinese_by_character():
    found = score(["我叫小红"], ["我叫小明吗"])
    assert found["rouge1"] == pytest.approx(2 * 3 / (4 + 5))
    assert found["rouge2"] == pytest.approx(2 * 2 / (3 + 4))
    # 3/4, 2/3, 1/2, half of 1/1, and the brevity penalty.
    precision = math.exp(sum(map(math.log, (3 / 4, 2 / 3, 1 / 2, 1 / 2))) / 4)
    assert found["bleu"] == pytest.approx(100 * precision * math.exp(1 - 5 / 4))


def test_ascii_words_equal_those_of_rouge_score():
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The cat-sat on 3.5 mats, didn't_it? (Yes)"
    assert CharacterTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)
    assert CharacterTokenizer().tokenize("GPT-4说：你好") == ["gpt", "4", "说", "你", "好"]
    assert is_chinese("a月") and not is_chinese("naïve —「」")


def test_scores_do_not_import_paddle():
    code = "import sys; from paddle_llm.generation.scores import score; score(['a'], ['a']); print('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
