import asyncio
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from laion_assets.decoding import Decoder
from laion_assets.errors import LaionAssetsError
from laion_assets.image import Stored, Undecodable, check_and_resize
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome

QUICK = ImagePolicy(size=32, workers=2)


def encoded(picture, kind="JPEG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


GOOD = [encoded(Image.new("RGB", (60 + number, 50), (number * 9, 20, 30))) for number in range(20)]
# 36 million pixels in 100 kB, which take about a second to decode and shrink.
HEAVY = encoded(Image.new("L", (6000, 6000), 7), "PNG")


def decode(bodies, policy=QUICK):
    async def run():
        async with Decoder(policy) as decoder:
            return await asyncio.gather(*(decoder.decode(body) for body in bodies))

    return asyncio.run(run())


def is_alive(pid):
    try:
        # A zombie is dead, though its number is still taken.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=20):
    end = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "a decoding process outlived its parent"
        time.sleep(0.05)


def test_answers_are_those_of_the_same_function_here():
    bodies = [*GOOD, b"", b"<html>", GOOD[0][:-20], encoded(Image.new("RGBA", (40, 40)), "PNG")]
    assert decode(bodies) == [check_and_resize(body, QUICK) for body in bodies]


def test_a_picture_that_uses_up_its_time_takes_no_other_along():
    bodies = [*GOOD[:10], HEAVY, *GOOD[10:]]
    found = decode(bodies, QUICK.model_copy(update={"decode_timeout_s": 0.15}))
    assert found[10] == Undecodable(
        outcome=Outcome.DECODER_DIED, message="decoder died: it used up its CPU time"
    )
    assert all(isinstance(one, Stored) for index, one in enumerate(found) if index != 10)


def test_pictures_that_wait_behind_one_that_dies_are_decoded_elsewhere():
    # One process, in whose pipe the next picture waits.
    bodies = [GOOD[0], HEAVY, GOOD[1], HEAVY, HEAVY, GOOD[2], GOOD[3]]
    policy = QUICK.model_copy(update={"decode_timeout_s": 0.15, "workers": 1})
    found = decode(bodies, policy)
    for body, one in zip(bodies, found, strict=True):
        if body == HEAVY:
            assert one.outcome is Outcome.DECODER_DIED
        else:
            assert one == check_and_resize(body, policy)


def test_one_that_waits_and_is_cancelled_costs_no_other():
    async def run():
        async with Decoder(QUICK.model_copy(update={"workers": 1})) as decoder:
            await decoder.decode(GOOD[0])
            heavy, waiting = (asyncio.create_task(decoder.decode(body)) for body in (HEAVY, GOOD[1]))
            await asyncio.sleep(0.02)
            waiting.cancel()
            found = await asyncio.gather(heavy, waiting, decoder.decode(GOOD[2]), return_exceptions=True)
            return [*found, await decoder.decode(GOOD[3])]

    heavy, cancelled, *others = asyncio.run(run())
    assert isinstance(heavy, Stored)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert others == [check_and_resize(body, QUICK) for body in GOOD[2:4]]


def test_pictures_larger_than_a_pipe_go_through():
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    bodies = [encoded(noise.rotate(90 * turn), quality=95) for turn in range(4)] * 4
    assert min(map(len, bodies)) > 1 << 18
    found = decode(bodies, ImagePolicy(mode="no", workers=2))
    assert [one.encoded for one in found] == bodies


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_boxes_and_formats_reach_the_processes(kind):
    policy = ImagePolicy(size=40, format=kind, quality=9, workers=1)
    body = encoded(Image.effect_noise((80, 60), 90).convert("RGB"), "PNG")
    boxes = [(0.1, 0.1, 0.5, 0.9), (float("nan"), 0.2, 0.9, 3.0)]

    async def run():
        async with Decoder(policy) as decoder:
            return [
                await decoder.decode(body, given)
                for given in (boxes, (), boxes * 1000, [(80, 60, 90, 70)], [(0, 0, 1)])
            ]

    found = asyncio.run(run())
    assert found[:3] == [check_and_resize(body, policy, given) for given in (boxes, (), [(0, 0, 1, 1)])]
    assert found[0] != found[1]
    assert [one.outcome for one in found[3:]] == [Outcome.UNDECODABLE] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
def test_a_picture_that_needs_too_much_memory_takes_no_other_along():
    wall = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    policy = QUICK.model_copy(update={"worker_memory_bytes": 1 << 28, "max_pixels": 10**9, "workers": 1})
    found = decode([GOOD[0], wall, GOOD[1]], policy)
    assert isinstance(found[1], Undecodable)
    assert found[1].outcome in (Outcome.UNDECODABLE, Outcome.DECODER_DIED)
    assert isinstance(found[0], Stored)
    assert isinstance(found[2], Stored)


def test_a_killed_process_is_replaced_and_its_picture_decoded_again():
    async def run():
        async with Decoder(QUICK.model_copy(update={"workers": 1})) as decoder:
            first = await decoder.decode(GOOD[0])
            (pid,) = decoder.process_ids
            heavy = asyncio.create_task(decoder.decode(HEAVY))
            await asyncio.sleep(0.02)
            os.kill(pid, signal.SIGKILL)
            found = [first, await heavy, await decoder.decode(GOOD[1])]
            return found, pid, decoder.process_ids

    found, pid, pids = asyncio.run(run())
    assert all(isinstance(one, Stored) for one in found)
    assert pid not in pids


def test_a_process_killed_while_it_is_idle_costs_nothing():
    async def run():
        async with Decoder(QUICK.model_copy(update={"workers": 1})) as decoder:
            await decoder.decode(GOOD[0])
            os.kill(decoder.process_ids[0], signal.SIGKILL)
            await asyncio.sleep(0.2)
            return await decoder.decode(GOOD[1])

    assert isinstance(asyncio.run(run()), Stored)


def test_a_picture_that_kills_every_decoder_is_recorded():
    async def run():
        async with Decoder(QUICK.model_copy(update={"workers": 1})) as decoder:
            heavy = asyncio.create_task(decoder.decode(HEAVY))
            killed = set()
            while not heavy.done():
                for pid in set(decoder.process_ids) - killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                await asyncio.sleep(0.005)
            return await heavy, killed, await decoder.decode(GOOD[0])

    found, killed, after = asyncio.run(run())
    assert isinstance(after, Stored)
    assert len(killed) == 2
    assert found == Undecodable(outcome=Outcome.DECODER_DIED, message="decoder died: signal 9")


def test_processes_end_with_the_block_also_when_it_is_cancelled():
    async def run():
        started = asyncio.get_running_loop().create_future()

        async def work():
            async with Decoder(QUICK) as decoder:
                await decoder.decode(GOOD[0])
                started.set_result(decoder.process_ids)
                await decoder.decode(HEAVY)

        task = asyncio.create_task(work())
        pids = await started
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids

    wait_until_gone(asyncio.run(run()))


def test_processes_do_not_outlive_a_parent_that_is_killed():
    code = """
import asyncio, sys
from laion_assets.decoding import Decoder
from laion_assets.image_policy import ImagePolicy
async def run():
    async with Decoder(ImagePolicy(workers=2)) as decoder:
        await asyncio.gather(*(decoder.decode(b"") for _ in range(8)))
        print(*decoder.process_ids, flush=True)
        await asyncio.sleep(600)
asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        parent.kill()
    wait_until_gone(pids)


@pytest.mark.parametrize(("work", "processes"), [(0, 0), (1, 1), (2, 2), (50, 2)])
def test_no_more_processes_are_started_than_there_is_work_for(work, processes):
    async def run():
        async with Decoder(QUICK) as decoder:
            await decoder.start(work)
            started = decoder.process_ids
            await asyncio.gather(*(decoder.decode(body) for body in GOOD[:work]))
            return started, decoder.process_ids

    started, used = asyncio.run(run())
    assert len(started) == processes
    assert used == started


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("after_s", [0, 0.002, 0.005, 0.01, 0.05, 0.2])
def test_a_start_that_is_cancelled_leaves_no_process(after_s):
    def children():
        return {pid for task in Path("/proc/self/task").iterdir() for pid in read_children(task)}

    def read_children(task):
        try:
            return (task / "children").read_text().split()
        except FileNotFoundError:  # the thread has just ended
            return []

    async def run():
        async with Decoder(QUICK) as decoder:
            starting = asyncio.create_task(decoder.start(2))
            await asyncio.sleep(after_s)
            starting.cancel()

    before = children()
    asyncio.run(run())
    gc.collect()  # one that was not waited for says so now, which is an error here
    wait_until_gone(children() - before)


def test_its_processes_load_no_more_than_they_need():
    code = (
        "import sys, laion_assets.decoder_process;"
        "sys.exit(', '.join({'pydantic', 'numpy', 'pyarrow', 'asyncio'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_works_in_a_thread_that_is_not_the_main_one():
    found = []
    thread = threading.Thread(target=lambda: found.extend(decode(GOOD[:4])))
    thread.start()
    thread.join()
    assert len(found) == 4
    assert all(isinstance(one, Stored) for one in found)


SCRIPT = """
import asyncio
from laion_assets.decoding import Decoder
from laion_assets.image_policy import ImagePolicy

print("ran")

async def run():
    async with Decoder(ImagePolicy()) as decoder:
        print((await decoder.decode(b"")).outcome)

asyncio.run(run())
"""


def test_a_script_without_a_main_guard_is_not_run_again_in_the_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ran", "not_an_image"]
    assert done.stderr == ""


def test_processes_that_cannot_start_are_an_error_of_the_machine(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(LaionAssetsError, match=r"did not start \(exit code 1\)"):
        decode(GOOD[:1])
