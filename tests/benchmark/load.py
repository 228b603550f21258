"""Measure the server's memory after rounds of visitors, floods and rests. `python -m tests.benchmark.load`"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.server import memory_of, serve


async def visit(url: str, calls: int, chance: random.Random) -> None:
    """A visitor who draws single digits and, every fifth time, a sheet of twenty."""
    async with httpx.AsyncClient(timeout=600) as http:
        for call in range(calls):
            seed = chance.randrange(10**6)
            name, data = ("sheet", ["0-9", 20, seed, 2, 1.0]) if call % 5 == 4 else ("draw", ["7", seed, 2, 1.0])
            answer = await http.post(f"{url}/gradio_api/call/{name}", json={"data": data})
            if answer.status_code == 200:
                await http.get(f"{url}/gradio_api/call/{name}/{answer.json()['event_id']}")


async def flood(url: str, count: int) -> int:
    """Send `count` calls at once without reading their results; returns how many the queue accepted."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        calls = [http.post(f"{url}/gradio_api/call/sheet", json={"data": ["0-9", 20, 1, 2, 1.0]}) for _ in range(count)]
        return sum(answer.status_code == 200 for answer in await asyncio.gather(*calls))


async def crowd(url: str, clients: int, calls: int) -> None:
    await asyncio.gather(*(visit(url, calls, random.Random(number)) for number in range(clients)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.load", description=__doc__.splitlines()[0])
    for name, default in (("rounds", 3), ("clients", 40), ("calls", 30), ("flood", 500), ("rest", 60)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    with TemporaryDirectory() as folder, serve(Path(folder) / "log") as (url, process):
        print(f"started: {memory_of(process):.0f} MB")
        for number in range(1, options.rounds + 1):
            asyncio.run(crowd(url, options.clients, options.calls))
            crowded = memory_of(process)
            taken = asyncio.run(flood(url, options.flood))
            flooded = memory_of(process)
            time.sleep(options.rest)
            print(
                f"round {number}: {crowded:.0f} MB after {options.clients} visitors, {flooded:.0f} after a flood of "
                f"{options.flood} calls ({taken} taken), {memory_of(process):.0f} after {options.rest} s of rest"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
