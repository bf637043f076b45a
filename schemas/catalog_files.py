"""Reads a catalog: a folder of YAML files. Every mistake is reported at once, with its file and line.

    catalog = load_catalog("catalog/")

Files may have any names, since each says under its top-level keys what it holds: `meters`, `rate_cards`,
`plans`, `accounts`, `subscriptions`, `discounts`, `redemptions`, `tax_rates`, `commitments`, `grants`, `custom_units`,
`exchange_rates`. `python -m meterline.schemas.catalog_files` prints the JSON Schema that editors complete and check
catalog files with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from meterline.schemas import catalog_checks
from meterline.schemas.catalog import (
    CLOCK_END_PATTERN,
    CLOCK_PATTERN,
    Account,
    Band,
    Catalog,
    Change,
    Charge,
    Dynamic,
    Fixed,
    Graduated,
    GraduatedPercentage,
    Matrix,
    MatrixRow,
    Package,
    Percentage,
    PerUnit,
    Plan,
    RateCard,
    RateCardVersion,
    ShareTier,
    Stairstep,
    Step,
    Subscription,
    Tier,
    TimeOfDay,
    Times,
    Trial,
    Volume,
)
from meterline.schemas.catalog_allowances import IncludedRollover
from meterline.schemas.catalog_exchange import CustomUnit, DatedRate, ExchangeRate
from meterline.schemas.catalog_fields import ID_PATTERN, PATH_PATTERN, Record
from meterline.schemas.catalog_money import (
    AccountTax,
    Commitment,
    DatedPercent,
    Discount,
    Grant,
    Redemption,
    Rollover,
    TaxRate,
)
from meterline.schemas.catalog_quotes import COMPARED, in_quotes
from meterline.schemas.currency import UNIT_PATTERN
from meterline.schemas.meters import Meter

MAX_DEPTH = 32
MAX_ALIASED = 100_000

SECTIONS: dict[str, type[Record]] = {
    "meters": Meter,
    "rate_cards": RateCard,
    "plans": Plan,
    "accounts": Account,
    "subscriptions": Subscription,
    "discounts": Discount,
    "redemptions": Redemption,
    "tax_rates": TaxRate,
    "commitments": Commitment,
    "grants": Grant,
    "custom_units": CustomUnit,
    "exchange_rates": ExchangeRate,
}
_PRICES: dict[str, type[Record]] = {
    "per_unit": PerUnit,
    "graduated": Graduated,
    "volume": Volume,
    "stairstep": Stairstep,
    "package": Package,
    "percentage": Percentage,
    "graduated_percentage": GraduatedPercentage,
    "dynamic": Dynamic,
    "matrix": Matrix,
    "time_of_day": TimeOfDay,
    "fixed": Fixed,
}
# The model of each mapping, by the key of its list or, for prices, by the price model's name; `MODEL.LIST` comes first.
_MODELS: dict[str, type[Record]] = {
    **SECTIONS,
    **_PRICES,
    "versions": RateCardVersion,
    "charges": Charge,
    "tiers": Tier,
    "steps": Step,
    "rows": MatrixRow,
    "bands": Band,
    "times": Times,
    "changes": Change,
    "trial": Trial,
    "graduated_percentage.tiers": ShareTier,
    "tax": AccountTax,
    "rollover": Rollover,
    "included_rollover": IncludedRollover,
    "rates": DatedPercent,
    "exchange_rates.rates": DatedRate,
}
_SINGULAR = {
    "meters": "meter",
    "rate_cards": "rate card",
    "plans": "plan",
    "accounts": "account",
    "subscriptions": "subscription",
    "discounts": "discount",
    "redemptions": "redemption",
    "tax_rates": "tax rate",
    "commitments": "commitment",
    "grants": "grant",
    "custom_units": "custom unit",
    "exchange_rates": "exchange rate",
    "rates": "rate",
    "jurisdictions": "jurisdiction",
    "product_codes": "product code",
    "versions": "version",
    "prices": "price",
    "charges": "charge",
    "tiers": "tier",
    "steps": "step",
    "rows": "row",
    "bands": "band",
    "times": "time",
    "changes": "change",
    "days": "day",
    "subjects": "subject",
    "dimensions": "dimension",
}
_EXPECTED = {
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "int_type": "expected a whole number",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
}
_HINTS = {
    "mapping values are not allowed in this context": ": check the indentation, and quote text that has ': ' in it",
    "found character that cannot start any token": ": indent with spaces, and quote text that starts with @ or `",
}
_PATTERNS = {
    UNIT_PATTERN: "expected 4 to 50 small letters, digits, '-' and '_', starting with a letter",
    ID_PATTERN: "expected letters, digits, '.', '_' and '-', at most 100, starting with a letter or digit",
    PATH_PATTERN: "expected property names joined by '.'",
    CLOCK_PATTERN: "expected a time of day like '08:00'",
    CLOCK_END_PATTERN: "expected a time of day like '20:00', or '24:00'",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a catalog: where it is, what came and what was expected."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class CatalogError(ValueError):
    """The catalog has mistakes."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def load_catalog(folder: str | Path) -> Catalog:
    """Read the catalog in `folder`.

    Raises:
      CatalogError: it has mistakes; the error holds all of them.
    """
    catalog, problems = check_catalog(folder)
    if catalog is None:
        raise CatalogError(problems)
    return catalog


