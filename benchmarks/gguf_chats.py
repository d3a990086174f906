"""Greedy replies of exported GGUF files by llama.cpp and by transformers, token by token.

    pefttools export RUN dtype=float16 --to gguf --out F16       # a run of causal_lm
    pefttools export RUN dtype=q8_0 --to gguf --out Q8_0
    python benchmarks/gguf_chats.py F16 Q8_0 --run RUN           # -> results/gguf_chats.{md,json}

Prompts are the run's first test rows, through the chat template of the file; transformers computes with the weights of
the same file in float64. Replies may part where two tokens are almost equally likely, because llama.cpp rounds
activations; the tokens up to there are counted, and how often each stops by itself.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.bases.loading import prepare_libraries
from pefttools.exporters import exporters, gguf_chats, llama_cpp, writing
from pefttools.exporters.base import Chat
from pefttools.exporters.gguf import FILE
from pefttools.inference.predictor import recipe_of
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run

RESULTS = Path(__file__).parent / "results"


def measured(folder: Path, run: Path, prompts: int, tokens: int) -> dict[str, Any]:
    """The facts on one artifact's replies."""
    from transformers import GenerationConfig

    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    exporter, problems = exporters.parse({**manifest["settings"], "name": "gguf"}, "exporter")
    assert exporter is not None, problems
    recipe = recipe_of(folder)
    loaded = exporter.load(folder, recipe)
    settings = GenerationConfig.from_pretrained(folder)
    settings.max_new_tokens = tokens
    rows = own_rows(Run.open(run), recipe.task).rows[:prompts]
    answers = writing.plain_answers(loaded.model.eval(), recipe.task, rows, loaded.tokenizer, settings)
    sources, ids = map(recipe.task.generation_input, rows), recipe.task.prompts(rows, loaded.tokenizer)
    chats = [Chat(*one) for one in zip(sources, ids, answers, strict=True)]
    facts, problems = gguf_chats.compared(folder, FILE, chats)
    return {"recipe": recipe.name, "dtype": manifest["settings"]["dtype"], **facts["replies"], "problems": problems}


def table(found: list[dict[str, Any]], tokens: int) -> str:
    lines = [
        "# Replies of GGUF files",
        "",
        f"`python benchmarks/gguf_chats.py F16 Q8_0 --run RUN`, llama.cpp {metadata.version(llama_cpp.BINDING)}:"
        f" greedy replies of at most {tokens} tokens.",
        "",
        "| recipe | weights | prompts | equal tokens, up to the first difference | stops by itself |"
        " transformers stops | problems |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for one in found:
        share = one["equal_tokens"] / one["tokens"]
        lines.append(
            f"| {one['recipe']} | {one['dtype']} | {one['rows']} | {one['equal_tokens']} of {one['tokens']}"
            f" ({share:.0%}) | {one['stopped']} | {one['ending']} | {'; '.join(one['problems']) or 'none'} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="the run whose test rows are the prompts")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    prepare_libraries()
    found = []
    for folder in arguments.artifacts:
        found.append(measured(folder, arguments.run, arguments.prompts, arguments.tokens))
        print(found[-1], flush=True)
    atomic.write_json(RESULTS / "gguf_chats.json", found)
    atomic.write_text(RESULTS / "gguf_chats.md", table(found, arguments.tokens))


if __name__ == "__main__":
    main()
