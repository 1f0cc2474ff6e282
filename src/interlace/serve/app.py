"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as Http
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from interlace.generation.request import Request
from interlace.serve import chat, completions, responses
from interlace.serve.answers import Events
from interlace.serve.document import document
from interlace.serve.errors import ApiError
from interlace.serve.guard import FAILED, App, Guard, read_json
from interlace.serve.items import Ask
from interlace.serve.keys import Keys
from interlace.serve.metrics import CONTENT_TYPE, Metrics
from interlace.serve.schema import Chat, Completion, Detokenize, Tokenize, parsed
from interlace.serve.served import Served
from interlace.serve.store import Store
from interlace.serve.streamed import Streamed

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
RETRY_SECONDS = 1  # after which a client that came when all was full may come again
Handler = Callable[[Http], Awaitable[Response]]


@cache
def _of_page(name: str) -> bytes:
    return files("interlace.serve").joinpath("page", name).read_bytes()


class Api:
    """The routes, over models by name.

    Attributes:
        served: the models.
        most: requests that may be on their way at a time, those in the queue included.
        going: how many are.
        metrics: for Prometheus.
        store: answers that later requests may go on from.
    """

    def __init__(self, served: Mapping[str, Served], most: int):
        """See the attributes."""
        self.served, self.most, self.going = served, most, 0
        self.store, self.metrics = Store(), Metrics(served)

    def routes(self) -> list[Route]:
        """Return them."""
        return [
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/responses/compact", _missing, methods=["POST"]),  # no answer has this name
            Route("/v1/responses/{name}", self.response, methods=["GET", "DELETE"]),
            Route("/", self.page),
            Route("/page.js", self.page),
            Route("/page.css", self.page),
            Route("/memory", self.memory),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.openapi),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    def named(self, name: str | None) -> Served:
        """Return a model.

        Raises:
            ApiError: there is none of this name.
        """
        if name is None and len(self.served) == 1:
            return next(iter(self.served.values()))
        if name is None or name not in self.served:
            known = ", ".join(self.served)
            raise ApiError(
                404, f"model: '{(name or '')[:80]}' is not served here; there is {known}", "model", "model_not_found"
            )
        return self.served[name]

    async def health(self, _: Http) -> Response:
        """Say that the server answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Http) -> Response:
        """Say whether every model answers."""
        stopped = [name for name, one in self.served.items() if one.engine.closed]
        return JSONResponse({"status": "stopped" if stopped else "ok"}, 503 if stopped else 200)

    async def page(self, http: Http) -> Response:
        """Show the page; it loads nothing from elsewhere, and the browser holds it to that."""
        name = http.url.path.removeprefix("/") or "index.html"
        media = {"html": "text/html", "js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
        return Response(_of_page(name), headers=PAGE_HEADERS, media_type=media)

    async def memory(self, http: Http) -> Response:
        """Say what the state of a sequence takes, and what a transformer's cache would."""
        served = self.named(http.query_params.get("model"))
        given = http.query_params.get("tokens", "")
        if not given.isascii() or not given.isdigit() or not 0 < len(given) < 10 or not int(given):
            raise ApiError(400, f"tokens: must be a number from 1, got {given[:20]!r}", "tokens", "invalid_value")
        return JSONResponse(served.memory(int(given)))

    async def show_metrics(self, _: Http) -> Response:
        """Show what Prometheus reads."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, _: Http) -> Response:
        """Show the OpenAPI document."""
        return JSONResponse(document(list(self.served)))

    async def models(self, _: Http) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [_shown(one) for one in self.served.values()]})

    async def model(self, http: Http) -> Response:
        """Show one."""
        return JSONResponse(_shown(self.named(http.path_params["name"])))

    async def completions(self, http: Http) -> Response:
        """Go on from prompts."""
        asked: Completion = parsed(Completion, await read_json(http.receive))
        self.check_room()
        served = self.named(asked.model)
        requests = await asyncio.to_thread(completions.requests_of, served, asked, http.state.owner)
        if asked.stream:
            return self.streamed(requests, completions.stream(served, asked, requests))
        return JSONResponse(await self.whole(http, requests, completions.whole(served, asked, requests)))

    async def chat(self, http: Http) -> Response:
        """Answer a conversation."""
        asked: Chat = parsed(Chat, await read_json(http.receive))
        self.check_room()
        served = self.named(asked.model)
        plan = await chat.planned(served, asked, http.state.owner)
        if asked.stream:
            return self.streamed(plan.requests, chat.stream(served, asked, plan))
        return JSONResponse(await self.whole(http, plan.requests, chat.whole(served, asked, plan)))

    async def responses(self, http: Http) -> Response:
        """Answer a list of items."""
        asked: Ask = parsed(Ask, await read_json(http.receive))
        self.check_room()
        served, owner = self.named(asked.model), http.state.owner
        plan, turns = await responses.planned(served, asked, owner, self.store)
        keeping = responses.Keeping(self.store, owner, asked, turns)
        if asked.stream:
            return self.streamed(plan.requests, responses.stream(served, asked, plan, keeping))
        return JSONResponse(await self.whole(http, plan.requests, responses.whole(served, asked, plan, keeping)))

    async def response(self, http: Http) -> Response:
        """Show an answer again, or forget it."""
        owner, name = http.state.owner, http.path_params["name"]
        if http.method == "DELETE":
            self.store.forget(owner, name)
            return JSONResponse({"id": name, "object": "response", "deleted": True})
        return JSONResponse(self.store.find(owner, name, None).response)

    async def tokenize(self, http: Http) -> Response:
        """Say which tokens a text is."""
        asked: Tokenize = parsed(Tokenize, await read_json(http.receive))
        served = self.named(asked.model)
        tokenizer = served.tokenizer
        if tokenizer is None:
            raise ApiError(400, "prompt: the model has no tokenizer", "prompt", "no_tokenizer")
        encode = tokenizer.encode_text if asked.add_special_tokens else tokenizer.encode
        ids = await asyncio.to_thread(encode, asked.prompt)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": served.limit})

    async def tokenizer_info(self, http: Http) -> Response:
        """Say what lm_eval asks before it tokenizes here."""
        tokenizer = self.named(http.query_params.get("model")).tokenizer
        if tokenizer is None:
            raise ApiError(400, "model: has no tokenizer", "model", "no_tokenizer")
        eos = None if tokenizer.eos is None else tokenizer.fast.id_to_token(tokenizer.eos)
        return JSONResponse(
            {"eos_token": eos, "bos_token": tokenizer.bos or None, "chat_template": tokenizer.chat_template}
        )

    async def detokenize(self, http: Http) -> Response:
        """Say which text tokens are."""
        asked: Detokenize = parsed(Detokenize, await read_json(http.receive))
        served = self.named(asked.model)
        if served.tokenizer is None:
            raise ApiError(400, "tokens: the model has no tokenizer", "tokens", "no_tokenizer")
        size = served.engine.model.config.vocabulary
        if wrong := [i for i in asked.tokens if i >= size]:
            raise ApiError(400, f"tokens: must lie in [0, {size}), got {wrong[0]}", "tokens", "invalid_value")
        return JSONResponse({"prompt": await asyncio.to_thread(served.tokenizer.decode, asked.tokens)})

    def check_room(self) -> None:
        """Refuse a request before any work is done for it, where all places are taken.

        Raises:
            ApiError: they are.
        """
        with self.place(1):
            pass

    @contextlib.contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Take so many places among the requests on their way.

        Raises:
            ApiError: all are taken.
        """
        if count > self.most:
            raise ApiError(400, f"n: asks for {count} answers, and {self.most} is the most here", "n", "invalid_value")
        if self.going + count > self.most:
            raise ApiError(
                429,
                f"the server has {self.going} requests on their way, and {self.most} is the most; try again later",
                code="queue_full",
                kind="rate_limit_error",
                headers={"retry-after": str(RETRY_SECONDS)},
            )
        self.going += count
        try:
            yield
        finally:
            self.going -= count

    async def whole(self, http: Http, requests: list[Request], answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        """Return an answer; if the client leaves before, it is not made to its end."""
        task = asyncio.ensure_future(answer)
        try:
            with self.place(len(requests)):
                left = asyncio.ensure_future(_left(http))
                try:
                    await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    left.cancel()
                if not task.done():
                    raise ApiError(499, "the client left before the answer was made")
                return task.result()
        finally:
            task.cancel()

    def streamed(self, requests: list[Request], events: Events) -> Response:
        """Return a stream; a client that leaves ends it."""
        return Streamed(events, self.place(len(requests)))


async def _left(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _shown(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "interlace",
        "max_model_len": served.limit,
        "no_chat": served.no_chat or None,
    }


async def _refused(_: Http, error: Exception) -> Response:
    """Answer a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    said = {404: "there is no such path here", 405: "this path takes another method"}.get(
        error.status_code, error.detail
    )
    return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)


async def _missing(_: Http) -> Response:
    raise HTTPException(404)


async def _failed(_: Http, error: Exception) -> Response:
    return JSONResponse(FAILED.body(), FAILED.status)


async def _told(_: Http, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


def build(served: Mapping[str, Served], keys: Keys, most: int, origins: tuple[str, ...] = ()) -> App:
    """Return the server as an ASGI application.

    Args:
        served: models by name.
        keys: who may ask.
        most: requests that may be on their way at a time.
        origins: of pages of other servers that may ask.
    """
    handlers: Any = {HTTPException: _refused, ApiError: _told, Exception: _failed}
    api = Api(served, most)
    routes = api.routes()
    paths = {route.path for route in routes if "{" not in route.path}

    def seen(path: str, status: int) -> None:
        api.metrics.count(path if path in paths else "other", status)

    return Guard(Starlette(routes=routes, exception_handlers=handlers), keys, origins, seen)