def check_catalog(folder: str | Path) -> tuple[Catalog | None, list[Problem]]:
    """Read the catalog in `folder`, or list all its mistakes by file and line.

    Only while a part of a file cannot be read, records that others miss are not reported: they may be there.
    """
    folder = Path(folder)
    problems: list[Problem] = []
    records: dict[str, list[Record]] = {section: [] for section in SECTIONS}
    places: dict[str, list[_Place]] = {section: [] for section in SECTIONS}
    broken: dict[str, set[str]] = {section: set() for section in SECTIONS}
    found = list(_read_folder(folder, problems))
    complete = not problems
    for place in found:
        try:
            record = SECTIONS[place.section].model_validate(place.node.value)
        except ValidationError as error:
            problems += map(place.explain, error.errors(include_url=False))
            broken[place.section].add(place.node.name)
        else:
            records[place.section].append(record)
            places[place.section].append(place)
    catalog = Catalog.model_validate(records)
    for at, message, also in catalog_checks.findings(catalog, broken, complete):
        place = places[at[0]][at[1]]
        if also is not None:
            other = places[also[0]][also[1]]
            message = f"{message} ({_spot(place, other, also[2:])})"
        problems.append(place.problem(at[2:], message))
    problems = sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line or 0))
    return (None if problems else catalog), problems


def catalog_json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one catalog file."""
    schema = Catalog.model_json_schema()
    for section in schema["properties"].values():
        del section["default"]
    # Pydantic leaves keys that do not match the pattern unchecked.
    schema["$defs"]["RateCardVersion"]["properties"]["prices"]["additionalProperties"] = False
    for record in ("Subscription", "Change"):
        schema["$defs"][record]["properties"]["prices"]["additionalProperties"] = False
    schema["$defs"]["MatrixRow"]["properties"]["when"]["additionalProperties"] = False
    for conditions in ("where", "where_not"):
        schema["$defs"]["Meter"]["properties"][conditions]["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Meterline catalog file",
        "description": "A part of a catalog; the files of a folder together are the catalog.",
        "minProperties": 1,
    }


# Files and the trees in them


@dataclass(frozen=True, slots=True)
class _Unquoted:
    """A number that YAML would not keep as written, such as 0.1 or 007. No field accepts it."""

    written: str


@dataclass(frozen=True, slots=True)
class _Node:
    """A piece of YAML: its value, its text as written, and the parts below it with their lines."""

    value: Any
    line: int
    written: str
    parts: Mapping[str | int, tuple[int, _Node]] = field(default_factory=dict)
    size: int = 1

    @property
    def name(self) -> str:
        """The id or version, or '' where there is none or it is none."""
        value = self.value if isinstance(self.value, dict) else {}
        name = value.get("id", value.get("version"))
        return name if isinstance(name, str) and re.fullmatch(ID_PATTERN, name) else ""


def _read_folder(folder: Path, problems: list[Problem]) -> Iterator[_Place]:
    """All records of the folder's files, valid or not."""
    name = str(folder)
    if not folder.is_dir():
        what = "is a file, expected a folder" if folder.exists() else "does not exist"
        problems.append(Problem(name, None, "", what))
        return
    # Hidden ones are passed over: a mounted Kubernetes ConfigMap holds each file a second time in one.
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (".yaml", ".yml") and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        problems.append(Problem(name, None, "", "holds no *.yaml or *.yml file, expected at least one"))
    for path in files:
        file = path.relative_to(folder).as_posix()
        yield from _records(file, _read_file(path, file, problems), problems)


