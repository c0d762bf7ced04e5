"""A stand-in for a node's kubelet: the logs that the API server asks it for, over TLS."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kubernetes import client

from tests.support import pki
from tests.support.kube import KubeCluster


class Kubelet:
    """What the containers of its pods wrote, by `namespace/pod/container`."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.logs: dict[str, str] = {}


@contextmanager
def running(kube: KubeCluster, node: str, folder: Path) -> Iterator[Kubelet]:
    """A kubelet of a new node on loopback; the node goes with it."""
    kubelet = Kubelet(node)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/containerLogs/")
            text = kubelet.logs.get(path)
            self.send_response(200 if text is not None else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = _secured(server.socket, folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    core = client.CoreV1Api(kube.admin_client())
    core.create_node(client.V1Node(metadata=client.V1ObjectMeta(name=node)))
    core.patch_node_status(
        node,
        {
            "status": {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_port}},
            }
        },
    )
    try:
        yield kubelet
    finally:
        core.delete_node(node)
        server.shutdown()
        server.server_close()


def _secured(plain: socket.socket, folder: Path) -> ssl.SSLSocket:
    own = pki.issue("kubelet")
    key = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "kubelet.pem").write_bytes(own.pem + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "kubelet.pem")
    return context.wrap_socket(plain, server_side=True)
