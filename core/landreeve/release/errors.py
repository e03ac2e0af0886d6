"""What a release can be refused for."""


class BadReleaseError(ValueError):
    """A release that must not be used; the text says what is wrong, where, and what to do."""
