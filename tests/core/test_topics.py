"""Topics, both ways: what is written is read back, and nothing else is a topic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.wire.ids import BadIdError, check_digest, check_id
from landreeve.wire.topics import (
    BadTopicError,
    Down,
    DownLaneTopic,
    DownOfferTopic,
    DownTopic,
    DownWantTopic,
    SharedBlocksTopic,
    Topic,
    Up,
    UpTopic,
    UpWantTopic,
    device_filters,
    format_topic,
    hub_filter,
    parse_topic,
)

IDS = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
TOPICS = (
    st.builds(UpTopic, IDS, IDS, st.sampled_from(Up))
    | st.builds(DownTopic, IDS, IDS, st.sampled_from(Down))
    | st.builds(SharedBlocksTopic, IDS, DIGESTS)
    | st.builds(UpWantTopic, IDS, IDS, DIGESTS)
    | st.builds(DownWantTopic, IDS, IDS, DIGESTS)
    | st.builds(DownOfferTopic, IDS, IDS, DIGESTS)
    | st.builds(DownLaneTopic, IDS, IDS, DIGESTS)
)


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT 3.1.1, 4.7, as far as our filters go."""
    head = topic_filter.removesuffix("/#")
    return topic == topic_filter or (topic_filter.endswith("/#") and topic.startswith(head + "/"))


@given(TOPICS)
def test_topic_is_read_back_as_it_was_written(topic: Topic) -> None:
    assert parse_topic(format_topic(topic)) == topic


@given(TOPICS)
def test_topic_never_holds_a_wildcard(topic: Topic) -> None:
    assert not set(format_topic(topic)) & set("+#\0 ")


@given(TOPICS)
def test_device_hears_only_what_is_sent_down_to_it_or_to_all(topic: Topic) -> None:
    heard = any(matches(f, format_topic(topic)) for f in device_filters("demo", "d-1"))
    match topic:
        case (
            DownTopic(fleet, device, _)
            | DownWantTopic(fleet, device, _)
            | DownOfferTopic(fleet, device, _)
            | DownLaneTopic(fleet, device, _)
        ):
            assert heard == ((fleet, device) == ("demo", "d-1"))
        case SharedBlocksTopic(fleet, _):
            assert heard == (fleet == "demo")
        case _:
            assert not heard


def test_hub_hears_everything_that_goes_up_in_its_fleet_and_nothing_else() -> None:
    assert matches(hub_filter("demo"), "lr/1/demo/up/d-1/want/" + "a" * 64)
    assert not matches(hub_filter("demo"), "lr/1/other/up/d-1/event")
    assert not matches(hub_filter("demo"), "lr/1/demo/dn/d-1/desired")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "not a topic"),
        ("lr/1/demo/up/d-1", "not a topic"),
        ("lr/1/demo/up/d-1/event/more", "not a topic"),
        ("lr/2/demo/up/d-1/event", "contract version '2'"),
        ("lr/1/demo/up/d-1/gossip", "gossip"),
        ("lr/1/demo/dn/d-1/birth", "birth"),
        ("lr/1/demo/up/+/event", "no identifier"),
        ("lr/1/demo/up/../event", "no identifier"),
        ("lr/1//up/d-1/event", "no identifier"),
        ("lr/1/demo/art/abc/blocks", "no sha256"),
        ("lr/1/demo/art/" + "A" * 64 + "/blocks", "no sha256"),
        ("lr/1/demo/up/d-1/want/" + "g" * 64, "no sha256"),
        ("/lr/1/demo/up/d-1/event", "not a topic"),
        ("lr/1/demo/up/d-1/event\0", "event"),
    ],
)
def test_text_that_is_no_topic_is_refused_with_the_reason(text: str, names: str) -> None:
    with pytest.raises(BadTopicError) as caught:
        parse_topic(text)
    assert names in str(caught.value)


@pytest.mark.parametrize("name", ["", "#", "+", "a/b", "-a", "a-", ".a", "a..b", "a" * 65, "a b", "a\n", "ä", "$SYS"])
def test_name_that_could_widen_a_topic_or_leave_a_folder_is_refused(name: str) -> None:
    with pytest.raises(BadIdError, match="no identifier"):
        check_id(name)
    with pytest.raises(BadIdError):
        format_topic(UpTopic("demo", name, Up.EVENT))


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "a" * 63 + "\n", "0x" + "a" * 62])
def test_text_that_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(BadIdError, match="no sha256"):
        check_digest(text)


@given(st.text(max_size=60))
def test_no_text_makes_the_reader_fail_otherwise(text: str) -> None:
    for candidate in (text, f"lr/1/{text}", f"lr/1/demo/up/{text}/event"):
        try:
            parsed = parse_topic(candidate)
        except BadTopicError:
            continue
        assert format_topic(parsed) == candidate
