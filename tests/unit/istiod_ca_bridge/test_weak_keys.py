"""Weak keys are made here, for real: nobody publishes any to test with."""

import math
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiod_ca_bridge.errors import RefusedRequestError
from istiod_ca_bridge.policy import requested_key
from istiod_ca_bridge.weak_keys import rsa_weakness, weakness

_SMALL = [n for n in range(2, 2048) if all(n % d for d in range(2, math.isqrt(n) + 1))]
_BITS = 512
_DICE = random.Random(20171016)  # noqa: S311 - the same weak keys each time


def is_prime(number: int) -> bool:
    """Fermat's test: no random number of this size has ever passed it wrongly."""
    if any(number % prime == 0 for prime in _SMALL):
        return False
    return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7, 11))


def next_prime(number: int) -> int:
    number |= 1
    while not is_prime(number):
        number += 2
    return number


def random_prime() -> int:
    return next_prime(_DICE.getrandbits(_BITS) | 3 << (_BITS - 2))


def rsalib_prime() -> int:
    """A prime as Infineon's RSALib makes them: k * M + (65537 ** a mod M)."""
    m = math.prod(prime for prime in _SMALL if prime <= 167)
    while True:
        k = (3 << (_BITS - 2) | _DICE.getrandbits(_BITS - 2)) // m
        candidate = k * m + pow(65537, _DICE.getrandbits(200), m)
        if is_prime(candidate):
            return candidate


def numbers(p: int, q: int, e: int = 65537) -> rsa.RSAPublicNumbers:
    return rsa.RSAPublicNumbers(e, p * q)


def csr_of(key: rsa.RSAPrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def close_to(key: rsa.RSAPrivateKey) -> rsa.RSAPrivateKey:
    """A key whose second prime is close to the first, which is that of another key."""
    p = key.private_numbers().p
    q = next_prime(p + (1 << 500))
    d = pow(65537, -1, math.lcm(p - 1, q - 1))
    crt = (d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q))
    return rsa.RSAPrivateNumbers(p, q, d, *crt, numbers(p, q)).private_key()


def test_keys_that_are_made_as_keys_should_be_are_not_weak() -> None:
    for _ in range(5):
        assert weakness(rsa.generate_private_key(65537, 2048).public_key()) == ""
    assert weakness(ec.generate_private_key(ec.SECP256R1()).public_key()) == ""
    assert rsa_weakness(numbers(random_prime(), random_prime())) == ""


def test_a_key_of_infineon_s_rsalib_is_weak_and_one_with_a_single_such_prime_is_not() -> None:
    assert "CVE-2017-15361" in rsa_weakness(numbers(rsalib_prime(), rsalib_prime()))
    assert rsa_weakness(numbers(rsalib_prime(), random_prime())) == ""


def test_a_csr_whose_key_has_close_primes_or_a_small_exponent_is_refused() -> None:
    sound = rsa.generate_private_key(65537, 2048)

    requested_key(csr_of(sound))
    with pytest.raises(RefusedRequestError, match="close to each other"):
        requested_key(csr_of(close_to(sound)))
    with pytest.raises(RefusedRequestError, match="exponent"):
        requested_key(csr_of(rsa.generate_private_key(3, 2048)))


def test_an_even_exponent_and_a_small_factor_are_weak() -> None:
    p, q = random_prime(), random_prime()

    assert "exponent" in rsa_weakness(numbers(p, q, e=65538))
    assert "small factor" in rsa_weakness(numbers(p, 2039))
