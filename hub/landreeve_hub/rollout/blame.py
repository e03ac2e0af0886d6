"""Whether a failure speaks against the release: one table of the causes a device can report, with reasons. Pure.

A release that is to blame is taken back and quarantined as the plan asks. What is not its fault (a full disk, a lost
accelerator, a person on the site) still counts as a failure and stops the rollout past the same limits, but leads no
site back that serves well, and quarantines nothing: ``actions.site`` says what happens, by default a person is asked.
"""

from typing import Final

NOT_THE_RELEASE: Final[dict[str, str]] = {
    "accelerator_lost": "the device that it was proven on went away",
    "bad_certificate": "the certificate of the site's own server cannot be used",
    "bad_offer": "what the hub offered as a delta cannot be used",
    "bad_order": "the order among components cannot be kept on that agent",
    "bad_schedule": "the windows cannot be kept on that agent",
    "bad_strategy": "the strategy cannot be carried out on that agent",
    "cannot_switch": "the boot loader of the box does not obey",
    "corrupt_artifact": "what the hub keeps of it is damaged: pushed again it is whole",
    "deadline": "the box was too busy or too slow to try it in time",
    "delta_stalled": "the hub stopped sending",
    "disk_failed": "the disk of the box cannot be written",
    "disk_full": "the disk of the box is full",
    "grpc_open": "the box may not open its gRPC port to others as it is set",
    "grpc_port": "the gRPC port of the box is taken",
    "local_cancel": "a person on the site would not have it",
    "local_rollback": "a person on the site asked for the version before",
    "no_firmware": "the box has no firmware slots of ours",
    "no_provider": "the box has nothing that could run it",
    "no_token": "the box asks callers for a token and has none",
    "not_approved": "the hub's signatures do not agree about it",
    "not_fetched": "the box began to fetch it again and again and never came to the end",
    "not_in_order": "another component had to come first and did not",
    "not_launched": "the agent there cannot change itself",
    "not_proven": "the site had too little traffic to judge by",
    "one_slot": "the box has one firmware slot alone",
    "order_withdrawn": "the hub took the order back",
    "port_taken": "the port of the box is taken",
    "preflight_broken": "the box could not begin to try it",
    "slot_lost": "the box lost what had been written into its slot",
    "slot_not_written": "the slot of the box cannot be written",
    "slots_unsettled": "the box is in the middle of another firmware update",
    "superseded": "a newer order came",
    "unknown_component": "the agent there is too old for that kind of component",
    "unloaded": "it was told to leave while it was being loaded",
    "worker_down": "the inference server of the box was not running",
    "worker_start": "the inference server of the box does not start",
}
"""Cause to why it is not the release."""

THE_RELEASE: Final[dict[str, str]] = {
    "attempts_exhausted": "begun again and again, it came to no end: what kills a box so often must not spread",
    "bad_graph": "its graph cannot be loaded",
    "bad_release": "its files are not what a release is made of",
    "boot_loop": "the new agent ends before it has proven itself",
    "cannot_install": "its environment cannot be built",
    "cannot_start": "the new agent cannot be started",
    "claim_missed": "it is far worse than it says of itself",
    "confidence_drop": "it is less sure than the version before",
    "constant_output": "it answers everything alike",
    "crashed": "trying it crashes",
    "did_not_boot": "the box did not come up with it",
    "error_rate": "requests fail under it",
    "fell_back": "the boot loader had to leave it",
    "golden_mismatch": "it does not give its own golden answers",
    "host_died": "loading it kills the process that serves it",
    "hung": "trying it never ends",
    "invalid_output": "its answers are no answers",
    "latency": "it is too slow on real traffic",
    "left": "the launcher had to leave it",
    "load_hung": "loading it never ends",
    "log_loss": "it predicts worse than the version before",
    "memory": "it takes ever more memory",
    "models_down": "under the new agent, or firmware, the models do not serve",
    "not_confirmed": "the new agent did not prove itself in time",
    "not_reconnected": "under the new agent, or firmware, the box did not reach the hub: it could never be mended",
    "prediction_shift": "its answers are spread differently",
    "quarantined": "it was found bad there before, under this very rollout",
    "run_failed": "running it fails",
    "self_test": "its own test fails",
    "silent_fallback": "it does not run on the device that was asked for",
    "silent_precision": "it does not run at the precision that was asked for",
    "too_large": "it is larger than the box allows a model to be",
    "too_much_memory": "it needs more memory than it may",
    "too_slow": "it is too slow when tried",
    "unchecked_graph": "its graph was never checked",
    "worker_crashed": "the inference server dies under it",
    "worker_died": "the inference server died while it was loaded",
}
"""Cause to why it is the release."""

BY_THE_FLEET: Final[dict[str, str]] = {
    "accuracy": "the fleet's labels say that it predicts worse",
    "drift": "the fleet's data are no longer those it was trained for",
    "failed": "too large a share of the fleet failed under it",
    "silent": "a site that took it and is not heard again may have died of it",
}
"""What the hub's gates find, beside ``error_rate`` and ``latency``: each speaks against the release."""

BY_A_PERSON: Final = frozenset({"aborted", "rolled_back"})
"""Why a rollout ended that a person ended (`landreeve_hub.rollout.commands`)."""
WITH_PARENT: Final = "with_parent"
"""Why a rollout of late joiners goes back: what it came after does, and that says why."""


def blames(cause: str) -> bool:
    """Whether the cause speaks against the release. One that this hub does not know does: a newer agent found it, and
    a rollout must not go on in ignorance.

    >>> blames("golden_mismatch"), blames("disk_full"), blames("never_heard_of")
    (True, False, True)
    """
    return cause not in NOT_THE_RELEASE
