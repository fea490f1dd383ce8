"""Settings of every test of this repository."""

pytest_plugins = ["tests.helpers.skips", "tests.helpers.leftovers"]
