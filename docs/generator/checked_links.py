"""Check the built site: every link leads to a file and an anchor that exist, and nothing is loaded from a network.

    python docs/generator/checked_links.py site

Sphinx checks the links of one site's texts; this also covers links between the languages and those of templates.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
"""Tags and attributes by which a page loads another file when it is opened."""
FOREIGN_STYLE = re.compile(r"(?:@import|url\()\s*['\"(]*(?:https?:)?//")


class Page(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: Mapping[str, str] = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [values[name] for kind, name in LOADED if kind == tag and name in values]


@cache
def page_of(file: Path) -> Page:
    return Page(file.read_text("utf-8"))


def problems(site: Path) -> Iterator[str]:
    """One sentence for each wrong link, and for each file that would come from a network."""
    for file in sorted(site.rglob("*.html")):
        page, name = page_of(file), file.relative_to(site)
        for link in page.loaded:
            if urlsplit(link).netloc:
                yield f"{name}: loads {link} from a network"
        for link in dict.fromkeys([*page.links, *page.loaded]):
            if problem := _problem(file, link):
                yield f"{name}: {problem}"
    for file in sorted(site.rglob("*.css")):
        if found := FOREIGN_STYLE.search(file.read_text("utf-8")):
            yield f"{file.relative_to(site)}: {found[0]} loads from a network"


def _problem(file: Path, link: str) -> str | None:
    """What is wrong with a link; None if nothing is, or if it leads to another machine."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return f"links to {link}, which does not exist"
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and anchor not in page_of(target).anchors:
        return f"links to {link}, but that page has no such anchor"
    return None


def main(site: Path) -> int:
    """Print all problems; returns 1 if there are any, or no pages."""
    found = list(problems(site))
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found) or not any(site.glob("*.html")))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
