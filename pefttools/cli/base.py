"""What commands share: the application they register with."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Group, Parameter

app = App(
    name="pefttools",
    help="Fine-tune a pretrained transformer by changing as little of it as will do, and prove the result.",
    suppress_keyboard_interrupt=False,  # `run` ends it with a line of its own
)
app["--help"].group = app["--version"].group = Group("Options", sort_key=9)  # last

Json = Annotated[bool, Parameter(name="--json", negative="")]
