"""Numbers of the standard that templates are made of (PKCS#11 2.40, pkcs11t.h)."""

from enum import IntEnum


class Attribute(IntEnum):
    """CKA_*."""

    CLASS = 0x000
    TOKEN = 0x001
    PRIVATE = 0x002
    LABEL = 0x003
    VALUE = 0x011
    CERTIFICATE_TYPE = 0x080
    KEY_TYPE = 0x100
    SUBJECT = 0x101
    ID = 0x102
    SENSITIVE = 0x103
    ENCRYPT = 0x104
    DECRYPT = 0x105
    WRAP = 0x106
    UNWRAP = 0x107
    SIGN = 0x108
    VERIFY = 0x10A
    MODULUS = 0x120
    MODULUS_BITS = 0x121
    PUBLIC_EXPONENT = 0x122
    VALUE_LEN = 0x161
    EXTRACTABLE = 0x162
    LOCAL = 0x163
    NEVER_EXTRACTABLE = 0x164
    EC_PARAMS = 0x180
    EC_POINT = 0x181


class ObjectClass(IntEnum):
    """CKO_*."""

    CERTIFICATE = 1
    PUBLIC_KEY = 2
    PRIVATE_KEY = 3
    SECRET_KEY = 4


class KeyType(IntEnum):
    """CKK_*."""

    RSA = 0x00
    EC = 0x03
    GENERIC_SECRET = 0x10
    AES = 0x1F
    EC_EDWARDS = 0x40


class Mechanism(IntEnum):
    """CKM_*."""

    RSA_PKCS_KEY_PAIR_GEN = 0x0000
    RSA_PKCS = 0x0001
    RSA_PKCS_PSS = 0x000D
    SHA256_HMAC = 0x0251
    GENERIC_SECRET_KEY_GEN = 0x0350
    EC_KEY_PAIR_GEN = 0x1040
    ECDSA = 0x1041
    EC_EDWARDS_KEY_PAIR_GEN = 0x1055
    EDDSA = 0x1057
    AES_KEY_GEN = 0x1080
    AES_CBC = 0x1082
    AES_GCM = 0x1087


PSS_HASHES = {32: (0x250, 2), 48: (0x260, 3), 64: (0x270, 4)}
"""CKM_SHA256, 384, 512 and CKG_MGF1_SHA256, 384, 512, by the length of the digest."""

X509 = 0
"""CKC_X_509."""
