"""What can go wrong at the hub, split by who can act.

HubError
├── OperatorError          the person who runs the hub can mend it: settings, folders, permissions, programs
│   ├── AlreadyRunningError    another hub holds this state folder
│   ├── StateError             the state folder, or a file in it, cannot be used
│   └── BrokerError            the broker is missing, did not start, or cannot be reached
├── PeerError              a device sent, or failed to send, what it should
│   ├── QuotaError             it wants to upload more than it may
│   └── TransferError          an upload did not arrive whole
├── RegistryError          another registry refused or failed, or does not keep to the specification
│   ├── RegistryAuthError      it does not accept the credentials, or asks for some
│   ├── RegistryMissingError   it has no such repository, tag or blob
│   └── RegistryAwayError      it does not answer
└── NotFoundError          the thing asked for does not exist

A release that must not be used is `landreeve.release.manifest.BadReleaseError`; bytes that are no message are
`landreeve.wire.codec.BadMessageError`.
"""


class HubError(Exception):
    """Base of the hub's own errors; the text says what, where and what to do."""


class OperatorError(HubError):
    """Something the operator of the hub can mend."""


class AlreadyRunningError(OperatorError):
    """Another hub runs on the same state folder."""


class StateError(OperatorError):
    """The state folder, or a file in it, cannot be used."""


class BrokerError(OperatorError):
    """The broker is missing, did not start, or cannot be reached."""


class PeerError(HubError):
    """A device did not do what the contract says."""


class QuotaError(PeerError, PermissionError):
    """A device would upload more than it may."""


class TransferError(PeerError, TimeoutError):
    """An upload did not arrive whole in time."""


class RegistryError(HubError):
    """Another registry refused or failed at something, or what it sent is not what it should be."""


class RegistryAuthError(RegistryError):
    """Another registry wants credentials, or does not accept those given."""


class RegistryMissingError(RegistryError):
    """Another registry has no such repository, tag or blob."""


class RegistryAwayError(RegistryError):
    """Another registry does not answer."""


class NotFoundError(HubError):
    """The thing asked for does not exist."""
