"""What goes wrong with a simulated fleet, and how it comes to peace in the end."""

from random import Random
from typing import TYPE_CHECKING

from landreeve_agent.serving.ending import Ending
from landreeve_agent.update.standing import Phase
from landreeve_hub.desired import lines

from tests.fleet.whole import story
from tests.fleet.whole.boxes import COMPONENTS, Box, Stamped
from tests.fleet.whole.clockwork import MemoryDatabase
from tests.fleet.whole.office import state_arrival
from tests.fleet.whole.story import SPAN, ZONES, H, digest

if TYPE_CHECKING:
    from tests.fleet.whole.world import World

YEARS = 365.25 * 86_400
KILLED = Ending("signal SIGKILL", 1)


def found(world: "World") -> None:
    """The fleet as it stands when the history begins."""
    for component, kind in COMPONENTS.items():
        for release in range(-3, 3):
            world.office.hold(digest(component, release), component, f"v{release}", kind)
    for number in range(world.case.size):
        join(world, f"d-{number:02d}", number, bare=False)


def join(world: "World", name: str, number: int, *, bare: bool) -> Box:
    """A box comes to the fleet, with something to return to unless it is ``bare``."""
    draw = Random(f"{world.case.seed}{name}")
    paired = world.case.seed % 5 < 3
    place, zone = (f"p-{number // 2}" if paired else ""), ZONES[number % len(ZONES)]
    share = (0.0, 0.1, 0.3)[world.case.seed % 3]
    ends = story.fate(world.case.seed, name, share)
    box = Box(name, place, zone, world, draw, ends.get, story.features(draw))
    labels = {"timezone": zone} | ({"site": place} if place else {})
    world.office.enrol(name, labels)
    for component in COMPONENTS:
        if not bare and draw.random() < (0.92 if component in {"delay", "noise"} else 0.5):
            old = -(number % 3) - 1
            box.install(component, digest(component, old), f"v{old}")
            world.office.assign(name, component, digest(component, old), f"v{old}")
    box.retained = world.retained.get(name)
    world.boxes[name] = box
    world.agenda.at(draw.uniform(0, 20), box.start)
    world.agenda.at(draw.uniform(300, 900), lambda: world.again(box))
    return box


