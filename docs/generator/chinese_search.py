"""Search in Chinese without a dictionary: texts and queries are split into overlapping pairs of characters."""

from __future__ import annotations

import re

from sphinx.search import SearchLanguage

RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|[^\W_]+")
IS_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")

SPLIT_QUERY = """
function splitQuery(query) {
  const found = [];
  for (const run of query.match(/[\\u3400-\\u4dbf\\u4e00-\\u9fff]+|[\\p{L}\\p{N}]+/gu) || []) {
    if (!/[\\u3400-\\u4dbf\\u4e00-\\u9fff]/.test(run) || run.length < 2) found.push(run);
    else for (let i = 0; i + 1 < run.length; i++) found.push(run.slice(i, i + 2));
  }
  return found;
}
"""


class Chinese(SearchLanguage):
    """Chinese, for Sphinx's search."""

    lang = "zh"
    language_name = "Chinese"
    js_splitter_code = SPLIT_QUERY

    def split(self, input: str) -> list[str]:
        """The words of a text in letters, and the pairs and single characters of Chinese ones."""
        found = []
        for run in RUN.findall(input):
            found += [*run, *(run[i : i + 2] for i in range(len(run) - 1))] if IS_CHINESE.match(run) else [run]
        return found

    def stem(self, word: str) -> str:
        """The word itself; Chinese has no endings."""
        return word.lower()

    def word_filter(self, word: str) -> bool:
        """Whether a word is in the index."""
        return bool(IS_CHINESE.match(word)) or len(word) > 1
