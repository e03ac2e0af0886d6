"""What can go wrong at a door, split by who can act.

DoorError
├── UnreachableError   nobody: the inference server does not answer now; try again
├── BadFileError       whoever made the file: it cannot be read as rows at all
├── BadModelError      whoever asked: no such model or version, or one that rows of a file cannot feed
├── ChangedError       whoever writes the file: it changed while it was read
├── StorageError       the operator: no room or no right to write
└── SetupError         the operator: a setting of a door cannot be used
"""


class DoorError(Exception):
    """Base of what a door reports; the text says what, where and what to do."""


class UnreachableError(DoorError):
    """The inference server does not answer, or not yet."""


class BadFileError(DoorError):
    """A file that is no table of rows."""


class BadModelError(DoorError):
    """A model that is not served here, or that cannot be asked this way."""


class ChangedError(DoorError):
    """The file changed while it was read."""


class StorageError(DoorError):
    """A file cannot be written."""


class SetupError(DoorError):
    """A setting cannot be used."""
