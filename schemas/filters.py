"""Which events a meter counts, by the values of their properties.

Source: docs/rules.md, section 3, "Filters".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Condition(NamedTuple):
    """A property has one of the values (an absent one the empty string); where `is_one` is false, none of them."""

    path: str
    values: frozenset[str]
    is_one: bool = True


class Filter(NamedTuple):
    """What all of its conditions hold for; without any, every event."""

    conditions: tuple[Condition, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(condition.path for condition in self.conditions)

    def takes(self, texts: Mapping[str, str | None]) -> bool:
        """Whether it takes an event.

        Args:
          texts: By path, the string form of the property; None where it has none, which is no value.
        """
        return all((texts[path] in values) == is_one for path, values, is_one in self.conditions)


EVERYTHING = Filter()
