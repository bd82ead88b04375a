"""Redirects: along, in circles, out of the web, and into the machine's own network.

0.0.0.0 stands for an internal address: no policy allows it, and Linux connects to 127.0.0.1 in its place,
where the canary is. So a gate that is open is seen, and not merely believed closed.
"""

from __future__ import annotations

from fault_server.behaviour import PICTURE, REDIRECTS, answer, behaviour, head, redirect
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

FOLLOWED = (
    ("absolute", "http://{host}:{port}/2"),
    ("scheme-relative", "//{host}:{port}/2"),
    ("relative", "2"),
    ("relative with ..", "../../../2"),
    ("of a query alone", "?2"),
    ("with a fragment", "/2#kilroy"),
    ("with a blank", "/kilroy was here"),
    ("with blanks around it", "   /2   "),
    ("beyond ASCII", "/kilröy/☃"),
    ("with escapes", "/%e2%98%83%20%2F?a=%26"),
    ("with an escaped line break", "/2%0d%0aX-Injected:%20kilroy"),
    ("with the scheme in capitals", "HTTP://{host}:{port}/2"),
    ("to 127.0.0.1's IPv4-mapped spelling", "http://[::ffff:{host}]:{port}/2"),
)
UNASKED = (
    ("to a file", "file:///etc/passwd"),
    ("to a file of another host", "file://{host}/etc/passwd"),
    ("to FTP", "ftp://{host}:{port}/kilroy.jpg"),
    ("to gopher", "gopher://{host}:{canary}/_GET%20/%20HTTP/1.0%0d%0a%0d%0a"),
    ("to dict", "dict://{host}:{canary}/kilroy"),
    ("to LDAP", "ldap://{host}:{canary}/kilroy"),
    ("to SMB", "smb://{host}/kilroy"),
    ("to telnet", "telnet://{host}:{canary}/"),
    ("to SCP", "scp://{host}/etc/passwd"),
    ("to a websocket", "ws://{host}:{port}/2"),
    ("to javascript", "javascript:alert('kilroy')"),
    ("to data", "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="),
    ("to mail", "mailto:kilroy@kilroy.invalid"),
    ("to about", "about:blank"),
    ("with a user", "http://kilroy@{host}:{port}/2"),
    ("with a password", "http://kilroy:was@{host}:{port}/2"),
    ("with an empty user", "http://@{host}:{port}/2"),
    ("with a host dressed up as a user", "http://kilroy.invalid@0.0.0.0:{canary}/"),
    ("to port 0", "http://{host}:0/"),
    ("to port 65536", "http://{host}:65536/"),
    ("to a port that is no number", "http://{host}:kilroy/"),
    ("to half an IPv6 address", "http://[::1/"),
    ("to an IPv6 address with a zone", "http://[fe80::1%25lo]:{canary}/"),
    ("to a host with a blank", "http://kilroy was/here"),
    ("to a host with an escaped NUL", "http://{host}%00.kilroy.invalid/"),
    ("to a host with an escaped slash", "http://0.0.0.0%2f.kilroy.invalid/"),
    ("to a label of 64 letters", "http://" + "k" * 64 + ".invalid/"),
    ("to a host of 300 letters", "http://" + "kilroy." * 43 + "invalid/"),
    ("of 60 kB", "/" + "kilroy" * 10_000),
)
REFUSED = (
    ("to the canary", "http://0.0.0.0:{canary}/kilroy.jpg"),
    ("to the canary without naming the scheme", "//0.0.0.0:{canary}/kilroy.jpg"),
    ("to the canary by IPv6", "http://[::]:{canary}/kilroy.jpg"),
    ("to the canary by IPv4-mapped IPv6", "http://[::ffff:0.0.0.0]:{canary}/kilroy.jpg"),
    ("to the canary by IPv4-compatible IPv6", "http://[::7f00:1]:{canary}/kilroy.jpg"),
    ("to the canary by TLS", "https://0.0.0.0:{canary}/kilroy.jpg"),
    ("to 169.254.169.254", "http://169.254.169.254/latest/meta-data/"),
    ("to 169.254.169.254 by IPv4-mapped IPv6", "http://[::ffff:169.254.169.254]/latest/meta-data/"),
    ("to 169.254.169.254 by 6to4", "http://[2002:a9fe:a9fe::1]/"),
    ("to 169.254.169.254 by NAT64", "http://[64:ff9b::a9fe:a9fe]/"),
    ("to EC2's IPv6 metadata", "http://[fd00:ec2::254]/"),
    ("to Azure's host", "http://168.63.129.16/"),
    ("to Alibaba's metadata", "http://100.100.100.200/"),
    ("to 10.0.0.1", "http://10.0.0.1/"),
    ("to 172.16.0.1", "http://172.16.0.1:8080/"),
    ("to 192.168.1.1", "http://192.168.1.1/"),
    ("to a unique local address", "http://[fd12:3456::1]/"),
    ("to a link-local address", "http://[fe80::1]/"),
    ("to everybody", "http://255.255.255.255/"),
    ("to multicast", "http://224.0.0.1/"),
    ("to port 22", "http://8.8.8.8:22/"),
    ("to port 25", "http://8.8.8.8:25/"),
    ("to port 6379", "http://[2001:4860:4860::8888]:6379/"),
)
# Not reached; a client may know the spelling as an address, as no URL, or as a name that does not exist.
SPELT = (
    ("to 0.0.0.0 as a number", "http://0:{canary}/"),
    ("to 0.0.0.0 in hexadecimal", "http://0x0:{canary}/"),
    ("to 0.0.0.0 in octal", "http://00.00.00.00:{canary}/"),
    ("to 0.0.0.0 in wide digits", "http://０.０.０.０:{canary}/"),
    ("to 0.0.0.0 in circled digits", "http://⓪.⓪.⓪.⓪:{canary}/"),
    ("to 0.0.0.0 with ideographic dots", "http://0。0。0。0:{canary}/"),
    ("to 0.0.0.0 with escaped digits", "http://%30.%30.%30.%30:{canary}/"),
    ("to 10.0.0.1 as a number", "http://167772161/"),
    ("to 10.0.0.1 with two parts", "http://10.1/"),
    ("to 169.254.169.254 as a number", "http://2852039166/"),
    ("to 169.254.169.254 in hexadecimal", "http://0xa9fea9fe/"),
    ("to 169.254.169.254 in octal", "http://0251.0376.0251.0376/"),
    ("to 169.254.169.254 in a bit of each", "http://0xa9.0376.43518/"),
)


