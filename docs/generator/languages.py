"""Links between the English and the Chinese site, in texts and from every page to its counterpart, and the contents of
sites and folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from generator import places

REDIRECT = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={0}"><a href="{0}">{0}</a>\n'
)
LINKED = re.compile(r"\]\(([\w/-]+)\.md\)")
CONTENTS = re.compile(r"^```\{toctree\}\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


class LinksToTheOtherSite(SphinxTransform):
    """Links to Markdown files that are pages of the other site, which this one does not have."""

    default_priority = 300

    def apply(self, **kwargs: Any) -> None:
        del kwargs
        page = Path(self.env.doc2path(self.env.docname))
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("refdomain") != "doc":
                continue
            file = Path(self.env.srcdir, f"{node['reftarget']}.md").resolve()
            if not file.is_file() or places.is_chinese(file) == places.is_chinese(page):
                continue
            address = places.relative_address(places.address(file), places.address(page))
            anchor = f"#{node['reftargetid']}" if node.get("reftargetid") else ""
            node.replace_self(nodes.reference("", "", *node.children, internal=True, refuri=f"{address}{anchor}"))


def add_counterpart(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Give a page's template the address of the page in the other language."""
    del templatename, doctree
    page = Path(app.env.doc2path(pagename)) if pagename in app.env.all_docs else Path(app.srcdir, f"{pagename}.md")
    target = places.counterpart(page)
    context["counterpart"] = places.relative_address(places.address(target), places.address(page))


def write_start(app: Sphinx, error: Exception | None) -> None:
    """Lead from index.html to the first page, where that has another name."""
    start = Path(app.outdir, "index.html")
    if error is None and app.builder.format == "html" and app.config.root_doc != "index":
        start.write_text(REDIRECT.format(f"{app.config.root_doc}.html"), "utf-8")


def complete_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Complete the contents of a first page: one without contents lists the pages that it links to, then the others.

    Entries without a page (a folder that nobody has written yet) are left out.
    """
    folder = Path(app.env.doc2path(docname)).parent
    if docname != app.config.root_doc and not docname.endswith("/index"):
        return
    if "{toctree}" in source[0]:
        source[0] = CONTENTS.sub(lambda found: _with_pages(found[0], folder), source[0])
    else:
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{chr(10).join(_in_order(source[0], folder, docname))}\n```\n"


def _in_order(text: str, folder: Path, docname: str) -> list[str]:
    """The pages of a folder and of those below: first as the text links to them, then by name; not the page itself."""
    pages = [file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.rglob("*.md"))]
    below = {page.rpartition("/")[0] for page in pages if page.endswith("/index")}
    own = [one for one in pages if one.endswith("/index") or one.rpartition("/")[0] not in below]
    linked = [one for one in dict.fromkeys(LINKED.findall(text)) if one in own]
    return [one for one in dict.fromkeys([*linked, *own]) if one != docname.rpartition("/")[2]]


def _with_pages(contents: str, folder: Path) -> str:
    """A block of contents without the entries that no page has; "" if none is left."""
    lines = contents.splitlines()
    pages = {line: line.rpartition("<")[2].rstrip(">") for line in lines}
    kept = [line for line in lines if re.match(r"[`:]|$", line) or any(folder.glob(f"{pages[line]}.md"))]
    return "\n".join(kept) + "\n" if any(re.match(r"[^`:]", line) for line in kept) else ""


def setup(app: Sphinx) -> None:
    app.add_transform(LinksToTheOtherSite)
    app.connect("html-page-context", add_counterpart)
    app.connect("source-read", complete_contents)
    app.connect("build-finished", write_start)
