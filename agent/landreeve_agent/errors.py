"""What can go wrong on a site, split by who can act.

AgentError
├── OperatorError        the person at the box can mend it: settings, folders, permissions, arguments
│   ├── AlreadyRunningError  another supervisor holds this state folder
│   └── StateError           the state folder or a file in it cannot be used
└── RoomFailedError      us: a room ended though nobody asked it to
"""


class AgentError(Exception):
    """Base of the agent's own errors; the text says what, where and what to do."""


class OperatorError(AgentError):
    """Something the operator of the box can mend."""


class AlreadyRunningError(OperatorError):
    """Another supervisor runs on the same state folder."""


class StateError(OperatorError):
    """The state folder, or a file in it, cannot be used."""


class RoomFailedError(AgentError):
    """A room that must run for ever has returned."""
