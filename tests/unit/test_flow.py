import asyncio
from contextlib import asynccontextmanager

from laion_assets.flow import Flow


@asynccontextmanager
async def growing(flow):
    task = asyncio.create_task(flow.grow())
    try:
        yield
    finally:
        task.cancel()


def test_no_more_are_in_flight_than_allowed_and_all_get_their_turn():
    async def run():
        flow = Flow(3, decoders=1)
        now, most, done = 0, 0, 0

        async def fetch():
            nonlocal now, most, done
            async with flow.fetching():
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1
            async with flow.decoding():
                await asyncio.sleep(0)
            done += 1

        await asyncio.gather(*(fetch() for _ in range(50)))
        return most, done, flow.allowed

    assert asyncio.run(run()) == (3, 50, 3)


def test_more_are_allowed_while_decoders_have_nothing_to_do_up_to_the_most():
    async def run():
        flow = Flow(1000, decoders=2)
        release, all_started = asyncio.Event(), asyncio.Event()
        started = 0

        async def fetch():
            nonlocal started
            async with flow.fetching():
                started += 1
                if started == 1000:
                    all_started.set()
                await release.wait()

        first = flow.allowed
        async with growing(flow):
            fetches = [asyncio.create_task(fetch()) for _ in range(1500)]
            async with asyncio.timeout(30):
                await all_started.wait()
            assert flow.allowed == 1000
            release.set()
            await asyncio.gather(*fetches)
        return first, started

    first, started = asyncio.run(run())
    assert first < 1000
    assert started == 1500


def test_nothing_is_added_while_decoders_have_enough_to_do():
    async def run():
        flow = Flow(1000, decoders=1)
        decoded = asyncio.Event()

        async def decode():
            async with flow.decoding():
                await decoded.wait()

        async def fetch():
            async with flow.fetching():
                await decoded.wait()

        first = flow.allowed
        tasks = [asyncio.create_task(decode()) for _ in range(5)]
        tasks += [asyncio.create_task(fetch()) for _ in range(first + 1)]
        async with growing(flow):
            await asyncio.sleep(0.5)
            decoded.set()
            await asyncio.gather(*tasks)
        return first, flow.allowed

    first, allowed = asyncio.run(run())
    assert allowed == first


def test_nobody_fetches_while_too_many_bodies_wait_and_everybody_does_after_that():
    async def run():
        flow = Flow(64, decoders=1)
        decoded, fetched = asyncio.Event(), 0

        async def decode():
            async with flow.decoding():
                await decoded.wait()

        async def fetch():
            nonlocal fetched
            async with flow.fetching():
                fetched += 1

        decoding = [asyncio.create_task(decode()) for _ in range(600)]
        await asyncio.sleep(0)
        fetching = [asyncio.create_task(fetch()) for _ in range(200)]
        await asyncio.sleep(0.1)
        before = fetched
        decoded.set()
        await asyncio.gather(*decoding, *fetching)
        return before, fetched

    # Each of the 64 turns was had once, and withheld.
    assert asyncio.run(run()) == (64, 200)


def test_one_who_gives_up_leaves_its_turn():
    async def run():
        flow = Flow(1, decoders=1)

        async def fetch():
            async with flow.fetching():
                await asyncio.sleep(60)

        holding = asyncio.create_task(fetch())
        waiting = asyncio.create_task(fetch())
        await asyncio.sleep(0.01)
        waiting.cancel()
        holding.cancel()
        await asyncio.gather(holding, waiting, return_exceptions=True)
        async with asyncio.timeout(30), flow.fetching():
            return True

    assert asyncio.run(run())
