"""Names of models and tokenizers without an owner that PaddleNLP 3.0 knows.

All other names, also those of all supported models, have the form `owner/name`. A test compares the table with PaddleNLP's
registry.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

_TABLE = """
ChineseBERT-base ChineseBERT-large albert-base-v1 albert-base-v2 albert-chinese-base albert-chinese-large
albert-chinese-small albert-chinese-tiny albert-chinese-xlarge albert-chinese-xxlarge albert-large-v1 albert-large-v2
albert-xlarge-v1 albert-xlarge-v2 albert-xxlarge-v1 albert-xxlarge-v2 bart-base bart-large bert-base-cased
bert-base-chinese bert-base-multilingual-cased bert-base-multilingual-uncased bert-base-uncased bert-large-cased
bert-large-uncased bert-wwm-chinese bert-wwm-ext-chinese bigbird-base-uncased blenderbot-1B-distill blenderbot-3B
blenderbot-400M-distill blenderbot_small-90M chinese-electra-base chinese-electra-small chinese-xlnet-base
chinese-xlnet-large chinese-xlnet-mid chinese_GAU-alpha-char_L-24_H-768 convbert-base convbert-base-discriminator
convbert-base-generator convbert-medium-small convbert-medium-small-discriminator convbert-medium-small-generator
convbert-small convbert-small-discriminator convbert-small-generator ctrl dalle-mega dalle-mega-v16 dalle-mega-v26
dalle-mini deberta-base disco_diffusion_ernie_vil-2.0-base-zh distilbert-base-cased distilbert-base-uncased
electra-base electra-base-discriminator electra-base-generator electra-large electra-large-discriminator
electra-large-generator electra-small electra-small-discriminator electra-small-generator ernie-1.0 ernie-1.0-base-zh
ernie-1.0-base-zh-cw ernie-1.0-large-zh-cw ernie-2.0-base-en ernie-2.0-base-en-finetuned-squad ernie-2.0-base-zh
ernie-2.0-large-en ernie-2.0-large-zh ernie-3.0-base-zh ernie-3.0-medium-zh ernie-3.0-micro-zh ernie-3.0-mini-zh
ernie-3.0-nano-zh ernie-3.0-tiny-base-v1-zh ernie-3.0-tiny-base-v2-zh ernie-3.0-tiny-medium-v1-zh
ernie-3.0-tiny-medium-v2-zh ernie-3.0-tiny-micro-v1-zh ernie-3.0-tiny-micro-v2-zh ernie-3.0-tiny-mini-v1-zh
ernie-3.0-tiny-mini-v2-en ernie-3.0-tiny-mini-v2-zh ernie-3.0-tiny-nano-v1-zh ernie-3.0-tiny-nano-v2-zh
ernie-3.0-tiny-pico-v2-zh ernie-3.0-xbase-zh ernie-code-base ernie-code-base-L512 ernie-ctm ernie-doc-base-en
ernie-doc-base-zh ernie-gen-base-en ernie-gen-large-en ernie-gen-large-en-430g ernie-gram-zh
ernie-gram-zh-finetuned-dureader-robust ernie-health-chinese ernie-health-chinese-discriminator
ernie-health-chinese-generator ernie-layoutx-base-uncased ernie-m-base ernie-m-large
ernie-search-base-dual-encoder-marco-en ernie-search-large-cross-encoder-marco-en ernie-tiny ernie_vil-2.0-base-zh
falcon-7b falcon-7b-instruct fnet-base fnet-large gpt-cpm-large-cn gpt-cpm-small-cn-distill gpt2-en gpt2-large-en
gpt2-medium-en gpt2-small-en gpt2-xl-en gpt3-1.3B-en gpt3-13B-en gpt3-175B-en gpt3-6.7B-en gpt3-89B-en
layoutlm-base-uncased layoutlm-large-uncased layoutlmv2-base-uncased layoutlmv2-large-uncased
layoutlmv2-wo-backbone-base-uncased layoutxlm-base-uncased luke-base luke-large macbert-base-chinese
macbert-large-chinese mbart-large-50-many-to-many-mmt mbart-large-50-many-to-one-mmt mbart-large-50-one-to-many-mmt
mbart-large-cc25 mbart-large-en-ro megatronbert-cased megatronbert-uncased mobilebert-uncased mpnet-base
nezha-base-chinese nezha-base-wwm-chinese nezha-large-chinese nezha-large-wwm-chinese nptag nystromformer-base-zh
pai-painter-base-zh pai-painter-commercial-base-zh pai-painter-large-zh pai-painter-painting-base-zh
pai-painter-scenery-base-zh plato-mini plato-xl ppminilm-6l-768h prophetnet-large-uncased
reformer-crime-and-punishment reformer-enwik8 rembert roberta-base roberta-large rocketqa-base-cross-encoder
rocketqa-medium-cross-encoder rocketqa-micro-cross-encoder rocketqa-mini-cross-encoder rocketqa-nano-cross-encoder
rocketqa-v1-marco-cross-encoder rocketqa-v1-marco-para-encoder rocketqa-v1-marco-query-encoder
rocketqa-zh-base-para-encoder rocketqa-zh-base-query-encoder rocketqa-zh-dureader-cross-encoder
rocketqa-zh-dureader-para-encoder rocketqa-zh-dureader-query-encoder rocketqa-zh-medium-para-encoder
rocketqa-zh-medium-query-encoder rocketqa-zh-micro-para-encoder rocketqa-zh-micro-query-encoder
rocketqa-zh-mini-para-encoder rocketqa-zh-mini-query-encoder rocketqa-zh-nano-para-encoder
rocketqa-zh-nano-query-encoder rocketqav2-en-marco-cross-encoder rocketqav2-en-marco-para-encoder
rocketqav2-en-marco-query-encoder roformer-chinese-base roformer-chinese-char-base roformer-chinese-char-small
roformer-chinese-sim-char-base roformer-chinese-sim-char-ft-base roformer-chinese-sim-char-ft-small
roformer-chinese-sim-char-small roformer-chinese-small roformer-english-small-discriminator
roformer-english-small-generator roformer_v2_chinese_char_base roformer_v2_chinese_char_large
roformer_v2_chinese_char_small simbert-base-chinese skep_ernie_1.0_large_ch skep_ernie_2.0_large_en
skep_roberta_large_en squeezebert-mnli squeezebert-mnli-headless squeezebert-uncased sshleifer-tiny-ctrl t5-11b t5-3b
t5-base t5-large t5-small t5-v1_1-base t5-v1_1-large tinybert-4l-312d tinybert-4l-312d-v2 tinybert-4l-312d-zh
tinybert-6l-768d tinybert-6l-768d-v2 tinybert-6l-768d-zh uie-base uie-base-answer-extractor uie-base-en
uie-base-qa-filter uie-m-base uie-m-large uie-medium uie-micro uie-mini uie-nano uie-senta-base uie-senta-medium
uie-senta-micro uie-senta-mini uie-senta-nano uie-x-base unified_transformer-12L-cn unified_transformer-12L-cn-luge
unimo-text-1.0 unimo-text-1.0-dureader_qg unimo-text-1.0-large unimo-text-1.0-lcsts-new
unimo-text-1.0-question-generation unimo-text-1.0-question-generation-dureader_qg
unimo-text-1.0-question-generation-full_domain unimo-text-1.0-question-generation-v2 unimo-text-1.0-summary utc-base
utc-large utc-medium utc-micro utc-mini utc-nano utc-pico utc-xbase vi-layoutlmv2-base-uncased
vi-layoutxlm-base-uncased wordtag xlm-clm-ende-1024 xlm-clm-enfr-1024 xlm-mlm-100-1280 xlm-mlm-17-1280 xlm-mlm-en-2048
xlm-mlm-ende-1024 xlm-mlm-enfr-1024 xlm-mlm-enro-1024 xlm-mlm-tlm-xnli15-1024 xlm-mlm-xnli15-1024 xlnet-base-cased
xlnet-large-cased
"""
BARE_NAMES = frozenset(_TABLE.split())


def downloaded(name: str) -> Path:
    """Return the folder where PaddleNLP stores its download of a name."""
    return Path(os.environ.get("PPNLP_HOME") or Path.home() / ".paddlenlp") / "models" / name


def why_unknown(name: str) -> str | None:
    """Return a message if a name that is not a folder cannot be known to PaddleNLP either; None if it may be."""
    if "/" in name or name in BARE_NAMES or downloaded(name).is_dir():
        return None
    return f"it is neither a folder nor a name built into PaddleNLP.{folder_like(name)}"


def folder_like(name: str) -> str:
    """Return " Did you mean X?" with the most similar folder beside `name`; "" if none is similar."""
    path = Path(name).expanduser()
    try:
        folders = [one.name for one in path.parent.iterdir() if one.is_dir()]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, folders, 1, 0.7)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