def _read_file(path: Path, file: str, problems: list[Problem]) -> _Node | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.append(Problem(file, None, "", f"cannot be read: {error.strerror}"))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(Problem(file, line, "", f"byte {data[error.start]:#04x} is not UTF-8"))
        return None
    if control := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, control.start()) + 1
        problems.append(Problem(file, line, "", f"U+{ord(control[0]):04X} is a control character"))
        return None
    return _Reader(file, problems).read(text)


def _records(file: str, root: _Node | None, problems: list[Problem]) -> Iterator[_Place]:
    if root is None:
        return
    if not isinstance(root.value, dict):
        message = f"expected a mapping with keys among {', '.join(SECTIONS)}, got {root.written}"
        problems.append(Problem(file, root.line, "", message))
        return
    for key, (line, section) in root.parts.items():
        if key not in SECTIONS:
            problems.append(Problem(file, line, "", _unknown_key(str(key), SECTIONS)))
        elif not isinstance(section.value, list):
            message = f"expected a list of {str(key).replace('_', ' ')}, got {section.written}"
            problems.append(Problem(file, line, str(key), message))
        else:
            for number, (line, node) in section.parts.items():
                yield _Place(file, str(key), int(number), line, node)


class _Unreadable(Exception):
    """The line and the reason why the rest of a file is not read."""


class _Reader:
    """Builds the tree of one file from the events of PyYAML's safe loader.

    PyYAML's own constructors lose lines, keep the last of two equal keys, and turn 0.1 into a float,
    007 into 7 and dates into objects.
    """

    _LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._anchors: dict[str | None, _Node] = {}
        self._aliased = 0

    def read(self, text: str) -> _Node | None:
        opened: list[tuple[yaml.NodeEvent, list[tuple[int, _Node]]]] = [(yaml.NodeEvent(None), [])]
        try:
            for event in yaml.parse(text, Loader=self._LOADER):
                match event:
                    case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                        opened.append((event, []))
                        if len(opened) > MAX_DEPTH:
                            raise _Unreadable(_line(event), f"nested deeper than {MAX_DEPTH} levels")
                        continue
                    case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                        start, parts = opened.pop()
                        build = self._list if isinstance(event, yaml.SequenceEndEvent) else self._mapping
                        node = build(start, parts)
                    case yaml.ScalarEvent():
                        start, node = event, self._scalar(event)
                    case yaml.AliasEvent():
                        start, node = event, self._alias(event)
                    case yaml.DocumentStartEvent() if opened[0][1]:
                        raise _Unreadable(_line(event), "a second document starts here, expected one in a file")
                    case _:
                        continue
                if not isinstance(event, yaml.AliasEvent):
                    self._anchors[start.anchor] = node
                opened[-1][1].append((_line(start), node))
        except _Unreadable as error:
            self._report(*error.args)
            return None
        except yaml.MarkedYAMLError as error:
            # A mark at the end of the text counts a line that is not there.
            line = min(error.problem_mark.line + 1, len(text.splitlines())) if error.problem_mark else None
            since = f" in line {error.context_mark.line + 1}" if error.context_mark else ""
            context = f" ({error.context}{since})" if error.context else ""
            self._report(line, f"not YAML: {error.problem}{context}{_HINTS.get(error.problem or '', '')}")
            return None
        roots = opened[0][1]
        if not roots or roots[0][1].value is None:
            self._report(None, f"is empty, expected a mapping with keys among {', '.join(SECTIONS)}")
            return None
        return roots[0][1]

    def _report(self, line: int | None, message: str) -> None:
        self._problems.append(Problem(self._file, line, "", message))

    def _alias(self, event: yaml.AliasEvent) -> _Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            raise _Unreadable(
                _line(event), f"*{event.anchor} repeats what &{event.anchor} marks, but nothing above does"
            )
        self._aliased += node.size
        if self._aliased > MAX_ALIASED:
            raise _Unreadable(_line(event), f"aliases repeat more than {MAX_ALIASED} values")
        return node

    def _scalar(self, event: yaml.ScalarEvent) -> _Node:
        text, line = event.value, _line(event)
        plain = event.implicit[0] and event.tag is None
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._report(line, f"the tag {event.tag} is not known, leave it out")
        written = (text or "nothing") if plain else repr(text)
        return _Node(_plain_value(text) if plain else text, line, _short(written))

    def _list(self, start: yaml.Event, parts: list[tuple[int, _Node]]) -> _Node:
        return _Node(
            [node.value for _, node in parts],
            _line(start),
            "a list",
            dict(enumerate(parts)),
            1 + sum(node.size for _, node in parts),
        )

    def _mapping(self, start: yaml.Event, parts: list[tuple[int, _Node]]) -> _Node:
        entries: dict[str | int, tuple[int, _Node]] = {}
        inherited: dict[str | int, tuple[int, _Node]] = {}
        for (line, key), (_, node) in zip(parts[::2], parts[1::2]):
            if key.written == "<<":
                sources = [source for _, source in node.parts.values()] if isinstance(node.value, list) else [node]
                for source in sources:
                    if not isinstance(source.value, dict):
                        self._report(line, f"<< takes over a mapping, got {source.written}")
                    else:
                        inherited = {**source.parts, **inherited}
                continue
            if key.value is None or isinstance(key.value, list | dict):
                self._report(line, f"a key must be text, got {key.written}")
                continue
            if not isinstance(key.value, str):
                self._report(line, f"the key {_quote_it(key)}")
            name = key.value if isinstance(key.value, str) else key.written
            if name in entries:
                self._report(line, f"the key {name!r} stands twice, first in line {entries[name][0]}")
            entries.setdefault(name, (line, node))
        entries = {**inherited, **entries}
        value = {key: node.value for key, (_, node) in entries.items()}
        size = 1 + sum(node.size for _, node in parts)
        return _Node(value, _line(start), "a mapping", entries, size)


