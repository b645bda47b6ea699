"""A progress bar on the standard error, the same one wherever something takes long, and a word beside it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, n: int, *, enabled: bool) -> Generator[Callable[[int], None]]:
    """A progress bar; call what it gives with the number finished since the last call.

    Args:
        what: What is being done.
        n: Of how many.
        enabled: Whether to draw it.
    """
    if not enabled:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=n)
        yield lambda done: bars.advance(task, done)


def remark(text: str, *, enabled: bool) -> None:
    """Say something on the standard error that a caller should know and may not have expected.

    Args:
        text: What.
        enabled: Whether to say it.
    """
    if enabled:
        from rich.console import Console

        Console(stderr=True).print(text, markup=False)
