"""What can go wrong with signing.

SigningError                (an OperatorError)
├── KeyMissingError         the key is not on this machine, or cannot be read      (operator)
├── UnapprovedReleaseError  the director may not choose this                       (operator: approve it first)
├── BadRequestError         a signing request is none, or was changed on its way   (operator: export it again)
└── RefusedRequestError     a request is sound, but may not be put into force now  (operator; the text says why)
"""

from landreeve_hub.errors import OperatorError


class SigningError(OperatorError):
    """Base of what signing raises."""


class KeyMissingError(SigningError):
    """A private key is needed that is not in the key folder."""


class UnapprovedReleaseError(SigningError):
    """A release was to be ordered that no approver has signed, or with another length."""


class BadRequestError(SigningError, ValueError):
    """A file that is no signing request, or one whose parts do not belong together."""


class RefusedRequestError(SigningError):
    """A signing request that is of no use here: replayed, overtaken, of another key, or without a new signature."""
