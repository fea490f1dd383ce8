"""Settings of the conformance tests, which compare what this project reads and writes with the owner of each format.

Hypothesis runs derandomized, with the same inputs on every machine. `HYPOTHESIS_PROFILE=thorough` (set by
`make test-all`) runs more inputs.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("fast", derandomize=True, deadline=None, max_examples=25, suppress_health_check=_CHECKS)
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=500, suppress_health_check=_CHECKS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
