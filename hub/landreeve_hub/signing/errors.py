"""What can go wrong with signing.

SigningError                (an OperatorError)
├── KeyMissingError         the key is not on this machine       (operator)
└── UnapprovedReleaseError  the director may not choose this     (operator: approve it first)
"""

from landreeve_hub.errors import OperatorError


class SigningError(OperatorError):
    """Base of what signing raises."""


class KeyMissingError(SigningError):
    """A private key is needed that is not in the key folder."""


class UnapprovedReleaseError(SigningError):
    """A release was to be ordered that no approver has signed, or with another length."""
