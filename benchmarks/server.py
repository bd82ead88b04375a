"""A web on the loopback interface: nginx on many addresses, as slow as the real one and failing as often.

The sleep is before each answer; connecting and TLS take no round trips' time.
"""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.measuring import Failed
from benchmarks.urls import HOSTS, Ports, address

LATENCY_S: Final = 0.15
WORKERS: Final = 2
# Hosts that share a certificate: with this many names in it, leaf and intermediate take 2.5 to 3 kB.
_HOSTS_PER_CERTIFICATE: Final = 128
_START_S: Final = 20.0
_STATUSES: Final = (400, 401, 403, 404, 500, 503)
_OPT_OUT: Final = "add_header X-Robots-Tag noai;"
_BACKLOG: Final = 4096


class Missing(Failed):
    """A program that the benchmark needs; the message says what to install."""


def check_programs() -> str:
    """Version of nginx.

    Raises:
        Missing: if a program or a module of it is missing.
    """
    for program, package in (("nginx", "nginx"), ("openssl", "openssl")):
        if _program(program) is None:
            raise Missing(f"{program} is needed; on Debian: apt-get install {package}")
    if not _echo_module().exists():
        raise Missing("nginx's echo module is needed; on Debian: apt-get install libnginx-mod-http-echo")
    found = subprocess.run([_nginx(), "-v"], capture_output=True, text=True, check=True)
    return found.stderr.strip().rsplit("/", 1)[-1]


@contextmanager
def serving(folder: Path, corpora: Path) -> Iterator[Ports]:
    """Serve the corpora while the block runs.

    Args:
        folder: for configuration, certificates and logs; :func:`trusted_bundle` is made there, too.
        corpora: folder of folders of pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = _free_ports()
    _make_certificates(folder)
    (folder / "pages").mkdir(exist_ok=True)
    (folder / "pages" / "page.html").write_text("<!doctype html><title>Gone</title><p>Nothing here.\n" * 40)
    configuration = folder / "nginx.conf"
    configuration.write_text(_configuration(folder, corpora, ports))
    with ExitStack() as stack:
        for host in range(HOSTS):
            # The kernel accepts for a socket that listens; nobody ever takes the connection over.
            silent = stack.enter_context(socket.socket())
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            silent.bind((address(host), ports.silent))
            silent.listen(_BACKLOG)
        nginx = subprocess.Popen([_nginx(), "-p", str(folder), "-c", str(configuration)])
        try:
            _wait_until_up(nginx, ports)
            yield ports
        finally:
            nginx.terminate()
            nginx.wait()


def trusted_bundle(folder: Path) -> Path:
    """The system's authorities and the benchmark's own, in one file.

    All of them, because to read them is what making a TLS context costs: img2dataset makes one for each
    connection where Python is older than 3.12.
    """
    own = (folder / "ca.pem").read_text()
    system = ssl.get_default_verify_paths().openssl_cafile
    candidates = [Path(system), Path("/etc/ssl/certs/ca-certificates.crt")]
    found = next((path.read_text() for path in candidates if path.is_file()), "")
    bundle = folder / "bundle.pem"
    bundle.write_text(found + own)
    return bundle


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _nginx() -> str:
    found = _program("nginx")
    assert found is not None
    return found


def _echo_module() -> Path:
    built = subprocess.run([_nginx(), "-V"], capture_output=True, text=True, check=True).stderr
    folder = re.search(r"--modules-path=(\S+)", built)
    return Path(folder[1] if folder else "/usr/lib/nginx/modules") / "ngx_http_echo_module.so"


def _free_ports() -> Ports:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(5)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        http, https, untrusted, refused, silent = (listener.getsockname()[1] for listener in sockets)
    return Ports(http=http, https=https, untrusted=untrusted, refused=refused, silent=silent)


def _wait_until_up(nginx: subprocess.Popen[bytes], ports: Ports) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and nginx.poll() is None:
        try:
            socket.create_connection((address(HOSTS - 1), ports.https), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("nginx did not start: its own message is above, or in error.log")


def _configuration(folder: Path, corpora: Path, ports: Ports) -> str:
    statuses = "\n".join(
        f"""
        location /{status}/ {{ echo_sleep {LATENCY_S}; echo_exec @{status}; }}
        location @{status} {{ return {status}; }}"""
        for status in _STATUSES
    )
    locations = f"""
        keepalive_timeout 75s;
        location /files/ {{ echo_sleep {LATENCY_S}; echo_exec @files; }}
        location @files {{ rewrite ^/files(/.*)$ $1 break; root {corpora}; }}
        location /opt_out/ {{ echo_sleep {LATENCY_S}; echo_exec @opt_out; }}
        location @opt_out {{ rewrite ^/opt_out(/.*)$ $1 break; root {corpora}; {_OPT_OUT} }}
        location /undecodable/ {{ echo_sleep {LATENCY_S}; echo_exec @undecodable; }}
        location @undecodable {{ rewrite ^ /page.html break; root {folder / "pages"}; }}
        location /closed/ {{ echo_sleep {LATENCY_S}; echo_exec @closed; }}
        location @closed {{ return 444; }}{statuses}"""
    servers = []
    for group, first in enumerate(range(0, HOSTS, _HOSTS_PER_CERTIFICATE)):
        hosts = range(first, min(first + _HOSTS_PER_CERTIFICATE, HOSTS))
        for certificate, port, suffix in (
            (f"leaf{group}", ports.https, " ssl"),
            ("untrusted", ports.untrusted, " ssl"),
            (None, ports.http, ""),
        ):
            listens = " ".join(f"listen {address(host)}:{port}{suffix};" for host in hosts)
            tls = ""
            if certificate is not None:
                stem = folder / certificate
                tls = f"ssl_certificate {stem}.chain.pem; ssl_certificate_key {stem}.key;"
            servers.append(f"    server {{\n        {listens}\n        {tls}{locations}\n    }}")
    newline = "\n"
    return f"""
