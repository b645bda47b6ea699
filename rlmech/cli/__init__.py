"""`rlmech` on the command line: each command is a few lines over what `import rlmech` shows.

Results go to the standard output, as a table or with `--json` as JSON; progress and errors go to the standard error. An
error is one line that says what was given, what was expected and how to mend it; the exit code is then 2. Nothing heavy
is imported before a command runs.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from rlmech.cli.atlas import atlas
from rlmech.cli.comparison import compare
from rlmech.cli.episodes import record, view
from rlmech.cli.features import features
from rlmech.cli.look import demo, report
from rlmech.cli.policies import inspect, train
from rlmech.cli.sweeps import ablate, circuits, patch
from rlmech.console import fail

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Open a trained reinforcement-learning policy: see, change and measure what it computes.",
)


def _version(show: bool) -> None:  # noqa: FBT001  # typer's callback
    if show:
        from importlib.metadata import version

        typer.echo(f"rlmech {version('rlmech')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Open a trained reinforcement-learning policy: see, change and measure what it computes."""


for _command in (demo, report, train, inspect, record, compare, patch, ablate, circuits, features, view, atlas):
    app.command()(_command)


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="rlmech", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped.", code=130)
    except Exception as error:
        fail(_one_line(error))
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str:
    """An error of ours, of the command line's parser or of the disk, in one line; any other is a bug and goes on."""
    from rlmech.errors import RlmechError

    if isinstance(error, RlmechError):
        return f"{error.problem} given: {error.given}; expected: {error.expected}; fix: {error.fix}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}. given: {error.filename}; expected: a path that can be used so; fix: check the path"
    message: Any = getattr(error, "format_message", None)
    if message is None:
        raise error
    context = getattr(error, "ctx", None)  # a ClickException, of whichever click typer stands on
    path = "rlmech" if context is None else context.command_path
    usage = path if context is None else context.get_usage().removeprefix("Usage: ")
    given = " ".join(sys.argv[1:]) or "nothing"
    return f"{message()} given: {given}; expected: {usage}; fix: {path} --help lists what there is"
