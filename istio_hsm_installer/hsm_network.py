"""The HSM over the network: a TLS handshake with the operator's own files, and no more."""

import socket
import ssl

from istio_hsm_installer.errors import InputError, InstallerError
from istio_hsm_installer.options import HsmOptions

_TIMEOUT_SECONDS = 5.0


def shake_hands(hsm: HsmOptions, address: str) -> None:
    """Return when the HSM proves to be the owner of the server certificate.

    A network HSM's certificate is self-signed and is trusted itself, so its name is not checked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(hsm.server_cert_file)
        context.load_cert_chain(hsm.client_cert_file, hsm.client_key_file, password=_no_password)
    except (ssl.SSLError, OSError, ValueError):
        raise InputError(
            "the HSM's files cannot be used for TLS",
            hint="check hsm.serverCertFile, hsm.clientCertFile and hsm.clientKeyFile",
        ) from None
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain) as secured,
        ):
            secured.version()
    except ssl.SSLCertVerificationError as error:
        raise InstallerError(
            f"what answers at {address} is not the HSM of hsm.serverCertFile: "
            f"{error.verify_message}",
            hint="fetch the HSM's certificate again by a trusted way",
        ) from None
    except (OSError, ValueError, OverflowError) as error:  # no host's name, no port
        raise InstallerError(
            f"the HSM at {address} cannot be reached over TLS: {type(error).__name__}",
            hint="check hsm.address, the firewall, and that the client is registered",
        ) from None


def _no_password() -> str:
    """Refuse an encrypted key, instead of asking at a terminal."""
    return ""
