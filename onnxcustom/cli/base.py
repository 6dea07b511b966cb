"""Commands with sections of options and examples in their help, and errors of one line."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import click

from .errors import CANNOT, OK, exit_code, in_options, one_line, printable

__all__ = ["Command", "Group", "Option", "command_line", "say"]

_WIDTH = 100


class Option(click.Option):
    """An option that belongs to a section of the help.

    Parameters
    ----------
    section : str
        Title of the section.
    """

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in brackets behind the help: not the range, which an error says."""
        return {k: v for k, v in super().get_help_extra(ctx).items() if k != "range"}


class Command(click.Command):
    """A command whose help has sections and examples.

    Parameters
    ----------
    examples : sequence of (str, str)
        What for, and the command line behind the program's name.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = list(examples)
        self.context_settings.setdefault("max_content_width", _WIDTH)
        self.params.append(
            Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                section="Other",
                help="Show where an error comes from.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        for title in sorted(sections, key=lambda t: t == "Other"):
            with formatter.section(title):
                formatter.write_dl(sections[title])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        super().format_epilog(ctx, formatter)
        if not self.examples:
            return
        with formatter.section("Examples"):
            for purpose, arguments in self.examples:
                formatter.write_text(f"{purpose}:")
                formatter.write(f"{'':{formatter.current_indent + 4}}onnxcustom {arguments}\n")


class Group(click.Group):
    """Commands whose errors are one line on standard error and an exit code."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which they were added."""
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = False,
        **extra: Any,
    ) -> Any:
        """Run the command line; see :meth:`click.Group.main`.

        Patterns are not expanded on Windows either: those of data files are for the command to read.
        """

        def run() -> Any:
            return super(Group, self).main(
                args, prog_name, complete_var, False, windows_expand_args=windows_expand_args, **extra
            )

        if not standalone_mode:
            return run()
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given or os.environ.get("ONNXCUSTOM_DEBUG", "0") not in ("", "0")
        with _plain_output():
            try:
                code = run()
                sys.stdout.flush()
            except BrokenPipeError:
                _forget_stdout()
                code = CANNOT
            except OSError as exc:
                if exc.errno != errno.EPIPE:
                    code = _report(exc, debug)
                else:
                    _forget_stdout()
                    code = CANNOT
            except (Exception, KeyboardInterrupt) as exc:
                code = _report(exc, debug)
        sys.exit(code if isinstance(code, int) else OK)

    def make_context(self, info_name: Any, args: list[str], *others: Any, **extra: Any) -> click.Context:
        """Make a context that knows what was typed."""
        typed = list(args)
        context = super().make_context(info_name, args, *others, **extra)
        context.meta["onnxcustom.typed"] = [*str(info_name or "onnxcustom").split(" "), *typed]
        return context


def command_line(*more: str) -> str:
    """The command that is running, as it can be typed again, with further options."""
    typed = [*click.get_current_context().meta["onnxcustom.typed"], *more]
    return subprocess.list2cmdline(typed) if os.name == "nt" else shlex.join(typed)


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line."""
    click.echo(text, err=err)


def _report(error: BaseException, debug: bool) -> int:
    """Say what went wrong; the exit code."""
    code = exit_code(error)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo(f"Interrupted. {error}".strip(), err=True)
        return code
    if debug and not isinstance(error, click.UsageError):
        traceback.print_exception(error)
    click.echo(f"Error: {one_line(error)}", err=True)
    return code


def _forget_stdout() -> None:
    """Let nothing more be written to a pipe that nobody reads."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())


@contextlib.contextmanager
def _plain_output() -> Iterator[None]:
    """Warnings as one line each; characters that the terminal lacks escaped, not an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def show(message: Any, *_: Any, **__: Any) -> None:
        click.echo(f"Warning: {printable(in_options(str(message)))}", err=True)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
