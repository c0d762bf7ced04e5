"""The server's end of the front process: listeners that outlive it, and its supervision.

The listeners belong to the server, so when a front ends, the next one finds in them the clients
that came meanwhile.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from hsm_plugin.errors import ConfigError
from hsm_plugin.front_settings import AllowList, FrontSettings, TlsSettings
from hsm_plugin.log import event

_START_SECONDS = 10.0
_EXIT_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.1
_LAST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Listeners:
    """Sockets that listen; the front accepts."""

    unix: socket.socket | None
    tcp: socket.socket | None

    def close(self) -> None:
        """Close both."""
        for listener in (self.unix, self.tcp):
            if listener is not None:
                listener.close()


class FrontProcess:
    """One front at a time, in front of one gRPC server."""

    def __init__(self, allow: AllowList, tls: TlsSettings | None, *, as_json: bool) -> None:
        """Choose the tag; nothing runs yet."""
        self.tag = secrets.token_hex(16)
        self._listeners = Listeners(None, None)
        self._allow = allow
        self._tls = tls
        self._as_json = as_json
        self._upstream = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None

    def put_behind(self, server: grpc.aio.Server, folder: Path) -> None:
        """Give the server a socket that nobody but the front can reach.

        Its file exists for a moment, in a new folder of mode 0700 in `folder`. The descriptor
        of the file is a way to it that stays; whoever came in that moment has no tag.
        """
        private = tempfile.mkdtemp(prefix=".front-", dir=folder)
        try:
            way = os.open(private, os.O_PATH | os.O_DIRECTORY)
            try:
                server.add_insecure_port(f"unix:/proc/self/fd/{way}/s")
            finally:
                os.close(way)
            self._upstream = os.open(f"{private}/s", os.O_PATH)
        finally:
            shutil.rmtree(private)

    async def start(self, listeners: Listeners) -> None:
        """Return when the front accepts; ConfigError when it says what is wrong."""
        self._listeners = listeners
        await self._start()
        self._watch = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Return when the front has ended, and its connections with it."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._process is not None:
            await _end(self._process)
        self._listeners.close()
        if self._upstream >= 0:
            os.close(self._upstream)

    async def _start(self) -> None:
        settings = FrontSettings(
            tag=self.tag,
            upstream=self._upstream,
            allow=self._allow,
            unix=_number(self._listeners.unix),
            tcp=_number(self._listeners.tcp),
            tls=self._tls,
            as_json=self._as_json,
        )
        numbers = (settings.upstream, settings.unix, settings.tcp)
        self._process = _spawn([number for number in numbers if number is not None])
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = await asyncio.to_thread(_tell, self._process, settings.to_line())
        except TimeoutError:
            line = b""
        if not line:
            await _end(self._process)
            raise ConfigError(
                "the process that accepts connections did not start", hint="see the log before this"
            )
        answer = json.loads(line)
        if "error" in answer:
            await _end(self._process)
            raise ConfigError(answer["error"], hint=answer["hint"])

    async def _keep(self) -> None:
        """Start another front whenever one ends. Never returns; cancel it."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            assert self._process is not None  # noqa: S101 - `start` came first
            code = await _ended(self._process)
            event(
                "front.ended",
                "The process that accepts connections ended; starting another",
                level=logging.ERROR,
                exit_code=code,
            )
            await asyncio.sleep(pause)
            try:
                await self._start()
                pause = _FIRST_PAUSE_SECONDS
            except (ConfigError, OSError) as error:
                pause = min(2 * pause, _LAST_PAUSE_SECONDS)
                event("front.failed", str(error), level=logging.ERROR)


def _number(listener: socket.socket | None) -> int | None:
    return None if listener is None else listener.fileno()


def _spawn(descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hsm_plugin.front", str(os.getpid())],
        pass_fds=descriptors,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _tell(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """Return what the front answers to its settings; empty when it ended."""
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101 - started above
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    return process.stdout.readline()


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code once the process has ended, however long it lives."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    try:
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
        return process.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which ends it; kill it when that does not."""
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101 - started above
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        await asyncio.to_thread(process.wait, _EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
