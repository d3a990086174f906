"""The documentation: the generated reference names everything, blocks of all pages are right, and the site builds."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from browsing import browser, wait_until

from pefttools.cli import app
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe
from pefttools.registry import plugin_kinds

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from generator import checked_links, chinese_search, commands, pages, python_names, values  # noqa: E402
from generator.registries import kinds  # noqa: E402

PAGES = [ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if page.parent != pages.FOLDER)]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", pages.FOLDER / pages.BY_HAND]
BLOCK = re.compile(r"^( *)(```+|~~~+)([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
DIRECTIVES = ("{toctree}",)
RUNNER = ROOT / "tests/test_readme_python.py"
"""The test that runs the Python of the pages that it names."""
PLUG_INS = ("docs/extending.md", "docs/zh/extending.md")
"""Pages whose Python is a plug-in, which a test below uses."""
NOT_RUN = "# not run: "
"""The first line of a block of Python that no test runs, with the reason."""
SHELLS = ("sh", "bash", "console")
OTHERS = ("text", "json", "mermaid")
"""Languages of blocks that need no check."""


@cache
def reference() -> dict[str, str]:
    return pages.pages()


def blocks() -> list[tuple[str, str, str]]:
    """Page, language and text of every fenced block."""
    return [
        (str(page.relative_to(ROOT)), found[3].strip(), found[4])
        for page in PAGES
        for found in BLOCK.finditer(page.read_text("utf-8"))
    ]


def of_language(*languages: str) -> list[tuple[str, str]]:
    return [(page, text) for page, language, text in blocks() if language.partition(" ")[0] in languages]


def command_lines() -> list[str]:
    """Every line of a block, and every inline code, that is a whole command of pefttools."""
    lines = [line for _, text in of_language("", *SHELLS) for line in text.splitlines()]
    for page in PAGES:
        inline = re.findall(r"`(pefttools [^`]+)`", page.read_text("utf-8"))
        lines += [line.replace("\\|", "|") for line in inline if "\n" not in line]
    return [*dict.fromkeys(line for line in lines if line.startswith("pefttools "))]


def test_the_reference_names_every_choice_with_its_settings() -> None:
    names = {kind.name for kind in kinds()}
    assert {*plugin_kinds()} - names == {"metrics"}  # these have no settings
    for kind in kinds():
        text = reference()[f"{kind.name}.md"]
        for name in kind.registry.names():
            assert f"\n## `{name}`\n" in text
            for key in kind.registry.get(name).model_fields:
                shared = key in kind.base.model_fields
                assert f"`{kind.prefix('NAME' if shared else name)}{key}`" in text, (kind.name, name, key)


def test_the_reference_names_every_command_with_its_parameters() -> None:
    text = reference()["commands.md"]
    assert set(commands.names()) == {name for name in app if not name.startswith("-")}
    for name in commands.names():
        section = text.partition(f"### `pefttools {name}`\n")[2].partition("\n### ")[0]
        for argument in app[name].assemble_argument_collection(parse_docstring=True):
            shown = argument.name if argument.name.startswith("--") else argument.name.upper()
            assert f"`{shown}" in section or f"| `{argument.name.strip('-').upper()}" in section, (name, argument.name)
            assert " ".join((argument.parameter.help or "").split())[:20].partition("`")[0] in section.replace("\\", "")


def test_the_reference_names_every_key_of_a_recipe() -> None:
    text = reference()["recipe.md"]
    pending, seen = [("", Recipe)], 0
    while pending:
        prefix, cls = pending.pop()
        for name, field in cls.model_fields.items():
            inner = values.nested(field.annotation)
            pending += [(f"{prefix}{name}.", one) for one in inner]
            section = f"`{prefix}{name}`"
            assert section in text or f"`{name}`" in text, section
            seen += 1
    assert seen > 80


def test_the_reference_explains_types_ranges_and_defaults() -> None:
    text = reference()["recipe.md"]
    assert "| `train.epochs` | a number > 0 | `3.0` |" in text
    assert "| `train.schedule` | `constant`, `linear` or `cosine` | `linear` |" in text
    assert "| `train.patience` | a whole number ≥ 1 or `null` | `null` |" in text
    assert "| `data.train` | a mapping with [these keys](#keys-of-filesettings) | required |" in text


def test_a_new_choice_is_on_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from generator import choices

    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "half.py").write_text(
        '"""half: half of the loss (Nobody 2020).\n\nIt is |half| of *it*.\n"""\n'
        "from pefttools.objectives.base import BoundObjective, Objective\n\n\n"
        'class Half(Objective):\n    share: float = 0.5\n    """Share of the loss that stays."""\n\n'
        "    def bind(self, context):\n        return BoundObjective()\n"
    )
    monkeypatch.setenv("PEFTTOOLS_PLUGINS", str(tmp_path))
    text = choices.page(next(kind for kind in kinds() if kind.name == "objectives"))
    assert "\n## `half`\n\n**Half of the loss (Nobody 2020).**\n\nIt is \\|half\\| of \\*it\\*.\n" in text
    assert "| `objectives.half.share` | a number | `0.5` | Share of the loss that stays. |" in text


def test_the_reference_has_every_shipped_file_and_python_name() -> None:
    import pefttools
    from pefttools.recipe import shipped

    text = reference()["recipes.md"]
    assert not [name for kind in ("recipes", "suites") for name in shipped.files(kind) if f"[`{name}`](" not in text]
    python = reference()["python.md"]
    assert not [name for name in pefttools.__all__ if f":: pefttools.{name}\n" not in python]
    assert {*python_names.names()} >= {"pefttools.fit", "pefttools.sklearn.Classifier"}


def test_the_support_page_has_every_reason() -> None:
    from pefttools.compatibility import matrix

    text, saved = reference()["support.md"].replace("\\", ""), matrix.saved()
    for task, found in saved["tasks"].items():
        section = text.partition(f"## `{task}`\n")[2].partition("\n## ")[0]
        fits = [row["fits"] for variants in found.values() for row in variants.values()]
        reasons = {reason for row in fits for reason in row.values() if reason is not True}
        assert not [reason for reason in reasons if " ".join(reason.split()) not in section]
    assert not [kind for kind in saved["peft_types"] if f"| `{kind}` |" not in text]


def test_every_block_has_a_known_language() -> None:
    known = ("", "python", "yaml", *SHELLS, *OTHERS, *DIRECTIVES)
    assert not [(page, language) for page, language, _ in blocks() if language.partition(" ")[0] not in known]


@pytest.mark.parametrize("line", command_lines())
def test_commands_parse(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)
    if words[-1] == "--help" or (len(words) == 2 and words[1] in app):  # only names the command
        return
    command, *_ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert command.__name__.strip("_") == words[1]


@pytest.mark.parametrize("line", [line for line in command_lines() if re.match(r"pefttools (train|plan) [a-z]", line)])
def test_overrides_of_shipped_recipes_are_known(line: str) -> None:
    _, _, name, *words = shlex.split(line.partition(" > ")[0], comments=True)
    if name not in recipes.names():
        assert name.endswith((".yaml", "RECIPE")), f"{name} is neither shipped nor a file"
        return
    overrides = [word for word in words if re.match(r"[a-z_.0-9]+=", word)]
    left_out = re.compile(r"start\.|data\.replay\.|[\w.]+=[A-Z]+$")  # they need a run, or stand for a value
    assert recipes.load(name, [one for one in overrides if not left_out.match(one)])


def test_python_is_run_or_says_why_not() -> None:
    run = RUNNER.read_text("utf-8")
    for page, text in of_language("python"):
        compile(text, page, "exec")
        is_run = f'"{page}"' in run or page in PLUG_INS
        assert is_run or text.startswith(NOT_RUN), f"{page}: {text[:60]!r} is run by no test"


@pytest.mark.parametrize("page", [page for page in PLUG_INS if (ROOT / page).exists()])
def test_the_plug_in_of_the_guide_can_be_used(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttools.objectives import objectives

    [text] = [text for where, text in of_language("python") if where == page and "Objective" in text]
    name = page.replace("/", "_").removesuffix(".md")
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.setenv("PEFTTOOLS_PLUGINS", str(tmp_path))
    mine, problems = objectives.parse({"name": name, "weight": 0.5}, "objectives")
    assert not problems
    assert mine is not None
    assert mine.bind(None).weight == 0.5


def test_yaml_can_be_read(tmp_path: Path) -> None:
    for page, text in of_language("yaml"):
        values_ = yaml.safe_load(text)
        if isinstance(values_, dict) and {"base", "data", "task"} <= values_.keys():
            file = tmp_path / "recipe.yaml"
            file.write_text(text)
            assert recipes.load(str(file)), page


def test_json_can_be_read() -> None:
    for page, text in of_language("json"):
        assert [json.loads(line) for line in text.splitlines()] or json.loads(text), page


def test_the_rows_of_the_table_are_read_by_their_recipes() -> None:
    text = (DOCS / "your-rows.md").read_text("utf-8")
    found = re.findall(r"^\| `(\{.+?\})` \| `(\w+)`.*`pefttools train (\S+) [^`]*`", text, re.M)
    assert len(found) == 14
    for row, task, recipe in found:
        settled = recipes.load(recipe, ["data.train=rows.jsonl"]).recipe
        assert settled.task.name == task
        assert settled.task.read({**json.loads(row.replace("…", "...")), "id": None})


def test_messages_in_troubleshooting_are_ours() -> None:
    sources = "".join(file.read_text("utf-8") for file in (ROOT / "pefttools").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a long message is written in parts
    text = " ".join(BLOCK.sub("", (DOCS / "troubleshooting.md").read_text("utf-8")).split())
    messages = [
        one for one in re.findall(r"`([^`]+)`", text) if re.match(r"(?!pefttools |pip |train |hf )[\w.]+:? [a-z]", one)
    ]
    assert len(messages) > 10
    assert not [one for one in messages for part in one.split(" … ") if part.strip(" …") not in sources]


def test_the_start_makes_its_rows(tmp_path: Path) -> None:
    script = re.search(r"python - <<'END'\n(.*?)^END$", (DOCS / "index.md").read_text("utf-8"), re.M | re.S)
    assert script
    subprocess.run([sys.executable, "-c", script[1]], cwd=tmp_path, check=True)
    lines = (tmp_path / "tickets.csv").read_text("utf-8").splitlines()
    assert lines[0] == "message,team"
    assert len(lines) == len({*lines}) == 97


def test_every_page_is_in_the_contents() -> None:
    listed: set[Path] = set()
    for page in (DOCS / "index.md", DOCS / "benchmarks.md", pages.FOLDER / pages.BY_HAND):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            entries = [line.rpartition("<")[2].rstrip(">") for line in block.splitlines() if not line.startswith(":")]
            listed |= {found.resolve() for entry in entries if entry for found in page.parent.glob(f"{entry}.md")}
    folders = [page.parent for page in listed if page.name == "index.md"]  # these list their folder by themselves
    english = [
        page for page in DOCS.rglob("*.md") if not page.is_relative_to(DOCS / "zh") and page.parent not in folders
    ]
    assert {page for page in english if page not in listed} == {DOCS / "index.md"}


def test_links_of_a_built_site_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there"></a><a href="#here"></a><p id="here"></p><img src="x.png">'
    )
    (tmp_path / "b.html").write_text('<script src="https://example.org/x.js"></script><a href="https://example.org/">')
    assert [*checked_links.problems(tmp_path)] == [
        "a.html: links to b.html#there, but that page has no such anchor",
        "a.html: links to x.png, which does not exist",
        "b.html: loads https://example.org/x.js from a network",
    ]


def test_formulas_become_mathml_or_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    from docutils import nodes
    from generator import mathml

    formula = nodes.math_block("", r"\big(W + \frac{\alpha}{r} BA\big)x, \dots")
    assert mathml.converted(formula, is_block=True).startswith("<math")
    with caplog.at_level("WARNING"):
        assert mathml.converted(nodes.math("", r"\nonsense <b>"), is_block=False) == r"<code>\nonsense &lt;b&gt;</code>"


def test_chinese_words_are_searched_by_pairs_of_characters() -> None:
    language = chinese_search.Chinese({})
    words = language.split("用 LoRA 微调模型")
    assert {"LoRA", "微调", "模型", "用", "调模"} <= {*words}
    assert [word for word in words if language.word_filter(word)] == words


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sites, built as `make docs` builds them."""
    folder = tmp_path_factory.mktemp("docs")
    for sources, settings, out in ((ROOT, DOCS, "site"), (DOCS / "zh", DOCS / "zh", "site/zh")):
        words = ["-m", "sphinx", "-qW", "--keep-going", "-j", 2, "-c", settings, "-d", folder / f"read{out[4:]}"]
        command = [sys.executable, *map(str, [*words, sources, folder / out])]
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert found.returncode == 0, found.stderr
    return folder / "site"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert not [*checked_links.problems(site)]
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        if "furo" not in text:  # it only leads to the first page, or is a file that a page links to
            continue
        other = re.findall(r'<p class="language">\s*<a href="([^"]+)"', text)
        assert len(other) == 1, page
        assert page.is_relative_to(site / "zh") is not (page.parent / other[0]).resolve().is_relative_to(site / "zh")
    assert 'url=docs/index.html"' in (site / "index.html").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        is_chinese = page.is_relative_to(DOCS / "zh")
        built = site / page.relative_to(DOCS if is_chinese else ROOT).with_suffix(".html")
        if re.search(r"^\$\$", page.read_text("utf-8"), re.M):
            assert "<math" in built.read_text("utf-8")


@pytest.mark.slow
def test_pages_fit_their_window_and_are_found(site: Path) -> None:
    with browser() as driver:
        for width in (420, 1400):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            for page in (
                "docs/your-rows",
                "docs/reference/recipe",
                "docs/reference/support",
                "benchmarks/results/steps",
            ):
                driver.get((site / f"{page}.html").as_uri())
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width, page
        assert driver.get_log("browser") == []
        for search, words, page in (("search", "out of memory", "Troubleshooting"), ("zh/search", "类别", "快速上手")):
            driver.get(f"{(site / search).as_uri()}.html?q={words}")
            wait_until(lambda: driver.find_elements("css selector", "#search-results li a") != [])
            wait_until(lambda page=page: page in driver.find_element("id", "search-results").text)
