"""The commands that keep a model in memory: serve, chat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pefttools import extras
from pefttools.cli.base import app
from pefttools.cli.runs import GROUP
from pefttools.errors import UserError
from pefttools.progress import RichReporter

KEY = "PEFTTOOLS_API_KEY"
PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
"""oneDNN otherwise keeps 1,024 compiled shapes. Requests come in many shapes: that took 300 MB and saved no time."""


@app.command(group=GROUP)
def serve(
    *models: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    embeddings: bool = False,
    body_bytes: int = 8 << 20,
    rows: int = 4096,
    waiting: int = 16384,
    delay: float = 0.002,
    timeout: float = 60.0,
) -> None:
    """Serve runs and artifacts over HTTP; the rows of concurrent requests are computed together.

    POST /predict {"texts": […]} or {"rows": [{…}]}; for language models POST /v1/chat/completions. /docs describes all.
    Needs `pip install "pefttools[serve]"`.

    Args:
        models: run folders or exported ones; runs on one base share its weights. Requests name a model by its folder.
        host: the address to listen on; 0.0.0.0 lets other machines in.
        port: the port; 0 takes any free one.
        api_key: requests must send it as `Authorization: Bearer KEY`; by default the variable PEFTTOOLS_API_KEY.
        precision: as for predict.
        embeddings: also serve /v1/embeddings, the mean of the last block's outputs.
        body_bytes: limit of a request's bytes.
        rows: limit of a request's rows.
        waiting: limit of the rows that wait; beyond it, requests get the status 503.
        delay: seconds that a row waits for others when the model is idle.
        timeout: limit of a request's seconds.
    """
    extras.require("serve", extras.EXTRAS["serve"])
    if not models:
        raise UserError("serve: name at least one run or exported folder")
    from pefttools.bases.loading import prepare_libraries
    from pefttools.serving import server
    from pefttools.serving.limits import Limits
    from pefttools.serving.models import Models

    limits = Limits(body_bytes=body_bytes, rows=rows, waiting=waiting, delay=delay, timeout=timeout)
    reporter = RichReporter()
    os.environ.setdefault(*PRIMITIVES)
    with server.bound(host, port) as listener:
        prepare_libraries()
        loaded = Models.load(models, precision, reporter, embeddings)
        address = f"http://{host}:{listener.getsockname()[1]}"
        reporter.note(f"serving {', '.join(loaded.served)} on {address}; {address}/docs describes the requests")
        server.run(loaded, listener, limits, api_key or os.environ.get(KEY))
    reporter.note("stopped; all accepted requests were answered")


@app.command(group=GROUP)
def chat(
    model: Path,
    /,
    *,
    against: Annotated[Literal["base"] | None, Parameter()] = None,
    system: str | None = None,
    temperature: float | None = None,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    stop: Annotated[list[str] | None, Parameter(negative="")] = None,
    seed: int = 0,
) -> None:
    """Talk to a fine-tuned language model in the terminal; its replies appear as they are generated.

    /reset forgets the conversation, /system TEXT sets the instruction, /temperature, /top-p and /max-tokens change the
    sampling, /quit or Ctrl-D ends. Ctrl-C ends a reply. Lines may also come from a pipe.

    Args:
        model: a run of causal_lm, or an exported one.
        against: `base` shows the reply of the model before training, too.
        system: the instruction that the conversation begins with.
        temperature: 0 takes the likeliest token; by default the recipe's.
        top_p: sample from the likeliest tokens whose probabilities add up to this.
        max_tokens: limit of a reply's tokens; by default the recipe's.
        stop: a text that ends a reply; can be repeated.
        seed: seed of sampling; the next reply has the next seed.
    """
    from pefttools.bases.loading import prepare_libraries
    from pefttools.cli.talk import Talk
    from pefttools.inference.conversation import Sampling
    from pefttools.inference.opponents import load_opponents

    chosen = Sampling(temperature, top_p, max_tokens, tuple(stop or ()), seed)
    if problems := chosen.problems():
        raise UserError(*(f"--{problem.replace('_', '-')}" for problem in problems))
    prepare_libraries()
    talk = Talk(load_opponents(model, against is not None, RichReporter()), chosen, system)
    talk.run()
