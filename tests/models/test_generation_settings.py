"""generation_config.json is read like transformers reads it and saved beside weights; settings that are not applied are reported."""

from __future__ import annotations

import json

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.models.configuration.generation_settings import (
    additional_eos_note,
    describe_unapplied,
    end_ids,
    read_generation,
    settings_to_save,
    unapplied,
    unreachable_eos_note,
    write_generation,
)
from paddle_llm.models.configuration.machine_paths import remove_paths


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ({"eos_token_id": [2, 270]}, {"eos_token_id": 2}, [2, 270]),
        ({"eos_token_id": 5}, {"eos_token_id": [2, 5, 7]}, [5, 2, 7]),
        ({}, {"eos_token_id": None}, []),
        ({"eos_token_id": -1}, {}, []),
    ],
)
def test_a_text_ends_at_every_id_of_both_files(settings, config, expected):
    assert end_ids(settings, config, "m") == expected


@pytest.mark.parametrize("content", ['{"eos_token_id": "</s>"}', '{"eos_token_id": [true]}', "[1]", '{"eos_token_id"'])
def test_a_file_that_is_not_valid_is_one_message(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match="generation_config.json"):
        read_generation(tmp_path)


def test_a_saved_model_ends_a_text_like_its_base():
    base = {
        "eos_token_id": [2, 270],
        "temperature": 0.6,
        "do_sample": True,
        "_from_model_config": True,
        "pad_token_id": 0,
    }
    saved = settings_to_save(base, {"eos_token_id": 2, "bos_token_id": 1}, [2, 280, 500], vocab_size=300)
    assert saved == {
        "eos_token_id": [2, 270, 280],
        "bos_token_id": 1,
        "pad_token_id": 0,
        "temperature": 0.6,
        "do_sample": True,
    }


def test_settings_that_are_not_applied_are_named():
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "repetition_penalty": 1.0}
    line = describe_unapplied(sampling, [], "m")
    assert line is not None and "do_sample=true, temperature=0.6, top_p=0.9" in line and "repetition" not in line
    assert set(unapplied(sampling, ["temperature", "do_sample"])) == {"top_p"}
    assert describe_unapplied({"do_sample": False, "temperature": 0.6}, [], "m") is None
    changing = {
        "encoder_no_repeat_ngram_size": 2,
        "guidance_scale": 1.5,
        "token_healing": True,
        "num_beam_groups": 2,
        "diversity_penalty": 0.5,
    }
    assert unapplied(changing) == changing
    assert (
        unapplied({"guidance_scale": 1.0, "token_healing": False, "num_beam_groups": 1, "diversity_penalty": 0.0}) == {}
    )
    assert set(unapplied({"bad_words_ids": [[3]], "some_new_setting": 2})) == {"bad_words_ids", "some_new_setting"}


def test_transformers_reads_the_saved_file(tmp_path):
    import transformers

    write_generation(tmp_path, settings_to_save({"eos_token_id": [2, 270], "top_k": 5, "do_sample": True}, {}, [], 300))
    read = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert read.eos_token_id == [2, 270] and read.top_k == 5


def test_paths_of_the_machine_are_removed_and_nothing_else(tmp_path):
    file = tmp_path / "tokenizer_config.json"
    file.write_text(
        json.dumps({"vocab_file": "/home/me/v", "eos_token": "</s>", "list": [{"name_or_path": "/x", "a": 1}]})
    )
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"vocab_file": 3}}}')
    remove_paths(tmp_path)
    assert json.loads(file.read_text()) == {"eos_token": "</s>", "list": [{"a": 1}]}
    assert "vocab_file" in (tmp_path / "tokenizer.json").read_text()


def test_ends_that_the_model_cannot_generate_are_named():
    assert unreachable_eos_note([2, 299], 300) is None
    assert unreachable_eos_note([2, 32000, 300], 300).endswith("which it can never generate: 300, 32000")


def test_ends_that_transformers_would_not_stop_at_are_reported():
    assert additional_eos_note({"eos_token_id": [7, 9]}, [7]) is None and additional_eos_note({}, [2]) is None
    assert additional_eos_note({"eos_token_id": 7}, [2, 7]) == (
        "generation_config.json ends a text at token 7; here it also ends at token 2 (config.json or the tokenizer)"
    )
