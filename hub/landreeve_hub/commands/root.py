"""The commands of ``landreeve-hub``, put together."""

import typer

from landreeve_hub.commands import (
    agents,
    audit,
    authority,
    blobs,
    broker,
    devices,
    doctor,
    firmware,
    keys,
    models,
    people,
    plans,
    records,
    rollouts,
    server,
    settings,
    store,
)


def build() -> typer.Typer:
    """The whole command line."""
    root = typer.Typer(
        name="landreeve-hub",
        help="Look after a fleet: devices, models, rollouts, drift and incidents.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    server.install(root)
    doctor.install(root)
    people.install(root)
    for name, group in (
        ("user", people.users()),
        ("token", people.tokens()),
        ("device", devices.group()),
        ("ca", authority.group()),
        ("broker", broker.group()),
        ("keys", keys.group()),
        ("model", models.group()),
        ("agent", agents.group()),
        ("firmware", firmware.group()),
        ("blobs", blobs.group()),
        ("plans", plans.group()),
        ("rollout", rollouts.group()),
        ("incident", records.incidents()),
        ("audit", audit.audit()),
        ("store", store.store()),
        ("retrain", records.retrains()),
        ("config", settings.group()),
    ):
        root.add_typer(group, name=name)
    records.install(root)
    return root
