"""The database of this process on ClickHouse's HTTP interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from meterline.runners.clickhouse_server.engine import Engine
from meterline.runners.clickhouse_server.server import Handler, Server, User


@contextmanager
def served(database: str, handler: type[Handler] = Handler) -> Iterator[str]:
    """The URL of a server on loopback that answers for an embedded database."""
    server = Server("127.0.0.1", 0, Engine(database.removeprefix("chdb://")), [User("user", "secret")], handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/default"
    finally:
        server.stop(grace_seconds=5)
        thread.join()
