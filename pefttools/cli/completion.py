"""The command for shells: completion."""

from __future__ import annotations

from typing import Literal

from pefttools.cli import display
from pefttools.cli.base import app
from pefttools.cli.inspect import GROUP


@app.command(group=GROUP)
def completion(shell: Literal["bash", "zsh", "fish", "powershell"], /) -> None:
    """Print a script with which a shell completes commands, options and their values.

    For bash, add `source <(pefttools completion bash)` to ~/.bashrc; for zsh, write the script to `_pefttools` in a
    folder of $fpath; for fish, to ~/.config/fish/completions/pefttools.fish.

    Args:
        shell: the shell to complete in.
    """
    display.parts([app.generate_completion(prog_name="pefttools", shell=shell)])
