"""What clients of Ollama's API send: requests for texts and chats, and questions about a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from moecli.engine.sampling import SamplingOptions
from moecli.serve.asked import Call, Tools, turn
from moecli.serve.http import Body, Refused
from moecli.serve.parts import TopK, Unit, nucleus, sampled_from
from moecli.serve.service import AnswerOptions, keep_alive_seconds
from moecli.text.chat import Message


class Options(Body):
    """How an answer is made; others of Ollama's options are ignored, num_ctx among them: --ctx sets it."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: TopK | None = None
    top_p: Unit | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: int | None = None
    num_predict: int | None = None  # negative: as many as fit
    stop: str | list[str] | None = None


class CommonFields(Body):
    """What both endpoints take."""

    model: str
    stream: bool | None = True
    options: Options | None = None
    keep_alive: str | float | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None

    @property
    def kept(self) -> float | None:
        return None if self.keep_alive is None else keep_alive_seconds(self.keep_alive)

    def answer_options(self) -> AnswerOptions:
        """As the options say it."""
        options = self.options or Options()
        stops = [options.stop] if isinstance(options.stop, str) else options.stop or ()
        sampling = SamplingOptions(
            options.temperature, sampled_from(options.top_k), nucleus(options.top_p), options.min_p,
            options.repeat_penalty,
        )  # fmt: skip
        most = options.num_predict if options.num_predict and options.num_predict > 0 else None
        seed = None if options.seed is None or options.seed < 0 else options.seed
        return AnswerOptions(sampling, seed, most, stops, keep_alive=self.kept)


class GenerateRequest(CommonFields):
    """POST /api/generate."""

    prompt: str | None = ""
    system: str | None = None
    raw: bool | None = False
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None

    def refuse(self) -> None:
        """Refused for what would change the answer and is not done here."""
        if self.raw and self.think:
            raise Refused(400, "think takes a chat template, which raw leaves out")
        for name in ("suffix", "template", "images"):
            if getattr(self, name):
                raise Refused(400, f"{name} is not supported")


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def said(self) -> Message:
        """As templates read it."""
        if self.images:
            raise Refused(400, "images are not supported")
        return turn(
            self.role, self.content or "", self.tool_calls, reasoning_content=self.thinking, name=self.tool_name,
            tool_call_id=self.tool_call_id,
        )  # fmt: skip


class ChatRequest(CommonFields):
    """POST /api/chat."""

    messages: list[ChatMessage] | None = None
    tools: Tools | None = None


class ModelRequest(Body):
    """A model by either of the names that the field has had."""

    model: str | None = None
    name: str | None = None

    @property
    def word(self) -> str:
        if not (word := self.model or self.name):
            raise Refused(400, "model is missing")
        return word
