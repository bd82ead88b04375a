"""Every host at an address of its own on this machine, and the canary that nobody may reach."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fault_server.behaviour import Behaviour, Seen, Visit, answer, overflow, refuse
from fault_server.certificates import Certificates

CANARY: Final = ("127.0.0.1", "127.0.0.2", "::1")


@dataclass(kw_only=True)
class Host:
    """A behaviour at work.

    Attributes:
        places: its address and ports, by the names that URLs and answers use for them.
        seen: what it saw.
        faults: exceptions of its own, which are faults of the behaviour's.
    """

    behaviour: Behaviour
    places: Mapping[str, str]
    context: ssl.SSLContext | None
    seen: Seen = field(default_factory=Seen)
    faults: list[Exception] = field(default_factory=list)

    @property
    def url(self) -> str:
        """What to ask for."""
        return self.fill(self.behaviour.url)

    def fill(self, text: str) -> str:
        """The text with its places filled in."""
        for name, value in self.places.items():
            text = text.replace(f"{{{name}}}", value)
        return text


@dataclass(kw_only=True)
class Web:
    """All hosts, and the canary.

    Attributes:
        hosts: one for each behaviour, in order.
        trusted: PEM file of the authorities that whoever asks should trust.
        canary_port: at 127.0.0.1, which 0.0.0.0 leads to, at 127.0.0.2, and at ::1 where that exists.
        canary_hits: address of the canary for each connection to it.
    """

    hosts: list[Host]
    trusted: Path
    canary_port: int
    canary_hits: list[str]

    def look_up(self, name: str) -> list[tuple[int, str]]:
        """Addresses of a name, as the resolver that these hosts have; it asks no other.

        Raises:
            socket.gaierror: if there is no such name, or that is how its server behaves.
        """
        for host in self.hosts:
            if name in host.behaviour.names:
                answers = host.behaviour.names[name]
                found = answers[min(host.seen.lookups, len(answers) - 1)]
                host.seen.lookups += 1
                if isinstance(found, int):
                    raise socket.gaierror(found, "kilroy")
                return [_family_and_address(host.fill(address)) for address in found]
        if name.rstrip(".") == "localhost":
            return [_family_and_address(address) for address in ("::1", "127.0.0.1")]
        # What the system's resolver takes for an address, however it is spelt.
        numeric = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [(family, address[0]) for family, _, _, _, address in numeric]


@contextmanager
def serving(behaviours: Sequence[Behaviour], folder: Path) -> Iterator[Web]:
    """Let the hosts and the canary stand on loopback addresses, in a thread.

    Args:
        behaviours: fewer than 60,000.
        folder: for certificates.
    """
    certificates = Certificates(folder=folder)
    with ExitStack() as stack:
        canary_port, canaries = _listen_as_canary(stack)
        listeners: list[tuple[Host, socket.socket]] = []
        for number, one in enumerate(behaviours):
            address = f"127.77.{number // 250}.{number % 250 + 1}"
            listener = stack.enter_context(socket.socket())
            listener.bind((address, 0))
            _open(listener, one, stack)
            places = {"host": address, "port": str(listener.getsockname()[1]), "canary": str(canary_port)}
            context = certificates.server_side(one.certificate, address) if one.certificate else None
            listeners.append((Host(behaviour=one, places=places, context=context), listener))
        hits: list[str] = []
        stack.enter_context(_running(listeners, canaries, hits))
        yield Web(
            hosts=[host for host, _ in listeners],
            trusted=certificates.trusted,
            canary_port=canary_port,
            canary_hits=hits,
        )


def _listen_as_canary(stack: ExitStack) -> tuple[int, list[socket.socket]]:
    """One port at every address that stands for this machine's inside."""
    port, listeners = 0, []
    for address in CANARY:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = stack.enter_context(socket.socket(family))
        try:
            listener.bind((address, port))
        except OSError:
            if family == socket.AF_INET6:  # a machine without IPv6, or a port taken there
                continue
            raise
        listener.listen()
        port = listener.getsockname()[1]
        listeners.append(listener)
    return port, listeners


def _open(listener: socket.socket, behaviour: Behaviour, stack: ExitStack) -> None:
    if behaviour.conduct is refuse:
        return  # bound, so that nobody else listens there
    listener.listen(0 if behaviour.conduct is overflow else 100)
    if behaviour.conduct is overflow:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())


@contextmanager
def _running(
    listeners: Sequence[tuple[Host, socket.socket]], canaries: Sequence[socket.socket], hits: list[str]
) -> Iterator[None]:
    ready, loops = threading.Event(), []

    async def hit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hits.append(str(writer.get_extra_info("sockname")))
        # As inviting as can be: an answer to anything, which only counts if it was let through.
        writer.write(answer())
        writer.close()

    async def run() -> None:
        stop = asyncio.Event()
        servers = [await asyncio.start_server(hit, sock=listener) for listener in canaries]
        for host, listener in listeners:
            if host.behaviour.conduct not in (refuse, overflow):
                servers.append(await asyncio.start_server(_visitor(host), sock=listener))
        loops.append((asyncio.get_running_loop(), stop))
        ready.set()
        await stop.wait()
        for server in servers:
            server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="fault server")
    thread.start()
    try:
        ready.wait()
        yield
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _visitor(host: Host):
    tasks = set()

    def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio before 3.12 complains of its own ones that are cancelled.
        task = asyncio.create_task(_receive(host, reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return visited


async def _receive(host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host.seen.connections += 1
    try:
        if host.context is not None:
            await writer.start_tls(host.context)
        await _attend(host, reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        pass  # the client has left, as it may at any time
    except Exception as error:  # noqa: BLE001 (told by whoever runs this)
        host.faults.append(error)
    finally:
        writer.close()


async def _attend(host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request, or act at once."""
    behaviour, seen = host.behaviour, host.seen
    visit = Visit(reader=reader, writer=writer, number=0, seen=seen, places=host.places)
    if behaviour.at_accept:
        await _act(visit, behaviour)
        return
    # A host that speaks plain hangs up on the hello of TLS, which has no end that it would know.
    while (first := await reader.readexactly(1)).isalpha():
        seen.requests.append(first + await reader.readuntil(b"\r\n\r\n"))
        visit.number = len(seen.requests)
        await _act(visit, behaviour)
        if not behaviour.keeps_alive:
            return


async def _act(visit: Visit, behaviour: Behaviour) -> None:
    conduct = behaviour.conduct
    if isinstance(conduct, bytes):
        await visit.send(conduct)
    elif callable(conduct):
        await conduct(visit)
    else:
        await visit.send(conduct[min(visit.number, len(conduct)) - 1])


def _family_and_address(address: str) -> tuple[int, str]:
    return (socket.AF_INET6 if ":" in address else socket.AF_INET), address
