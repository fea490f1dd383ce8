"""The documentation: blocks, links, files, functions and translations of all pages; the tour; the diagram of the layers."""

from __future__ import annotations

import ast
import json
import re

import jinja2
import pytest
from importlinter.api import read_configuration

import paddle_llm
import paddle_llm.export
from docs._ext.plain_markdown import write_pages
from paddle_llm.config.run_config import RunConfig
from tests.helpers.doc_pages import DOCS, LANGUAGES, ROOT, all_pages, blocks, commands, name_of, without_blocks

ALL_PAGES = all_pages()
CHINESE = [page for page in ALL_PAGES if page.is_relative_to(DOCS / "zh") and name_of(page) != "zh/index"]


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_the_blocks_of_a_page_have_a_known_form(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        assert block.language in LANGUAGES, block.language
        if block.language == "console":
            assert block.commands, f"a console block without a line that begins with $: {block.text}"
        if block.language == "text" and name_of(page).startswith("concepts/life"):
            assert max(map(len, block.text.splitlines())) <= 82, "wider than a page of the site"
        if block.language == "json":
            assert all(json.loads(line) for line in block.text.splitlines())
        if block.language == "jinja":
            jinja2.Environment().parse(block.text)
        if block.language == "python":
            ast.parse(block.text)
            assert {"file", "part"} & block.marks.keys() or page.stem == "use_from_python", "nothing runs this block"
        if "file" in block.marks:
            assert block.text == (ROOT / block.marks["file"]).read_text(encoding="utf-8"), block.marks["file"]
    assert len(re.findall("^```", text, re.M)) == 2 * len(blocks(page)), "a block that is not closed, or in a list"
    assert not re.findall(r"^\n {4}\S.*", without_blocks(text), re.M), "an indented block: write ```console or ```text"
    for line in without_blocks(text).splitlines():
        assert not re.match(r"\s*(\$ )?(paddle-llm|python|make|pip) [^`]*$", line), (
            f"a command outside of a block: {line}"
        )


# Flags of other programs, and old names that a page mentions.
OTHER_FLAGS = {
    *("nodes", "ntasks-per-node", "gpus-per-task", "cpus-per-task", "pid", "no-build-isolation", "write", "quick"),
    *("signal", "batch"),
    *("do_generation", "intokens", "r", "task_name_or_path", "tgt_length", "host"),
}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_flag_that_a_page_names_exists(page):
    options = re.findall(r"--([\w-]+)", (DOCS / "reference/cli.md").read_text(encoding="utf-8"))
    named = re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", page.read_text(encoding="utf-8"))
    assert set(named) <= OTHER_FLAGS | set(RunConfig.model_fields) | set(options)


def test_every_example_is_part_of_a_page():
    quoted = {block.marks["file"] for page in ALL_PAGES for block in blocks(page) if "file" in block.marks}
    assert quoted == {f"examples/{file.name}" for file in (ROOT / "examples").iterdir() if file.is_file()}


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_a_translation_has_the_same_commands_and_structure(page):
    original = DOCS / page.relative_to(DOCS / "zh")
    assert commands(page) == commands(original)
    for pattern in (r"^#+ ", r"^\| ", r"^- ", r"\]\(([^)]+)\)"):
        count = [len(re.findall(pattern, one.read_text(encoding="utf-8"), re.M)) for one in (original, page)]
        assert count[0] == count[1], pattern


def test_the_chinese_front_page_lists_every_chinese_page():
    links = re.findall(r"\]\(([^)]+)\.md\)", (DOCS / "zh/index.md").read_text(encoding="utf-8"))
    assert {f"zh/{link}" for link in links if not link.startswith("..")} == {name_of(page) for page in CHINESE}
    for name in ("installation", "tutorials/quickstart", "tutorials/finetune_with_lora", "how-to/run_old_commands"):
        assert (DOCS / f"zh/{name}.md").is_file()


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_the_targets_of_links_exist(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_llms_txt_lists_every_page_with_a_sentence(tmp_path):
    names = [name_of(path) for path in ALL_PAGES]
    write_pages(DOCS, tmp_path, names)
    lines = [line for line in (tmp_path / "llms.txt").read_text().splitlines() if line.startswith("- ")]
    assert sorted(re.findall(r"\]\((.*?)\.md\)", "\n".join(lines))) == sorted(set(names) - {"index"})
    assert all(re.search(r"\.md\): .{20,}", line) for line in lines), lines
    for name in names:
        assert (tmp_path / f"{name}.md").exists()
    assert "{toctree}" not in (tmp_path / "index.md").read_text()


def test_a_page_outside_the_table_of_contents_is_an_error(tmp_path):
    (tmp_path / "index.md").write_text("# Title\n\nText.\n")
    (tmp_path / "lost.md").write_text("# Lost\n")
    with pytest.raises(ValueError, match="in no table of contents of index.md: lost"):
        write_pages(tmp_path, tmp_path / "out", ["index", "lost"])


# A folder of the repository, or a file in its root, in backticks.
_PATH = re.compile(
    r"`((?:paddle_llm|custom_ops|configs|launch|benchmarks|docs|examples|tests|\.ci|\.github)/[\w./-]*|[\w-]+\.(?:py|toml)|CONTRIBUTING\.md|Makefile)`"
)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_the_files_that_a_page_names_exist(page):
    named = _PATH.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / "examples" / name).exists())] == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_the_functions_that_a_table_names_exist(page):
    """Rows like | part | `paddle_llm/FILE.py` | `name`, `name` |."""
    for file, cell in re.findall(
        r"^\|.*\| `(paddle_llm/[\w/]+\.py)` \| (`\w+`(?:, `\w+`)*) \|$", page.read_text(), re.M
    ):
        tree = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        defined = {node.name for node in tree if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert set(re.findall(r"\w+", cell)) <= defined, f"{file} does not define {cell}"


def test_the_page_of_the_api_lists_every_public_name():
    page = (DOCS / "reference/python_api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\.\. auto(?:function|class):: (\S+)$", page, re.M))
    public = {f"paddle_llm.{name}" for name in paddle_llm.__all__}
    assert listed == public | {f"paddle_llm.export.{name}" for name in paddle_llm.export.__all__}


def test_every_task_of_the_tour_names_a_file_of_the_product():
    tour = (DOCS / "contributing" / "tour.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in tour.splitlines() if line.startswith("| ")]
    tasks = [row for row in rows if row[0] != "to change"]
    assert len(tasks) >= 20
    assert len({row[0] for row in tasks}) == len(tasks)
    for row in tasks:
        assert _PATH.search(row[1]), row
        assert all(
            name.startswith(("tests/", "custom_ops/tests/")) for name in re.findall("`(.*?)`", " ".join(row[2:]))
        )


def _contract(kind: str) -> dict:
    (contract,) = (
        one for one in read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"] if one["type"] == kind
    )
    return contract


def _names(modules: list[str]) -> list[str]:
    return [module.replace("paddle_llm.", "") for module in modules]


def test_the_diagram_of_the_architecture_equals_the_contract_of_import_linter():
    text = (DOCS / "concepts" / "architecture.md").read_text(encoding="utf-8")
    diagram = text.split("<!-- layers -->")[1].split("<!-- /layers -->")[0].strip().splitlines()[1:-1]
    layers = [re.split(r" {2,}", line)[0] for line in diagram]
    (line,) = (number for number, layer in enumerate(layers) if layer.startswith("- -"))
    assert layers[:line] + layers[line + 1 :] == _names(_contract("layers")["layers"])
    assert sorted(layers[line + 1 :]) == sorted(_names(_contract("forbidden")["source_modules"]))
