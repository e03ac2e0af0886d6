"""Bytes on the wire: every message counted once each way, kept with the metrics, shown in the status."""

import asyncio
from pathlib import Path

from landreeve.wire.codec import encode
from landreeve.wire.messages import Ack, Event
from landreeve_agent.link.meter import Meter

from tests.agent.test_app_rooms import Desk
from tests.agent.test_link_session import DOWN, NOW, UP, Site


async def test_every_message_sent_or_received_is_counted(tmp_path: Path) -> None:
    site = Site(tmp_path)
    await site.say(Event(name="e", subject="s", cause="c", sentence="S."))
    await site.until(lambda: bool(site.facts()))
    site.acknowledge(1)
    await site.emptied()
    site.down("command", b"not a message")
    await site.until(lambda: site.session.contact.counts.rejected == 1)
    sent = sum(len(topic) + len(data) for topic, data in site.broker.log if topic.startswith(UP))
    ack = len(f"{DOWN}/ack") + len(encode(Ack(epoch=site.facts()[0].epoch, seq=1)))
    assert (site.session.meter.up, site.session.meter.down) == (sent, ack + len(f"{DOWN}/command") + 13)
    await site.stop()


async def test_totals_go_on_after_a_restart(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.reporter.meter.sent("a/b", b"12345")
    desk.reporter.meter.received("a/é", b"")
    await desk.reporter.metrics(NOW)
    later = Meter()
    await desk.database.read(later.load)
    later.sent("a/b", b"")
    assert (later.up, later.down) == (11, 4)
    await asyncio.to_thread(desk.database.close)
