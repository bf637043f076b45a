"""The pool that Flink's TaskManagers ask for Python workers, for a cluster on this machine.

Beam's own listens on all addresses, runs whatever `python` the PATH finds, never reads what its workers print, so that
one that prints much hangs, and mixes up the workers of two TaskManagers, who name theirs alike.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor

_LOG = logging.getLogger("meterline.worker_pool")

# A worker that is asked to stop ends by itself, as its TaskManager hangs up.
_PATIENCE_SECONDS = 10
_WORKER = "meterline.runners.flink.worker"


class _Pool(BeamFnExternalWorkerPoolServicer):
    def __init__(self) -> None:
        super().__init__(use_process=True)
        # Two TaskManagers name their workers alike: neither may stop the other's.
        self._workers: list[tuple[str, str, subprocess.Popen[bytes]]] = []

    def StartWorker(
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: object
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        name, address = request.worker_id, request.control_endpoint.url
        try:
            worker = subprocess.Popen([sys.executable, "-m", _WORKER, address, name], stdin=subprocess.DEVNULL)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        _LOG.info("worker %s for %s is process %d", name, address, worker.pid)
        self._workers.append((name, address, worker))
        threading.Thread(target=self._see_it_end, args=(name, address, worker), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: object
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        for name, address, worker in self._workers:
            if name == request.worker_id:
                threading.Thread(target=self._stop, args=(address, worker), daemon=True).start()
        return beam_fn_api_pb2.StopWorkerResponse()

    def _see_it_end(self, name: str, address: str, worker: subprocess.Popen[bytes]) -> None:
        code = worker.wait()
        self._workers.remove((name, address, worker))
        _LOG.info("worker %s for %s, process %d, ended with %d", name, address, worker.pid, code)

    @staticmethod
    def _stop(address: str, worker: subprocess.Popen[bytes]) -> None:
        time.sleep(_PATIENCE_SECONDS)
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            # Nobody is there whom it could work for.
            if worker.poll() is None:
                worker.kill()


def serve(port: int) -> None:
    """Answer until the process is ended."""
    # A TaskManager may ping as often as it likes.
    settings = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=settings)
    server.add_insecure_port(f"127.0.0.1:{port}")
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(_Pool(), server)
    server.start()
    _LOG.info("starts workers with %s, asked at port %d", sys.executable, port)
    server.wait_for_termination()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(int(sys.argv[1]))
