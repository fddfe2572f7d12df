"""What a chat may ask for beside an answer: tools, options of the template, reasoning, an answer of a given form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from moecli.engine.loaded import OpenedModel
from moecli.errors import json_object
from moecli.serve.http import Body, Refused
from moecli.text import template_options
from moecli.text.chat import Message
from moecli.text.grammar import Grammar, of_object, of_schema

_MOST_TOOLS = 128
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


class Function(Body):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool, which is always a function."""

    type: Literal["function"] = "function"
    function: Function

    def declared(self) -> dict[str, Any]:
        """As templates read it."""
        given = self.function
        parameters = given.parameters or {"type": "object", "properties": {}}
        function = {"name": given.name, "description": given.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


class CalledFunction(Body):
    """What was called, with its arguments as an object or as the text of one."""

    name: str
    arguments: dict[str, Any] | str = ""


class Call(Body):
    """A call that an earlier answer wanted."""

    id: str | None = None
    function: CalledFunction

    def said(self) -> dict[str, Any]:
        """As templates read it. Refused where the arguments are no JSON object."""
        given = self.function.arguments
        if isinstance(given, str):
            text = given or "{}"
            given = json_object(text, lambda problem: Refused(400, f"tool_calls.arguments: the text {problem}"))
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": given}}


Tools = Annotated[list[Tool], Field(max_length=_MOST_TOOLS)]


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What is asked of one chat. `must_call`: the tools of which the answer has to call one; none leaves it open."""

    tools: Sequence[Mapping[str, Any]] = ()
    must_call: Sequence[Mapping[str, Any]] = ()
    template: Mapping[str, Any] = field(default_factory=dict)  # options of the template by name
    think: bool | str | None = None  # None: as the template has it
    grammar: Grammar | None = None

    def given(self, opened: OpenedModel, said: Sequence[Message]) -> dict[str, Any]:
        """What the template gets beside the messages. Refused, or UsageError, for what it does not read."""
        tokenizer = opened.tokenizer
        template_options.check(tokenizer, self.template)
        given = dict(self.template)
        if self.think is not None:
            given |= template_options.thinking(tokenizer, self.think)
        if (self.tools or _about_tools(said)) and not template_options.calls_tools(tokenizer):
            raise Refused(400, f"the chat template of {opened.name} has no tools that could be called")
        return given | ({"tools": list(self.tools)} if self.tools else {})

    def refuse_without_template(self, opened: OpenedModel, said: Sequence[Message]) -> None:
        """Refused for what takes a template."""
        template_options.check(opened.tokenizer, self.template)
        if self.tools or _about_tools(said):
            raise Refused(400, f"{opened.name} has no chat template, and so no tools")
        if self.think:
            raise Refused(400, f"{opened.name} has no chat template, and does not reason before it answers")


def tools_of(tools: Sequence[Tool] | None, choice: str | None, name: str | None) -> dict[str, Any]:
    """Fields of ChatOptions: what is offered, and what has to be called. `choice`: auto, none, required or named."""
    declared = [tool.declared() for tool in tools or ()]
    if choice == "none":
        return {}
    if choice in ("required", "named"):
        wanted = [tool for tool in declared if choice == "required" or tool["function"]["name"] == name]
        if not wanted:
            raise Refused(400, f"tool_choice names none of the {len(declared)} tools")
        return {"tools": declared, "must_call": wanted}
    return {"tools": declared}


def form_of(format: Any) -> Grammar | None:
    """Ollama's `format`, "json" or a schema. Refused for anything else."""
    if not format:
        return None
    if format == "json":
        return of_object()
    if isinstance(format, dict):
        return of_schema(format)
    raise Refused(400, "format is neither a JSON schema nor 'json'")


def turn(role: str, content: str, calls: Sequence[Call] | None = None, **more: Any) -> Message:
    """A message with what templates read of it, as far as it is there."""
    found = {name: value for name, value in more.items() if value}
    if calls:
        found["tool_calls"] = [call.said() for call in calls]
    return Message(role, content, found)


def _about_tools(said: Sequence[Message]) -> bool:
    return any(each.role == "tool" or each.more.get("tool_calls") for each in said)
