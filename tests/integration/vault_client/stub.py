"""A server that is not Vault: for the answers that a real one does not give on request."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.integration.vault_client.conftest import Mesh

Choose = Callable[[bytes], int]


@contextmanager
def stub_server(
    status: int | Choose, headers: Mapping[str, str] | None = None, body: bytes = b"{}"
) -> Iterator[str]:
    """A server that gives every request this answer, or a status chosen by its body; its URL."""
    choose = status if callable(status) else lambda _: status

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("content-length", "0")))
            self.send_response_only(choose(asked))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def against(mesh: Mesh, address: str, **more: str) -> dict[str, str]:
    """Return the settings of a client that takes the stub for Vault."""
    plain = {"VAULT_ADDR": address, "VAULT_ALLOW_PLAINTEXT": "true", "VAULT_CACERT": ""}
    return mesh.environment(**plain, **more)
