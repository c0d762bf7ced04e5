"""Killed at any point of publishing, what is in place is one set, whole."""

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

from tests.integration.vault_client.conftest import Mesh
from tests.support.vault_client import publish
from vault_client.delivery import Permissions, SecretSet
from vault_client.files import Publisher, read_published
from vault_client.secret import Secret

KILLS = 200
LONGEST_LIFE_S = 0.02
NAMES = ("clientcert.pem", "clientkey.pem", "servercert.pem", "pin")
_PR_SET_PDEATHSIG = 1


def a_set(number: int) -> SecretSet:
    """Return a set each file of which says which set it is of."""
    value = f"{number:08d}|".encode() * 200
    return SecretSet({name: Secret(value) for name in NAMES}, number)


def publisher(root: Path) -> Publisher:
    return Publisher(root, Permissions(), allow_disk=False)


def fork(child: Callable[[], None]) -> int:
    """Return the pid of a child that runs this and can be killed at any time."""
    pid = os.fork()
    if pid == 0:
        _be_the_child(child)
    return pid


def _be_the_child(child: Callable[[], None]) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        child()
    finally:
        os._exit(0)


def publish_for_ever(root: Path, start: int) -> None:
    target = publisher(root)
    target.open()
    number = start
    while True:
        number += 1
        publish(target, a_set(number), datetime.now(UTC))
        target.sweep(datetime.now(UTC), older_than_seconds=0.0)


def number_in_place(root: Path) -> int:
    """Return which set is in place after judging that it is one, whole, by every path to it."""
    published = read_published(root)
    assert published is not None
    assert published.version is not None
    expected = f"{published.version:08d}|" * 200
    folder = root / (root / "..data").readlink()
    for name in NAMES:
        assert (folder / name).read_text() == expected
        assert (root / name).read_text() == expected
    return published.version


def test_two_hundred_kills_at_random_times_never_leave_a_torn_set(output: Path) -> None:
    first = publisher(output)
    first.open()
    publish(first, a_set(0), datetime.now(UTC))
    first.close()
    dice = random.Random(20)  # noqa: S311 - not for secrets
    numbers = {0}
    for _ in range(KILLS):
        pid = fork(partial(publish_for_ever, output, max(numbers)))
        time.sleep(dice.uniform(0.001, LONGEST_LIFE_S))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        numbers.add(number_in_place(output))
    assert len(numbers) > KILLS / 4, "the kills came before anything was published"
    last = publisher(output)
    last.open()
    last.close()
    assert number_in_place(output) == max(numbers)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [*NAMES, "manifest.json", "..data", str((output / "..data").readlink())]
    )


def test_a_kill_at_each_file_operation_of_one_publish_leaves_the_old_set_or_the_new(
    output: Path,
) -> None:
    first = publisher(output)
    first.open()
    publish(first, a_set(0), datetime.now(UTC))
    first.close()
    outcomes = []
    for operation in range(1, 1000):
        before = number_in_place(output)
        pid = fork(partial(publish_until_killed, output, before + 1, operation))
        _, status = os.waitpid(pid, 0)
        after = number_in_place(output)
        assert after in {before, before + 1}
        outcomes.append(after != before)
        if not os.WIFSIGNALED(status):
            break
    assert outcomes[-1], "the publish that was not killed did not arrive"
    assert len(outcomes) > 20
    assert not outcomes[0]


def test_a_client_that_takes_over_from_a_killed_one_keeps_the_set(mesh: Mesh) -> None:
    with mesh.client() as killed:
        killed.wait_status(state="ready")
        generation = killed.status()["generation"]
        killed.running.kill()
        killed.running.wait()
    with mesh.client() as successor:
        assert successor.wait_status(state="ready")["generation"] == generation
        assert successor.count("set.published") == 0


def publish_until_killed(root: Path, number: int, operation: int) -> None:
    """Publish once, and die before the operation of this number."""
    target = publisher(root)
    target.open()
    seen = 0

    def count(event: str, _: tuple[object, ...]) -> None:
        nonlocal seen
        if event.startswith(("os.", "open")):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    publish(target, a_set(number), datetime.now(UTC))
