"""What people do to a simulated fleet: they propose, approve, command twice, and settle what is open."""

from typing import TYPE_CHECKING, Any

from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.propose import Proposal
from landreeve_hub.rollout.state import State
from landreeve_hub.store import tables
from sqlalchemy import select

from tests.fleet.whole.office import ANN, BOB
from tests.fleet.whole.story import Wanted, digest

if TYPE_CHECKING:
    from tests.fleet.whole.world import World

VERBS = ("pause", "resume", "next", "abort", "rollback", "retry")


class People:
    """Each word is said to the hub's own runner; a refusal is an answer."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def propose(self, wanted: Wanted) -> None:
        """Ann proposes; she may not approve it herself, but in an emergency; else Bob does."""
        world = self._world
        if world.down:
            return
        name = digest(wanted.component, wanted.release)
        force = "It was the cable." if wanted.force else ""
        proposal = Proposal(wanted.component, name, wanted.plan, force=force, queue=wanted.queue)
        known = set(self._ids())
        await world.does(world.office.runner.create(proposal, ANN.name, world.hub_clock()))
        for made in sorted(set(self._ids()) - known):
            self._approve(made, wanted)

    def _approve(self, made: str, wanted: Wanted) -> None:
        """Ann presses the button too, first; it does nothing but in an emergency."""
        world = self._world
        if wanted.force:
            world.forced.add(made)
        delay = world.random.uniform(0, 600)
        reason = "The sites are down." if wanted.emergency else ""
        world.agenda.at(delay, lambda: self.command(made, "approve", ANN, emergency=reason))
        world.agenda.at(delay + world.random.uniform(1, 900), lambda: self.command(made, "approve", BOB))

    def _ids(self) -> list[str]:
        return [row.id for row in self._world.office.rows(select(tables.rollouts.c.id))]

    def _states(self) -> dict[str, State]:
        query = select(tables.rollouts.c.id, tables.rollouts.c.state)
        return {row.id: State(row.state) for row in self._world.office.rows(query)}

    async def command(
        self, name: str, verb: str, who: Any = BOB, *, emergency: str = "", asked: Asked | None = None
    ) -> bool:
        """Whether it was obeyed."""
        world = self._world
        if world.down:
            return False
        runner, now = world.office.runner, world.hub_clock()
        before = self._states().get(name)
        obeyed = await world.does(runner.command(name, verb, who, now, emergency, asked))
        if verb == "approve" and obeyed and before is State.AWAITING_APPROVAL:
            world.require(who is not ANN or bool(emergency), "nobody approves what they proposed", name)
            if who is ANN:
                world.emergencies.add(name)
        if verb in {"retry", "resume"} and obeyed:
            world.rules.retried(name)
        return obeyed

    async def meddle(self, verbs: tuple[str, ...] = VERBS) -> None:
        """A command, and the same once more some time later."""
        world, names = self._world, self._ids()
        if world.down or not names:
            return
        name, verb = world.random.choice(names), world.random.choice(verbs)
        world.count += 1
        asked = Asked(BOB.name, world.hub_clock(), f"key-{world.count}")
        if await self.command(name, verb, asked=asked):
            world.agenda.at(world.random.uniform(0, 7200), lambda: self._again(name, verb, asked))

    async def _again(self, name: str, verb: str, asked: Asked) -> None:
        world = self._world
        if world.down:
            return
        own = select(tables.rollouts.c.doc).where(tables.rollouts.c.id == name)
        rows = world.office.rows(own)
        if not rows or asked.key not in rows[0].doc.get("keys", ()):
            return  # a restored hub has forgotten it
        installs = world.orders
        runner = world.office.runner
        answer: list[Any] = []

        async def repeat() -> None:
            async with runner._lock:
                answer.append(await runner._kept(lambda c: runner._command(c, name, verb, (BOB, ""), asked)))

        if await world.does(repeat()):
            world.require(not answer[0][1], "a command again does nothing", f"{verb} of {name}")
        world.require(world.orders == installs, "a command again does nothing", f"{verb} of {name}")

    async def settle(self) -> None:
        """Whatever waits for a person gets one."""
        world = self._world
        if world.down:
            return
        for device in sorted(world.in_conflict()):
            await self.resolve(device)
        for name, state in self._states().items():
            if state is State.AWAITING_APPROVAL:
                await self.command(name, "approve", BOB)
            elif state is State.PAUSED:
                verb = world.random.choice(["resume", "resume", "resume", "abort", "rollback"])
                if not await self.command(name, verb):
                    await self.command(name, "resume")

    async def resolve(self, device: str) -> None:
        """Say who is right about a device in conflict."""
        world = self._world
        box, adopt = world.boxes[device], world.random.random() < 0.5
        box.forgiven = world.number
        runner, now = world.office.runner, world.hub_clock()
        if not await world.does(runner.resolve(device, adopt, BOB, now)) and adopt and not world.down:
            await world.does(runner.resolve(device, False, BOB, now))
        world.spoilt.add(device)
