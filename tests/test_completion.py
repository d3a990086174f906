"""The scripts that complete commands in shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pefttools import cli

ASKED = """
source {script}
COMP_WORDS=({words}); COMP_CWORD={place}; COMP_LINE="{words}"; COMP_POINT=${{#COMP_LINE}}
_pefttools
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_command_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert not [name for name in cli.app if not name.startswith("-") and name not in script]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pefttools", "tr"], "train"),
        (["pefttools", "tune", "--sam"], "--sampler"),
        (["pefttools", "tune", "--sampler", "t"], "tpe"),
    ],
)
def test_bash_completes(words: list[str], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert cli.run(["completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    asked = ASKED.format(script=script, words=" ".join(words), place=len(words) - 1)
    result = subprocess.run([bash, "--norc", "-c", asked], capture_output=True, text=True, check=True)
    assert found in result.stdout.split()


def test_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
