"""The worker process: it alone loads the PKCS#11 module, reads the PIN, and holds the token.

Its threads take requests from the socket it was started with, one each at a time. It ends when
the server closes that socket or ends itself, and may be killed at any moment.
"""

import argparse
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from hsm_plugin import child_process, core_dumps, deadline, wire
from hsm_plugin.errors import HsmPluginError
from hsm_plugin.gcm_iv import GcmIv
from hsm_plugin.keys import CBC_KEK_LABEL, CBC_MAC_LABEL, CbcLabels
from hsm_plugin.pin_file import read_pin
from hsm_plugin.pin_guard import PinGuard
from hsm_plugin.pkcs11_store import Pkcs11Store
from hsm_plugin.recovery import Action
from hsm_plugin.worker_operations import TokenStore, perform

_CLOSE_SECONDS = 2.0


def main(arguments: Sequence[str]) -> None:
    """Serve requests until the socket is closed; the process ends here."""
    options = _parser().parse_args(arguments)
    child_process.bind_to_parent(options.parent)
    core_dumps.forbid()
    child_process.leave_signals_to_parent()
    connection = socket.socket(fileno=options.socket)
    connection.set_inheritable(False)
    try:
        store = Pkcs11Store(
            options.module,
            options.token_label,
            lambda: read_pin(options.pin_file),
            PinGuard(options.state_dir / "pin-guard.json"),
            max_sessions=options.threads,
            cbc_labels=CbcLabels(options.key_label, options.hmac_label),
            gcm_iv=GcmIv(options.gcm_iv),
        )
    except HsmPluginError as error:
        _refuse(connection, error)
    else:
        serve(connection, store, options.threads)
        _close(store)
    os._exit(0)  # a vendor's threads or exit handlers must not hold up the end


class _Worker:
    """What the threads share: the socket and the store."""

    def __init__(self, connection: socket.socket, store: TokenStore) -> None:
        self._connection = connection
        self._store = store

    def run(self) -> None:
        """Return when the socket is closed."""
        buffer = bytearray(wire.MAX_PACKET_BYTES)
        view = memoryview(buffer)
        while size := self._connection.recv_into(buffer):
            request = wire.decode_request(view[:size])
            for packet in self._answer(request):
                self._connection.send(packet)

    def _answer(self, request: wire.Request) -> list[bytes]:
        try:
            with deadline.until(request.deadline):
                fields = perform(self._store, request.operation, request.fields)
            return wire.encode_answer(request.number, fields)
        except HsmPluginError as error:
            loss = None if self._store.is_connected else self._store.loss
            return [wire.encode_failure(request.number, error, loss)]
        except Exception as error:  # noqa: BLE001 - the thread must live; the type tells enough
            unforeseen = HsmPluginError(
                f"{request.operation.name} failed with {type(error).__name__} in the worker"
            )
            return [wire.encode_failure(request.number, unforeseen, None)]


def serve(connection: socket.socket, store: TokenStore, threads: int) -> None:
    """Return when the socket is closed, though a thread may still hang in the module."""
    worker, closed = _Worker(connection, store), threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):  # the server left before it took its answers
            worker.run()
        closed.set()

    for number in range(threads):
        threading.Thread(target=run, name=f"token-{number}", daemon=True).start()
    closed.wait()


def _refuse(connection: socket.socket, error: HsmPluginError) -> None:
    """Answer every request with the error until the socket is closed."""
    while packet := connection.recv(wire.MAX_PACKET_BYTES):
        number = wire.decode_request(memoryview(packet)).number
        connection.send(wire.encode_failure(number, error, Action.HSM_DOWN))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsm-plugin worker")
    parser.add_argument("--socket", type=int, required=True, help="an inherited descriptor")
    parser.add_argument("--parent", type=int, required=True, help="the server's process id")
    parser.add_argument("--module", required=True)
    parser.add_argument("--token-label", required=True)
    parser.add_argument("--pin-file", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--key-label", default=CBC_KEK_LABEL)
    parser.add_argument("--hmac-label", default=CBC_MAC_LABEL)
    parser.add_argument("--gcm-iv", default=GcmIv.AUTO.value)
    return parser


def _close(store: TokenStore) -> None:
    """Finalise the module, if it lets itself be finalised in time."""
    closing = threading.Thread(target=store.close, daemon=True)
    closing.start()
    closing.join(_CLOSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
