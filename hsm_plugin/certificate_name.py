"""What a message calls a certificate: its subject, short and printable whatever it holds."""

from cryptography import x509


def name_of(certificate: x509.Certificate) -> str:
    """Return the name in words."""
    try:
        subject = certificate.subject.rfc4514_string()
    except ValueError:
        subject = ""
    return f'certificate "{printable(subject)}"' if subject else "a certificate without a subject"


def printable(text: str) -> str:
    """Return at most 200 characters, none of which moves a cursor or starts a line."""
    return "".join(char if char.isprintable() else "?" for char in text)[:200]
