"""Names: that do not exist, that lead inside, that lead elsewhere the second time."""

from __future__ import annotations

import socket

from fault_server.behaviour import answer, behaviour, redirect, refuse
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

AWAY = "http://0.0.0.0:{canary}/"


def named(name: str, conduct, *expected: O, answers, host: str | None = None, **options):
    """A host by name.

    Args:
        answers: what each lookup gives, in turn.
        host: the name as the resolver sees it, where the URL spells it otherwise.
    """
    label = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
    host = host or f"{label}.invalid"
    options = {"url": f"http://{host}:{{port}}/kilroy.jpg", **options}
    return behaviour(f"name {name}", conduct, *expected, names={host: answers}, **options)


def inside(name: str, *addresses: str):
    """A name whose every address is refused; the canary is behind those that lead anywhere."""
    label = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    url = f"http://{label}.invalid:{{canary}}/"
    return named(
        f"with {name}", refuse, O.REFUSED_ADDRESS, answers=[addresses], host=f"{label}.invalid", url=url
    )


TABLE = (
    named("that is there", answer(), O.SUCCESS, answers=[["{host}"]], requests=1),
    named("that does not exist", refuse, O.DNS, answers=[socket.EAI_NONAME], lookups=(1,)),
    named("without addresses", refuse, O.DNS, answers=[[]]),
    named("whose server fails", refuse, O.DNS, answers=[socket.EAI_AGAIN], lookups=(2,)),
    named("whose server fails once", answer(), O.SUCCESS, answers=[socket.EAI_AGAIN, ["{host}"]], requests=1),
    named("whose server fails for good", refuse, O.DNS, answers=[socket.EAI_FAIL]),
    named("of a host that is off", refuse, O.CONNECT, answers=[["{host}"]]),
    named(
        "in capitals",
        answer(),
        O.SUCCESS,
        answers=[["{host}"]],
        host="capitals.invalid",
        url="http://CAPITALS.Invalid:{port}/",
    ),
    named(
        "beyond ASCII",
        answer(),
        O.SUCCESS,
        answers=[["{host}"]],
        host="xn--bcher-kva.invalid",
        url="http://Bücher.invalid:{port}/",
    ),
    named("with an underscore", answer(), O.SUCCESS, answers=[["{host}"]], host="kilroy_was.here.invalid"),
    named(
        "beyond ASCII in a redirect",
        [redirect("http://bücher-2.invalid:{port}/"), answer()],
        O.SUCCESS,
        answers=[["{host}"]],
        host="xn--bcher-2-n2a.invalid",
        url="http://{host}:{port}/",
        requests=2,
    ),
    named(
        "that does not exist in a redirect",
        redirect("http://gone-by-redirect.invalid/"),
        O.DNS,
        answers=[socket.EAI_NONAME],
        host="gone-by-redirect.invalid",
        url="http://{host}:{port}/",
        requests=1,
        http_status=302,
    ),
    inside("0.0.0.0", "0.0.0.0"),
    inside("an IPv6 zero", "::"),
    inside("a mapped zero", "::ffff:0.0.0.0"),
    inside("a private address", "10.0.0.1"),
    inside("a mapped private address", "::ffff:10.0.0.1"),
    inside("a metadata address", "169.254.169.254"),
    inside("another metadata address", "fd00:ec2::254"),
    inside("a link-local address", "fe80::1"),
    inside("100 addresses inside", *(f"10.0.0.{number}" for number in range(99)), "0.0.0.0"),
    named("with an address inside and one outside", answer(), O.SUCCESS, answers=[["0.0.0.0", "{host}"]]),
    # A client may give up after a few addresses.
    named(
        "with addresses inside and one outside",
        answer(),
        O.SUCCESS,
        O.REFUSED_ADDRESS,
        answers=[["0.0.0.0", "10.0.0.1", "169.254.169.254", "{host}"]],
    ),
    named("with an address outside and one inside", answer(), O.SUCCESS, answers=[["{host}", "0.0.0.0"]]),
    named("with 100 addresses", answer(), O.SUCCESS, answers=[["{host}"] * 100]),
    named(
        "that redirects inside",
        redirect(AWAY),
        O.REFUSED_ADDRESS,
        answers=[["{host}"]],
        requests=1,
    ),
    # A client that keeps the first answer for the second request does right, too.
    *(
        named(
            f"that moves {where} before the redirect",
            [redirect("http://rebound-" + label + ".invalid:{canary}/", "Connection: close"), answer()],
            O.REFUSED_ADDRESS,
            O.CONNECT,
            answers=[["{host}"], [address]],
            host=f"rebound-{label}.invalid",
            requests=1,
        )
        for where, label, address in (
            ("to 0.0.0.0", "a", "0.0.0.0"),
            ("to an IPv6 zero", "b", "::"),
            ("inside", "c", "10.0.0.1"),
        )
    ),
    named(
        "that moves inside before the retry",
        [answer(status="503 kilroy"), answer()],
        O.SUCCESS,
        O.REFUSED_ADDRESS,
        answers=[["{host}"], ["0.0.0.0"]],
        requests=(1, 2),
    ),
    named(
        "that moves to and fro",
        refuse,
        O.REFUSED_ADDRESS,
        answers=[["0.0.0.0"], ["10.0.0.1"]] * 5,
        url="http://that-moves-to-and-fro.invalid:{canary}/",
    ),
)
