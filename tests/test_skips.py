"""Skips are counted by group, and a skip without a group fails CI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.skips import PERMITTED_ELSEWHERE, PERMITTED_IN_CI, group_of

ROOT = Path(__file__).parents[1]
SAMPLE = """
import pytest

@pytest.mark.parametrize("group", {groups})
def test_needs(group):
    from tests.helpers.skips import needs
    needs(group, False, "missing on this machine")

def test_other():
    if {other}:
        pytest.skip("not today")
"""


def _session(folder: Path, *, ci: bool, groups: list[str], other: bool) -> subprocess.CompletedProcess[str]:
    (folder / "test_sample.py").write_text(SAMPLE.format(groups=groups, other=other))
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.helpers.skips",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        folder,
    ]
    return subprocess.run([*command, folder], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("ci", "groups", "other", "code"),
    [
        (True, list(PERMITTED_IN_CI), False, 0),
        (True, ["the extra hf"], False, 1),
        (True, ["nvcc"], True, 1),
        (False, [*PERMITTED_IN_CI, *PERMITTED_ELSEWHERE], True, 0),
    ],
)
def test_ci_permits_only_what_its_machine_may_lack(tmp_path, ci, groups, other, code):
    ended = _session(tmp_path, ci=ci, groups=groups, other=other)
    assert ended.returncode == code, ended.stdout
    counted = re.findall(r"^ +(\d+) needs (.*)$", ended.stdout, re.M)
    permitted = PERMITTED_IN_CI if ci else PERMITTED_IN_CI | PERMITTED_ELSEWHERE
    assert counted == [(str(int(name in groups)), name) for name in permitted]
    assert (f"{int(other) + sum(group not in permitted for group in groups)} for another reason") in ended.stdout
    assert ("test_other: not today" in ended.stdout) == other


def test_groups_are_named_by_their_own_reasons():
    for groups, in_ci in ((PERMITTED_IN_CI, True), (PERMITTED_IN_CI | PERMITTED_ELSEWHERE, False)):
        for name in groups:
            assert group_of(f"needs {name}", in_ci=in_ci) == name
    assert group_of("needs a good reason", in_ci=False) is None


def test_no_test_skips_a_combination_of_parameters():
    """A combination that does not exist is either not generated, or its refusal is asserted."""
    direct = re.compile(r"pytest\.skip\(|mark\.skip(if)?\b|importorskip\(|unittest\.skip|skipTest\(")
    allowed = re.compile(r"\bnvcc\b|extra hf|NVCC is None")
    found = []
    for folder in ("tests", "custom_ops/tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.name in ("skips.py", "test_skips.py"):
                continue
            lines = file.read_text().splitlines()
            for number, line in enumerate(lines):
                if direct.search(line) and not allowed.search(" ".join(lines[number : number + 3])):
                    found.append(f"{file.relative_to(ROOT)}:{number + 1}: {line.strip()}")
    assert not found, "state what a test needs with tests.helpers.skips.needs:\n" + "\n".join(found)
