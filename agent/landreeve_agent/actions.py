"""What people, schedules and the hub may ask of a site, each in one place whoever asks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from landreeve.wire.messages import Audit, Command, Event
from sqlite_utils import Database as Tables

from landreeve_agent.console.api import Done, NotDone, Started, TrainBody
from landreeve_agent.intake.definitions import Definitions
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.orders import Action, Carried, Declined
from landreeve_agent.store.database import Database
from landreeve_agent.store.events import record
from landreeve_agent.store.stamps import moment, stamp
from landreeve_agent.store.watermark import watermark
from landreeve_agent.training.job import TrainRequest
from landreeve_agent.training.manager import TrainingRefusedError, Trainings
from landreeve_agent.update.runner import Runner


class TrainArguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of the hub's command ``train``."""

    model: str
    first: str
    last: str
    reason: str = ""
    request: str = ""


class RollbackArguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of the hub's command ``rollback``."""

    model: str


@dataclass(frozen=True)
class Actions:
    """Trainings, rollbacks and their record."""

    database: Database
    outbox: Outbox
    definitions: Definitions
    trainings: Trainings
    runner: Runner
    clock: Callable[[], datetime]

    def of_hub(self) -> Mapping[str, Action]:
        """The commands a hub may send, by name."""
        return {"train": self._hub_train, "rollback": self._hub_rollback}

    async def train(self, request: TrainBody, actor: str) -> Started | NotDone:
        """A training asked for by a person."""
        reason = request.reason or f"by {actor}"
        asked = TrainRequest(model=request.model, first=request.first, last=request.last, reason=reason)
        try:
            return Started(await self.trainings.request(asked))
        except TrainingRefusedError as error:
            return NotDone(str(error))

    async def roll_back(self, model: str, actor: str) -> Done | NotDone:
        """A person wants the version before; the runner keeps the record."""
        answer = await self.runner.roll_back(model, actor)
        return Done(answer.sentence) if answer.accepted else NotDone(answer.sentence)

    async def audit(self, actor: str, action: str, subject: str, data: Mapping[str, Any]) -> None:
        """Into the site's log and on its way to the hub."""
        now = self.clock()
        decision = "denied" if action.endswith(".refuse") else "allowed"
        body = Audit(actor=actor, action=action, object=subject, decision=decision, data=dict(data))
        line = Event(name="audit", subject=subject, cause=action, sentence=_told(actor, action, subject))

        def write(tables: Tables) -> None:
            record(tables, line, now)
            self.outbox.enqueue(tables, body, now)

        await self.database.write(write)

    async def train_by_schedule(self, lookback_days: float) -> None:
        """A training for each model on its latest data; one a day, however often it is asked for."""
        for model in list(self.definitions):
            newest = await self.database.read(partial(watermark, model=model))
            if newest is None:
                continue
            last = moment(newest)
            request = TrainRequest(
                model=model,
                first=stamp(last - timedelta(days=lookback_days)),
                last=newest,
                reason="scheduled",
                request_id=f"schedule-{model}-{self.clock():%Y-%m-%d}",
            )
            await self.trainings.request(request)

    async def _hub_train(self, command: Command) -> Carried | Declined:
        try:
            asked = msgspec.convert(command.args, TrainArguments)
            run = await self.trainings.request(
                TrainRequest(
                    model=asked.model,
                    first=asked.first,
                    last=asked.last,
                    reason=asked.reason,
                    request_id=asked.request or command.id,
                )
            )
        except (msgspec.ValidationError, TrainingRefusedError) as error:
            return Declined("bad_arguments", f"train: {error}")
        return Carried(f"Training {asked.model} is queued as {run}.", {"run": run, "model": asked.model})

    async def _hub_rollback(self, command: Command) -> Carried | Declined:
        try:
            asked = msgspec.convert(command.args, RollbackArguments)
        except msgspec.ValidationError as error:
            return Declined("bad_arguments", f"rollback: {error}")
        answer = await self.runner.roll_back(asked.model, "hub")
        if not answer.accepted:
            return Declined("nothing_to_return_to", answer.sentence)
        return Carried(answer.sentence, {"model": asked.model})


_SENTENCES = {
    "session.open": "Somebody signed in to the console with a one-time code.",
    "session.refuse": "A wrong or expired code was tried at the console.",
    "session.close": "Somebody signed out of the console.",
    "code.make": "A one-time code for the console was made.",
    "model.define": "The definition of {subject} was added.",
    "training.start": "A training of {subject} was asked for on this box.",
}


def _told(actor: str, action: str, subject: str) -> str:
    """What was done, in a sentence for people; the audit fact keeps who and the action's name."""
    return _SENTENCES.get(action, "{actor}: {action} {subject}").format(actor=actor, action=action, subject=subject)
