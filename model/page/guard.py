"""Access and load limits of the page: an ASGI middleware in front of Gradio.

It lets through only the routes that the page and its API use, limits the resources of each request, each visitor and
all visitors together, and drops sessions without a listener. The queue itself is read from Gradio, not tracked here.

Some identities can be forged. A client chooses the name of its session, so the limit per session keeps an honest
program from filling the queue but stops no attacker. An address is what the last proxy reports; behind one, all
visitors may share it. The limits on all queue places, all waiting work and all open requests hold for everybody.
"""

import asyncio
import ctypes
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from starlette._utils import get_route_path  # the path as the router sees it, without a proxy's prefix
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 1024  # bytes; the longest valid call has about one kB
MAX_OPEN = 1000  # open requests, including event streams
PLACES, ADDRESS_PLACES, SESSION_PLACES = 64, 48, 16  # in the queue: in total, per address, per session
MAX_WORK = 100_000  # waiting work in steps of single digits: five of the largest sheets
PATIENCE = 10.0  # seconds after which a session without a listener is dropped

ROUTES = (
    ("GET HEAD", r"/|/config/?|/theme\.css|/(assets|static)/.+|/favicon\.ico|/pwa_icon(/\w+)?|/manifest\.json"),
    ("GET HEAD", r"/robots\.txt|/logout|/preview\.png"),
    ("POST", r"/login/?"),
    ("GET", r"/gradio_api/(startup-events|info/?|theme\.css|heartbeat/[^/]+|queue/data|call/(v2/)?\w+/\w+)"),
    ("POST", r"/gradio_api/(queue/join|call/(v2/)?\w+/?|cancel|reset/?)"),
    ("GET POST DELETE", r"/gradio_api/mcp(/.*)?"),
)
JOIN = re.compile(r"/gradio_api/(queue/join|call/(?P<v2>v2/)?(?P<name>\w+)/?)")
STREAM = re.compile(r"/gradio_api/(queue/data|call/(v2/)?\w+/(?P<event>\w+))")

# Gradio's page has inline scripts and evaluates strings as code; a Space resizes its frame with a script from cdnjs,
# and the page behind --share loads from Gradio's bucket. Framing is not restricted, for Spaces.
BUCKET = "https://gradio.s3-us-west-2.amazonaws.com"
POLICY = (
    f"default-src 'self' {BUCKET}; "
    f"script-src 'self' 'unsafe-inline' 'unsafe-eval' https://cdnjs.cloudflare.com {BUCKET}; "
    f"style-src 'self' 'unsafe-inline' {BUCKET}; img-src 'self' data: blob: {BUCKET}; font-src 'self' data: {BUCKET}; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", POLICY.encode()),
]


class Refused(Exception):
    """An HTTP status and one sentence for the client."""

    def __init__(self, status: int, sentence: str):
        self.status, self.sentence = status, sentence


class Place(NamedTuple):
    """A waiting call: its sender, and its work in steps of single digits."""

    session: str | None
    address: str
    work: int


def check_route(method: str, path: str) -> None:
    """Raise Refused (404 or 405) unless the route is in `ROUTES`."""
    allowed = [methods.split() for methods, pattern in ROUTES if re.fullmatch(pattern, path)]
    if not allowed:
        raise Refused(404, "There is nothing here.")
    if not any(method in methods for methods in allowed):
        raise Refused(405, f"This address accepts {', '.join(allowed[0])}, not {method[:20]}.")


def check_place(asked: Place, held: Iterable[Place]) -> None:
    """Raise Refused if a call exceeds the limits of the queue; Gradio's clients take 503 for a full queue."""
    held = list(held)
    if asked.session and sum(place.session == asked.session for place in held) >= SESSION_PLACES:
        raise Refused(503, f"You already have {SESSION_PLACES} calls waiting; wait for one to finish.")
    same = sum(place.address == asked.address for place in held)
    work = asked.work + sum(place.work for place in held)
    if len(held) >= PLACES or same >= ADDRESS_PLACES or work > MAX_WORK:
        raise Refused(503, "The page is busy; try again in a minute.")


def parse(body: bytes) -> dict:
    """The JSON object of a call; raises Refused for anything else, or for malformed `data` or `session_hash`."""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body must be JSON.") from None
    if not isinstance(call, dict) or not isinstance(call.get("data", []), list):
        raise Refused(400, 'The body must be a JSON object such as {"data": ["7", 42]}.')
    if not isinstance(call.get("session_hash"), str | None):
        raise Refused(400, "session_hash must be a string.")
    return call


def check_values(values: list) -> None:
    """Raise Refused unless each value is a text, a number, true, false, null, or a list or table of these.

    Gradio takes objects for files, and fetches the URLs in them.
    """
    for _ in range(2):
        values = [item for value in values for item in (value if isinstance(value, list) else [value])]
    if any(isinstance(item, dict | list) for item in values):
        raise Refused(400, "Values must be strings, numbers, true, false, null, or lists or tables of these.")


