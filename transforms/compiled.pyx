# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# distutils: language = c
"""The inner loops that libraries do not have, compiled: reading events from JSON, and hashing their identities.

`scan` reads only records that are surely fine, and leaves every other one to transforms/scan.py: what it does not
accept is slower, never different. It reads nothing outside [start, end) of a record: each look at a byte is behind a
comparison with the record's end.

Source: RFC 8259 (JSON), RFC 3339 (time), RFC 3629 (UTF-8); docs/rules.md, section 1.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

import numpy as np

cdef extern from *:
    """
    #define XXH_INLINE_ALL
    #include "arrow/vendored/xxhash/xxhash.h"
    typedef unsigned __int128 u128;
    """
    ctypedef unsigned long long u128
    uint64_t XXH3_64bits(const void *data, size_t length) nogil
    ctypedef struct XXH128_hash_t:
        pass
    ctypedef struct XXH128_canonical_t:
        uint8_t digest[16]
    XXH128_hash_t XXH3_128bits(const void *data, size_t length) nogil
    void XXH128_canonicalFromHash(XXH128_canonical_t *target, XXH128_hash_t hash) nogil

ctypedef const uint8_t *Text

cdef enum:
    MAX_CHILDREN = 32
    MAX_SLOTS = 64
    # Limits of schemas.event, or somewhat less: near a limit, the slow path decides.
    MAX_DEPTH = 60
    MAX_NUMBER = 4000
    MAX_RECORD = 1048576

# Context attributes, in this order in `codes`; `id` and `time` have columns of their own.
ATTRIBUTES = ("source", "type", "subject", "tenantid", "datacontenttype", "dataschema")
cdef enum:
    SOURCE, TYPE, SUBJECT, TENANT, CONTENT_TYPE, SCHEMA, ID, TIME, VERSION, DATA, KNOWN


cdef struct Span:
    Text start
    Text end


# --- strings and numbers ------------------------------------------------------------------------

# What a byte of a string is: 0 ends the quick loop, 1 goes on.
cdef uint8_t PLAIN[256]
for _byte in range(256):
    PLAIN[_byte] = 0x20 <= _byte < 0x7F and _byte not in (0x22, 0x5C)


cdef inline Text blanks(Text at, Text end) noexcept nogil:
    while at < end and (at[0] == 32 or at[0] == 9 or at[0] == 10 or at[0] == 13):
        at += 1
    return at


cdef Text wide(Text at, Text end) noexcept nogil:
    """Behind a character of several bytes; NULL if it is no UTF-8, or one that CloudEvents forbids."""
    cdef uint8_t first = at[0]
    cdef int more
    cdef uint64_t code
    if 0xC2 <= first <= 0xDF:
        more, code = 1, first & 0x1F
    elif 0xE0 <= first <= 0xEF:
        more, code = 2, first & 0x0F
    elif 0xF0 <= first <= 0xF4:
        more, code = 3, first & 0x07
    else:
        return NULL
    if end - at <= more:
        return NULL
    cdef int place
    for place in range(1, more + 1):
        if at[place] & 0xC0 != 0x80:
            return NULL
        code = code << 6 | (at[place] & 0x3F)
    if code < 0xA0 or (more == 2 and code < 0x800) or (more == 3 and not 0x10000 <= code <= 0x10FFFF):
        return NULL
    if 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
        return NULL
    return at + more + 1


cdef inline bint is_hex(uint8_t letter) noexcept nogil:
    return 48 <= letter <= 57 or 65 <= letter <= 70 or 97 <= letter <= 102


cdef Text string(Text at, Text end, bint *escaped) noexcept nogil:
    """From behind the first quote of a string to its last; NULL if it is not surely one."""
    while True:
        while at < end and PLAIN[at[0]]:
            at += 1
        if at >= end:
            return NULL
        if at[0] == 34:
            return at
        if at[0] >= 0x80:
            at = wide(at, end)
            if at == NULL:
                return NULL
        elif at[0] == 92:
            escaped[0] = True
            if end - at < 2:
                return NULL
            if at[1] == 117:
                if end - at < 6 or not (is_hex(at[2]) and is_hex(at[3]) and is_hex(at[4]) and is_hex(at[5])):
                    return NULL
                at += 6
            elif memchr(b'"\\/bfnrt', at[1], 8) != NULL:
                at += 2
            else:
                return NULL
        else:
            return NULL


cdef inline bint is_digit(Text at, Text end) noexcept nogil:
    return at < end and 48 <= at[0] <= 57


cdef Text number(Text at, Text end) noexcept nogil:
    """Behind a number; NULL if it is none."""
    cdef Text start = at
    if at < end and at[0] == 45:
        at += 1
    if not is_digit(at, end):
        return NULL
    if at[0] == 48:
        at += 1
    else:
        while is_digit(at, end):
            at += 1
    if at < end and at[0] == 46:
        at += 1
        if not is_digit(at, end):
            return NULL
        while is_digit(at, end):
            at += 1
    if at < end and (at[0] == 101 or at[0] == 69):
        at += 1
        if at < end and (at[0] == 43 or at[0] == 45):
            at += 1
        if not is_digit(at, end):
            return NULL
        while is_digit(at, end):
            at += 1
    return at if at - start < MAX_NUMBER else NULL


cdef bint quantity(Text at, Text end, uint64_t *limbs) noexcept nogil:
    """Whether a token is a plain number, or a string of one; its value in units of 10^-12, low limb first."""
    if end - at >= 2 and at[0] == 34:
        at, end = at + 1, end - 1
    cdef Text start = at
    cdef u128 value = 0
    cdef int decimals = 0
    while is_digit(at, end):
        value = value * 10 + (at[0] - 48)
        at += 1
        if at - start > 20:
            return False
    if at == start or (start[0] == 48 and at - start > 1):
        return False
    if at < end and at[0] == 46:
        at += 1
        while is_digit(at, end):
            value = value * 10 + (at[0] - 48)
            at += 1
            decimals += 1
            if decimals > 12:
                return False
        if not decimals:
            return False
    if at != end:
        return False
    while decimals < 12:
        value = value * 10
        decimals += 1
    limbs[0] = <uint64_t>value
    limbs[1] = <uint64_t>(value >> 64)
    return True


cdef inline int figures(Text at, int many) noexcept nogil:
    """The number that `many` digits say; negative if one is no digit."""
    cdef int value = 0
    for place in range(many):
        if not 48 <= at[place] <= 57:
            return -1
        value = value * 10 + at[place] - 48
    return value


cdef bint timestamp(Text at, Text end, int64_t *micros) noexcept nogil:
    """Whether a text is a timestamp of the years 1971 to 2198; in microseconds since 1970, cut off."""
    if end - at < 20 or at[4] != 45 or at[7] != 45 or at[13] != 58 or at[16] != 58 or at[10] | 32 != 116:
        return False
    cdef int year = figures(at, 4), month = figures(at + 5, 2), day = figures(at + 8, 2)
    cdef int hour = figures(at + 11, 2), minute = figures(at + 14, 2), second = figures(at + 17, 2)
    if not (1971 <= year <= 2198 and 1 <= month <= 12 and 1 <= day and 0 <= hour < 24):
        return False
    if not (0 <= minute < 60 and 0 <= second < 60):
        return False
    cdef int length = 31
    if month == 2:
        length = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        length = 30
    if day > length:
        return False
    # Days since 1970 of a civil date, in years that begin in March (H. Hinnant, "chrono-compatible algorithms").
    cdef int64_t y = year - (1 if month <= 2 else 0)
    cdef int64_t days = 365 * y + y // 4 - y // 100 + y // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day - 1 - 719468
    cdef int64_t found = ((days * 24 + hour) * 60 + minute) * 60 + second
    at += 19
    cdef int64_t fraction = 0
    cdef int64_t unit = 100000
    if at[0] == 46:
        at += 1
        if not is_digit(at, end):
            return False
        while is_digit(at, end):
            fraction += unit * (at[0] - 48)
            unit //= 10
            at += 1
    cdef int sign
    if end - at == 1 and at[0] | 32 == 122:
        sign = 0
    elif end - at == 6 and (at[0] == 43 or at[0] == 45) and at[3] == 58:
        hour, minute = figures(at + 1, 2), figures(at + 4, 2)
        if not (0 <= hour < 24 and 0 <= minute < 60):
            return False
        sign = 1 if at[0] == 45 else -1
        found += sign * (hour * 3600 + minute * 60)
    else:
        return False
    micros[0] = found * 1000000 + fraction
    return True


# --- values that nobody reads -------------------------------------------------------------------


cdef Text skip(Text at, Text end, int depth) noexcept nogil:
    """Behind a JSON value; NULL if it is not surely one."""
    cdef bint escaped = False
    cdef uint8_t close
    if at >= end or depth > MAX_DEPTH:
        return NULL
    if at[0] == 34:
        at = string(at + 1, end, &escaped)
        if at == NULL:
            return NULL
        return at + 1
    if at[0] == 123 or at[0] == 91:
        close = at[0] + 2
        at = blanks(at + 1, end)
        if at < end and at[0] == close:
            return at + 1
        while True:
            if close == 125:
                if at >= end or at[0] != 34:
                    return NULL
                at = string(at + 1, end, &escaped)
                if at == NULL:
                    return NULL
                at = blanks(at + 1, end)
                if at >= end or at[0] != 58:
                    return NULL
                at = blanks(at + 1, end)
            at = skip(at, end, depth + 1)
            if at == NULL:
                return NULL
            at = blanks(at, end)
            if at >= end:
                return NULL
            if at[0] == close:
                return at + 1
            if at[0] != 44:
                return NULL
            at = blanks(at + 1, end)
    if end - at >= 4 and (memcmp(at, b"null", 4) == 0 or memcmp(at, b"true", 4) == 0):
        return at + 4
    if end - at >= 5 and memcmp(at, b"false", 5) == 0:
        return at + 5
    return number(at, end)


# --- what is read of `data` ---------------------------------------------------------------------


cdef struct Node:
    int size
    Text keys[MAX_CHILDREN]
    Py_ssize_t lengths[MAX_CHILDREN]
    int slots[MAX_CHILDREN]  # a property's number, or −1 − the number of a node below


cdef class Plan:
    """Which properties of `data` are read, nested as there.

    Args:
      tree: By key, None for a property that is read, or a tree below it. Properties are numbered in sorted order of
        their paths.

    Raises:
      ValueError: more properties than a plan holds.
    """

    cdef Node *nodes
    cdef int count
    cdef list keep
    cdef readonly list paths

    def __cinit__(self, dict tree):
        self.keep, self.paths = [], []
        self.nodes = <Node *> calloc(MAX_SLOTS, sizeof(Node))
        if self.nodes == NULL:
            raise MemoryError
        self._add(tree, "")

    def __dealloc__(self):
        free(self.nodes)

    cdef int _add(self, dict tree, str above) except -1:
        if self.count == MAX_SLOTS or len(tree) > MAX_CHILDREN:
            raise ValueError("more properties than a compiled plan holds")
        cdef int here = self.count
        cdef int place
        cdef Node *node = &self.nodes[here]
        cdef bytes key
        self.count += 1
        for place, name in enumerate(sorted(tree)):
            key = name.encode()
            self.keep.append(key)
            node.keys[place] = <Text> PyBytes_AS_STRING(key)
            node.lengths[place] = len(key)
            if tree[name] is None:
                if len(self.paths) == MAX_SLOTS:
                    raise ValueError("more properties than a compiled plan holds")
                node.slots[place] = len(self.paths)
                self.paths.append(above + name)
            else:
                node.slots[place] = -1 - self._add(tree[name], above + name + ".")
        node.size = len(tree)
        return here


cdef Text properties(Node *nodes, int here, Text at, Text end, int depth, Span *found) noexcept nogil:
    """Behind an object whose properties are read; NULL if it is not surely fine."""
    cdef Node *node = &nodes[here]
    cdef Text key
    cdef Text value
    cdef Py_ssize_t length
    cdef bint escaped = False
    cdef uint64_t met = 0
    cdef int place
    at = blanks(at + 1, end)
    if at < end and at[0] == 125:
        return at + 1
    while True:
        if at >= end or at[0] != 34:
            return NULL
        key = at + 1
        at = string(key, end, &escaped)
        if at == NULL or escaped:
            return NULL
        length = at - key
        at = blanks(at + 1, end)
        if at >= end or at[0] != 58:
            return NULL
        value = blanks(at + 1, end)
        for place in range(node.size):
            if node.lengths[place] == length and memcmp(node.keys[place], key, length) == 0:
                break
        else:
            place = -1
        if place >= 0:
            # Of two values the last counts: the slow path knows which.
            if met >> place & 1:
                return NULL
            met |= <uint64_t> 1 << place
        if place >= 0 and node.slots[place] < 0 and value < end and value[0] == 123:
            at = properties(nodes, -1 - node.slots[place], value, end, depth + 1, found)
        else:
            at = skip(value, end, depth + 1)
            if at != NULL and place >= 0 and node.slots[place] >= 0:
                found[node.slots[place]].start = value
                found[node.slots[place]].end = at
        if at == NULL:
            return NULL
        at = blanks(at, end)
        if at >= end:
            return NULL
        if at[0] == 125:
            return at + 1
        if at[0] != 44:
            return NULL
        at = blanks(at + 1, end)


# --- a record -----------------------------------------------------------------------------------


cdef inline int attribute(Text key, Py_ssize_t length) noexcept nogil:
    """The number of a context attribute; −1 for another name."""
    if length == 2 and memcmp(key, b"id", 2) == 0:
        return ID
    if length == 4:
        if memcmp(key, b"data", 4) == 0:
            return DATA
        if memcmp(key, b"type", 4) == 0:
            return TYPE
        if memcmp(key, b"time", 4) == 0:
            return TIME
    if length == 6 and memcmp(key, b"source", 6) == 0:
        return SOURCE
    if length == 7 and memcmp(key, b"subject", 7) == 0:
        return SUBJECT
    if length == 8 and memcmp(key, b"tenantid", 8) == 0:
        return TENANT
    if length == 10 and memcmp(key, b"dataschema", 10) == 0:
        return SCHEMA
    if length == 11 and memcmp(key, b"specversion", 11) == 0:
        return VERSION
    if length == 15 and memcmp(key, b"datacontenttype", 15) == 0:
        return CONTENT_TYPE
    return -1


cdef inline bint is_extension(Text key, Py_ssize_t length) noexcept nogil:
    if not 1 <= length <= 50:
        return False
    for place in range(length):
        if not (97 <= key[place] <= 122 or 48 <= key[place] <= 57):
            return False
    return True


cdef bint record(Node *nodes, Text at, Text end, Span *known, Span *found) noexcept nogil:
    """Whether a record is surely a fine event; where its attributes and properties stand.

    Lengths are taken in bytes, of which a text has at least as many as characters.
    """
    cdef Text key
    cdef Text value
    cdef Py_ssize_t length
    cdef bint escaped
    cdef int which
    if end - at > MAX_RECORD:
        return False
    at = blanks(at, end)
    if at >= end or at[0] != 123:
        return False
    at = blanks(at + 1, end)
    while True:
        if at >= end or at[0] != 34:
            return False
        escaped = False
        key = at + 1
        at = string(key, end, &escaped)
        if at == NULL or escaped:
            return False
        length = at - key
        at = blanks(at + 1, end)
        if at >= end or at[0] != 58:
            return False
        value = blanks(at + 1, end)
        if value >= end:
            return False
        which = attribute(key, length)
        if which >= 0:
            if known[which].start != NULL:
                return False
            if which == DATA:
                if value[0] != 123:
                    return False
                at = properties(nodes, 0, value, end, 2, found)
            elif value[0] == 34:
                at = string(value + 1, end, &escaped)
                if at == NULL or escaped or at - value > (512 if which == ID else 100 if which == TENANT else 1024):
                    return False
                at += 1
            elif which >= TENANT and which <= SCHEMA and end - value >= 4 and memcmp(value, b"null", 4) == 0:
                at = value + 4
            else:
                return False
            known[which].start, known[which].end = value, at
        elif not is_extension(key, length):
            return False
        elif value[0] == 34:
            at = string(value + 1, end, &escaped)
            if at == NULL or escaped or at - value > 1024:
                return False
            at += 1
        elif value[0] == 123 or value[0] == 91:
            return False
        else:
            at = skip(value, end, 2)
            if at != NULL and value[0] <= 57 and (at - value > 9 or number_has_point(value, at)):
                return False
        if at == NULL:
            return False
        at = blanks(at, end)
        if at >= end:
            return False
        if at[0] == 125:
            break
        if at[0] != 44:
            return False
        at = blanks(at + 1, end)
    if blanks(at + 1, end) != end:
        return False
    for which in range(KNOWN):
        if known[which].start == NULL:
            if which < TENANT or which > SCHEMA:
                return False
        elif known[which].end - known[which].start <= 2 and which != TENANT and which != DATA:
            return False  # An empty string.
    return known[VERSION].end - known[VERSION].start == 5 and memcmp(known[VERSION].start, b'"1.0"', 5) == 0


cdef inline bint number_has_point(Text at, Text end) noexcept nogil:
    while at < end:
        if at[0] == 46 or at[0] | 32 == 101:
            return True
        at += 1
    return False


# --- columns ------------------------------------------------------------------------------------


cdef class Symbols:
    """Numbers for different texts, in the order in which they come first."""

    cdef Span *values
    cdef uint64_t *hashes
    cdef int32_t *table
    cdef uint64_t mask
    cdef int32_t count
    cdef int32_t last

    def __cinit__(self, Py_ssize_t rows):
        cdef uint64_t size = 16
        while size < 2 * rows + 2:
            size *= 2
        self.mask = size - 1
        self.values = <Span *> malloc((rows + 1) * sizeof(Span))
        self.hashes = <uint64_t *> malloc((rows + 1) * sizeof(uint64_t))
        self.table = <int32_t *> malloc(size * sizeof(int32_t))
        if self.values == NULL or self.hashes == NULL or self.table == NULL:
            raise MemoryError
        memset(self.table, 0xFF, size * sizeof(int32_t))
        self.last = -1

    def __dealloc__(self):
        free(self.values)
        free(self.hashes)
        free(self.table)

    cdef int32_t number(self, Text start, Text end) noexcept nogil:
        cdef Py_ssize_t length = end - start
        cdef Span *known
        # Neighbours are often alike.
        if self.last >= 0:
            known = &self.values[self.last]
            if known.end - known.start == length and memcmp(known.start, start, length) == 0:
                return self.last
        cdef uint64_t hash = XXH3_64bits(start, length)
        cdef uint64_t place = hash & self.mask
        while self.table[place] >= 0:
            self.last = self.table[place]
            if self.hashes[self.last] == hash:
                known = &self.values[self.last]
                if known.end - known.start == length and memcmp(known.start, start, length) == 0:
                    return self.last
            place = (place + 1) & self.mask
        self.last = self.count
        self.table[place] = self.count
        self.hashes[self.count] = hash
        self.values[self.count].start, self.values[self.count].end = start, end
        self.count += 1
        return self.last

    cdef list texts(self):
        cdef int32_t place
        return [
            PyBytes_FromStringAndSize(<const char *> self.values[place].start,
                                      self.values[place].end - self.values[place].start)
            for place in range(self.count)
        ]


def scan(bytes data, const int64_t[::1] starts, const int64_t[::1] ends, Plan plan, list quantities, list tokens):
    """Read the records of a block that are surely fine.

    Args:
      starts, ends: Where the records stand in `data`.
      quantities: Numbers (as in `plan.paths`) of the properties that are read as quantities.
      tokens: Of those whose JSON text is wanted.

    Returns:
      fine (bool of each record), times (int64, microseconds), ids (int64 pairs: start and end in `data`), and then lists,
      by attribute or property, of: codes and different values (bytes) of ATTRIBUTES; numbers (uint64 pairs, low limb
      first, units of 10^-12) and whether each is one, of `quantities`; codes and different texts of `tokens`. The text of
      an absent one is empty. Rows that are not fine mean nothing.
    """
    cdef Py_ssize_t rows = starts.shape[0]
    cdef Text base = <Text> PyBytes_AS_STRING(data)
    if ends.shape[0] != rows:
        raise ValueError("as many ends as starts are needed")
    cdef Py_ssize_t row
    for row in range(rows):
        if not 0 <= starts[row] <= ends[row] <= len(data):
            raise ValueError("a record lies outside the block")
    cdef int slots = len(plan.paths), which
    if len(quantities) > MAX_SLOTS or len(tokens) > MAX_SLOTS:
        raise ValueError("more columns than a compiled plan holds")
    if not all(0 <= slot < slots for slot in quantities + tokens):
        raise ValueError("a property is not in the plan")
    cdef int many = len(quantities), others = len(tokens)
    fine_column = np.zeros(rows, np.uint8)
    time_column = np.zeros(rows, np.int64)
    id_column = np.zeros((rows, 2), np.int64)
    code_columns = np.zeros((6 + others, rows), np.int32)
    number_columns = np.zeros((many, rows, 2), np.uint64)
    plain_columns = np.zeros((many, rows), np.uint8)
    cdef uint8_t[::1] fine = fine_column
    cdef int64_t[::1] times = time_column
    cdef int64_t[:, ::1] ids = id_column
    cdef int32_t[:, ::1] codes = code_columns
    cdef uint64_t[:, :, ::1] numbers = number_columns
    cdef uint8_t[:, ::1] plain = plain_columns
    cdef list symbols = [Symbols(rows) for which in range(6 + others)]
    cdef Symbols some
    cdef void* tables[6 + MAX_SLOTS]
    for which in range(6 + others):
        tables[which] = <void*> symbols[which]
    cdef int quantity_slots[MAX_SLOTS]
    cdef int token_slots[MAX_SLOTS]
    for which in range(many):
        quantity_slots[which] = quantities[which]
    for which in range(others):
        token_slots[which] = tokens[which]
    cdef Span known[KNOWN]
    cdef Span found[MAX_SLOTS]
    cdef Span *one
    with nogil:
        for row in range(rows):
            memset(known, 0, sizeof(known))
            memset(found, 0, slots * sizeof(Span))
            if not record(plan.nodes, base + starts[row], base + ends[row], known, found):
                continue
            one = &known[TIME]
            if not timestamp(one.start + 1, one.end - 1, &times[row]):
                continue
            fine[row] = True
            ids[row, 0], ids[row, 1] = known[ID].start + 1 - base, known[ID].end - 1 - base
            for which in range(6):
                one = &known[which]
                # Absent and null are both no text.
                if one.start == NULL or one.start[0] != 34:
                    codes[which, row] = (<Symbols> tables[which]).number(base, base)
                else:
                    codes[which, row] = (<Symbols> tables[which]).number(one.start + 1, one.end - 1)
            for which in range(many):
                one = &found[quantity_slots[which]]
                if one.start != NULL:
                    plain[which, row] = quantity(one.start, one.end, &numbers[which, row, 0])
            for which in range(others):
                one = &found[token_slots[which]]
                if one.start == NULL:
                    codes[6 + which, row] = (<Symbols> tables[6 + which]).number(base, base)
                else:
                    codes[6 + which, row] = (<Symbols> tables[6 + which]).number(one.start, one.end)
    # Where no record is fine, all rows have number 0, which must stand for something.
    texts = [(<Symbols> some).texts() or [b""] for some in symbols]
    coded = list(zip(code_columns, texts))
    return (
        fine_column.view(bool), time_column, id_column, coded[:6],
        list(zip(number_columns, plain_columns.view(bool))), coded[6:],
    )


def gather(bytes data, const int64_t[:] starts, const int64_t[:] ends):
    """Pieces of a block side by side: the offsets (int32, one more than pieces) and the bytes of an Arrow column."""
    cdef Py_ssize_t rows = starts.shape[0], row, size = 0
    cdef Py_ssize_t whole = len(data)
    if ends.shape[0] != rows:
        raise ValueError("as many ends as starts are needed")
    offset_column = np.zeros(rows + 1, np.int32)
    cdef int32_t[::1] offsets = offset_column
    for row in range(rows):
        if not 0 <= starts[row] <= ends[row] <= whole:
            raise ValueError("a piece lies outside the block")
        size += ends[row] - starts[row]
        if size > 0x7FFFFFFF:
            raise ValueError("more than 2 GiB in one column")
        offsets[row + 1] = size
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, size)
    cdef char *target = PyBytes_AS_STRING(packed)
    cdef const char *base = PyBytes_AS_STRING(data)
    with nogil:
        for row in range(rows):
            memcpy(target + offsets[row], base + starts[row], ends[row] - starts[row])
    return offset_column, packed


def hash_ids(list prefixes, const int32_t[::1] codes, const int32_t[::1] offsets, const uint8_t[::1] ids):
    """XXH3 (128 bits, canonical) of each id behind its prefix, as rows of 16 bytes.

    Args:
      prefixes: Different beginnings (bytes); `codes` says which one each id has.
      offsets, ids: Of an Arrow string column.
    """
    cdef Py_ssize_t rows = codes.shape[0], row, length, longest = 0, widest = 0
    if offsets.shape[0] != rows + 1 or (rows and not 0 <= offsets[0] <= offsets[rows] <= ids.shape[0]):
        raise ValueError("the offsets do not fit the ids")
    for row in range(rows):
        if not 0 <= codes[row] < len(prefixes) or offsets[row + 1] < offsets[row]:
            raise ValueError("a code or an offset is out of range")
        longest = max(longest, offsets[row + 1] - offsets[row])
    for prefix in prefixes:
        widest = max(widest, len(prefix))
    digest_column = np.zeros((rows, 16), np.uint8)
    cdef uint8_t[:, ::1] digests = digest_column
    cdef uint8_t *text = <uint8_t *> malloc(widest + longest + 1)
    cdef XXH128_canonical_t canonical
    cdef const char **starts = <const char **> malloc((len(prefixes) + 1) * sizeof(char *))
    cdef Py_ssize_t *lengths = <Py_ssize_t *> malloc((len(prefixes) + 1) * sizeof(Py_ssize_t))
    if text == NULL or starts == NULL or lengths == NULL:
        free(text)
        free(starts)
        free(lengths)
        raise MemoryError
    for row, prefix in enumerate(prefixes):
        starts[row] = PyBytes_AS_STRING(prefix)
        lengths[row] = len(prefix)
    cdef int32_t last = -1
    with nogil:
        for row in range(rows):
            if codes[row] != last:
                last = codes[row]
                memcpy(text, starts[last], lengths[last])
            length = offsets[row + 1] - offsets[row]
            if length:
                memcpy(text + lengths[last], &ids[offsets[row]], length)
            XXH128_canonicalFromHash(&canonical, XXH3_128bits(text, lengths[last] + length))
            memcpy(&digests[row, 0], canonical.digest, 16)
    free(text)
    free(starts)
    free(lengths)
    return digest_column


def lines(bytes data):
    """Where the lines of a text start and end (int64), without their line feeds; what follows the last one is none."""
    cdef const char *base = PyBytes_AS_STRING(data)
    cdef const char *at = base
    cdef const char *end = base + len(data)
    cdef const char *found
    cdef Py_ssize_t count = 0, row = 0
    with nogil:
        while (found := <const char *> memchr(at, 10, end - at)) != NULL:
            count += 1
            at = found + 1
    start_column, end_column = np.zeros(count, np.int64), np.zeros(count, np.int64)
    cdef int64_t[::1] starts = start_column
    cdef int64_t[::1] ends = end_column
    at = base
    with nogil:
        for row in range(count):
            found = <const char *> memchr(at, 10, end - at)
            starts[row], ends[row] = at - base, found - base
            at = found + 1
    return start_column, end_column


def distinct(const int64_t[::1] numbers):
    """Where each different number stands first (int64), in this order, and which of them each row has (int64)."""
    cdef Py_ssize_t rows = numbers.shape[0], row
    cdef uint64_t size = 16, place
    while size < 2 * <uint64_t> rows:
        size *= 2
    cdef int32_t *table = <int32_t *> malloc(size * sizeof(int32_t))
    if table == NULL:
        raise MemoryError
    memset(table, 0xFF, size * sizeof(int32_t))
    first_column, code_column = np.empty(rows, np.int64), np.empty(rows, np.int64)
    cdef int64_t[::1] first = first_column
    cdef int64_t[::1] codes = code_column
    cdef Py_ssize_t count = 0
    with nogil:
        for row in range(rows):
            # Source: Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, 6.4).
            place = (<uint64_t> numbers[row] * 0x9E3779B97F4A7C15ULL) >> 20 & (size - 1)
            while table[place] >= 0 and numbers[first[table[place]]] != numbers[row]:
                place = (place + 1) & (size - 1)
            if table[place] < 0:
                table[place] = count
                first[count] = row
                count += 1
            codes[row] = table[place]
    free(table)
    return first_column[:count].copy(), code_column


def sums(const int64_t[::1] groups, const uint64_t[:, ::1] numbers, Py_ssize_t count):
    """Sums by group of numbers of 128 bits (low limb first, not negative); as pairs of limbs, modulo 2^128."""
    cdef Py_ssize_t rows = groups.shape[0], row
    if numbers.shape[0] != rows or numbers.shape[1] != 2:
        raise ValueError("a number for each group is needed")
    sum_column = np.zeros((count, 2), np.uint64)
    cdef uint64_t[:, ::1] added = sum_column
    cdef int64_t group
    for row in range(rows):
        if not 0 <= groups[row] < count:
            raise ValueError("a group is out of range")
    with nogil:
        for row in range(rows):
            group = groups[row]
            added[group, 0] += numbers[row, 0]
            added[group, 1] += numbers[row, 1] + (added[group, 0] < numbers[row, 0])
    return sum_column


def mix(list columns):
    """One 64-bit hash of several columns (uint64) of equal length, row by row; see columns.mix."""
    cdef const uint64_t[::1] column = columns[0]
    cdef Py_ssize_t rows = column.shape[0], row
    state_column = np.zeros(rows, np.uint64)
    cdef uint64_t[::1] states = state_column
    cdef uint64_t state
    for one in columns:
        column = one
        if column.shape[0] != rows:
            raise ValueError("the columns differ in length")
        with nogil:
            for row in range(rows):
                state = (states[row] ^ column[row]) + 0x9E3779B97F4A7C15ULL
                state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ULL
                state = (state ^ (state >> 27)) * 0x94D049BB133111EBULL
                states[row] = state ^ (state >> 31)
    return state_column
