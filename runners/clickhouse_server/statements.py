"""As much of a statement's text as has to be known before ClickHouse gets it: where its data begins, and its format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, pairwise, takewhile
from typing import NamedTuple

# Linear: each alternative takes what it has looked at, and never gives back (`*+`). A quote or comment without its end
# takes all the rest. ClickHouse knows typographic quotes too.
_TOKEN = re.compile(
    rb"""
      (?P<space> \s+ | --[^\n]* | \#[!\s][^\n]* | /\*(?:[^*]|\*(?!/))*+\*/ )
    | (?P<text> '(?:[^'\\]|\\.|'')*+' | \xe2\x80\x98(?:[^\xe2]|\xe2(?!\x80\x99))*+\xe2\x80\x99 )
    | (?P<heredoc> \$\w*\$ )
    | (?P<name> "(?:[^"\\]|\\.|"")*+" | `(?:[^`\\]|\\.|``)*+` | \xe2\x80\x9c(?:[^\xe2]|\xe2(?!\x80\x9d))*+\xe2\x80\x9d
        | [\w$]+ )
    | (?P<open> (?: /\* | ['"`] | \xe2\x80[\x98\x9c] ) .* )
    | (?P<mark> . )
    """,
    re.DOTALL | re.VERBOSE,
)
_HEREDOC = re.compile(rb"(?=(\$\w*\$))")
_OPEN = {b"(": 1, b"[": 1, b"{": 1, b")": -1, b"]": -1, b"}": -1}
# After the format's name: blanks, and one end of line.
_BEFORE_DATA = re.compile(rb"[ \t\f]*\r?\n?")


class Token(NamedTuple):
    kind: str  # name, text, mark, or open: a quote or comment without its end
    text: bytes
    end: int
    depth: int  # of the brackets that it stands in

    def is_word(self, *words: bytes) -> bool:
        return self.kind == "name" and self.text.upper() in words


_END = Token("", b"", 0, 0)


def tokens(text: bytes) -> Iterator[Token]:
    """The tokens without blanks and comments."""
    depth = at = 0
    last: dict[bytes, int] | None = None
    while found := _TOKEN.match(text, at):
        kind, one, at = str(found.lastgroup), found[0], found.end()
        if kind == "space":
            continue
        if kind == "heredoc":
            if last is None:
                # Where each `$name$` stands last: to look for one that is not there costs the whole text each time.
                last = {mark[1]: mark.start() for mark in _HEREDOC.finditer(text)}
            closed = last[one] >= at
            kind, at = ("text", text.index(one, at) + len(one)) if closed else ("open", len(text))
            one = text[found.start() : at]
        step = _OPEN.get(one, 0) if kind == "mark" else 0
        depth += min(step, 0)
        yield Token(kind, one, at, depth)
        depth += max(step, 0)


class Insert(NamedTuple):
    """An INSERT whose rows come with it.

    Args:
      head: The statement without format and data.
      format: Of the data; None where the statement does not say.
      data_at: Where in the text the data begins.
    """

    head: bytes
    format: str | None
    data_at: int


def is_insert(text: bytes) -> bool:
    """Whether a statement begins with INSERT."""
    return next(tokens(text), _END).is_word(b"INSERT")


def insert_of(text: bytes, *, whole: bool) -> Insert | None:
    """The parts of an INSERT with data; None when it takes none (INSERT … SELECT), or its head has not ended yet.

    Args:
      whole: Whether the text is all there is. If not, data may follow, which is never looked at.
    """
    walk = takewhile(lambda one: whole or one.kind != "open", tokens(text))
    before = next(walk, _END)
    if not before.is_word(b"INSERT"):
        return None
    # The table may itself be called `format`.
    while next(walk, _END).is_word(b"INTO", b"TABLE", b"FUNCTION"):
        pass
    while (behind := next(walk, _END)).text == b".":
        next(walk, _END)
    for one in chain([behind], walk):
        if one.is_word(b"SELECT", b"WITH", b"FROM", b"EXPLAIN") and (one.depth == 0 or before.text == b"("):
            return None
        before = one
        if one.depth or not one.is_word(b"VALUES", b"FORMAT"):
            continue
        head = text[: one.end - len(one.text)]
        if one.is_word(b"VALUES"):
            return Insert(head, "Values", one.end) if whole or one.end < len(text) else None
        name = next(walk, _END)
        blank = _BEFORE_DATA.match(text, name.end)
        if name.kind == "name" and blank and (whole or blank.end() < len(text)):
            return Insert(head, name.text.decode(errors="replace"), blank.end())
        return None
    return Insert(text, None, len(text)) if whole else None


def format_of(text: bytes) -> str | None:
    """The format that a query asks for itself; None where it names none."""
    found = None
    for one, following in pairwise(tokens(text)):
        if one.depth == 0 and one.is_word(b"FORMAT") and following.kind == "name":
            found = following.text.decode(errors="replace")
    return found


def words(text: bytes) -> list[str]:
    """All names and words in order, lower case, without quotes."""
    return [_bare(one).lower() for one in tokens(text) if one.kind == "name"]


def settings(text: bytes, *, normal: bool) -> Iterator[str]:
    """The names that SET and the SETTINGS clauses give values to; rather a name too many than one too few.

    Args:
      normal: Whether the text is as ClickHouse writes it, its own words in capitals; then names without a value are
        found too (`SETTINGS final`), which cannot be told from an alias otherwise.
    """
    inside: list[int] = []  # The depths of the clauses that are not over.
    before = _END
    for one, following in pairwise(chain(tokens(text), [_END])):
        while inside and one.depth < inside[-1]:
            inside.pop()
        is_named = one.kind == "name" and one.depth in inside[-1:] and _begins(before)
        if is_named and (normal or following.text == b"="):
            yield _bare(one)
        is_clause = one.text == b"SETTINGS" if normal else one.is_word(b"SETTINGS")
        if (is_clause and before.text != b".") or (before is _END and one.is_word(b"SET")):
            inside.append(one.depth)
        before = one


def _begins(before: Token) -> bool:
    return before.text == b"," or before.is_word(b"SETTINGS", b"SET")


def _bare(one: Token) -> str:
    return one.text.strip(b'`"').decode(errors="replace")


def calls(text: bytes, function: str) -> bool:
    """Whether a function of this name is called."""
    name = function.encode().upper()
    return any(one.is_word(name) and following.text == b"(" for one, following in pairwise(tokens(text)))


def split(text: str) -> list[str]:
    """What stands between the commas outside of brackets."""
    found = [""]
    depth = 0
    for one in text:
        depth += {"(": 1, ")": -1}.get(one, 0)
        if one == "," and not depth:
            found.append("")
        else:
            found[-1] += one
    return [one.strip() for one in found if one.strip()]