load_module {_echo_module()};
user {getpass.getuser()};
daemon off;
worker_processes {WORKERS};
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    types {{ image/jpeg jpg; image/png png; image/webp webp; image/gif gif; text/html html; }}
    default_type text/html;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{newline.join(servers)}
}}
"""


def _make_certificates(folder: Path) -> None:
    """A root and an intermediate with RSA keys, and leaves with P-256 ones, as most of the web has them."""
    _openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj /CN=root")
    (folder / "ca.ext").write_text("basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n")
    _openssl(folder, "req -newkey rsa:2048 -nodes -keyout mid.key -out mid.csr -subj /CN=intermediate")
    _sign(folder, "mid", "ca", "ca.ext")
    for group, first in enumerate(range(0, HOSTS, _HOSTS_PER_CERTIFICATE)):
        hosts = range(first, min(first + _HOSTS_PER_CERTIFICATE, HOSTS))
        names = ",".join(f"IP:{address(host)}" for host in hosts)
        _make_leaf(folder, f"leaf{group}", names)
        _sign(folder, f"leaf{group}", "mid", f"leaf{group}.ext")
        chain = (folder / f"leaf{group}.pem").read_text() + (folder / "mid.pem").read_text()
        (folder / f"leaf{group}.chain.pem").write_text(chain)
    _make_leaf(folder, "untrusted", f"IP:{address(0)}")
    _openssl(folder, "x509 -req -in untrusted.csr -signkey untrusted.key -out untrusted.chain.pem -days 30")


def _make_leaf(folder: Path, name: str, names: str) -> None:
    (folder / f"{name}.ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    _openssl(folder, f"req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}")


def _sign(folder: Path, name: str, authority: str, extensions: str) -> None:
    signer = f"-CA {authority}.pem -CAkey {authority}.key -CAcreateserial -extfile {extensions}"
    _openssl(folder, f"x509 -req -in {name}.csr {signer} -out {name}.pem -days 30 -sha256")


def _openssl(folder: Path, arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments.split()], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments}: {done.stderr[-500:]}")
