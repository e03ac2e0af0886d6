"""Passwords as argon2id hashes, and secrets of our own making as sha256."""

import hashlib
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MIN_LENGTH = 12
MAX_LENGTH = 1024
_HASHER = PasswordHasher()
_NOBODY = _HASHER.hash("nobody has this password")


class BadPasswordError(ValueError):
    """A password that is not accepted; the text says what is."""


def hash_password(password: str) -> str:
    """The argon2id hash with its salt and parameters."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise BadPasswordError(f"password: {len(password)} characters; use {MIN_LENGTH} to {MAX_LENGTH}")
    return _HASHER.hash(password)


def matches(stored: str, password: str) -> bool:
    """Whether the password fits. An unknown user costs as much time as a wrong password."""
    try:
        return _HASHER.verify(stored or _NOBODY, password[:MAX_LENGTH]) and bool(stored)
    except (VerificationError, InvalidHashError):
        return False


def new_secret(prefix: str) -> str:
    """A fresh secret of 256 bits, recognisable by its prefix in logs and scanners."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """What is stored of a secret that has full entropy: its sha256."""
    return hashlib.sha256(secret.encode()).hexdigest()
