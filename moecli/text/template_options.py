"""What may be asked of a chat template beside the conversation: options by name, and whether the model reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.errors import UsageError, printable
from moecli.text import harmony
from moecli.text.answers import reasoning_tags
from moecli.text.chat import ChatTemplate
from moecli.text.tokenizer import Tokenizer
from moecli.text.tool_calls import style_of

_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}  # not by options
_SWITCHES = ("enable_thinking", "thinking")  # names that templates have for it, the more usual one first
_EFFORT = "reasoning_effort"


def known(template: ChatTemplate) -> frozenset[str]:
    """The options that a template reads."""
    return template.names - _GIVEN - template.variables.keys()


def check(tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
    """UsageError for options that the template does not read: they would be ignored."""
    if not options:
        return
    if tokenizer.chat_template is None:
        raise UsageError("the model has no chat template, and so no options of one", "leave them out")
    has = known(tokenizer.chat_template)
    for name in options:
        if name not in has:
            others = f"it has {printable(', '.join(sorted(has)), 200)}" if has else "it has none"
            raise UsageError(f"the chat template has no option '{printable(name, 60)}'", others)


def thinking(tokenizer: Tokenizer, wanted: bool | str) -> dict[str, Any]:
    """The options with which a model reasons before it answers, or does not, or how much it does ("low", "high").

    UsageError where it cannot be as wanted; a template without a switch may still begin the reasoning in its prompt.
    """
    has = known(tokenizer.chat_template) if tokenizer.chat_template else frozenset()
    switch = next((name for name in _SWITCHES if name in has), None)
    if isinstance(wanted, str) and _EFFORT in has:
        return {_EFFORT: wanted} | ({switch: True} if switch else {})
    if switch is not None and (isinstance(wanted, bool) or wanted in ("low", "medium", "high")):
        return {switch: bool(wanted)}
    if _EFFORT in has and wanted is True:
        return {}
    if wanted is True and not reasons(tokenizer):
        raise UsageError("the model does not reason before it answers", "leave the thinking out")
    if isinstance(wanted, str) or (wanted is False and _EFFORT in has):
        raise UsageError(f"how much the model reasons cannot be set to '{printable(str(wanted), 20)}'", "leave it out")
    return {}


def reasons(tokenizer: Tokenizer) -> bool:
    """Whether the model can reason before it answers, as far as its template tells."""
    template, tags = tokenizer.chat_template, reasoning_tags(tokenizer)
    if template is None:
        return False
    if harmony.writes(template.source):
        return True
    return (tags is not None and tags[1] in template.source) or not known(template).isdisjoint((*_SWITCHES, _EFFORT))


def calls_tools(tokenizer: Tokenizer) -> bool:
    """Whether the template takes tools and writes calls in a way that is read."""
    template = tokenizer.chat_template
    if template is None or "tools" not in template.names:
        return False
    return harmony.writes(template.source) or style_of(template.source) is not None
