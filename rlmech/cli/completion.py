"""`rlmech completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

PROGRAM = "rlmech"
VARIABLE = "_RLMECH_COMPLETE"
"""What the script sets when it asks the program what could follow."""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")],
) -> None:
    """Print a script that completes commands and options.

    bash: eval "$(rlmech completion bash)" in ~/.bashrc. zsh: the same with zsh in ~/.zshrc, behind compinit. fish:
    rlmech completion fish > ~/.config/fish/completions/rlmech.fish.
    """
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))
