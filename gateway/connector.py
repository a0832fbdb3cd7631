"""What an adapter to a broker must do, and what the gateway does for it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from gateway.errors import DeliveryError
from gateway.expression import parse
from gateway.job import MAX_PRIORITY
from gateway.message import Message
from gateway.rules import Rules, Ruling


class StrictModel(BaseModel):
    """Base of every configuration model: frozen, no unknown keys, no silent conversion, secrets never in `repr`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Show numbers and sections only: any text may have come from a secret file or the environment."""
        for name, value in super().__repr_args__():
            shown = value is None or isinstance(value, bool | int | float | StrictModel | SecretStr)
            yield name, value if shown else ...


class ForwardTarget(StrictModel):
    """Where `gateway.forward` and `gateway.http` send. Braces name captures of the entry's topic or path."""

    connector: str | None = Field(None, description="name of the connector that sends; gateway.forward needs it")
    topic: str | None = Field(None, description="topic, destination, hub method or path to send to")
    key: str | None = Field(None, description="ordering key")
    url: str | None = Field(None, description="gateway.http: the whole URL to call")
    method: str = Field("POST", description="gateway.http: HTTP method")
    headers: dict[str, str] = Field(default_factory=dict, description="headers to add")


class Sample(StrictModel):
    """A message to try an entry's expressions with. A body that is text is taken as it is, any other is JSON."""

    topic: str | None = Field(None, description="topic or path; default: the entry's own")
    key: str | None = Field(None, description="its key")
    headers: dict[str, str] = Field(default_factory=dict, description="its headers")
    parameters: dict[str, str] = Field(default_factory=dict, description="captures of the topic or path")
    content_type: str | None = Field(None, description="media type of the body")
    body: Any = Field(None, description="its body")

    def message(self, topic: str) -> Message:
        """Return it as it would be received from `topic`."""
        body = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return Message(
            topic=topic if self.topic is None else self.topic,
            key=None if self.key is None else self.key.encode(),
            headers=tuple((name, value.encode()) for name, value in self.headers.items()),
            content_type=self.content_type,
            parameters=self.parameters,
            body=b"" if self.body is None else body.encode(),
            tombstone=self.body is None,
        )


def _checked(value: int | str) -> int | str:
    if isinstance(value, str):
        parse(value)
    return value


ExpressionText: TypeAlias = Annotated[str, AfterValidator(_checked)]
Priority: TypeAlias = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class InboundEntry(StrictModel):
    """One source of messages. Connectors add the key that names the source, before any other."""

    handler: str = Field(description="name of the handler that runs for each message")
    priority: Annotated[Priority | str, AfterValidator(_checked)] = Field(
        0, description="higher runs first; a number, or an expression that gives one"
    )
    max_retries: int | None = Field(
        None, ge=0, le=1000, description="attempts after the first; default: jobs.max_retries"
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="added to each job's metadata")
    to: ForwardTarget | None = Field(
        None, description="target of the built-in handlers gateway.forward and gateway.http"
    )
    when: ExpressionText | None = Field(
        None, description="expression: messages for which it is false are acknowledged and not stored"
    )
    dedupe: ExpressionText | None = Field(
        None, description="expression: of messages with equal values only the first becomes a job; null is none"
    )
    ordering: ExpressionText | None = Field(
        None, description="expression: jobs with equal values run one after the other, as they arrived; null is none"
    )
    sample: Sample | None = Field(None, description="a message that `gateway check` tries the expressions with")

    @cached_property
    def rules(self) -> Rules | None:
        """What its expressions decide; None if it has none."""
        priority = self.priority if isinstance(self.priority, str) else None
        if (self.when, self.dedupe, self.ordering, priority) == (None, None, None, None):
            return None
        return Rules(when=self.when, dedupe=self.dedupe, ordering=self.ordering, priority=priority)

    @cached_property
    def source(self) -> str:
        """What tells it from its connector's other entries, also after a restart: its first own key that is set."""
        for name in type(self).model_fields:
            value = None if name in InboundEntry.model_fields else getattr(self, name)
            if value is not None:
                return f"{name} {value}" if isinstance(value, str) else f"{name} {','.join(map(str, value))}"
        return ""

    def tried(self) -> tuple[Message, Ruling] | None:
        """Return its sample with what its expressions decide about it; None if it lacks the one or the other."""
        if self.sample is None or self.rules is None:
            return None
        message = self.sample.message(self.source.partition(" ")[2])
        return message, self.rules.judge(message)


