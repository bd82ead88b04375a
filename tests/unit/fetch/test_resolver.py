import asyncio
import errno
import os
import resource
import socket
import threading

import pytest

from laion_assets.fetch.resolver import Resolver, look_up_host


def using(look_up, use):
    async def run():
        resolver = Resolver(look_up, at_once=4)
        try:
            return await use(resolver)
        finally:
            await resolver.close()

    return asyncio.run(run())


def test_ipv6_comes_first_and_two_of_each_family_are_enough():
    addresses = [(socket.AF_INET, f"192.0.2.{number}") for number in range(100)]
    addresses += [(socket.AF_INET6, f"2001:db8::{number}") for number in range(100)]
    found = using(lambda host: addresses, lambda resolver: resolver.resolve("many.test"))
    assert found == ["2001:db8::0", "2001:db8::1", "192.0.2.0", "192.0.2.1"]


def test_many_askers_are_one_lookup():
    asked, go = [], threading.Event()

    def look_up(host):
        asked.append(host)
        go.wait(10)
        return [(socket.AF_INET, "192.0.2.1")]

    async def use(resolver):
        asking = [asyncio.create_task(resolver.resolve("one.test")) for _ in range(50)]
        await asyncio.sleep(0.05)
        asking[0].cancel()  # who gives up does not end it for the others
        go.set()
        found = await asyncio.gather(*asking[1:])
        found.append(await resolver.resolve("one.test"))
        return found

    assert using(look_up, use) == [["192.0.2.1"]] * 50
    assert asked == ["one.test"]


@pytest.mark.parametrize(("number", "lookups"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_no_such_name_is_remembered_and_a_failing_name_server_is_not(number, lookups):
    asked = []

    def look_up(host):
        asked.append(host)
        raise socket.gaierror(number, "whatever")

    async def use(resolver):
        for _ in range(3):
            with pytest.raises(socket.gaierror) as caught:
                await resolver.resolve("gone.test")
            assert caught.value.errno == number

    using(look_up, use)
    assert len(asked) == lookups


def test_a_lookup_without_files_is_our_failure_and_not_the_name_s():
    def look_up(host):
        raise socket.gaierror(socket.EAI_NONAME, "no files, says the resolver")

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def use(resolver):
        descriptor = os.open(os.devnull, os.O_RDONLY)
        os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 10, hard))
        try:
            with pytest.raises(OSError, match="open files") as caught:
                await resolver.resolve("some.test")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE

    using(look_up, use)


def test_the_system_s_resolver_knows_this_machine():
    assert (socket.AF_INET, "127.0.0.1") in look_up_host("127.0.0.1")
