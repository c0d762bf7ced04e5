"""The secret rotates under a reader that never sees a part of one set and a part of another."""

import threading
from pathlib import Path

from cryptography import x509

from tests.integration.vault_client.conftest import Mesh
from tests.support.hsm_credentials import make_credentials

ROTATIONS = 100


class Reader(threading.Thread):
    """Reads as a careful consumer does: resolve `..data` once, then read inside."""

    def __init__(self, output: Path, known: dict[str, dict[str, str]]) -> None:
        super().__init__(daemon=True)
        self._output = output
        self._known = known
        self._done = threading.Event()
        self.reads = 0
        self.seen: set[str] = set()
        self.mixed: list[str] = []

    def run(self) -> None:
        while not self._done.wait(0.001):
            folder = self._output / (self._output / "..data").readlink()
            values = {
                "clientcert": (folder / "clientcert.pem").read_text(),
                "clientkey": (folder / "clientkey.pem").read_text(),
                "servercert": (folder / "servercert.pem").read_text(),
                "PIN": (folder / "pin").read_text(),
            }
            self.reads += 1
            self.seen.add(values["PIN"])
            if values != self._known.get(values["PIN"]):
                self.mixed.append(str(folder))

    def finish(self) -> None:
        self._done.set()
        self.join(10)


def test_a_hundred_rotations_never_show_a_mixed_set(mesh: Mesh) -> None:
    sets = [make_credentials(mark=f"m{number}") for number in range(ROTATIONS)]
    known = {values["PIN"]: values for values in [mesh.values, *sets]}
    with mesh.client(POLL_INTERVAL="20ms") as client:
        client.wait_status(state="ready")
        reader = Reader(client.output, known)
        reader.start()
        for values in sets:
            version = mesh.put(values)
            client.wait_status(state="ready", kv_version=version)
        reader.finish()
        assert client.count("set.published") == ROTATIONS + 1
    assert not reader.is_alive()
    assert reader.mixed == []
    assert len(reader.seen) == ROTATIONS + 1
    assert reader.reads > ROTATIONS
    subject = x509.load_pem_x509_certificate(client.file("clientcert.pem").encode()).subject
    assert f"client-m{ROTATIONS - 1}" in subject.rfc4514_string()
