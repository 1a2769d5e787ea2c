"""The terminal while something is drawn on it again and again, and as it is left behind."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Final

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # second screen, no cursor, long lines clipped
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN: Final = "\x1b[?2026h\x1b[H"  # shown at once, from the upper left corner
_END: Final = "\x1b[J\x1b[?2026l"
_CLEAR: Final = "\x1b[2K"  # before a line: after a full one it would take its last character
#: What a terminal without our characters gets instead.
_PLAIN: Final = str.maketrans("━╍┄·–−…×⁻⁰¹²³⁴⁵⁶⁷⁸⁹∞", "=-.,--.x-0123456789i")
_STEP: Final = 0.2  # seconds between two looks at the keyboard and the window


def is_terminal() -> bool:
    """Tell whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def size() -> tuple[int, int]:
    """Return columns and lines of the terminal; 80 × 24 where there is none."""
    there = shutil.get_terminal_size((80, 24))
    return there.columns, there.lines


def write(lines: Sequence[str]) -> None:
    """Print lines, in characters that the terminal has."""
    sys.stdout.write("".join(_shown(line.rstrip()) + "\n" for line in lines))
    sys.stdout.flush()


def _shown(line: str) -> str:
    """Return a line as the terminal can show it: braille needs UTF-8, and a font."""
    try:
        line.encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        pass
    else:
        if os.environ.get("TERM") != "linux":  # the console's font has no braille
            return line
    dots = {ord(char): "*" for char in line if "\u2800" < char <= "\u28ff"}
    return line.translate(dots).translate(_PLAIN).encode("ascii", errors="replace").decode()


class Screen:
    """A second screen to draw on; whatever ends it, the first one comes back as it was.

    Keys are not echoed. A stop (Ctrl-Z) gives the first screen back for as long as it lasts.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._keys: int | None = None

    def __enter__(self) -> Screen:
        """Take the terminal over."""
        with ExitStack() as stack:
            self._silence_keys(stack)
            stack.callback(self._put, _LEAVE)
            self._put(_ENTER)
            for name, act in (("SIGTERM", self._quit), ("SIGHUP", self._quit)):
                self._on(stack, name, act)
            self._on(stack, "SIGTSTP", self._suspend)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._stack.close()

    def draw(self, lines: Sequence[str]) -> None:
        """Show a frame; what it does not cover is empty."""
        self._put(_BEGIN + "\r\n".join(_CLEAR + _shown(line) for line in lines) + _END)

    def wait(self, seconds: float, drawn: tuple[int, int]) -> bool:
        """Wait until it is time for another frame, or the window has another size.

        Args:
            seconds: Until the next frame.
            drawn: The size that the last frame was made for; the window may have changed since.

        Returns:
            False if the user asks to leave.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and size() == drawn:
            if self._pressed(min(_STEP, left)) & {ord("q"), ord("Q"), 3}:
                return False
        return True

    def _pressed(self, seconds: float) -> set[int]:
        if self._keys is None:
            time.sleep(seconds)
            return set()
        if not select.select([self._keys], [], [], seconds)[0]:
            return set()
        typed = os.read(self._keys, 64)
        self._keys = self._keys if typed else None  # the end of the input
        return set(typed)

    @staticmethod
    def _put(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _silence_keys(self, stack: ExitStack) -> None:
        if sys.platform == "win32" or not sys.stdin or not sys.stdin.isatty():
            return
        import termios
        import tty

        self._keys = sys.stdin.fileno()
        before = termios.tcgetattr(self._keys)
        stack.callback(termios.tcsetattr, self._keys, termios.TCSADRAIN, before)
        tty.setcbreak(self._keys)

    @staticmethod
    def _on(stack: ExitStack, name: str, act: object) -> None:
        number = getattr(signal, name, None)
        if number is None:  # not on this system
            return
        try:
            stack.callback(signal.signal, number, signal.signal(number, act))  # type: ignore[arg-type]
        except ValueError:  # not in the main thread, which alone is told of signals
            return

    @staticmethod
    def _quit(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)  # as a shell would say it; the way out gives the screen back

    def _suspend(self, number: int, _: FrameType | None) -> None:
        self.__exit__()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()
