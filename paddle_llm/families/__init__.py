"""Model families: everything that differs between them, as data, one file per family."""

from paddle_llm.families.bloom import BLOOM
from paddle_llm.families.chatglm import CHATGLM
from paddle_llm.families.chatglm2 import CHATGLM2
from paddle_llm.families.glm import GLM
from paddle_llm.families.llama import LLAMA
from paddle_llm.families.mistral import MISTRAL
from paddle_llm.families.opt import OPT
from paddle_llm.families.qwen2 import QWEN2
from paddle_llm.families.spec import Family

__all__ = ["FAMILIES", "Family"]

# In the order in which messages list them.
FAMILIES: dict[str, Family] = {
    family.name: family for family in (LLAMA, CHATGLM, CHATGLM2, BLOOM, OPT, GLM, QWEN2, MISTRAL)
}
