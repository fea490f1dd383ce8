"""The oracle detects each fault in the expected quantity and tensors, and reports nothing without a fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.compare import QUANTITIES, SCALARS
from paddle_llm.rehearse.faults import FAULTS, Fault
from paddle_llm.rehearse.oracle import Reference, Verdict, prove, reference_key, reference_of
from tests.rehearse.cases import make_case

# A fault may need fewer key-value heads than tensor ranks, a padded vocabulary, tied embeddings,
MODEL = {"num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": 127, "tie_word_embeddings": True}
# several micro-batches, samples with unequal numbers of labels, active clipping, weight decay, and evaluation samples that do
# not fill a batch.
SETTINGS = {"max_steps": 2, "global_batch": 8, "ignored_labels": True, "evaluation": 5}
SETTINGS |= {"max_grad_norm": 0.5, "weight_decay": 0.1}
LORA = {"entry": "finetune", "lora": True, "lora_rank": 4}
# Faults that are also tested with LoRA, in addition to those that only occur with it.
ALSO_WITH_LORA = ("mean_of_each_micro_batch", "replicas_in_the_norm", "forgotten_moments")


@pytest.fixture(scope="module")
def case_of(tmp_path_factory) -> Callable[..., Case]:
    folder = tmp_path_factory.mktemp("faults")

    def make(layout: Layout, fault: str | None = None, **settings: Any) -> Case:
        return make_case(folder, layout, model=MODEL, fault=fault, **SETTINGS, **settings)

    return make


@pytest.fixture(scope="module")
def reference(case_of) -> Reference:
    """Return the reference, which does not depend on the layout."""
    return reference_of(case_of(Layout()))


@pytest.fixture(scope="module")
def lora_reference(case_of) -> Reference:
    return reference_of(case_of(Layout(), **LORA))


PRETRAINING = [fault for fault in FAULTS.values() if fault.entry == "pretrain"]
WITH_LORA = [fault for fault in FAULTS.values() if fault.entry == "finetune" or fault.name in ALSO_WITH_LORA]


@pytest.mark.parametrize("layout", dict.fromkeys(fault.layout for fault in PRETRAINING), ids=str)
def test_without_a_fault_the_layout_passes(case_of, reference, layout):
    case = case_of(layout)
    assert reference_key(case) == reference_key(case_of(Layout()))
    verdict = prove(case, reference)
    assert verdict.passed, "\n".join(str(failure) for failure in verdict.failures[:5])


@pytest.mark.parametrize("fault", PRETRAINING, ids=lambda fault: fault.name)
def test_the_fault_is_detected_and_named(case_of, reference, fault):
    verdict = prove(case_of(fault.layout, fault.name), reference)
    check(verdict, fault)


@pytest.mark.parametrize("layout", dict.fromkeys(fault.layout for fault in WITH_LORA), ids=str)
def test_lora_without_a_fault_passes(case_of, lora_reference, layout):
    verdict = prove(case_of(layout, **LORA), lora_reference)
    assert verdict.passed, "\n".join(str(failure) for failure in verdict.failures[:5])


@pytest.mark.parametrize("fault", WITH_LORA, ids=lambda fault: fault.name)
def test_the_fault_is_detected_and_named_with_lora(case_of, lora_reference, fault):
    check(prove(case_of(fault.layout, fault.name, **LORA), lora_reference), fault)


def check(verdict: Verdict, fault: Fault) -> None:
    assert not verdict.passed
    assert min(failure.step for failure in verdict.failures) == fault.step
    failed = [failure for failure in verdict.failures if failure.step == fault.step]
    wrong = {failure.quantity for failure in failed}
    assert not wrong & set(fault.unaffected), [
        str(failure) for failure in failed if failure.quantity in fault.unaffected
    ][:3]
    shown = [failure for failure in failed if failure.quantity == fault.quantity]
    named = [re.search(fault.tensors, failure.tensor or "") is not None for failure in shown]
    assert any(named), [str(failure) for failure in failed]
    assert all(named) or not fault.others_equal, [str(failure) for failure in shown]


def test_faults_have_a_complete_description():
    for name, fault in FAULTS.items():
        assert name == fault.name and fault.description.endswith(".") and fault.layout.world_size > 1
        assert {fault.quantity, *fault.unaffected} <= set(QUANTITIES) and fault.quantity not in fault.unaffected
        assert bool(fault.tensors) == (fault.quantity not in SCALARS)
