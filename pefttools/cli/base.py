"""The application with which commands register."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Group, Parameter

app = App(
    name="pefttools",
    help="Parameter-efficient fine-tuning of pretrained transformers, with verified results.",
    suppress_keyboard_interrupt=False,  # `run` handles it with a message of its own
)
app["--help"].group = app["--version"].group = Group("Options", sort_key=9)  # last

Json = Annotated[bool, Parameter(name="--json", negative="")]
