"""Conversations: rows to messages, messages to text by a template, text to tokens of which some are learned.

    {"prompt": .., "answer": ..}   ─►  messages  ── template ──►  User: What is it?\\n | Assistant: | A cat.<|endoftext|>
    {"messages": [..]}                                            not learned                      | learned

What is learned of an answer is what the template writes behind its prompt, the end of the turn included: a prompt's text is that of the
messages before it, with `add_generation_prompt`, exactly as it will be when the model answers. Templates are Jinja, as Hugging Face's are.
A special token that the template writes is one; the name of one in somebody's message is text.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.data.broken import Unusable
from plait.errors import DataError, UserError

if TYPE_CHECKING:
    from plait import spec
    from plait.data.tokenizer import Tokenizer

Message = dict[str, str]

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
KEPT = "huggingface"
"""The folder, in a run's, where files of a Hugging Face model's are kept."""
ROLES = ("system", "user", "assistant")
DEFAULT = """\
{%- for message in messages -%}
{%- if message.role == "system" -%}
{{ message.content }}
{% elif message.role == "user" -%}
User: {{ message.content }}
{% else -%}
Assistant: {{ message.content }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
Assistant:
{%- endif -%}
"""
"""For models that come with none: it takes no special token but the end of text, which every tokenizer has."""

_CUT = "\ue000"
"""Put into names of special tokens that a message holds: text is cut there before it is encoded. (It is for private use, and taken out.)"""


_MARK = "\ue001"


def conversation(place: str, row: dict[str, Any], settings: spec.Chat) -> list[Message]:
    """The messages of a row of data. Raises Unusable."""
    if row.get(settings.messages) is not None:
        messages = row[settings.messages]
    elif settings.prompt in row and settings.answer in row:
        messages = [{"role": "user", "content": row[settings.prompt]}, {"role": "assistant", "content": row[settings.answer]}]
    else:
        keys = ", ".join(map(repr, row)) or "none"
        wanted = f"{settings.messages!r}, and no {settings.prompt!r} with {settings.answer!r}"
        setting = "data.chat.messages, or data.chat.prompt and data.chat.answer"
        raise Unusable(place, "no field", f"has no {wanted}; its keys are {keys}; set {setting}")
    return checked(place, messages, settings.system, answered=True)


def checked(place: str, messages: Any, system: str | None = None, answered: bool = False) -> list[Message]:
    """Messages as they should be, `system` before them where there is none. answered: the last must be an answer. Raises Unusable."""
    if not isinstance(messages, list) or not messages:
        raise Unusable(place, "no conversation", "messages must be a list of {role, content}, and not empty")
    for number, message in enumerate(messages, 1):
        _check(f"{place}: message {number}", message)
    if answered and messages[-1]["role"] != "assistant":
        said = messages[-1]["role"]
        raise Unusable(place, "no answer", f"its last message is the {said}'s; what is learned is the assistant's answer")
    found = [{"role": message["role"], "content": message["content"]} for message in messages]
    return found if system is None or found[0]["role"] == "system" else [{"role": "system", "content": system}, *found]


def _check(place: str, message: Any) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise Unusable(place, "no conversation", "must be an object with a role and a text as its content")
    if message.get("role") not in ROLES:
        raise Unusable(place, "no conversation", f"has the role {message.get('role')!r}, which is none of {', '.join(ROLES)}")
    if message["role"] == "assistant" and not message["content"].strip():
        raise Unusable(place, "no conversation", "is an empty answer, which teaches nothing; leave the row out")
    try:
        message["content"].encode()
    except UnicodeEncodeError:
        raise Unusable(place, "no conversation", "holds half of a surrogate pair, which is no text") from None


class ConversationEncoder:
    """Documents that are conversations: how they become tokens."""

    def __init__(self, settings: spec.Chat, source: str, tokenizer: Tokenizer) -> None:
        self._learn = settings.learn
        self._template = Template(source, tokenizer)

    def encode(self, documents: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids uint32, learned bool) of each conversation's JSON."""
        return [self._template.encode(json.loads(document), self._learn) for document in documents]


class Template:
    """How messages become the text that a model reads. Raises DataError: no Jinja, or a template that is broken."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._compiled = _compiled(source)
        self._specials = dict(tokenizer.specials)
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._specials, key=len, reverse=True))) or r"(?!)")
        self._end = tokenizer.decode([tokenizer.end_of_text])

    def render(self, messages: list[Message], answering: bool = False) -> str:
        """The text; with `answering`, up to where the assistant goes on. Raises DataError: the template refuses the messages."""
        return self._render(messages, answering).replace(_CUT, "")

    def prompt(self, messages: list[Message]) -> list[int]:
        """The tokens that the assistant's answer goes on behind, the one that begins every text included."""
        return [self._tokenizer.end_of_text, *self._encode(self._render(messages, True))]

    def encode(self, messages: list[Message], learn: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids uint32, learned bool) of a conversation. learn: "answers", or the "last" one alone."""
        pieces, done = [], ""
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number in answers:
            before, after = self._render(messages[:number], True), self._render(messages[: number + 1], False)
            if not (before.startswith(done) and after.startswith(before)):
                raise DataError("data.chat.template: what it writes of a conversation changes when the next message comes; use another")
            pieces += [(before[len(done) :], False), (after[len(before) :], learn == "answers" or number == answers[-1])]
            done = after
        encoded = [(self._encode(text), learned) for text, learned in pieces if text]
        ids = np.array([token for tokens, _ in encoded for token in tokens], dtype=np.uint32)
        return ids, np.repeat([learned for _, learned in encoded], [len(tokens) for tokens, _ in encoded])

    def ends(self) -> tuple[list[int], tuple[str, ...]]:
        """What ends an answer: special tokens, and texts."""
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        tail = self._render(said, False).partition(_MARK)[2]
        found = self._pattern.search(tail)
        if found is not None:
            return [self._specials[found[0]]], ()
        return [], (tail.strip(),) if tail.strip() else ()

    def _render(self, messages: list[Message], answering: bool) -> str:
        guarded = [{**message, "content": self._pattern.sub(_broken, message["content"].replace(_CUT, ""))} for message in messages]
        try:
            return str(self._compiled.render(messages=guarded, add_generation_prompt=answering, eos_token=self._end, bos_token=""))
        except Exception as error:  # whatever a template raises is the answer
            raise DataError(f"the chat template refuses these messages: {type(error).__name__}: {error}") from None

    def _encode(self, text: str) -> list[int]:
        """Names of special tokens as these, and what is between them as text."""
        ids: list[int] = []
        for piece in text.split(_CUT):
            place = 0
            for found in self._pattern.finditer(piece):
                ids += self._plain(piece[place : found.start()])
                ids.append(self._specials[found[0]])
                place = found.end()
            ids += self._plain(piece[place:])
        return ids

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode([text])[0].tolist() if text else []


def _broken(name: re.Match[str]) -> str:
    return name[0][:1] + _CUT + name[0][1:]


def template_of(settings: spec.Chat) -> str:
    """The template's text that settings ask for."""
    return DEFAULT if settings.template is None else source_of(Path(settings.template))


def source_of(path: Path) -> str:
    """A template's text, out of a file of it or of a Hugging Face tokenizer_config.json. Where that stands beside it, the template begins
    by saying which special tokens it writes as bos_token and eos_token. Raises DataError."""
    try:
        beside = path if path.suffix == ".json" else path.with_name(CONFIG)
        told = json.loads(beside.read_text(encoding="utf-8")) if path.suffix == ".json" or beside.is_file() else {}
        text = path.read_text(encoding="utf-8") if path.suffix != ".json" else told.get("chat_template")
        if isinstance(text, list):  # several, by name
            text = next((entry["template"] for entry in text if entry.get("name") == "default"), None)
        if isinstance(text, str):
            return _saying(text, told)
        raise DataError(f"data.chat.template: {path}: holds no chat_template")
    except FileNotFoundError:
        raise DataError(f"data.chat.template: {path}: there is no such file") from None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"data.chat.template: {path}: cannot be read: {error}") from None


def found_in(folder: Path) -> Path | None:
    """The file of a folder that holds its template, as Hugging Face lays them; of a run's also among what is kept of theirs."""
    for place in (folder, folder / KEPT):
        if (place / FILE).is_file():
            return place / FILE
        config = place / CONFIG
        if config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8"):
            return config
    return None


def _saying(text: str, config: dict[str, Any]) -> str:
    """The template with the names of special tokens that it uses."""
    names = {name: config[name] for name in ("bos_token", "eos_token") if name in text and config.get(name)}
    names = {name: token["content"] if isinstance(token, dict) else token for name, token in names.items()}
    return "".join(f"{{% set {name} = {json.dumps(token, ensure_ascii=False)} +%}}" for name, token in names.items()) + text


@lru_cache
def _compiled(source: str) -> Any:
    """As Hugging Face's apply_chat_template compiles it: in a sandbox, with its trimming of blocks and its `raise_exception`."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise UserError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise DataError(f"data.chat.template: is no Jinja template: {error}") from None
