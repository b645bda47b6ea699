"""`rlmech` on the command line: each command is a few lines over what `import rlmech` shows.

Results go to the standard output, as a table or with `--json` as JSON; progress and errors go to the standard error. An
error is one line that says what was given, what was expected and how to mend it; the exit code is then 2. Nothing heavy
is imported before a command runs.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

from rlmech.cli.atlas import atlas
from rlmech.cli.certifying import certify
from rlmech.cli.comparison import compare
from rlmech.cli.completion import PROGRAM, VARIABLE, completion
from rlmech.cli.doses import dose
from rlmech.cli.episodes import record, view
from rlmech.cli.features import features
from rlmech.cli.look import demo, report
from rlmech.cli.policies import inspect, train
from rlmech.cli.probing import probes
from rlmech.cli.sweeps import ablate, circuits, patch
from rlmech.console import INTERRUPTED, fail

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
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
    context: typer.Context,
    version: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Open a trained reinforcement-learning policy: see, change and measure what it computes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_ANALYSES = (patch, ablate, probes, circuits, certify, features)
for _command in (demo, report, inspect, record, view, compare, dose, *_ANALYSES, atlas, train, completion):
    app.command()(_command)


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    completion_init()  # what the shell's script asks is answered by the parser itself
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name=PROGRAM, complete_var=VARIABLE, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:
        fail(_one_line(error))
    if code == INTERRUPTED:  # the parser gives it for Ctrl-C, too
        fail("stopped; nothing was kept.", code=INTERRUPTED)
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
