"""`meterline clickhouse serve`."""

from __future__ import annotations

import errno
import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, unquote, urlsplit

import typer

if TYPE_CHECKING:
    from meterline.runners.clickhouse_server.server import User

app = typer.Typer(help="An embedded ClickHouse for several processes of one machine.", no_args_is_help=True)

PASSWORD = "METERLINE_SERVE_PASSWORD"
_BROKEN_OFF = 1


@app.callback()
def _group() -> None:
    """With one command alone, typer would leave its name out."""


@app.command()
def serve(
    clickhouse: Annotated[
        str, typer.Option("--clickhouse", envvar="METERLINE_CLICKHOUSE", help="chdb://FOLDER, the database to offer.")
    ] = "chdb://meterline-db",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, and prints it.")] = 8123,
    listen: Annotated[str, typer.Option(help="An address of this machine; others than loopback need a password.")] = (
        "127.0.0.1"
    ),
    user: Annotated[str, typer.Option(help="Who may do everything.")] = "default",
    password_file: Annotated[
        Path | None,
        typer.Option(help=f"File with that user's password; else ${PASSWORD}; else there is none (on loopback)."),
    ] = None,
    read_only_user: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Who may only read, and the file with the password. May be repeated."),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write url, port and pid as JSON to this file once requests are taken.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print that JSON as a line instead of a sentence.")] = False,
    grace_seconds: Annotated[
        int, typer.Option(min=0, help="How long requests at work may go on after SIGTERM or SIGINT.")
    ] = 10,
) -> None:
    """Offer an embedded database on ClickHouse's HTTP interface.

    Several processes, and people with their own clients, can then use it at the same time:
    `--clickhouse http://127.0.0.1:8123/default`. It is meant for one machine; in production, use a ClickHouse server.
    """
    gc.enable()  # The command line goes without until a job runs; this one runs for days.
    _log_to_stderr()
    folder = _folder(clickhouse)
    from meterline.runners.clickhouse_server.server import User

    password = _read(password_file) if password_file else os.environ.get(PASSWORD, "")
    users = [User(user, password), *(_reader(one) for one in read_only_user or [])]
    _check(listen, users)
    _serve(folder, listen, port, users, ready_file, as_json, grace_seconds)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("meterline.clickhouse.serve")
    log.handlers = [handler]
    log.setLevel(logging.WARNING)
    log.propagate = False


def _serve(
    folder: str,
    listen: str,
    port: int,
    users: list[User],
    ready_file: Path | None,
    as_json: bool,
    grace_seconds: int,
) -> None:
    import chdb

    from meterline.runners.clickhouse_server.engine import Engine
    from meterline.runners.clickhouse_server.server import Server, StillAtWork
    from meterline.transforms import clickhouse

    if ready_file:
        _check_ready(ready_file)
    url = f"chdb://{folder}"
    try:
        clickhouse.check_folder(Path(folder))
        if ready_file:
            ready_file.unlink(missing_ok=True)  # Of a server that was killed: nobody may take it for this one's.
        engine = Engine(folder, readers=any(one.is_reader for one in users))
    except (OSError, RuntimeError, chdb.ChdbError) as error:
        raise clickhouse.DatabaseError(f"no ClickHouse answers at {url}: {clickhouse.cause(error)}") from None
    try:
        clickhouse.migrate(url)
        clickhouse.connect(url).close()
        clickhouse.connect.cache_clear()
        server = Server(listen, port, engine, users)
    except OSError as error:
        engine.close()
        raise typer.BadParameter(_cannot_listen(listen, port, error)) from None
    except BaseException:
        engine.close()
        raise
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda number, frame: stop.set())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    shown = f"[{listen}]" if ":" in listen else listen
    name = "" if users[0].name == "default" and not users[0].password else f"{quote(users[0].name, safe='')}@"
    about = {
        "url": f"http://{name}{shown}:{server.server_port}/default",
        "port": server.server_port,
        "pid": os.getpid(),
    }
    said = json.dumps(about) + "\n"
    try:
        if ready_file:
            _write(ready_file, said)
        typer.echo(said.rstrip() if as_json else f"{url} is offered at {about['url']} (Ctrl-C ends it)")
        sys.stdout.flush()
        while not stop.wait(0.5):
            pass
    finally:
        with suppress(OSError):
            if ready_file and ready_file.read_text(encoding="utf-8") == said:
                ready_file.unlink()
        try:
            broken = server.stop(grace_seconds)
        except StillAtWork as still:
            _tell_broken(still.broken)
            sys.stdout.flush()
            # Nothing that was acknowledged is lost: it is as after `kill -9`. To end in order is to wait for them.
            os._exit(_BROKEN_OFF)
    if broken:
        _tell_broken(broken)
        raise typer.Exit(_BROKEN_OFF)
    if not as_json:
        typer.echo("stopped; all is stored")


def _tell_broken(broken: int) -> None:
    what = "1 statement was" if broken == 1 else f"{broken} statements were"
    typer.echo(f"stopped; {what} broken off; all that was acknowledged is stored", err=True)


def _cannot_listen(listen: str, port: int, error: OSError) -> str:
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or isinstance(error, socket.gaierror):
        return f"cannot listen on {listen}: it is no address of this machine"
    return f"cannot listen on {listen}:{port}: {error.strerror}; choose another --port, or 0"


def _folder(url: str) -> str:
    parts = urlsplit(url)
    folder = unquote(parts.netloc + parts.path)
    if parts.scheme != "chdb" or not folder:
        raise typer.BadParameter(f"expected chdb://FOLDER, got {url!r}: a server needs nobody to offer it")
    if folder == ":memory:":
        raise typer.BadParameter("expected a folder: of chdb://:memory: nothing would be kept")
    if "?" in folder or "&" in folder:
        raise typer.BadParameter(f"the embedded engine cannot use a folder with ? or & in its name: {folder!r}")
    return folder


def _read(file: Path) -> str:
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"the password file {file} cannot be read: {error}") from None
    if not password:
        raise typer.BadParameter(f"the password file {file} is empty")
    return password


def _reader(given: str) -> User:
    from meterline.runners.clickhouse_server.server import User

    name, _, file = given.partition("=")
    if not name or not file:
        raise typer.BadParameter(f"expected --read-only-user NAME=FILE with the password in the file, got {given!r}")
    return User(name, _read(Path(file)), is_reader=True)


def _check(listen: str, users: list[User]) -> None:
    try:
        is_loopback = ipaddress.ip_address(listen).is_loopback
    except ValueError:
        if listen != "localhost":
            raise typer.BadParameter(f"expected an address like 127.0.0.1 for --listen, got {listen!r}") from None
        is_loopback = True
    if not is_loopback and not users[0].password:
        raise typer.BadParameter(
            f"refusing to listen on {listen} without a password, where others could read and delete everything: "
            f"give --password-file or ${PASSWORD}, or listen on 127.0.0.1"
        )
    names = [user.name for user in users]
    if len(set(names)) < len(names) or not all(names):
        raise typer.BadParameter(f"expected users with different names, got {', '.join(map(repr, names))}")


def _check_ready(file: Path) -> None:
    """Before the server starts: whether there can be one."""
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise typer.BadParameter(f"the ready file {file} cannot be written: {error}") from None


def _write(file: Path, text: str) -> None:
    """All of it or nothing, for those that wait for the file."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
            new.write(text)
        os.replace(new.name, file)
    except OSError as error:
        raise typer.BadParameter(f"the ready file {file} cannot be written: {error}") from None
