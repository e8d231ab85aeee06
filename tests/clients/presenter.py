"""A presenter's client of dialect v1, with `websockets`. Made to be copied.

    presenter = Presenter(
        "wss://chat.example/v1/presenter",
        token=my_token,               # async; asked before each connection and before a token expires; raises OSError
                                      # when there is none just now
        on_chat=pass_on_to_viewers,   # a plain function; says how many viewers got it
        state=saved,                  # where an earlier one got to: what `presenter.state` was
    )
    why = await presenter.run()       # for as long as the broadcast; cancel it to end it

It keeps the numbering's epoch and the last seq that it has, and goes on from there after a cut: each message is given
to `on_chat` once, in order, and acknowledged after that. When the server cannot send what is missing, the `gap` of
`welcome` says so. It comes back by itself, ever later when that fails, and not before the server wants it; it takes a
line for gone on which nothing is heard. After a token was refused it waits some seconds, for the token's key may be
about to be published, and asks for a token again; what it kept it forgets when that is refused. It is over when that does
not help, when the server will not have this client at all, when another session has the room, and when the broadcast is
over. When another session has the room, that one passes on what comes, so the last seq is not kept: who takes the room back
with this one's `state` goes on after what that one acknowledged. docs/PROTOCOL.md, "What a client does", has the same in
words.
"""

import asyncio
import base64
import contextlib
import inspect
import json
import math
import random
import time
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

SUBPROTOCOL = "chat.v1"
OPEN_SECONDS = 10
"""How long a connection may take until it is open."""
WELCOME_SECONDS = 60
"""The same from then on until its `welcome`. A server that cannot read its log finds that out first, which takes some
seconds, then tries for session.resume_wait_seconds (10) more, perhaps behind others that want to read, and only then tells
what is missing. Each connection is a new wait: who leaves earlier than that never gets a `welcome`."""
KEEPALIVE_SECONDS = 15
"""Until then `welcome.keepalive_seconds`: the server answers a `ping` as soon as the `hello` was good."""
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30
LEAST_REFRESH_SECONDS = 30
"""The least time from one refresh of the token to the next, or half of the token's life where that is less: to a clock that
is ahead each of them seems to be over."""
LEAST_ASK_SECONDS = 1
"""The same where there was no other token yet."""
OVER = {1000: "broadcast_ended", 4003: "replaced"}
"""After these close codes there is no coming back. 1000 is the end of the broadcast."""
REFUSED = {
    401: "unauthenticated",
    1002: "protocol",
    1007: "not_utf8",
    1009: "too_large",
    4001: "unauthenticated",
    4004: "bad_frame",
}
"""After these, HTTP's 401 among them, there is: with another token, with nothing kept, or in case it was chance."""
MOST_REFUSALS = 4
"""So many of them, with no session that lasted in between, are the end."""
TOKEN_REFUSED_SECONDS = 5
"""The least wait after the first of them that was for the token; twice as long after each more. The server looks for a key
that it does not know every auth.jwks_min_refresh_seconds (5) at most."""


def may_pass(status: int) -> bool:
    """Whether what was answered with this HTTP status, instead of an upgrade, may be taken later."""
    return status in (401, 408, 429) or status >= 500