def _plain_value(text: str) -> Any:
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            match tag.rpartition(":")[2]:
                case "null":
                    return None
                case "bool":
                    return yaml.SafeLoader.bool_values[text.lower()]
                case "int" if re.fullmatch(r"-?(0|[1-9][0-9]{0,39})", text):
                    return int(text)
                case "int" | "float":
                    return _Unquoted(text)
    return text


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1


# What pydantic found, in plain words


class _Place(NamedTuple):
    """Where a record stands."""

    file: str
    section: str
    number: int
    line: int
    node: _Node

    def problem(self, loc: Sequence[str | int], message: str) -> Problem:
        """A problem of the record's part that `loc` leads to."""
        line, _, path = self.find(loc)
        return Problem(self.file, line, path, _short(message, 500))

    def find(self, loc: Sequence[str | int]) -> tuple[int, _Node | None, str]:
        """The line of the part that `loc` leads to (or of the nearest above it), the part, its name."""
        line = self.line
        node: _Node | None = self.node
        names = [f"{_SINGULAR[self.section]} {self.node.name or f'number {self.number + 1}'}"]
        inside = ""
        for part in loc:
            if node is not None:
                line, node = node.parts.get(part, (line, None))
            if inside:
                label = part + 1 if isinstance(part, int) else _short(part)
                names.append(f"{inside} {(node and node.name) or label}")
                inside = ""
            elif part in _SINGULAR:
                inside = _SINGULAR[str(part)]
            else:
                names.append(str(part + 1) if isinstance(part, int) else str(part))
        if inside:
            names.append(str(loc[-1]))
        return line, node, _short(", ".join(names), 300)

    def explain(self, error: ErrorDetails) -> Problem:
        """Say in plain words what pydantic found wrong in the record."""
        loc = list(error["loc"])
        models = list(_PRICES)
        if "prices" in loc and self.section in ("rate_cards", "subscriptions"):
            charge = loc.index("prices") + 1
            del loc[charge + 1 : charge + 2]  # Pydantic puts in the price model's name, or "[key]" for the key itself.
            inside = loc[charge + 3 : charge + 4] == ["price"]
            if inside or loc[charge + 1 : charge + 2] == ["default"]:
                place = charge + (4 if inside else 2)
                del loc[place : place + 1]
                models = [model for model in models if model not in ("matrix", "time_of_day", "fixed")]
        if self.section == "meters" and loc[-1:] == ["[key]"]:
            name = _Node(loc[-2], 0, str(loc[-2]))
            return self.problem(loc[:-1], _wording(error["type"], name, error))
        key = str(loc[-1]) if loc else ""
        context = error.get("ctx", {})
        match error["type"]:
            case "missing":
                return self.problem(loc[:-1], f"`{key}` is missing")
            case "extra_forbidden":
                above = (self.section, *error["loc"][:-1])
                model = _model_of(above)
                path = self.find(loc[:-1])[2]
                keys = [field.alias or name for name, field in model.model_fields.items()]
                return Problem(self.file, self.find(loc)[0], path, _unknown_key(key, keys))
            case "misplaced":
                message = context["message"]
                if context["also"]:
                    message = f"{message} ({_spot(self, self, (*loc, *context['also']))})"
                return self.problem((*loc, *context["at"]), message)
            case "union_tag_not_found":
                return self.problem(loc, f"`model` is missing, expected one of {', '.join(models)}")
            case "union_tag_invalid":
                loc.append("model")
        node = self.find(loc)[1]
        if node is None or key == "[key]":
            return self.problem(loc, _wording(error["type"], _Node(key, 0, repr(loc[-1])), error))
        return self.problem(loc, _wording(error["type"], node, error))


