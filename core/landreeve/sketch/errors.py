"""What can go wrong with a sketch."""


class SketchError(ValueError):
    """Base of this room's errors."""


class BadSketchError(SketchError):
    """A document that is no sketch; the text names what is wrong."""


class UnlikeSketchesError(SketchError):
    """Two sketches that do not count the same thing and so cannot be merged or compared."""
