"""The four values that istiod's pod reaches the HSM with, in Vault. None is ever shown."""

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from istio_hsm_installer import config
from istio_hsm_installer.certificates import MALFORMED
from istio_hsm_installer.config import Secret
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.files import read_pem
from istio_hsm_installer.objects import section
from istio_hsm_installer.options import Options
from istio_hsm_installer.steps.step import Action, Area, Change, World

_KEYS = ("clientcert", "clientkey", "servercert", "PIN")


@dataclass(frozen=True, slots=True)
class KvSecret:
    """Writes what differs; the PIN is asked for only when Vault has none and no file has it."""

    options: Options
    name: str = "kv-secret"
    title: str = "HSM credentials in Vault"
    area: Area = Area.VAULT
    hint: str = "the token needs create, read and update on the secret's path"

    def check(self, world: World) -> None:
        """Return when the files are sound and the key is the certificate's."""
        del world
        self._files()

    def plan(self, world: World) -> Sequence[Change]:
        """Return which keys would be written, never what."""
        found, wanted = self._read(world), self._files()
        differing = [
            key
            for key in _KEYS
            if (not _equal(found.get(key), wanted[key]) if key in wanted else not found.get(key))
        ]
        if not differing:
            return []
        diff = tuple(f"{'~' if found.get(key) else '+'} {key} (hidden)" for key in differing)
        return [Change(Action.UPDATE if found else Action.CREATE, self._what, diff)]

    def apply(self, world: World) -> None:
        """Write all the values, and leave other keys of the secret as they are."""
        found, values = self._read(world), self._files()
        if "PIN" not in values and not found.get("PIN"):
            values = {**values, "PIN": world.ask_pin()}
        body = {**found, **{key: value.text() for key, value in values.items()}}
        world.vault.write(self._data_path, {"data": body} if self._is_v2 else body)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Delete the secret with all its versions if it was created here."""
        if not self._read(world):
            return []
        if self._what not in created:
            return [f"{self._what} was there before"]
        world.vault.delete(self._path("metadata"))
        return []

    def _read(self, world: World) -> Mapping[str, object]:
        data = world.vault.read(self._data_path)
        return section(data, "data") if self._is_v2 else dict(data or {})

    def _files(self) -> Mapping[str, Secret]:
        hsm = self.options.hsm
        paths = {
            "clientcert": hsm.client_cert_file,
            "clientkey": hsm.client_key_file,
            "servercert": hsm.server_cert_file,
        }
        values = {key: Secret(read_pem(path)) for key, path in paths.items()}
        _load_certificate(values["servercert"], hsm.server_cert_file)
        _check_pair(values["clientcert"], values["clientkey"], hsm.client_cert_file)
        if hsm.pin_file is not None:
            values["PIN"] = config.secret_file(hsm.pin_file)
        return values

    @property
    def _is_v2(self) -> bool:
        return self.options.vault.kv_version != 1

    @property
    def _data_path(self) -> str:
        return self._path("data")

    def _path(self, part: str) -> str:
        if not self._is_v2:
            return self.options.hsm_secret_path
        mount = self.options.kv_mount
        return f"{mount}/{part}{self.options.hsm_secret_path.removeprefix(mount)}"

    @property
    def _what(self) -> str:
        return f"secret {self.options.hsm_secret_path}"


def _equal(found: object, wanted: Secret) -> bool:
    return isinstance(found, str) and hmac.compare_digest(found.encode(), wanted.reveal())


def _load_certificate(pem: Secret, path: Path) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificates(pem.reveal())[0]
        _ = certificate.public_key()  # read lazily
    except MALFORMED:
        raise InputError(
            f"{path} holds no PEM certificate", hint="check the paths in the section hsm"
        ) from None
    return certificate


def _check_pair(certificate: Secret, key: Secret, path: Path) -> None:
    loaded = _load_certificate(certificate, path)
    try:
        private_key = serialization.load_pem_private_key(key.reveal(), None)
    except MALFORMED:
        raise InputError(
            "hsm.clientKeyFile is not an unencrypted PEM private key",
            hint="take its passphrase off: istiod's pod has nobody to ask for it",
        ) from None
    if _spki(private_key.public_key()) != _spki(loaded.public_key()):
        raise InputError(
            "hsm.clientKeyFile is not the key of hsm.clientCertFile",
            hint="give the pair that was made together",
        )


def _spki(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        raise InputError("the HSM client's key is of an unknown kind")
    spki: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return spki