class Presenter:
    """One presenter, over as many connections as it takes.

    `on_event` hears of everything but chat: `welcome`, `moderation`, `reconnect` and `error` as the server sent them,
    and of our own `refreshed`, `repeat`, `hole`, and `closed` with `again_ms`, or with `over`. `closed` has the `code` of
    the close, or the `status` of an answer that was no upgrade. What `on_chat` raises
    ends `run`; the message was not acknowledged then. `options` are those of `websockets.connect`.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], Awaitable[str]],
        on_chat: Callable[[dict], int | None],
        on_event: Callable[[dict], None] = lambda event: None,
        state: dict | None = None,
        **options,
    ):
        self._url = url
        self._token = token
        self._on_chat = on_chat
        self._on_event = on_event
        self._epoch: str | None = (state or {}).get("epoch")
        self._last: int | None = (state or {}).get("last")
        self._options = options
        self._attempts = 0
        # When this session will have lasted long enough for the next one to be tried without delay.
        self._settled_at = math.inf
        self._refusals = 0
        self._not_before = 0.0
        self._goodbyes: set[asyncio.Task] = set()

    @property
    def state(self) -> dict:
        """What the next client needs to go on from here."""
        return {"epoch": self._epoch, "last": self._last}

    async def run(self) -> str:
        """Connects, and stays connected. Gives the reason when that is over."""
        while True:
            closed = await self._connection()
            if time.monotonic() > self._settled_at:
                self._attempts = self._refusals = 0
            if over := closed.get("over") or self._over(closed.get("status", closed.get("code"))):
                self._on_event({"type": "closed", **closed, "over": over})
                return over
            self._settled_at = math.inf
            longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(self._attempts, 16))
            self._attempts += 1
            # Chance keeps those apart that lost the server at the same moment.
            delay = max(longest * random.random(), self._not_before - time.monotonic(), closed.pop("retry_after", 0))
            self._not_before = 0.0
            self._on_event({"type": "closed", **closed, "again_ms": round(delay * 1000)})
            await asyncio.sleep(delay)

    def _over(self, code: int | None) -> str | None:
        """Why it is over after a close with this code, or an answer with this status, if it is."""
        if code == 4003:
            self._last = None  # what comes now is the other session's to pass on
        if code not in REFUSED:
            return OVER.get(code)
        self._refusals += 1
        if self._refusals == MOST_REFUSALS:
            return REFUSED[code]
        if code in (401, 4001):
            wait = TOKEN_REFUSED_SECONDS * 2 ** (self._refusals - 1)
            self._not_before = max(self._not_before, time.monotonic() + wait)
        elif code == 4004:
            self._epoch = self._last = None  # of another numbering, or wrong
        return None

    async def _connection(self) -> dict:
        """One connection, until it has ended; says how."""
        try:
            token = await self._token()
        except OSError as error:
            return {"reason": f"no token: {error}"}
        try:
            # We listen for ourselves: see `_next`.
            socket = await connect(
                self._url,
                subprotocols=[SUBPROTOCOL],
                open_timeout=OPEN_SECONDS,
                ping_interval=None,
                **self._options,
            )
        except InvalidStatus as error:
            response = error.response
            closed = {"status": response.status_code, "reason": str(error)}
            if not may_pass(response.status_code):
                return {**closed, "over": "refused"}
            wait = response.headers.get("Retry-After", "")
            return {**closed, "retry_after": int(wait) if wait.isdecimal() else 0}
        except (OSError, WebSocketException) as error:
            return {"reason": f"no connection: {error}"}
        refresher = None
        try:
            await self._say(socket, type="hello", token=token, epoch=self._epoch, resume_after=self._last)
            refresher = asyncio.create_task(self._refresh(socket, token))
            return {"reason": await self._session(socket)}
        except ConnectionClosed:
            return {"code": socket.close_code, "reason": socket.close_reason}
        finally:
            if refresher:
                refresher.cancel()
            # Nobody waits for it: on a dead line it would be long.
            goodbye = asyncio.create_task(socket.close())
            self._goodbyes.add(goodbye)
            goodbye.add_done_callback(self._goodbyes.discard)

    @staticmethod
    async def _say(socket: ClientConnection, **frame) -> None:
        # Once the server has closed there is still to be read what it said before; after that, `recv` raises this too.
        with contextlib.suppress(ConnectionClosed):
            await socket.send(json.dumps({key: value for key, value in frame.items() if value is not None}))

    async def _session(self, socket: ClientConnection) -> str:
        """Hears what the server says, until we have a reason to leave."""
        keepalive, welcome_by = KEEPALIVE_SECONDS, time.monotonic() + WELCOME_SECONDS
        while True:
            frame = await self._next(socket, keepalive, welcome_by)
            if isinstance(frame, str):
                return frame
            match frame["type"]:
                case "pong":
                    continue
                case "welcome":
                    # Another numbering, the first one, or a gap that can't be closed: on from where the server goes on.
                    if frame["epoch"] != self._epoch or self._last is None or frame["resumed_from"] > self._last + 1:
                        self._epoch = frame["epoch"]
                        self._last = frame["resumed_from"] - 1
                    keepalive, welcome_by = frame["keepalive_seconds"], math.inf
                    self._settled_at = time.monotonic() + keepalive
                case "reconnect":
                    self._not_before = time.monotonic() + frame["after_ms"] / 1000
                case _ if isinstance(frame.get("seq"), int):
                    # What has a seq has a place in the order, also when its type is news to us.
                    if not await self._take(socket, frame):
                        return "hole"
                    continue
            self._on_event(frame)

    async def _next(self, socket: ClientConnection, keepalive: float, welcome_by: float) -> dict | str:
        """The next frame, or why to leave: above all when there is none in time, although we asked."""
        asked = False
        while True:
            # The server reads and writes until it closes; should it not, we go when the time has come.
            leave_at, why = min((welcome_by, "no welcome"), (self._not_before or math.inf, "reconnect"))
            left = leave_at - time.monotonic()
            if left <= 0:
                return why
            try:
                async with asyncio.timeout(min(keepalive, left)):
                    return json.loads(await socket.recv())
            except TimeoutError:
                if left <= keepalive:
                    continue
                if asked:
                    return "silent"
                asked = True
                await self._say(socket, type="ping")

    async def _take(self, socket: ClientConnection, frame: dict) -> bool:
        seq = frame["seq"]
        if seq > self._last + 1:
            self._on_event({"type": "hole", "from": self._last + 1, "to": seq - 1})
            return False
        if seq <= self._last:
            self._on_event({"type": "repeat", "seq": seq})
            await self._say(socket, type="ack", seq=seq)
            return True
        fanned_out = None
        if frame["type"] == "chat":
            fanned_out = viewers(self._on_chat(frame))
        else:
            self._on_event(frame)
        self._last = seq
        await self._say(socket, type="ack", seq=seq, fanned_out=fanned_out)
        return True

    async def _refresh(self, socket: ClientConnection, token: str) -> None:
        """A later `hello` refreshes the token, at half of its life, so that a slow answer is no harm."""
        replaces = False
        while (wait := refresh_in(token, replaces)) is not None:
            await asyncio.sleep(wait)
            replaces = False
            try:
                fresh = await self._token()
                if fresh != token:
                    await self._say(socket, type="hello", token=fresh)
                    self._on_event({"type": "refreshed"})
                    token, replaces = fresh, True
            except OSError:
                pass  # tried again, as long as there is time


def viewers(told: object) -> int | None:
    """How many viewers got a message, if that is what `on_chat` returned: whatever else, the server would take for a
    fault."""
    if inspect.isawaitable(told):
        raise TypeError("on_chat must be a plain function, not an async one")
    return told if type(told) is int and told >= 0 else None


def refresh_in(token: str, replaces: bool) -> float | None:
    """In how many seconds a token that we have just got, in place of another or not, is to be replaced: at half of what is
    left of it, or of its life where nothing is left by our clock, which is wrong then. None where it does not say when it
    ends."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        expires_at = float(claims["exp"])
        left = expires_at - time.time()
        life = expires_at - float(claims["iat"]) if "iat" in claims else max(left, 2 * LEAST_REFRESH_SECONDS)
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    good = min(left, life) if left > 0 else life
    return max(good / 2, min(LEAST_REFRESH_SECONDS, life / 2) if replaces else 0, LEAST_ASK_SECONDS)
