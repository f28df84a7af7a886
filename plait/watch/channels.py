"""Where alerts go: one attempt at a time, by a command or by a webhook. Whether and when there is another, a courier decides."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from plait import __version__, spec
from plait.errors import RunFileError

_PASSING = {408, 425, 429}
"""HTTP's answers of 4xx that may be others later."""
_SAID = 200  # characters of what a command or a server said


class Undelivered(Exception):
    """An attempt failed. again: another may succeed."""

    def __init__(self, why: str, again: bool = True) -> None:
        super().__init__(why)
        self.again = again


class Letter(Protocol):
    """What is delivered: a line of text; all of it as JSON; and for a command's environment."""

    @property
    def text(self) -> str: ...

    @property
    def body(self) -> bytes: ...

    @property
    def variables(self) -> dict[str, str]: ...


class Channel(Protocol):
    """name: as people are told, without secrets."""

    name: str

    def deliver(self, letter: Letter) -> None:
        """Raises Undelivered."""

    def stop(self) -> None:
        """From another thread: end the attempt that is under way, where that can be done."""


def open_channels(settings: spec.Alerts) -> list[Channel]:
    """Those that [alerts] names. Raises RunFileError, before anything has started, for one that cannot work."""
    channels: list[Channel] = []
    if settings.command is not None:
        channels.append(Command(_words(settings.command), settings.timeout))
    if settings.webhook is not None:
        channels.append(Webhook(_url(settings.webhook), settings.timeout))
    return channels


class Command:
    """Runs a program with the letter as its standard input, in a session of its own: it is killed with all that it started."""

    def __init__(self, words: list[str], timeout: float) -> None:
        self.name = f"command {Path(words[0]).name}"
        self._words, self._timeout = words, timeout
        self._process: subprocess.Popen[bytes] | None = None

    def deliver(self, letter: Letter) -> None:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:  # files: a pipe would be held open by what it starts
            given.write(letter.body)
            given.seek(0)
            try:
                self._run(given, said, os.environ | letter.variables)
            except OSError as error:
                raise Undelivered(f"cannot be run: {error.strerror}") from None

    def stop(self) -> None:
        if (process := self._process) is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _run(self, given: IO[bytes], said: IO[bytes], environment: dict[str, str]) -> None:
        process = subprocess.Popen(self._words, stdin=given, stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        self._process = process
        try:
            status = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            process.wait()
            raise Undelivered(f"took longer than {self._timeout:g} s and was killed") from None
        finally:
            self._process = None
        if status:
            raise Undelivered(f"ended with status {status}{_last_words(said)}")


class Webhook:
    """Posts the letter as JSON. A redirection is no delivery: who follows one asks, and does not post."""

    def __init__(self, url: str, timeout: float) -> None:
        self.name = f"webhook {spec.masked_url(url)}"
        self._url, self._timeout = url, timeout
        self._opener = urllib.request.build_opener(_NoRedirection)

    def deliver(self, letter: Letter) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": f"plait/{__version__}"}
        request = urllib.request.Request(self._url, letter.body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            raise Undelivered(f"answered {error.code} {error.reason}", error.code >= 500 or error.code in _PASSING) from None
        except urllib.error.URLError as error:
            raise Undelivered(str(error.reason)) from None
        except TimeoutError:
            raise Undelivered(f"did not answer within {self._timeout:g} s") from None
        except Exception as error:  # http.client's, whose texts may show the URL
            raise Undelivered(f"answered nothing that HTTP knows ({type(error).__name__})") from None

    def stop(self) -> None:
        """It ends by its own time limit."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _words(command: str) -> list[str]:
    """A command's words, the first of them a program that can be run: of PATH, or of the working folder."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise RunFileError(f"alerts.command: {command!r} is no command: {error}") from None
    name = Path(words[0]).expanduser()
    program = shutil.which(name) or shutil.which(Path.cwd() / name)
    if program is None:
        raise RunFileError(f"alerts.command: {_unusable(name)}")
    return [str(Path(program).absolute()), *words[1:]]


def _unusable(program: Path) -> str:
    if program.is_file():
        return f"{program} is not executable; chmod +x {program}"
    where = "there is no such file" if len(program.parts) > 1 else "it is neither in PATH nor in the working folder"
    return f"{program} cannot be run: {where}"


def _url(webhook: str) -> str:
    """The URL itself. Raises RunFileError for a variable without one, and for a URL that a record of a run has masked."""
    url = webhook
    if webhook.startswith("$"):
        url = os.environ.get(webhook[1:], "")
        try:
            spec.check_webhook(url)
        except ValueError as error:
            raise RunFileError(f"alerts.webhook: the variable {webhook[1:]}{f': {error}' if url else ' is not set'}") from None
    if url.endswith("/***"):
        raise RunFileError(f"alerts.webhook: {url} is masked, as in the record of a run; write the whole URL, or a variable, $NAME")
    return url


def _last_words(said: IO[bytes]) -> str:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _SAID))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""
