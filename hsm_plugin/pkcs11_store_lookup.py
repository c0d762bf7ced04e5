"""Finding a key: exactly one object must match, and it must not be able to leave the token."""

from collections.abc import Callable

from hsm_plugin import pkcs11_store_objects as objects
from hsm_plugin.cryptoki import Cryptoki
from hsm_plugin.errors import ConflictError
from hsm_plugin.pkcs11_store_constants import Attribute, ObjectClass
from hsm_plugin.pkcs11_store_sessions import KeyHandle, Session, SessionPool


class Lookup:
    """Looks objects up; keys once for each session."""

    def __init__(self, cryptoki: Cryptoki) -> None:
        self._cryptoki = cryptoki

    def find(
        self,
        pool: SessionPool,
        session: Session,
        kind: ObjectClass,
        label: str,
        object_id: bytes | None,
    ) -> list[int]:
        """Return every object of this label, and of this id when it is given."""
        found = self._cryptoki.find(session.handle, objects.search(kind, label, object_id))
        if not found:
            pool.expect_login(session)  # without a login, private objects are only not seen
        return found

    def key(
        self,
        pool: SessionPool,
        session: Session,
        kind: ObjectClass,
        label: str,
        key_id: bytes,
        find: Callable[[], list[int]] | None = None,
    ) -> KeyHandle:
        """Return the only key that matches. `find`: another way to find it than by its id."""
        keys = session.known_keys(pool.keys_version)
        known = keys.get((kind, label, key_id))
        if known is not None:
            return known
        found = find() if find else self.find(pool, session, kind, label, key_id)
        handle = objects.only(found, label, key_id)
        key_type, sensitive, extractable = self._cryptoki.read(
            session.handle,
            handle,
            [Attribute.KEY_TYPE, Attribute.SENSITIVE, Attribute.EXTRACTABLE],
        )
        if sensitive == b"\0" or extractable != b"\0":
            raise ConflictError(
                f'the key "{label}" can leave the token, so it is not used',
                hint="generate a new one with another key id",
            )
        key = KeyHandle(handle=handle, key_type=objects.to_int(key_type))
        keys[(kind, label, key_id)] = key
        return key
