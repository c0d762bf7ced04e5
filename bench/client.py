"""What the load client itself can do: h2load against a server in C that answers at once."""

import re
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.ports import free_port

_SECONDS = 2
_BYTES = 300


def ceiling() -> dict[str, object]:
    """Return requests a second at 16 at once: what is measured must lie well below."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_bytes(b"x" * _BYTES)
        server = subprocess.Popen(
            ["nghttpd", "--no-tls", f"--htdocs={folder}", "--address=127.0.0.1", str(port)],
            stdout=subprocess.DEVNULL,
        )
        try:
            time.sleep(0.5)
            output = subprocess.run(
                [
                    *("h2load", f"--duration={_SECONDS}", "--clients=1"),
                    *("--max-concurrent-streams=16", f"http://127.0.0.1:{port}/file"),
                ],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        finally:
            server.terminate()
            server.wait()
    found = re.search(r"([\d.]+) req/s", output)
    return {"h2load_per_second": round(float(found[1])) if found else 0}
