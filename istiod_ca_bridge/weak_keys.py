"""Public key -> why nobody should have it; keys that are strong by size and weak by making.

Checked are: an exponent that invites mistakes, small factors, primes close to each other, and the
fingerprint of Infineon's RSALib (CVE-2017-15361, "ROCA"). Elliptic keys have no such marks.
"""

import math

from cryptography.hazmat.primitives.asymmetric import rsa

from istiod_ca_bridge.signer import PublicKey

_GENERATOR = 65537
_LEAST_EXPONENT = 65537
_FERMAT_ROUNDS = 100
"""As many as found the keys of CVE-2022-26320."""


def _primes(below: int) -> list[int]:
    return [n for n in range(3, below) if all(n % d for d in range(2, math.isqrt(n) + 1))]


def _subgroup(prime: int) -> frozenset[int]:
    """Return the powers of the generator modulo the prime."""
    return frozenset(pow(_GENERATOR, k, prime) for k in range(prime - 1))


_FINGERPRINT = tuple(
    (prime, group)
    for prime in _primes(168)
    if prime != _GENERATOR and len(group := _subgroup(prime)) < prime - 1
)
"""RSALib's primes are powers of the generator modulo each of these, and so is their product."""

_SMALL_FACTORS = 2 * math.prod(_primes(2048))
_SQUARES = frozenset(k * k % 64 for k in range(64))


def weakness(key: PublicKey) -> str:
    """Return what is wrong with the key; empty when nothing is known."""
    return rsa_weakness(key.public_numbers()) if isinstance(key, rsa.RSAPublicKey) else ""


def rsa_weakness(numbers: rsa.RSAPublicNumbers) -> str:
    """Return what is wrong with an RSA key of these numbers; empty when nothing is known."""
    if numbers.e < _LEAST_EXPONENT or not numbers.e & 1:
        return f"its public exponent is even or below {_LEAST_EXPONENT}"
    if math.gcd(numbers.n, _SMALL_FACTORS) != 1:
        return "its modulus has a small factor"
    if all(numbers.n % prime in group for prime, group in _FINGERPRINT):
        return "it bears the mark of Infineon's RSALib (CVE-2017-15361)"
    if _has_close_factors(numbers.n):
        return "its primes are close to each other"
    return ""


def _has_close_factors(n: int) -> bool:
    """Run a few rounds of Fermat's factorisation: n = a*a - b*b with a near the root of n."""
    a = math.isqrt(n - 1) + 1
    b2 = a * a - n
    for _ in range(_FERMAT_ROUNDS):
        if b2 & 63 in _SQUARES and math.isqrt(b2) ** 2 == b2:
            return True
        b2 += 2 * a + 1
        a += 1
    return False
