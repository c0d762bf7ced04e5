"""The plugin of a ceremony ends with the command, however the command ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PLUGIN = """#!/bin/sh
echo $$ > {pid}
exec sleep 60
"""

_COMMAND = """
import sys
from istio_hsm_installer import offline_plugin
from istio_hsm_installer.pkcs11_uri import KeyUri

with offline_plugin.running(sys.argv[1], KeyUri(sys.argv[1], "root", "root-1", sys.argv[1])):
    pass
"""


def test_by_sigterm_the_roots_plugin_does_not_stay_logged_in(tmp_path: Path) -> None:
    pid, program = tmp_path / "pid", tmp_path / "hsm-plugin"
    program.write_text(_PLUGIN.format(pid=pid))
    program.chmod(0o755)
    command = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(program)],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(lambda: pid.exists() and pid.read_text().strip() != "")
        command.send_signal(signal.SIGTERM)
        command.wait(20)
    finally:
        command.kill()
        command.wait()
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert not list(tmp_path.glob("istio-hsm-root-*"))


def _await(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.02)
