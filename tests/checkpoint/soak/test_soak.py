"""A slice of `make soak`: jobs that are killed 12 times at moments that a seed draws compute what undisturbed jobs compute."""

from __future__ import annotations

import pytest

from tests.checkpoint.soak.campaign import Campaign
from tests.checkpoint.soak.jobs import LORA, PRETRAINING

SEED = 15
JOBS = {
    "pretraining on its layout": (0, PRETRAINING, "stage 3", False),
    "packed LoRA on its layout": (1, LORA, "dp2", False),
    "pretraining on drawn layouts": (2, PRETRAINING, "sharding2 stage 2 x tp2", True),
}
KILLS = 4


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("soak"), SEED)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_is_killed_computes_the_same(job, campaign):
    number, method, layout, changes = JOBS[job]
    found = campaign.run(number, method, layout, KILLS, changes_layout=changes)
    assert found.faults == [] and len(found.kills) == KILLS
