"""A tokenizer and a model whose embedding has fewer or more rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec


def with_settings(folder: str, out: Path, **settings) -> TextCodec:
    shutil.copytree(folder, out)
    config = json.loads((out / "tokenizer_config.json").read_text())
    (out / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))
    return open_codec(str(out))


def test_a_pad_id_outside_the_model_is_replaced(tokenizer_folder: str, tmp_path: Path, capsys) -> None:
    codec = with_settings(tokenizer_folder, tmp_path / "tok", pad_token="[PAD]")
    assert codec.pad_id == 700
    codec.fit_to_model(700)
    assert codec.pad_id == codec.eos_id == 2
    reported = capsys.readouterr().err
    assert "[PAD] 700" in reported and "pad id 700 is outside the model" in reported


def test_ids_outside_the_model_are_an_error_where_they_are_needed(tokenizer_folder: str, tmp_path: Path) -> None:
    codec = with_settings(tokenizer_folder, tmp_path / "tok", legacy=False, additional_special_tokens=["<|im_start|>"])
    codec.fit_to_model(700)
    codec.require_rows(codec.encode("lamp <|im_start|>"), "a.json line 1")
    with pytest.raises(
        UserError, match=r"a\.json line 1: token id 700 <\|im_start\|> is outside the model's vocabulary of 700"
    ):
        codec.require_rows(codec.encode_with_specials("<|im_start|>lamp"), "a.json line 1")


@pytest.mark.parametrize(("eos", "rows", "largest"), [("</s>", 699, 699), ("<|im_end|>", 700, 700)])
def test_a_larger_vocabulary_or_eos_is_an_error(
    tokenizer_folder: str, tmp_path: Path, eos: str, rows: int, largest: int
) -> None:
    codec = with_settings(tokenizer_folder, tmp_path / "tok", eos_token=eos)
    with pytest.raises(UserError, match=f"ids up to {largest} exceed the model's vocabulary of {rows} "):
        codec.fit_to_model(rows)


def test_a_larger_embedding_is_not_reported(tokenizer_folder: str, capsys) -> None:
    codec = open_codec(tokenizer_folder)
    codec.fit_to_model(1024)
    assert codec.pad_id == 3 and capsys.readouterr().err == ""
