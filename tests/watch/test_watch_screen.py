"""``ncmonitor watch`` in a terminal of its own: drawn, resized and left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from histories import collapse_rows
from ncmonitor.monitor.history import append_history, start_history
from ncmonitor.monitor.provenance import write_run
from ncmonitor.watch.frame import DEFAULT
from ncmonitor.watch.screen import Screen
from watched import facts, make_run

NAMES = DEFAULT
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


pty = pytest.importorskip("pty")


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *words: str, **environment: str) -> None:
        import fcntl
        import termios

        self.ours, theirs = pty.openpty()
        self.attributes = termios.tcgetattr(self.ours)
        self.resize(24, 80)
        plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ncmonitor", "watch", "--every", "0.2", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=plain | {"TERM": "xterm-256color"} | environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(theirs)
        self.seen = b""

    def resize(self, lines: int, columns: int) -> None:
        import termios

        termios.tcsetwinsize(self.ours, (lines, columns))

    def until(self, text: bytes, seconds: float = 20.0) -> bytes:
        """Read until a text comes; return what was read up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            self._read()
        before, self.seen = self.seen.split(text, 1)
        return before

    def _read(self) -> None:
        import select

        if select.select([self.ours], [], [], 0.1)[0]:
            self.seen += os.read(self.ours, 65536)

    def close(self) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(20)
        while True:
            try:
                self.seen += os.read(self.ours, 65536)
            except OSError:  # all was read
                return status


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)


def test_a_run_is_followed_to_its_end(tmp_path: Path, terminals: list[Terminal]) -> None:
    run = tmp_path / "run"
    start_history(run)
    write_run(run, facts())
    terminal = Terminal(str(run))
    terminals.append(terminal)
    terminal.until(ENTER)
    terminal.until(b"waiting for the first measured epoch")
    append_history(run, collapse_rows(range(5)))
    terminal.until(b"epoch 4 of 60")
    terminal.resize(40, 120)
    frame = terminal.until(b"\x1b[?2026l", 5) + terminal.until(b"\x1b[?2026l", 5)
    assert b"\x1b[38;5;" in frame  # in colour
    terminal.until(b"NC2 distance to ETF (means)")  # said where there is room for it
    append_history(run, collapse_rows(range(5, 61)))
    write_run(run, facts(finished="2026-11-21T17:18:41+00:00"))
    terminal.until(LEAVE)
    assert terminal.close() == 0
    assert b"epoch 60 of 60" in terminal.seen
    assert b"the run is finished" in terminal.seen


def test_another_window_size_is_drawn_at_once(tmp_path: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(str(make_run(tmp_path / "run")), "--every", "60")
    terminals.append(terminal)
    terminal.until(b"q or Ctrl-C leaves")
    terminal.resize(40, 120)
    terminal.until(b"NC2 distance to ETF (means)")  # said where there is room for it


def test_a_size_that_changed_while_a_frame_was_drawn_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ncmonitor.watch.screen.size", lambda: (120, 40))
    began = time.monotonic()
    assert Screen().wait(5, (80, 24))
    assert time.monotonic() - began < 4
    assert Screen().wait(0.3, (120, 40))
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize(
    ("keys", "status"), [(b"q", 0), (b"\x03", 0), (None, 143)], ids=["q", "ctrl-c", "sigterm"]
)
def test_leaving_gives_the_terminal_back(
    tmp_path: Path, terminals: list[Terminal], keys: bytes | None, status: int
) -> None:
    import termios

    terminal = Terminal(str(make_run(tmp_path / "run")), NO_COLOR="1")
    terminals.append(terminal)
    terminal.until(ENTER)
    assert b"\x1b[38;5;" not in terminal.until(b"nc4_disagreement")
    if keys is None:
        terminal.process.terminate()
    else:
        os.write(terminal.ours, keys)
    before = terminal.until(LEAVE)
    assert b"\x1b[?25h" in before
    assert b"\x1b[?7h" in before
    assert terminal.close() == status
    assert termios.tcgetattr(terminal.ours) == terminal.attributes
    assert b"Traceback" not in terminal.seen
    assert (b"stopped watching" in terminal.seen) == (status == 0)


def test_a_terminal_that_is_not_one_gets_a_frame(tmp_path: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal(str(make_run(tmp_path / "run")), TERM="dumb")
    terminals.append(terminal)
    assert terminal.close() == 0
    assert ENTER not in terminal.seen
    assert b"epoch 30 of 60" in terminal.seen


def test_a_folder_that_vanishes_is_one_line(tmp_path: Path, terminals: list[Terminal]) -> None:
    run = make_run(tmp_path / "run")
    terminal = Terminal(str(run))
    terminals.append(terminal)
    terminal.until(b"nc4_disagreement")
    run.rename(tmp_path / "elsewhere")
    terminal.until(LEAVE)
    assert terminal.close() == 2
    assert b"is gone" in terminal.seen