def _model_of(loc: Sequence[str | int]) -> type[Record]:
    """The model of the innermost mapping that pydantic's path leads to."""
    names = [part for part in loc if isinstance(part, str)]
    for above, name in reversed(list(pairwise(["", *names]))):
        model = _MODELS.get(f"{above}.{name}") or _MODELS.get(name)
        if model is not None:
            return model
    raise AssertionError(f"no model on the way {loc}")


def _wording(kind: str, node: _Node, error: ErrorDetails) -> str:
    """What came in `node` and what was expected."""
    came, context = node.written, error.get("ctx", {})
    match kind:
        case "value_error":
            message = str(context["error"])
            if isinstance(node.value, str):
                return message
            expected, got, _ = message.rpartition(", got ")
            hint = f": write '{came}'" if isinstance(node.value, _Unquoted) and "quotes" in expected else ""
            return f"{expected}{got}{came}{hint}" if got else message
        case "string_type" if isinstance(node.value, bool | int | _Unquoted):
            return _quote_it(node, not set(COMPARED).isdisjoint(error["loc"]))
        case "enum" | "literal_error" | "union_tag_invalid":
            choices = re.findall("'([^']*)'", context["expected_tags" if kind == "union_tag_invalid" else "expected"])
            return f"expected one of {', '.join(choices)}, got {came}{_did_you_mean(node.value, choices)}"
        case "string_pattern_mismatch":
            return f"{_PATTERNS[context['pattern']]}, got {came}"
        case "string_too_short":
            return "expected text, got an empty one"
        case "string_too_long":
            return f"expected at most {context['max_length']} characters, got {len(node.value)}"
        case "too_short":
            return "expected at least one, got none"
        case "greater_than_equal":
            return f"expected at least {context['ge']}, got {came}"
        case "less_than_equal":
            return f"expected at most {context['le']}, got {came}"
    return f"{_EXPECTED.get(kind, error['msg'])}, got {came}"


def _quote_it(node: _Node, is_compared: bool = False) -> str:
    return in_quotes(node.written, node.value if isinstance(node.value, bool) else None, is_compared)


def _unknown_key(key: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    return f"unknown key {_short(repr(key))}{_did_you_mean(key, allowed)}; expected one of {', '.join(allowed)}"


def _did_you_mean(came: Any, choices: Sequence[str]) -> str:
    close = get_close_matches(came, choices, n=1) if isinstance(came, str) else []
    return f", did you mean {close[0]!r}?" if close else ""


def _spot(place: _Place, other: _Place, loc: Sequence[str | int]) -> str:
    """Where the part of `other` is, for a reader who looks at `place`."""
    line = other.find(loc)[0]
    return f"line {line}" if other.file == place.file else f"{other.file}:{line}"


def _short(text: str, limit: int = 80) -> str:
    """One line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


if __name__ == "__main__":
    print(json.dumps(catalog_json_schema(), indent=2, ensure_ascii=False))