def odd(location: bytes) -> bytes:
    """A redirect whose Location no text encoding or header should hold."""
    return redirect("{odd}").replace(b"{odd}", location)


TABLE = (
    *(
        behaviour(f"redirect {status}", [redirect("/2", status=status), answer()], O.SUCCESS, requests=2)
        for status in (301, 302, 303, 307, 308)
    ),
    # A list of choices, of which a Location is one that may be taken; and two that are history.
    behaviour("redirect 300", [redirect("/2", status=300), answer()], O.PROTOCOL, O.SUCCESS),
    behaviour("redirect 305", redirect("http://0.0.0.0:{canary}/", status=305), O.PROTOCOL, requests=1),
    behaviour("redirect 306", redirect("http://0.0.0.0:{canary}/", status=306), O.PROTOCOL, requests=1),
    *(
        behaviour(
            f"redirect {status} without a Location",
            answer(PICTURE, status=f"{status} kilroy"),
            O.PROTOCOL,
            requests=1,
        )
        for status in (301, 302, 303, 307, 308)
    ),
    # An empty reference is the page itself (RFC 3986, 5.2.2).
    behaviour("redirect with an empty Location", redirect(""), O.TOO_MANY_REDIRECTS, O.PROTOCOL, O.BAD_URL),
    behaviour("redirect to itself", redirect("/kilroy.jpg"), O.TOO_MANY_REDIRECTS, requests=REDIRECTS + 1),
    behaviour(
        "redirect to a fragment of itself", redirect("#kilroy"), O.TOO_MANY_REDIRECTS, requests=REDIRECTS + 1
    ),
    behaviour(
        "redirect to and fro",
        [redirect("/1"), redirect("/2")] * 10,
        O.TOO_MANY_REDIRECTS,
        requests=REDIRECTS + 1,
    ),
    behaviour(
        "as many redirects as are followed",
        [*(redirect(f"/{number}") for number in range(REDIRECTS)), answer()],
        O.SUCCESS,
        requests=REDIRECTS + 1,
    ),
    behaviour(
        "one redirect too many",
        [*(redirect(f"/{number}") for number in range(REDIRECTS + 1)), answer()],
        O.TOO_MANY_REDIRECTS,
        requests=REDIRECTS + 1,
    ),
    behaviour(
        "redirect to a 404",
        [redirect("/2"), answer(status="404 kilroy")],
        O.HTTP_4XX,
        requests=2,
        http_status=404,
    ),
    behaviour(
        "redirect to a 503, and again",
        [redirect("/2"), answer(status="503 kilroy"), redirect("/2"), answer()],
        O.SUCCESS,
        requests=4,
    ),
    behaviour("redirect to a closed port", redirect("http://127.0.0.1:1/"), O.CONNECT, http_status=302),
    *(
        behaviour(f"redirect {name}", [redirect(location), answer()], O.SUCCESS, requests=2)
        for name, location in FOLLOWED
    ),
    *(
        # 60 kB may be more of a header than is read at all.
        behaviour(
            f"redirect {name}",
            redirect(location),
            O.BAD_URL,
            *([O.PROTOCOL] * (len(location) > 8000)),
            requests=1,
        )
        for name, location in UNASKED
    ),
    *(
        behaviour(f"redirect {name}", redirect(location), O.REFUSED_ADDRESS, requests=1, http_status=302)
        for name, location in REFUSED
    ),
    *(
        behaviour(
            f"redirect {name}", redirect(location), O.REFUSED_ADDRESS, O.BAD_URL, O.DNS, requests=(1, 2)
        )
        for name, location in SPELT
    ),
    behaviour(
        "redirect to 0.0.0.0 with a dot behind it",
        redirect("http://0.0.0.0.:{canary}/"),
        O.REFUSED_ADDRESS,
        O.BAD_URL,
        O.DNS,
        names={"0.0.0.0.": [["0.0.0.0"]]},
    ),
    behaviour("redirect in Latin-1", [odd(b"/kilr\xf6y"), answer()], O.SUCCESS, requests=2),
    # Refused as a header or as a URL, or asked for in some spelling that is one line of a request.
    *(
        behaviour(f"redirect with {name}", [odd(location), answer()], O.SUCCESS, O.PROTOCOL, O.BAD_URL)
        for name, location in (
            ("control characters", b"/kilroy\x01\x02\x1b[31m"),
            ("NUL", b"/kilroy\0"),
            ("a tab in its path", b"/kil\troy"),
            ("a bare CR and a header", b"/2\rX-Injected: kilroy"),
            ("a bare LF and a header", b"/2\nX-Injected: kilroy"),
            ("a folded line", b"/2\r\n X-Injected: kilroy"),
            ("backslashes", b"\\\\0.0.0.0:{canary}\\kilroy"),
            ("one slash", b"http:/0.0.0.0:{canary}/"),
            ("three slashes", b"http:///0.0.0.0:{canary}/"),
            ("no scheme ahead of its colon", b"://0.0.0.0:{canary}/"),
        )
    ),
    behaviour("redirect to a scheme with a tab in it", odd(b"java\tscript:alert(1)"), O.BAD_URL, O.PROTOCOL),
    behaviour(
        "redirect with two Locations",
        [
            head(
                "Location: /2", "Location: http://0.0.0.0:{canary}/", "Content-Length: 0", status="302 kilroy"
            ),
            answer(),
        ],
        O.SUCCESS,
        O.PROTOCOL,
        O.BAD_URL,
        O.REFUSED_ADDRESS,
    ),
)
