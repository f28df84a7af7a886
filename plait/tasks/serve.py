"""An endpoint as OpenAI's: completions and chat completions, whole or streamed, for one trained model.

What is asked for and not built (several choices, log probabilities, tools) is refused, never passed over. Needs the extra "serve".
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

import pydantic
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse

from plait.data.chat import checked
from plait.errors import UserError
from plait.tasks.queueing import Asked, Queueing
from plait.tasks.sampling import Sampling
from plait.tasks.trained import Trained

Some = Annotated[float, pydantic.Field(ge=0)]


class Asking(pydantic.BaseModel):
    """What both kinds of request share. A field that is not here is refused."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model: str | None = None
    max_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None
    temperature: Some = 1.0
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    n: Annotated[int, pydantic.Field(ge=1, le=1)] = 1
    user: str | None = None

    def sampling(self, tokens: int) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = time.time_ns() if self.seed is None else self.seed
        top_p = None if self.top_p == 1 else self.top_p
        return Sampling(self.max_tokens or tokens, self.temperature, top_p=top_p, stop=stop, seed=seed)


class Completing(Asking):
    prompt: str | list[str]


class Chatting(Asking):
    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, pydantic.Field(ge=1)] | None = None


def application(trained: Trained, name: str, secret: str | None = None) -> FastAPI:
    """The endpoint of one model, whose name is shown. secret: what a request must bear."""
    serving = _Serving(trained, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        serving.queueing.close()

    def allowed(request: Request) -> None:
        borne = request.headers.get("authorization", "").removeprefix("Bearer ")
        if secret is not None and not hmac.compare_digest(borne.encode(), secret.encode()):
            raise HTTPException(401, "the request bears no secret, or a wrong one: Authorization: Bearer ...")

    app = FastAPI(title="plait", lifespan=lifespan, dependencies=[Depends(allowed)], docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/v1/models")
    def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": serving.began, "owned_by": "plait"}]}

    @app.post("/v1/completions")
    async def completions(asking: Completing) -> Any:
        return await serving.complete(asking)

    @app.post("/v1/chat/completions")
    async def chat_completions(asking: Chatting) -> Any:
        return await serving.chat(asking)

    @app.exception_handler(UserError)
    @app.exception_handler(HTTPException)
    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return _refused(error)

    return app


class _Serving:
    def __init__(self, trained: Trained, name: str) -> None:
        self._trained, self._name = trained, name
        self._template = trained.template
        self.queueing = Queueing(trained.module, trained.tokenizer)
        self.began = int(time.time())

    async def complete(self, asking: Completing) -> Any:
        prompts = [asking.prompt] if isinstance(asking.prompt, str) else asking.prompt
        if asking.stream and len(prompts) > 1:
            raise HTTPException(400, "stream: takes one prompt")
        settings = replace(asking.sampling(16), ends=self._trained.ends)
        asked = [self.queueing.ask(prompt, settings) for prompt in prompts]
        answer = _Answer(self._name, "cmpl", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}, {})
        return _streamed(answer, asked[0]) if asking.stream else await _whole(answer, asked)

    async def chat(self, asking: Chatting) -> Any:
        prompt = self._template.prompt(checked("messages", asking.messages))
        context = getattr(self._trained.module, "context", 1 << 30)
        settings = self._trained.answering(asking.sampling(asking.max_completion_tokens or context))
        asked = self.queueing.ask(prompt, settings)
        answer = _Answer(
            self._name,
            "chatcmpl",
            "chat.completion",
            lambda text: {"message": {"role": "assistant", "content": text.strip()}},
            lambda text: {"delta": {"content": text}},
            {"role": "assistant", "content": ""},
        )
        return _streamed(answer, asked) if asking.stream else await _whole(answer, [asked])


class _Answer:
    """How an answer is written in JSON. said, piece: what a whole text, or a piece of one, is wrapped in."""

    def __init__(self, model: str, kind: str, what: str, said: Any, piece: Any, opening: dict[str, str]) -> None:
        self._head = {"id": f"{kind}-{uuid.uuid4().hex}", "object": what, "created": int(time.time()), "model": model}
        self._what, self._said, self._piece, self._opening = what, said, piece, opening

    def whole(self, asked: list[Asked], texts: list[str]) -> dict[str, Any]:
        choices = [
            {"index": place, **self._said(text), "finish_reason": _finish(each), "logprobs": None}
            for place, (each, text) in enumerate(zip(asked, texts, strict=True))
        ]
        read = sum(len(each.text.ids) for each in asked if each.text is not None)
        written = sum(len(each.text.tokens) for each in asked if each.text is not None)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {**self._head, "choices": choices, "usage": usage}

    def events(self, asked: Asked) -> Iterator[str]:
        """Server-sent events, until [DONE]."""
        if self._opening:
            yield self._event({"delta": self._opening}, None)
        for piece in asked:
            yield self._event(self._piece(piece), None)
        yield self._event(self._piece("") if not self._opening else {"delta": {}}, _finish(asked))
        yield "data: [DONE]\n\n"

    def _event(self, content: dict[str, Any], reason: str | None) -> str:
        what = "chat.completion.chunk" if self._what == "chat.completion" else self._what
        choice = {"index": 0, **content, "finish_reason": reason}
        return f"data: {json.dumps({**self._head, 'object': what, 'choices': [choice]}, ensure_ascii=False)}\n\n"


async def _whole(answer: _Answer, asked: list[Asked]) -> dict[str, Any]:
    texts = [await asyncio.to_thread("".join, each) for each in asked]
    return answer.whole(asked, texts)


def _streamed(answer: _Answer, asked: Asked) -> StreamingResponse:
    def events() -> Iterator[str]:
        try:
            yield from answer.events(asked)
        finally:
            asked.left = True

    return StreamingResponse(events(), media_type="text/event-stream")


def _finish(asked: Asked) -> str:
    return "length" if asked.reason in ("tokens", "context") else "stop"


def _refused(error: Exception) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    status, message = 400, str(error)
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        message = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg'].lower()}" for each in error.errors())
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status_code=status)
