"""What clients of OpenAI's API send: requests for chats and for completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from moecli.engine.sampling import SamplingOptions
from moecli.serve.asked import Call, ChatOptions, Tools, tools_of, turn
from moecli.serve.http import Body, Refused
from moecli.serve.parts import Content, TopK, Unit, nucleus, sampled_from, text_of
from moecli.serve.service import AnswerOptions, keep_alive_seconds
from moecli.text.chat import Message
from moecli.text.grammar import Grammar, of_object, of_schema

_SHORT = 16  # tokens of /v1/completions that nobody asked for, as the API has it
Stops = str | Annotated[list[str], Field(max_length=16)] | None


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool = False


class JsonSchema(Body):
    """A schema by name."""

    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None  # it is held to in either case


class ResponseFormat(Body):
    """Of which form an answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """Refused where the schema is missing."""
        if self.type == "json_schema":
            if self.json_schema is None or self.json_schema.schema_ is None:
                raise Refused(400, "response_format.json_schema holds no schema")
            return of_schema(self.json_schema.schema_)
        return of_object() if self.type == "json_object" else None


class ToolChoiceFunction(Body):
    """A tool by name."""

    name: str


class ToolChoice(Body):
    """The tool that has to be called."""

    type: Literal["function"] = "function"
    function: ToolChoiceFunction


class CommonFields(Body):
    """What requests for chats and for completions share, and what other servers of this API add to it."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = 1
    stop: Stops = None
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Unit | None = None
    top_k: TopK | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    keep_alive: str | float | None = None
    response_format: ResponseFormat | None = None

    @property
    def grammar(self) -> Grammar | None:
        """What the answer has to be."""
        return self.response_format.grammar() if self.response_format else None

    def refuse(self) -> None:
        """Refused for what would change the answer and is not done here."""
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise Refused(400, f"{name} is not supported", "repeat_penalty is")

    def answer_options(self, max_tokens: int | None, top_logprobs: int | None, number: int) -> AnswerOptions:
        """Of the choice with this `number`."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        top_k = sampled_from(self.top_k)
        sampling = SamplingOptions(self.temperature, top_k, nucleus(self.top_p), self.min_p, self.repeat_penalty)
        seed = None if self.seed is None else self.seed + number
        kept = None if self.keep_alive is None else keep_alive_seconds(self.keep_alive)
        return AnswerOptions(sampling, seed, max_tokens, stops, top_logprobs, kept)


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class ChatRequest(CommonFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.functions:
            raise Refused(400, "functions are not supported", "tools are")
        if self.tools and self.parallel_tool_calls is False:
            raise Refused(400, "parallel_tool_calls cannot be forbidden", 'tool_choice "required" makes one call')

    def said(self) -> list[Message]:
        """The turns as templates read them."""
        names = {call.id: call.function.name for each in self.messages for call in each.tool_calls or ()}
        return [
            turn(
                each.role, text_of(each.content), each.tool_calls, reasoning_content=each.reasoning_content,
                tool_call_id=each.tool_call_id, name=each.name or names.get(each.tool_call_id or ""),
            )
            for each in self.messages
        ]  # fmt: skip

    def options(self) -> ChatOptions:
        """What is asked beside an answer."""
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, ToolChoice) else None
        tools = tools_of(self.tools, "named" if isinstance(choice, ToolChoice) else choice, named)
        effort = self.reasoning_effort
        think = None if effort is None else False if effort == "none" else effort
        return ChatOptions(**tools, template=self.chat_template_kwargs or {}, think=think, grammar=self.grammar)


class CompletionRequest(CommonFields):
    """POST /v1/completions."""

    prompt: str | list[int] | Annotated[list[str] | list[list[int]], Field(min_length=1, max_length=64)]
    max_tokens: Annotated[int, Field(ge=1)] | None = _SHORT
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.echo or self.suffix or (self.best_of or 1) > 1:
            raise Refused(400, "echo, suffix and best_of are not supported")
