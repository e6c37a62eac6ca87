"""The entry point: runs a verb, and reports an error as one line and an exit code.

The console script imports this file even where the command line's extras are not installed, so it needs none of them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_BAD_INPUT = 2
# A shell's codes for a program that a signal ended are its number and this.
_SIGNALLED = 128
_INTERRUPTED = 130
# A shell's code for a program that a closed pipe ended, as 130 is for one that Ctrl-C ended.
_PIPE_CLOSED = 141
_EXTRAS = ("typer", "rich", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0; 1 where the report is not complete, as where some layers failed; 2 for bad input, said in one line on stderr;
        3 where a condition of ``--fail-on`` is met; 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP, with
        nothing left beside the outputs; 141 where the reader of standard output closed it, as ``| head`` does.

    Examples
    --------
    >>> from lowrank_core.cli.app import main
    >>> main(["demo", "--ranks", "0"])
    2
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        for category in (RuntimeWarning, UserWarning):
            warnings.simplefilter("always", category)
        try:
            with _ending_by_exception():
                return _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            return _fail("interrupted", _INTERRUPTED)
        except _Terminated as ended:
            return _fail(f"ended by {ended.signal.name}", _SIGNALLED + ended.signal)
        except BrokenPipeError:
            return _leave_closed_pipe()
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            if missing not in _EXTRAS:
                raise
            return _fail(f'the command line needs {missing}, which is not installed: pip install "lowrank_core[cli]"')
        except (ValueError, OSError, ImportError) as error:
            return _fail(str(error))


class _Terminated(BaseException):
    """A signal that asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextmanager
def _ending_by_exception() -> Iterator[None]:
    """Raise an exception on SIGTERM and SIGHUP, which end a process at once and leave what it has half written."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    # What is ignored, as after nohup, or handled already remains so.
    handled = [number for number in known if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, _frame: object) -> None:
    # A second one would interrupt the removal of what is half written.
    signal.signal(number, signal.SIG_IGN)
    raise _Terminated(number)


def _run(arguments: Sequence[str]) -> int:
    from lowrank_core.cli.program import run

    code = run(arguments)
    # Now, and not when the interpreter ends: only here can a closed pipe still be distinguished from a failure.
    sys.stdout.flush()
    return code


def _leave_closed_pipe() -> int:
    # The interpreter flushes what is left in the buffer when it ends, and would complain of the pipe then.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return _PIPE_CLOSED


def _fail(message: str, code: int = _BAD_INPUT) -> int:
    _print(message)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _print(f"warning: {message}")


def _print(message: str) -> None:
    from lowrank_core.models.printable import printable  # the help needs none of the models' packages

    print(f"lowrank: {printable(' '.join(message.split()))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
