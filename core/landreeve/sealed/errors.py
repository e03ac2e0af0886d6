"""What can go wrong with sealed data.

SealedError
├── KeyMissingError    the key that opens it cannot be had: provide it            (operator)
├── WrongKeyError      the key that was given opens something else               (operator)
└── BadVaultError      the key file itself is damaged: restore it from a backup  (operator)
"""


class SealedError(Exception):
    """Base; the text says what is wrong, where, and what to do."""


class KeyMissingError(SealedError):
    """No key where the settings say there is one."""


class WrongKeyError(SealedError):
    """A key, but not the one this was sealed with."""


class BadVaultError(SealedError):
    """The file of wrapped keys cannot be read."""
