"""Makes AES keys in a token, many at once: by python-pkcs11, for the plugin looks for each first.

Arguments: module, token label, PIN file, the number of keys.
"""

import sys
from pathlib import Path

import pkcs11

from hsm_plugin.pin_file import read_pin


def _main(module: str, label: str, pin_file: str, count: str) -> None:
    token = pkcs11.lib(module).get_token(token_label=label)
    with token.open(user_pin=read_pin(Path(pin_file)), rw=True) as session:
        for number in range(int(count)):
            name = f"filler-{number}"
            session.generate_key(pkcs11.KeyType.AES, 256, label=name, id=name.encode(), store=True)


if __name__ == "__main__":
    _main(*sys.argv[1:5])
