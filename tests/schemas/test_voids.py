"""A voiding event says what it voids, in its id too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.event import EventError, Reason, parse_event
from meterline.schemas.voids import VOID_SOURCE, VOID_TYPE, EventName, Void

TIME = 1_700_000_000_123_456
VOID = Void(EventName("default", TIME, "/gw", "e-1"), "acme", "sent twice")
texts = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)


@given(st.builds(EventName, texts, st.integers(0, 7_258_118_399_999_999), st.just("/gw#1"), texts), texts, texts)
def test_what_is_written_is_read(name: EventName, subject: str, reason: str) -> None:
    void = Void(name, subject, reason)
    event = parse_event(void.record())
    assert Void.parse(void.record()) == void
    assert (event.type, event.source, event.id) == (VOID_TYPE, VOID_SOURCE, void.id)


def test_the_id_is_that_of_the_rules() -> None:
    """printf 'default\\x00/gw\\x00e-1\\x001700000000123456' | sha256sum"""
    assert VOID.id == "void_122227e14cbc389ce4b91599"


def test_each_part_of_the_name_and_no_other_makes_another_id() -> None:
    names = [
        VOID.event._replace(**change) for change in ({"tenant_id": "t"}, {"time": 1}, {"source": "/"}, {"id": "e"})
    ]
    assert len({VOID._replace(event=name).id for name in [VOID.event, *names]}) == 5
    assert VOID._replace(reason="other").id == VOID.id


@pytest.mark.parametrize(
    ("change", "data", "reason"),
    [
        pytest.param({}, {"id": None}, Reason.MISSING_FIELD, id="no id"),
        pytest.param({}, {"source": ""}, Reason.MISSING_FIELD, id="no source"),
        pytest.param({}, {"reason": 5}, Reason.MISSING_FIELD, id="a number as reason"),
        pytest.param({}, {"reason": "x" * 1_025}, Reason.MISSING_FIELD, id="a long reason"),
        pytest.param({}, {"reason": "a\u0000b"}, Reason.MISSING_FIELD, id="a control character"),
        pytest.param({}, {"reason": "\ud800"}, Reason.MISSING_FIELD, id="a surrogate"),
        pytest.param({"id": "mine"}, {}, Reason.BAD_ATTRIBUTE, id="another id"),
        pytest.param({"source": "/mine"}, {}, Reason.BAD_ATTRIBUTE, id="another source"),
        pytest.param({"time": "2026-01-01T00:00:00Z"}, {}, Reason.BAD_ATTRIBUTE, id="another time"),
        pytest.param({"type": "call"}, {}, Reason.BAD_ATTRIBUTE, id="usage with the source of voids"),
    ],
)
def test_what_is_wrong_has_a_reason(change: dict[str, Any], data: dict[str, Any], reason: Reason) -> None:
    event = json.loads(VOID.record())
    event |= change | {"data": event["data"] | data}
    with pytest.raises(EventError) as error:
        Void.parse(json.dumps(event).encode())
    assert error.value.reason == reason
