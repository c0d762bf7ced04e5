"""C_Initialize with locking, which the PKCS#11 driver does not ask for (PKCS#11 2.40, 5.4).

The driver initialises a module with C_Initialize(NULL), promising that one thread only will
call it, and then releases the interpreter's lock around every call. The module must therefore
be initialised again with CKF_OS_LOCKING_OK before a second thread touches it.
"""

import ctypes

from hsm_plugin.errors import ConfigError, HsmUnavailableError

_CKF_OS_LOCKING_OK = 2
_CKR_OK = 0
_CKR_CRYPTOKI_NOT_INITIALIZED = 0x190


class _InitializeArguments(ctypes.Structure):
    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class Cryptoki:
    """The start and the end of one PKCS#11 module; no thread may be inside it meanwhile."""

    def __init__(self, module: str) -> None:
        try:
            library = ctypes.CDLL(module)
            self._initialize = library.C_Initialize
            self._finalize = library.C_Finalize
        except (OSError, AttributeError) as error:
            raise ConfigError(
                f"the PKCS#11 module {module} cannot be loaded: {error}",
                hint="set P11_LIB to the vendor's library, such as libCryptoki2.so",
            ) from None
        for function in (self._initialize, self._finalize):
            function.argtypes = [ctypes.c_void_p]
            function.restype = ctypes.c_ulong

    def restart(self) -> None:
        """Finalise the module if it was initialised, and initialise it for threads."""
        self.stop()
        arguments = _InitializeArguments(flags=_CKF_OS_LOCKING_OK)
        result = self._initialize(ctypes.byref(arguments))
        if result != _CKR_OK:
            raise HsmUnavailableError(
                f"C_Initialize answered 0x{result:08x}",
                hint="look at the vendor's client configuration and at its log",
            )

    def stop(self) -> None:
        """Finalise the module; every session and handle is void afterwards."""
        result = self._finalize(None)
        if result not in (_CKR_OK, _CKR_CRYPTOKI_NOT_INITIALIZED):
            raise HsmUnavailableError(f"C_Finalize answered 0x{result:08x}")
