"""What can go wrong in the worker, split by who can act.

ServingError
├── RequestError            the application that called
│   ├── BadRequestError     a field of its request is wrong; the text names it
│   │   └── TooLargeError   its body is above the limit
│   ├── UnsupportedError    a content encoding we do not speak
│   ├── MethodError         the path exists, under another method
│   ├── UnauthorizedError   no token, or a wrong one, where one is needed
│   ├── ForbiddenError      a web page called; browsers have no business here
│   └── UnknownError        no such model, version or path; the text lists what there is
├── LateError               the request's own time limit passed before it was run
├── BusyError               nobody: try again in a moment
├── NotReadyError           nobody: the model is being loaded or could not be
├── RunFailedError          the model's author: the graph failed on a correct request
└── LoadFailedError         the operator: a version cannot serve; carries a machine-readable cause
"""


class ServingError(Exception):
    """Base of everything the worker reports."""


class RequestError(ServingError):
    """The request cannot be answered as it is."""


class BadRequestError(RequestError):
    """A field of the request is wrong; the text names it."""


class TooLargeError(BadRequestError):
    """The body is above the limit."""


class UnsupportedError(RequestError):
    """A content encoding the worker does not speak."""


class MethodError(RequestError):
    """The path exists, under another method."""


class UnauthorizedError(RequestError):
    """The request carries no token of this box, and comes over the network."""


class ForbiddenError(RequestError):
    """The request came from a web page."""


class UnknownError(RequestError):
    """No such model, version or path."""


class LateError(ServingError):
    """The request's own time limit passed before it was run."""


class BusyError(ServingError):
    """More requests wait than the queue may hold; ``retry_s`` is when it is worth trying again."""

    def __init__(self, text: str, *, retry_s: int = 1) -> None:
        super().__init__(text)
        self.retry_s = retry_s


class NotReadyError(ServingError):
    """The model is known and cannot answer yet."""


class RunFailedError(ServingError):
    """The graph failed, or answered with something that is no number."""


class LoadFailedError(ServingError):
    """A version cannot serve. ``cause`` is machine-readable, ``sentence`` is for people."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(f"{cause}: {sentence}")
        self.cause = cause
        self.sentence = sentence