async def read(receive: Receive) -> bytes:
    """The body of a request; raises Refused as soon as it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise Refused(413, f"A request may have at most {MAX_BODY // 1024} kB.")
        if not message.get("more_body"):  # also true after a disconnect
            return bytes(body)


class Guard:
    """The middleware; `work(function, values by name)` returns the steps of single digits that a call takes."""

    def __init__(self, app: ASGIApp, work: Callable[[str, dict], int]):
        self.app, self.work = app, work
        self.open = 0
        self.joining: list[Place] = []  # calls about to enter the queue
        self.listeners = Counter()  # open event streams by session
        self.unheard: dict[str, object] = {}  # sessions without a listener; an entry lives for PATIENCE
        self.tasks: set[asyncio.Task] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        self.open += 1
        try:
            if self.open > MAX_OPEN:
                raise Refused(503, "The page is busy; try again in a minute.")
            await self.serve(scope, receive, secured)
        except Refused as refused:
            await JSONResponse({"detail": refused.sentence}, refused.status)(scope, receive, secured)
        finally:
            self.open -= 1

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        method, path = scope["method"], get_route_path(scope)
        check_route(method, path)
        if path.startswith("/gradio_api/info"):
            # Request the info of a page: Gradio caches the other one with the Host header of the first request.
            scope = {**scope, "query_string": scope["query_string"] + b"&page="}
        if method == "GET":
            stream = STREAM.fullmatch(path)
            handler = self.stream(stream["event"], scope, receive, send) if stream else self.app(scope, receive, send)
            return await handler
        body = await read(receive)
        messages = iter([{"type": "http.request", "body": body}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        join = method == "POST" and JOIN.fullmatch(path)
        await (self.join(join, body, scope, replay, send) if join else self.app(scope, replay, send))

    async def join(self, path: re.Match, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on to the queue if the limits allow it."""
        call, blocks = parse(body), scope["app"].get_blocks()
        if path["name"]:
            function = next((fn for fn in blocks.fns.values() if fn.api_name == path["name"]), None)
        else:
            function = blocks.fns.get(call["fn_index"]) if isinstance(call.get("fn_index"), int) else None
        if function is None:
            raise Refused(404, "There is no such function; /gradio_api/info lists them.")
        values = call if path["v2"] else named(function, call.get("data", []))
        check_values(list(values.values()))
        session = None if path["v2"] else call.get("session_hash")
        place = Place(session, address(scope), self.work(function.name, values))
        check_place(place, [*self.joining, *self.waiting(blocks._queue)])
        answer = b""

        async def heard(message: Message) -> None:
            nonlocal answer
            answer += message.get("body", b"")
            await send(message)

        if session and not blocks._queue.pending_event_ids_session.get(session):
            self.unheard.pop(session, None)  # restart the timeout, but not while older calls wait
        self.joining.append(place)
        try:
            await self.app(scope, receive, heard)
        finally:
            self.joining.remove(place)
            found = re.fullmatch(rb'\{"event_id": ?"(\w+)"\}', answer)
            self.watch(session or (found[1].decode() if found else ""), blocks._queue)

    def waiting(self, queue) -> Iterable[Place]:
        """The calls in Gradio's queue."""
        for waiting in queue.event_queue_per_concurrency_id.values():
            for event in waiting.queue:
                work = self.work(event.fn.name, dict(zip(names(event.fn), event.data.data, strict=False)))
                yield Place(event.session_hash, address(event.request.scope), work)

    async def stream(self, event: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an event stream on, and count it as a listener of its session while it is open."""
        queue = scope["app"].get_blocks()._queue
        session = session_of(event, queue) if event else QueryParams(scope["query_string"]).get("session_hash", "")
        if session not in queue.pending_messages_per_session:
            raise Refused(404, "No result is waiting here; it was already fetched, or nobody listened in time.")
        self.listeners[session] += 1
        self.unheard.pop(session, None)
        try:
            await self.app(scope, receive, send)
        finally:
            self.listeners[session] -= 1
            if not self.listeners[session]:
                del self.listeners[session]
                self.watch(session, queue)

    def watch(self, session: str, queue) -> None:
        """Drop a session once it has been without a listener for PATIENCE."""
        kept = session in queue.pending_messages_per_session or session in queue.pending_event_ids_session
        if session in self.listeners or session in self.unheard or not kept:
            return
        mark = self.unheard[session] = object()

        async def drop() -> None:
            await asyncio.sleep(PATIENCE)
            if self.unheard.get(session) is mark:
                del self.unheard[session]
                await queue.clean_events(session_hash=session)  # a running drawing stops at its next chunk
                queue.pending_messages_per_session.pop(session, None)
                queue.pending_event_ids_session.pop(session, None)
                if not self.unheard:
                    await asyncio.to_thread(trim)

        task = asyncio.create_task(drop())
        self.tasks.add(task)  # asyncio keeps only weak references
        task.add_done_callback(self.tasks.discard)


def names(function) -> list[str]:
    """The parameter names of a Gradio function."""
    return [str(name) for name in function.input_parameter_names[: len(function.inputs)]]


def named(function, values: list) -> dict:
    """The values of a call by name; raises Refused if some are missing."""
    wanted = names(function)
    if len(values) < len(wanted):
        raise Refused(400, f"This call takes {len(wanted)} values ({', '.join(wanted)}), not {len(values)}.")
    return dict(zip(wanted, values, strict=False))


def trim() -> None:
    """Return freed memory to the system and limit threads to two shared heaps from now on: glibc otherwise keeps freed
    memory for each thread."""
    with suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX of malloc.h
        ctypes.CDLL(None).malloc_trim(0)


def address(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


def session_of(event: str, queue) -> str:
    """The session of an event, as Gradio looks it up: the event's own id if the caller gave none."""
    if event in queue.event_ids_to_events:
        return queue.event_ids_to_events[event].session_hash
    return next((session for session, events in queue.pending_event_ids_session.items() if event in events), event)
