"""The offline root in the HSM, against which the plugin judges the signed CA certificate."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from istio_hsm_installer.certificates import MALFORMED
from istio_hsm_installer.errors import InputError
from istio_hsm_installer.files import read_pem
from istio_hsm_installer.options import HsmOptions
from istio_hsm_installer.steps.step import Action, Area, Change, World


@dataclass(frozen=True, slots=True)
class HsmRoot:
    """Imports the root certificate, once; it is never taken out from here."""

    hsm: HsmOptions
    name: str = "hsm-root"
    title: str = "offline root in the HSM"
    area: Area = Area.HSM
    hint: str = "run `hsm-plugin serve` on this machine, and set hsm.socket"

    def check(self, world: World) -> None:
        """Read the root."""
        del world
        self._root()

    def plan(self, world: World) -> Sequence[Change]:
        """Return its import when the plugin does not trust it."""
        if world.plugin.trusts(self.hsm.root_cert_file):
            return []
        return [Change(Action.CREATE, self._what())]

    def apply(self, world: World) -> None:
        """Import it."""
        world.plugin.import_root(self.hsm.root_cert_file)

    def undo(self, world: World, created: Collection[str]) -> Sequence[str]:
        """Keep it: the plugin has no call that takes a root out."""
        del world
        return [f"{what} stays in the HSM" for what in created]

    def _what(self) -> str:
        return f"root certificate {self._root().fingerprint(hashes.SHA256()).hex()}"

    def _root(self) -> x509.Certificate:
        path = self.hsm.root_cert_file
        try:
            certificates = x509.load_pem_x509_certificates(read_pem(path))
        except MALFORMED:
            certificates = []
        if len(certificates) != 1:
            raise InputError(
                f"{path} holds {len(certificates)} PEM certificates, not one",
                hint="name the offline root in hsm.rootCertFile",
            )
        return certificates[0]