class ConnectorConfig(StrictModel):
    """Configuration of one connector. Subclasses add the connection, and narrow `inbound` to their entry."""

    type: str = Field(description="which connector this is")
    inbound: Sequence[InboundEntry] = Field(default=(), description="what to receive, and who handles it")

    def of_instance(self, instance: str, name: str) -> Self:  # noqa: ARG002 - part of the contract
        """Return it with the defaults that depend on the instance's name and on its own, once the file is read."""
        return self

    def warnings(self) -> Sequence[str]:
        """Return what is allowed but dangerous, a sentence each: shown by `gateway check` and at start."""
        return ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one received message. `job_id` is the job that stands for it, also for a duplicate.

    `duplicate`: its dedupe id was there before, no job was made. `conflict`: and its body was another one.
    `filtered`: its entry does not want it, no job was made and `job_id` is empty; acknowledge it all the same.
    """

    job_id: str
    duplicate: bool = False
    conflict: bool = False
    filtered: bool = False


@dataclass(frozen=True, slots=True)
class StoredPosition:
    """How far a partition has been stored: `next_offset` is the first offset not in the database."""

    topic_id: str
    next_offset: int
    state: str | None = None
    """What the connector gave with the last position."""


class Inbox(ABC):
    """The gateway's side of a connector: where messages become durable."""

    @abstractmethod
    def ready(self) -> None:
        """Say that the broker has confirmed the subscription: a message sent from now on will arrive."""

    @property
    def stopping(self) -> bool:
        """Whether nothing is taken in any more: `receive` waits then until it is cancelled."""
        return False

    @abstractmethod
    async def receive(self, messages: Sequence[Message], entry: InboundEntry) -> Sequence[Receipt]:
        """Store messages, in order; one receipt each. Returned: they are durable, acknowledge now.

        Never refuses: it waits while the database is away, which is the back-pressure, and what cannot become a
        job is stored as a Failed row with its reason. Many calls at once share one commit. If cancelled, do not
        acknowledge: the messages may or may not have been stored. Raises `Disconnected` if another consumer has
        moved the source's position meanwhile: nothing of that call was stored.
        """

    @abstractmethod
    async def positions(self, cluster: str, topic: str, partitions: Iterable[int]) -> Mapping[int, StoredPosition]:
        """Return the stored positions of a log's partitions; a partition never stored is left out.

        What is returned is what this life of the connector holds from now on: `receive` moves it by
        compare-and-set.
        """


Guarantee = Literal["exactly-once", "at-least-once", "at-most-once"]

ConfigT = TypeVar("ConfigT", bound=ConnectorConfig)


class Connector(ABC, Generic[ConfigT]):
    """One connection to one broker, inbound and outbound.

    The gateway makes it from its `config_class` and runs it once; whenever `run` ends, a new object is made and run
    after a jittered pause. So an adapter has no reconnect loop.
    """

    config_class: ClassVar[type[ConnectorConfig]]
    guarantee: ClassVar[Guarantee] = "at-least-once"
    """How often a received message is stored, unless the configuration weakens or strengthens that."""
    protocol: ClassVar[str]
    """What stands in a job's `protocol` column."""
    method: ClassVar[str | None] = None
    """What stands in the `method` column of the jobs it receives: how messages come (POST, publish, send, …)."""
    seekable: ClassVar[bool] = False
    """Whether its stored positions are offsets at which an operator may let it go on (`gateway positions set`)."""

    def __init__(self, config: ConfigT, *, name: str) -> None:
        self.config = config
        self.name = name

    @classmethod
    def guarantee_of(cls, config: ConfigT) -> Guarantee:  # noqa: ARG003 - part of the contract
        """Return the weakest guarantee of the entries: shown at start, by `gateway check` and in `/api/connectors`."""
        return cls.guarantee

    @abstractmethod
    async def run(self, inbox: Inbox) -> None:
        """Live once: connect, subscribe, `inbox.ready()`, then `await inbox.receive(...)` until cancelled.

        Acknowledge a message only after its `receive` returned. Raise `Disconnected` when the broker cannot be
        reached or goes away, with a reason a person can act on, `ConfigError` when it will hardly heal by itself (an
        address in use, a file missing): then it is shown as failed, and tried less often. Leave no task, thread or
        socket behind, however it ends.
        """

    async def publish(self, message: Message) -> str | None:  # noqa: ARG002 - part of the contract
        """Hand over one message; return once the broker has confirmed it, with its answer if it gave one.

        Called many times at once, and only between `ready` and the end of `run`. `message.message_id` goes along.

        Raises what decides whether the message has used an attempt. `DeliveryError`, it has: the broker or the adapter
        refuses it, or no answer came in time. `Disconnected`, it has not: the connection was lost, for whatever
        reason, before the answer came; `NotConnected` outside `run`, and whenever it could not even be sent. An
        adapter need not know whether the message itself made the broker cut the connection: the outbox finds that
        out, by sending it alone, and counts it as the message's own failure.
        """
        raise DeliveryError(f"a connector of type {self.protocol} does not publish", permanent=True)

    async def check(self) -> str:
        """Connect as `run` would, consume nothing, and say in one line what answered. Raises `Disconnected`."""
        return "not checked"
