"""Does with a Presenter what the test asks, and tells it what the Presenter hears: see puppet.mjs."""

import asyncio
import json
import sys
import time

from presenter import Presenter

VIEWERS = 3
"""How many viewers the puppet says that it passed each message on to."""


class Puppet:
    def __init__(self):
        self._runs: dict[str, asyncio.Task] = {}
        self._waiting: dict[str, asyncio.Future] = {}

    def obey(self, order: dict) -> None:
        name = order["name"]
        match order["do"]:
            case "start":
                self._runs[name] = asyncio.create_task(self._run(name, order["url"], order.get("state")))
            case "token":
                waiting = self._waiting[name]
                if not waiting.done():
                    waiting.set_result(order["token"])
            case "stop":
                self._runs[name].cancel()

    async def _run(self, name: str, url: str, state: dict | None) -> None:
        def say(event: dict) -> None:
            print(json.dumps({"name": name, "at": round(time.time() * 1000), **event}), flush=True)

        def chat(frame: dict) -> int:
            say(frame)
            return VIEWERS

        async def token() -> str:
            self._waiting[name] = asyncio.get_running_loop().create_future()
            say({"type": "token"})
            return await self._waiting[name]

        def event(frame: dict) -> bool:
            say(frame)
            return True  # is nobody's business

        presenter = Presenter(url, token, chat, event, state, proxy=None)
        try:
            why = await presenter.run()
        except asyncio.CancelledError:
            why = "stopped"
        say({"type": "over", "why": why, "state": presenter.state})


async def main() -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    puppet = Puppet()
    while line := await orders.readline():
        puppet.obey(json.loads(line))


asyncio.run(main())
