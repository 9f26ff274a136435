"""A file of user names and hashed passwords, for access to the page.

``python -m styleclip_jax.app.passwords FILE NAME`` asks for a password and adds a line.
"""

import getpass
import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from pathlib import Path

from styleclip_jax.errors import InputError

# About 50 ms and 16 MiB per guess.
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
_SALT_BYTES = 16


def hash_password(password: str, salt: bytes | None = None) -> str:
    """Salt and scrypt hash of a password, in the format of the file."""
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    return f"{salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def password_check(path: str | os.PathLike[str]) -> Callable[[str, str], bool]:
    """Reads the file.

    Returns:
        A function that checks a name and a password.

    Raises:
        InputError: The file cannot be read, or a line is not ``name:salt$hash``.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the passwords in {path} cannot be read ({error})") from None
    known = {}
    for number, line in enumerate(filter(str.strip, lines), 1):
        name, _, hashed = line.strip().partition(":")
        salt, _, digest = hashed.partition("$")
        try:
            valid = bool(name) and bytes.fromhex(salt) and len(bytes.fromhex(digest)) == 32
        except ValueError:
            valid = False
        if not valid:
            raise InputError(
                f"line {number} of {path} is not NAME:SALT$HASH; add users with"
                f" python -m styleclip_jax.app.passwords {path} NAME"
            )
        known[name] = hashed
    if not known:
        raise InputError(
            f"{path} has no users; add users with python -m styleclip_jax.app.passwords {path} NAME"
        )
    # Unknown names take as long to check as known ones.
    nobody = hash_password("")

    def check(name: str, password: str) -> bool:
        hashed = known.get(name, nobody)
        salt = bytes.fromhex(hashed.partition("$")[0])
        right = hmac.compare_digest(hash_password(password, salt), hashed)
        return right and name in known

    return check


def main(arguments: list[str]) -> None:
    """Adds a user to a file that others cannot read."""
    if len(arguments) != 2 or not arguments[1] or ":" in arguments[1]:
        raise SystemExit("usage: python -m styleclip_jax.app.passwords FILE NAME")
    path, name = arguments
    line = f"{name}:{hash_password(getpass.getpass('Password: '))}\n"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write(line)


if __name__ == "__main__":
    main(sys.argv[1:])