class Faults:
    """Each is drawn from the world's seed."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def schedule(self) -> None:
        """Everything that goes wrong within the span."""
        self._of_boxes()
        self._of_the_hub()
        self._of_the_fleet()
        if self._world.case.stress:
            self._of_a_bad_day()

    def _of_boxes(self) -> None:
        world, draw, at = self._world, self._world.random, self._world.agenda.at
        for box in list(world.boxes.values()):
            if draw.random() < 0.08:
                at(draw.uniform(0, SPAN / 2), lambda b=box: self._reach(b, False))
            elif draw.random() < 0.35:
                away, long = draw.uniform(0, SPAN * 0.8), draw.uniform(60, 4 * H)
                at(away, lambda b=box: self._reach(b, False))
                at(away + long, lambda b=box: self._reach(b, True))
            for _ in range(draw.choice([0, 0, 1, 2])):
                at(draw.uniform(0, SPAN), lambda b=box: self.cut(b))
            if draw.random() < 0.12:
                skew = draw.choice([64 * YEARS, -56 * YEARS, 3 * H, -3 * H])
                wrong, long = draw.uniform(0, SPAN * 0.7), draw.uniform(H, 8 * H)
                at(wrong, lambda b=box, s=skew: setattr(b, "skew", s))
                at(wrong + long, lambda b=box: setattr(b, "skew", 0.0))
            for _ in range(draw.choice([0, 1, 2])):
                verdict = draw.choice(["stable", "drifted", "drifted", "quality_lost"])
                component = draw.choice(["delay", "noise"])
                at(draw.uniform(0, SPAN), lambda b=box, c=component, v=verdict: b.drift(c, v))
            if draw.random() < 0.2:
                at(draw.uniform(0, SPAN), lambda b=box: self._on_site(b))
            if draw.random() < 0.2:
                self._watch_for_probation(box, draw.choice([1, 5]))

    def _of_the_hub(self) -> None:
        world, draw, at = self._world, self._world.random, self._world.agenda.at
        for _ in range(draw.choice([0, 1, 3, 6])):
            at(draw.uniform(0, SPAN), self._kill_hub_at_a_commit)
        if draw.random() < 0.35:
            backup = draw.uniform(0, SPAN * 0.5)
            at(backup, self._back_up)
            at(backup + draw.uniform(60, SPAN * 0.4), self._restore)
        if draw.random() < 0.15:
            wrong, jump = draw.uniform(0, SPAN * 0.8), draw.choice([-2 * H, 2 * H, 26 * H])
            at(wrong, lambda: setattr(world, "hub_skew", jump))
            at(wrong + draw.uniform(600, 2 * H), lambda: setattr(world, "hub_skew", 0.0))
        for _ in range(draw.choice([0, 0, 1, 3])):
            at(draw.uniform(0, SPAN), world.people.meddle)

    def _of_the_fleet(self) -> None:
        world, draw, at = self._world, self._world.random, self._world.agenda.at
        names = sorted(world.boxes)
        for n in range(draw.choice([0, 0, 1, 2])):
            at(draw.uniform(0, SPAN), lambda n=n: self._enrol(f"d-{90 + n}", 90 + n))
        for name in draw.sample(names, k=draw.choice([0, 0, 1])):
            at(draw.uniform(0, SPAN), lambda n=name: self._remove(n))
        for name in draw.sample(names, k=draw.choice([0, 0, 1])):
            at(draw.uniform(0, SPAN), lambda n=name: self._reimage(n))
        for name in draw.sample(names, k=draw.choice([0, 0, 1])):
            at(draw.uniform(0, SPAN * 0.7), lambda n=name: self._image(n, draw.uniform(600, SPAN * 0.3)))
        for name in draw.sample(names, k=draw.choice([0, 0, 0, 1])):
            at(draw.uniform(0, SPAN * 0.8), lambda n=name: self._clone(n))
        for _ in range(draw.choice([0, 1, 2])):
            at(draw.uniform(0, SPAN), self._change_line)

    def _of_a_bad_day(self) -> None:
        """Copies, backups and commands, while something is under way."""
        world, draw, at = self._world, self._world.random, self._world.agenda.at
        for name in draw.sample(sorted(world.boxes), k=min(3, len(world.boxes))):
            at(draw.uniform(0, SPAN * 0.6), lambda n=name: self._clone(n))
        for _ in range(2):
            backup = draw.uniform(0, SPAN * 0.6)
            at(backup, self._back_up)
            at(backup + draw.uniform(600, 4 * H), self._restore)
            at(backup + draw.uniform(4 * H, 5 * H), self._change_line)
        for _ in range(12):
            at(draw.uniform(0, SPAN), lambda: world.people.meddle(("retry", "retry", "rollback", "resume")))

    # --- boxes ---

    def _reach(self, box: Box, reachable: bool) -> None:
        if box.reachable == reachable or box.removed:
            return
        box.reachable = reachable
        if reachable:
            box.connect()
        else:
            self._world.leave(box)

    def cut(self, box: Box) -> None:
        """The power goes, and comes back."""
        if box.alive and not box.removed:
            self._world.leave(box)
            box.kill()
            self._world.agenda.at(self._world.random.uniform(5, 600), lambda: self._boot(box))

    def _boot(self, box: Box) -> None:
        if not box.removed:
            self._world.sent[id(box)] = 0
            box.start()

    def _watch_for_probation(self, box: Box, crashes: int) -> None:
        """The worker dies once a version is on probation, so often."""
        if self._world.calm or box.removed:
            return
        views = box.runner.views.values() if box.runner is not None else ()
        if any(view.state.phase is Phase.PROBATION for view in views) and box.runner is not None:
            for n in range(crashes):
                self._world.agenda.at(n + 0.1, lambda r=box.runner: r.worker_restarted(KILLED))
        else:
            self._world.agenda.at(200, lambda: self._watch_for_probation(box, crashes))

    async def _on_site(self, box: Box) -> None:
        """Somebody on the site wants the version before."""
        if box.runner is not None and not box.removed:
            model = self._world.random.choice(sorted(COMPONENTS))
            answer = await box.runner.roll_back(model, "site:eve")
            if answer.accepted:
                self._world.spoilt.add(box.name)

    def _enrol(self, name: str, number: int) -> None:
        if not self._world.down:
            join(self._world, name, number, bare=True)

    def _remove(self, name: str) -> None:
        box = self._world.boxes[name]
        if box.removed or self._world.down:
            return
        box.kill()
        box.removed = True
        self._world.office.revoke(name)
        self._world.soon()

    def _reimage(self, name: str) -> None:
        """Installed anew, it joins as another box, and the former one is out."""
        if not self._world.down and not self._world.boxes[name].removed:
            self._remove(name)
            self._enrol(f"{name}x", int(name[2:4]))

    def _image(self, name: str, later: float) -> None:
        """A copy of its disk is made, and put back later: it is what it was."""
        box = self._world.boxes[name]
        if not box.removed:
            image, obeys, serves = box.database.image, box.obeys, dict(box.serves)
            self._world.agenda.at(later, lambda: self._set_back(box, image, (obeys, serves)))

    def _set_back(self, box: Box, image: bytes, was: tuple[Stamped | None, dict[str, str]]) -> None:
        if box.removed:
            return
        if box.alive:
            self._world.leave(box)
            box.kill()
        box.database.close()
        box.database = MemoryDatabase(image, box.random)
        box.obeys, box.serves = was
        self._world.spoilt.add(box.name)
        self._world.agenda.at(30, lambda: self._boot(box))

    def _clone(self, name: str) -> None:
        """A second box speaks under the name until somebody takes it away."""
        world = self._world
        box = world.boxes[name]
        if box.removed or not box.alive or world.calm:
            return
        draw = Random(f"{world.case.seed}{name}twin")
        twin = Box(name, box.place, box.zone, world, draw, box.fate, box.features)
        twin.database.close()
        twin.database = MemoryDatabase(box.database.image, draw)
        twin.retained, twin.session, twin.obeys, twin.serves = box.retained, box.session, box.obeys, dict(box.serves)
        world.twins[name] = twin
        world.spoilt.add(name)
        twin.start()
        for n in range(8):  # they take the session from each other
            world.agenda.at(n * 60.0 + 5, (twin if n % 2 == 0 else box).connect)
        world.agenda.at(draw.uniform(H, 6 * H), lambda: self._part(name))

    def _part(self, name: str) -> None:
        """The copy is taken away."""
        twin = self._world.twins.pop(name, None)
        if twin is None:
            return
        twin.kill()
        twin.removed = True
        box = self._world.boxes[name]
        if not box.removed:
            box.connect()

    # --- the hub ---

    def _kill_hub_at_a_commit(self) -> None:
        """Before or after one of the next commits."""
        left = [self._world.random.randrange(12)]

        def deadly(_when: str) -> bool:
            left[0] -= 1
            return left[0] == -1

        self._world.office.store.deadly = deadly

    def revive(self) -> None:
        """Another process on the same disk; the broker tells it what it retains."""
        world = self._world
        world.office.reborn(world.office.store.image)
        self._open_again()

    def _open_again(self) -> None:
        world = self._world
        world.down = False
        world.rules.back()
        world.office.arrivals = [
            state_arrival(name, s, retained=True) for name, s in world.states.items() if not world.boxes[name].removed
        ]
        world.soon()
        world.agenda.at(1.0, self._republish)

    async def _republish(self) -> None:
        if not self._world.down:
            await self._world.does(self._world.office.publisher.republish())

    def _back_up(self) -> None:
        world = self._world
        if not world.down:
            world.backups.append((world.office.store.image, world.number, world.life))

    def _restore(self) -> None:
        """The hub comes back from an older backup; its list of devices is mended first."""
        world = self._world
        if world.down or not world.backups:
            return
        image, number, life = world.backups[-1]
        world.office.reborn(image)
        world.life = max((world.life, *world.forks)) + 1
        world.forks[world.life] = (life, number)
        for name, box in world.boxes.items():
            labels = {"timezone": box.zone} | ({"site": box.place} if box.place else {})
            world.office.enrol(name, labels)
            if box.removed:
                world.office.revoke(name)
        world.rules.forget()
        world.doubtful |= set(world.people._ids()) | world.emergencies
        world.restored = True
        self._open_again()

    def _change_line(self) -> None:
        """Somebody changes what a site's line may carry: a document of its own, no order."""
        world = self._world
        if world.down:
            return
        box = world.random.choice([world.boxes[name] for name in sorted(world.boxes)])
        rules = lines.rules_of(world.random.choice([1, 5, 20]), ["22:00-06:00"])
        now = world.hub_clock()
        world.office.put(lambda c: lines.set_line(c, box.name, rules, ["22:00-06:00"], "bob", now))
        world.office.runner.touch({box.name})
        world.soon()

    # --- peace ---

    def peace(self) -> None:
        """No further faults: whoever is there can be reached and is right about the time."""
        world = self._world
        world.calm = True
        world.hub_skew = 0.0
        world.office.store.deadly = lambda _when: False
        for name in sorted(world.twins):
            self._part(name)
        for box in world.boxes.values():
            box.skew = 0.0
            if not box.removed:
                self._reach(box, True)
                self._boot(box)
                box.connect()
