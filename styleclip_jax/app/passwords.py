"""Reads and writes the file of users, with hashed passwords, who may open the page.

``python -m styleclip_jax.app.passwords FILE NAME`` asks for a password and adds a user.
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
    """Returns the salt and the scrypt hash of a password in the format of the file."""
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    return f"{salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


def password_check(path: str | os.PathLike[str]) -> Callable[[str, str], bool]:
    """Reads a file of users.

    Returns:
        A function that returns whether a name and a password match.

    Raises:
        InputError: The file cannot be read, has no users, or has a line other than
            ``NAME:SALT$HASH``.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the password file {path} cannot be read ({error})") from None
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, hashed = line.strip().partition(":")
        salt, _, digest = hashed.partition("$")
        try:
            valid = bool(name) and bytes.fromhex(salt) and len(bytes.fromhex(digest)) == 32
        except ValueError:
            valid = False
        if not valid:
            raise InputError(
                f"line {number} of {path} is invalid, expected NAME:SALT$HASH; add users with"
                f" python -m styleclip_jax.app.passwords {path} NAME"
            )
        users[name] = hashed
    if not users:
        raise InputError(
            f"{path} has no users; add users with python -m styleclip_jax.app.passwords {path} NAME"
        )
    # Checking an unknown name must take as long, so that the time does not reveal the names.
    placeholder = hash_password("")

    def check(name: str, password: str) -> bool:
        hashed = users.get(name, placeholder)
        salt = bytes.fromhex(hashed.partition("$")[0])
        matches = hmac.compare_digest(hash_password(password, salt), hashed)
        return matches and name in users

    return check


def main(arguments: list[str]) -> None:
    """Adds a user to a file that only its owner can read."""
    if len(arguments) != 2 or not arguments[1] or ":" in arguments[1]:
        raise SystemExit("usage: python -m styleclip_jax.app.passwords FILE NAME")
    path, name = arguments
    line = f"{name}:{hash_password(getpass.getpass('Password: '))}\n"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write(line)


if __name__ == "__main__":
    main(sys.argv[1:])
