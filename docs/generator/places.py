"""Where the pages of the two sites are: the English one at the top of the built folder, the Chinese one in `zh`.

The English site has the repository as its source folder, so that pages, README and results link to each other as in a
plain checkout. The Chinese one has `docs/zh`. A link from one site to a page of the other becomes a relative address.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHINESE = ROOT / "docs" / "zh"
ENGLISH_START = "docs/index"


def is_chinese(file: Path) -> bool:
    return file.is_relative_to(CHINESE)


def chinese_start() -> str:
    """The name of the first page of the Chinese site: `index`, where somebody has written one."""
    return "index" if (CHINESE / "index.md").is_file() else "start"


def address(file: Path) -> str:
    """The address of a Markdown file's page below the built folder."""
    page = file.with_suffix(".html")
    below = Path("zh") / page.relative_to(CHINESE) if is_chinese(file) else page.relative_to(ROOT)
    return below.as_posix()


def relative_address(target: str, page: str) -> str:
    """The address of a page as a link from another page; both are below the built folder."""
    return Path(os.path.relpath(target, Path(page).parent)).as_posix()


def counterpart(file: Path) -> Path:
    """The page in the other language: the one of the same name, else that site's first page."""
    docs = ROOT / "docs"
    if is_chinese(file):
        same, start = docs / file.relative_to(CHINESE), docs / "index.md"
        first = file == CHINESE / f"{chinese_start()}.md"
    else:
        same = CHINESE / file.relative_to(docs) if file.is_relative_to(docs) else CHINESE / "none"
        start, first = CHINESE / f"{chinese_start()}.md", file == docs / "index.md"
    return same if same.is_file() and not first else start
