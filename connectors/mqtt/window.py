"""Tells a redelivery of what is stored from a message that is merely equal to it.

MQTT gives QoS 1 messages no identity but a packet id, which is used again as soon as it is acknowledged. After a lost
connection the broker repeats, marked DUP, what it has no acknowledgement for: at most as many messages as it may have
on the way. So the packet ids and digests of that many messages, the last stored ones, are kept as the state of source
positions, which moves in the very transaction that stores the messages: a small ring of rows, `PER_ROW` messages in
each.

A repeated message with the packet id and digest of a stored one is that one. Not marked DUP, it never is: equal
readings are legal. What this cannot see: an equal message under the same packet id, whose first delivery was cut off
right after the acknowledgement of the one before.
"""

import base64
import hashlib
import struct
from collections.abc import Mapping

from gateway.connector import Inbox, StoredPosition
from gateway.message import Message, Position

PER_ROW = 50
"""Messages whose marks stand in one row: a batch then moves few rows, and a lone message writes 400 characters."""

TOPIC = "redeliveries"
"""Where the rows are, among the positions of a connector."""

_MARK = struct.Struct("!HI")
_REACH = struct.Struct("!H")


class Window:
    """The marks of the last stored messages of one session.

    Counts all messages of the session; the message of count n has its mark in row n / PER_ROW of the ring.
    """

    def __init__(self, session: str, size: int, stored: Mapping[int, StoredPosition], *, resumed: bool) -> None:
        self._cluster = session if len(session) <= 100 else hashlib.sha256(session.encode()).hexdigest()
        self._rows = rows_for(size)
        self._known: dict[int, tuple[int, int, int]] = {}
        """By packet id: digest, count and row of the message that had it last."""
        self._marks: list[tuple[int, int]] = []
        """Of the present row."""
        self.expected = False
        """Whether there is a session that the broker should know of."""
        self._next = self._first = 0
        self._load(stored, resumed=resumed)

    @classmethod
    async def positions(cls, inbox: Inbox, session: str, size: int) -> Mapping[int, StoredPosition]:
        """Return what is stored for that session, which this life holds from now on."""
        blank = cls(session, size, {}, resumed=False)
        return await inbox.positions(blank._cluster, TOPIC, range(blank._rows))

    @property
    def room(self) -> int:
        """How many messages more go into the present row."""
        return PER_ROW - len(self._marks)

    def knows(self, packet_id: int, digest: int) -> bool:
        """Say whether a message that comes again is stored, or given to the inbox already."""
        known = self._known.get(packet_id)
        return known is not None and known[0] == digest

    def repeated(self, packet_id: int) -> Position:
        """Return the position of a known message, which the inbox holds or has left behind: it stores nothing."""
        _, count, row = self._known[packet_id]
        return Position(self._cluster, TOPIC, row, count, count + 1)

    def add(self, packet_id: int, digest: int) -> None:
        """Note a new message, which the inbox is about to be given."""
        if len(self._marks) == PER_ROW:
            self._marks = []
        self._marks.append((packet_id, digest))
        self._known[packet_id] = digest, self._next, self._row(self._next)
        self._next += 1

    def position(self) -> Position:
        """Return the position that stores all marks of the present row, for the last of its messages so far."""
        last = self._next - 1
        reach = _REACH.pack(min(self._next - self._first, 0xFFFF))
        text = base64.b64encode(reach + b"".join(_MARK.pack(*mark) for mark in self._marks)).decode()
        return Position(self._cluster, TOPIC, self._row(last), last, self._next, state=text)

    def _row(self, count: int) -> int:
        return count // PER_ROW % self._rows

    def _load(self, stored: Mapping[int, StoredPosition], *, resumed: bool) -> None:
        if not stored:
            return
        rows = sorted(((row.next_offset, number, *_unpack(row.state)) for number, row in stored.items()))
        self._next, number, reach, marks = rows[-1]
        self.expected = True
        if resumed:
            self._first = max(0, self._next - reach)
            for end, row, _, each in rows:
                for count, (packet_id, digest) in enumerate(each, end - len(each)):
                    if count >= self._first:
                        self._known[packet_id] = digest, count, row
        if resumed and self._next % PER_ROW == len(marks) and number == self._row(self._next - 1):
            self._marks = marks
        else:  # the row's beginning is not known, or of no use any more
            self._next += -self._next % PER_ROW
        if not resumed:
            self._first = self._next


def rows_for(size: int) -> int:
    """Return how many rows keep a window of `size` messages, with room for brokers that send more than they may."""
    return 2 * -(-size // PER_ROW) + 1


def digest_of(message: Message) -> int:
    """Return 32 bits over all that stays the same when a message is repeated: its expiry does not."""
    state = hashlib.blake2b(digest_size=4)
    parts: list[bytes] = [message.topic.encode("utf-8", "replace"), message.body, (message.content_type or "").encode()]
    for name, value in message.headers:
        if name not in ("mqtt-message-expiry", "mqtt-retained"):
            parts += [name.encode("utf-8", "replace"), value]
    for part in parts:
        state.update(len(part).to_bytes(4, "big") + part)
    return int.from_bytes(state.digest(), "big")


def _unpack(text: str | None) -> tuple[int, list[tuple[int, int]]]:
    try:
        data = base64.b64decode(text or "")
        return _REACH.unpack_from(data)[0], list(_MARK.iter_unpack(data[_REACH.size :]))
    except (ValueError, struct.error):  # written by somebody else: then nothing is known
        return 0, []
