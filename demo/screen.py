"""The demo's display: one line a step, with a spinner on the one under way."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule


class Screen:
    """Writes to standard output; plain lines when that is no terminal, no colour on NO_COLOR."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._number = 0

    def title(self, text: str, below: str) -> None:
        """Open the show."""
        self._console.print(
            Panel(below, title=f"[bold]{text}[/bold]", border_style="cyan"), soft_wrap=False
        )

    def chapter(self, text: str) -> None:
        """Start a group of steps."""
        self._console.print(Rule(f"[bold cyan]{text}[/bold cyan]", align="left"))

    @contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        """Run a step; what it appends to the list it is given is shown below its line."""
        self._number += 1
        notes: list[str] = []
        started = time.monotonic()
        label = f"{self._number:>2}. {text}"
        try:
            with self._console.status(f"[cyan]{label}[/cyan]", spinner="dots"):
                yield notes
        except BaseException:
            self._console.print(f"[bold red]✗[/bold red] {label}")
            raise
        seconds = time.monotonic() - started
        self._console.print(f"[bold green]✓[/bold green] {label} [dim]{seconds:.1f} s[/dim]")
        for note in notes:
            self._console.print(f"      [dim]{note}[/dim]")

    def summary(self, text: str) -> None:
        """Close the show."""
        self._console.print(Panel(text, border_style="green"), soft_wrap=False)

    def error(self, text: str) -> None:
        """Say what went wrong, verbatim."""
        self._console.print("[bold red]error:[/bold red] ", end="")
        self._console.print(text, markup=False)
