"""Programs that are started from here: no shell, no secret among the arguments, a deadline."""

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from istio_hsm_installer import config
from istio_hsm_installer.errors import PluginError, ToolError

_TIMEOUT_SECONDS = 600
_TAIL = 1000


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that ended."""

    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The end of what it wrote, for an error message."""
        return (self.err.strip() or self.out.strip())[-_TAIL:]


def run(
    command: Sequence[str], *, stdin: str = "", environment: Mapping[str, str] | None = None
) -> Ended:
    """Return how the program ended; ToolMissingError when it is not installed."""
    program = config.find_program(command[0])
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            input=stdin,
            env={**config.child_environment(), **(environment or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"{command[0]} did not end within {_TIMEOUT_SECONDS} s", hint="run it by hand"
        ) from None
    except OSError as error:
        raise ToolError(
            f"{command[0]} cannot be started: {error.strerror}", hint="check its mode"
        ) from None
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A running HSM plugin, through its own command line."""

    command: str
    socket: Path

    def has_kek(self, kek_id: str) -> bool:
        """Return whether the token has this key; a round trip with it, when it has."""
        try:
            self._call("test", "--kek-id", kek_id)
        except PluginError as error:
            if error.code == "NOT_FOUND":
                return False
            raise
        return True

    def generate_kek(self, kek_id: str) -> None:
        """Return when the key is in the token."""
        self._call("generate-kek", "--kek-id", kek_id)

    def trusts(self, certificate: Path) -> bool:
        """Return whether the certificate is, or ends at, an imported root."""
        try:
            self._call("verify-cert", "-f", str(certificate))
        except PluginError as error:
            if error.code in {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}:
                return False
            raise
        return True

    def import_root(self, root: Path) -> None:
        """Return when the token holds the root."""
        self._call("import-ca", "-f", str(root))

    def signing_keys(self) -> Sequence[Mapping[str, object]]:
        """Return the token's signing keys: id, algorithm, fingerprint; or why one is not used."""
        listed = self._call("list-keys").get("keys")
        entries = listed if isinstance(listed, list) else []
        return [entry for entry in entries if isinstance(entry, dict)]

    def make_signing_key(self, key_id: str, algorithm: str) -> Mapping[str, object]:
        """Return the key of this id, made in the token when it was not there."""
        return self._call("generate-signing-key", "--key-id", key_id, "--key-algorithm", algorithm)

    def sign_digest(self, key_id: str, algorithm: str, digest: bytes) -> bytes:
        """Return the signature that a key in the token makes."""
        answer = self._call(
            *("sign-digest", "--key-id", key_id, "--digest", digest.hex()),
            *("--signature-algorithm", algorithm),
        )
        try:
            return base64.b64decode(str(answer.get("signature", "")), validate=True)
        except binascii.Error:
            raise ToolError(f"{self.command} sign-digest answered no signature") from None

    def decrypt_csr(self, encrypted: Path) -> str:
        """Return the PEM of the CSR in the Secret's data."""
        return str(self._call("decrypt-csr", "-f", str(encrypted)).get("csr", ""))

    def _call(self, *arguments: str) -> Mapping[str, object]:
        ended = run([self.command, *arguments, "--socket", str(self.socket), "--output", "json"])
        if ended.code:
            raise _refusal(self.command, ended)
        try:
            answer = json.loads(ended.out)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ToolError(
                f"{self.command} {arguments[0]} did not answer with JSON",
                hint="set hsm.pluginCommand to this project's hsm-plugin",
            )
        return answer


def _refusal(command: str, ended: Ended) -> PluginError:
    """Return the plugin's own error, of its JSON, as ours."""
    try:
        error = json.loads(ended.out).get("error")
        code, cause, hint = (str(error.get(key, "")) for key in ("code", "message", "hint"))
    except (ValueError, AttributeError):
        code, cause, hint = "", ended.last_words, "set hsm.pluginCommand to this hsm-plugin"
    return PluginError(f"{command}: {cause}", code=code, hint=hint)
