"""The C side of PKCS#11: its functions' order and arguments, and its structures.

PKCS#11 2.40, section 3 and pkcs11t.h; the structures are those of Unix, without packing.
"""

import ctypes
from typing import Any

FUNCTIONS = (
    *("C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList"),
    *("C_GetSlotInfo", "C_GetTokenInfo", "C_GetMechanismList", "C_GetMechanismInfo"),
    *("C_InitToken", "C_InitPIN", "C_SetPIN", "C_OpenSession", "C_CloseSession"),
    *("C_CloseAllSessions", "C_GetSessionInfo", "C_GetOperationState", "C_SetOperationState"),
    *("C_Login", "C_Logout", "C_CreateObject", "C_CopyObject", "C_DestroyObject"),
    *("C_GetObjectSize", "C_GetAttributeValue", "C_SetAttributeValue", "C_FindObjectsInit"),
    *("C_FindObjects", "C_FindObjectsFinal", "C_EncryptInit", "C_Encrypt", "C_EncryptUpdate"),
    *("C_EncryptFinal", "C_DecryptInit", "C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal"),
    *("C_DigestInit", "C_Digest", "C_DigestUpdate", "C_DigestKey", "C_DigestFinal"),
    *("C_SignInit", "C_Sign", "C_SignUpdate", "C_SignFinal", "C_SignRecoverInit"),
    *("C_SignRecover", "C_VerifyInit", "C_Verify", "C_VerifyUpdate", "C_VerifyFinal"),
    *("C_VerifyRecoverInit", "C_VerifyRecover", "C_DigestEncryptUpdate"),
    *("C_DecryptDigestUpdate", "C_SignEncryptUpdate", "C_DecryptVerifyUpdate", "C_GenerateKey"),
    *("C_GenerateKeyPair", "C_WrapKey", "C_UnwrapKey", "C_DeriveKey", "C_SeedRandom"),
    "C_GenerateRandom",
)
"""CK_FUNCTION_LIST up to the last function that is called here."""

_word, _pointer = ctypes.c_ulong, ctypes.c_void_p
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "C_Initialize": (_pointer,),
    "C_Finalize": (_pointer,),
    "C_GetSlotList": (ctypes.c_ubyte, _pointer, _pointer),
    "C_GetTokenInfo": (_word, _pointer),
    "C_GetMechanismList": (_word, _pointer, _pointer),
    "C_OpenSession": (_word, _word, _pointer, _pointer, _pointer),
    "C_CloseSession": (_word,),
    "C_GetSessionInfo": (_word, _pointer),
    "C_Login": (_word, _word, ctypes.c_char_p, _word),
    "C_CreateObject": (_word, _pointer, _word, _pointer),
    "C_DestroyObject": (_word, _word),
    "C_GetAttributeValue": (_word, _word, _pointer, _word),
    "C_FindObjectsInit": (_word, _pointer, _word),
    "C_FindObjects": (_word, _pointer, _word, _pointer),
    "C_FindObjectsFinal": (_word,),
    "C_EncryptInit": (_word, _pointer, _word),
    "C_Encrypt": (_word, ctypes.c_char_p, _word, _pointer, _pointer),
    "C_DecryptInit": (_word, _pointer, _word),
    "C_Decrypt": (_word, ctypes.c_char_p, _word, _pointer, _pointer),
    "C_SignInit": (_word, _pointer, _word),
    "C_Sign": (_word, ctypes.c_char_p, _word, _pointer, _pointer),
    "C_GenerateKey": (_word, _pointer, _pointer, _word, _pointer),
    "C_GenerateKeyPair": (
        *(_word, _pointer, _pointer, _word, _pointer, _word, _pointer, _pointer),
    ),
    "C_GenerateRandom": (_word, _pointer, _word),
}


class FunctionList(ctypes.Structure):
    """CK_FUNCTION_LIST."""

    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * len(FUNCTIONS)))


class InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS."""

    _fields_ = (
        *((f"{name}_mutex", ctypes.c_void_p) for name in ("create", "destroy", "lock", "unlock")),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class CkTokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO."""

    _fields_ = (
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("max_sessions", ctypes.c_ulong),
        ("sessions", ctypes.c_ulong),
        ("max_rw_sessions", ctypes.c_ulong),
        ("rest", ctypes.c_ulong * 7),
        ("texts", ctypes.c_char * 20),
    )


class CkSessionInfo(ctypes.Structure):
    """CK_SESSION_INFO."""

    _fields_ = tuple((name, ctypes.c_ulong) for name in ("slot", "state", "flags", "error"))


class CkAttribute(ctypes.Structure):
    """CK_ATTRIBUTE."""

    _fields_ = (("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("size", ctypes.c_ulong))


class CkMechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (("type", ctypes.c_ulong), ("parameter", ctypes.c_void_p), ("size", ctypes.c_ulong))


class PssParameters(ctypes.Structure):
    """CK_RSA_PKCS_PSS_PARAMS."""

    _fields_ = tuple((name, ctypes.c_ulong) for name in ("hash", "mask", "salt_bytes"))


class GcmParameters(ctypes.Structure):
    """CK_GCM_PARAMS."""

    _fields_ = (
        ("iv", ctypes.c_char_p),
        ("iv_bytes", ctypes.c_ulong),
        ("iv_bits", ctypes.c_ulong),
        ("aad", ctypes.c_char_p),
        ("aad_bytes", ctypes.c_ulong),
        ("tag_bits", ctypes.c_ulong),
    )
