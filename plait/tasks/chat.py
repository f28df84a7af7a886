"""A conversation with a trained model: what is said is kept, and each answer goes on behind all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from plait.data.chat import Message
from plait.errors import UserError
from plait.tasks.generate import Sampling, stream
from plait.tasks.trained import Trained


class Conversation:
    """messages: what was said. Before each answer the newest checkpoint is taken, should the run have saved one since."""

    def __init__(self, trained: Trained, settings: Sampling, system: str | None = None) -> None:
        self.trained = trained
        self._template = trained.template
        self._settings = trained.answering(settings)
        self._system = system
        self.messages: list[Message] = []
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def say(self, text: str) -> Iterator[str]:
        """The answer, piece by piece. It is kept once it is complete; what was said before an error is as if it had not been.

        Raises UserError: the conversation is longer than the model's context.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        self.trained = self.trained.renewed()
        prompt = self._template.prompt(asked)
        context = getattr(self.trained.module, "context", None)
        if context is not None and len(prompt) >= context:
            raise UserError(f"this conversation's {len(prompt)} tokens fill the model's context of {context}; begin anew with /new")
        pieces: list[str] = []
        for piece in stream(self.trained.module, self.trained.tokenizer, prompt, self._settings):
            piece = piece.lstrip() if not "".join(pieces).strip() else piece
            pieces.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces).strip()}]


def converse(conversation: Conversation) -> None:
    """On a terminal, or line by line out of a pipe, until the lines end: `/new` begins anew, `/exit` ends."""
    shown = conversation.trained.step
    print(f"step {shown}; /new begins anew, /exit ends", file=sys.stderr)
    while (line := _line()) is not None and line != "/exit":
        if line == "/new":
            conversation.forget()
        elif line:
            _tell(conversation, line)
            if conversation.trained.step != shown:
                shown = conversation.trained.step
                print(f"(step {shown})", file=sys.stderr)


def _tell(conversation: Conversation, line: str) -> None:
    try:
        for piece in conversation.say(line):
            print(piece, end="", flush=True)
        print(flush=True)
    except UserError as error:
        print(f"plait: {error}", file=sys.stderr)


def _line() -> str | None:
    """The next line that is typed; None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
