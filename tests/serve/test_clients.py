"""The libraries that people use, against a running server: streaming and not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from tests.support.processes import wait_for
from tests.support.server import Server, add_dbrx, said, serving

pytestmark = pytest.mark.slow
PROMPT = "The sea"
GREEDY = {"model": "tiny", "temperature": 0.0, "max_tokens": 12}
GREEDY_CLAUDE = {"model": "tiny", "max_tokens": 12, "extra_body": {"temperature": 0.0}}  # its client has no name for it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("serve")
    add_dbrx(home)
    with serving(home) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> str:
    text = said(PROMPT, 12, temperature=0.0)
    assert len(text.split()) > 4
    return text


# OpenAI


def test_openai_lists_what_is_here(by_openai: openai.OpenAI) -> None:
    assert {each.id for each in by_openai.models.list()} == {"tiny", "dbrx"}
    assert by_openai.models.retrieve("dbrx").id == "dbrx"


def test_openai_completion(by_openai: openai.OpenAI, expected: str) -> None:
    answer = by_openai.completions.create(prompt=PROMPT, **GREEDY)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "length")
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    pieces = list(by_openai.completions.create(prompt=PROMPT, stream=True, **GREEDY))
    assert "".join(each.choices[0].text for each in pieces) == expected and len(pieces) > 6
    assert pieces[-1].choices[0].finish_reason == "length"


def test_openai_chat(by_openai: openai.OpenAI, expected: str) -> None:
    messages: list = [{"role": "user", "content": PROMPT}]
    answer = by_openai.chat.completions.create(messages=messages, **GREEDY)
    assert answer.choices[0].message.content == expected and answer.choices[0].finish_reason == "length"
    stream = by_openai.chat.completions.create(
        messages=messages, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    assert "".join(each.choices[0].delta.content or "" for each in chunks[:-1]) == expected
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 15 and not chunks[-1].choices


def test_openai_parts_of_a_message_are_one_text(by_openai: openai.OpenAI, expected: str) -> None:
    content = [{"type": "text", "text": PROMPT}]
    answer = by_openai.chat.completions.create(messages=[{"role": "user", "content": content}], **GREEDY)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == expected


def test_openai_stop_texts_are_not_shown(by_openai: openai.OpenAI, expected: str) -> None:
    word = expected.split()[2]
    answer = by_openai.completions.create(prompt=PROMPT, stop=["no such text", word], **GREEDY).choices[0]
    assert (answer.text, answer.finish_reason) == (expected[: expected.index(word)], "stop")


def test_openai_seed(by_openai: openai.OpenAI) -> None:
    def sampled(seed: int) -> str:
        answer = by_openai.completions.create(
            model="tiny", prompt=PROMPT, seed=seed, temperature=1.0, top_p=0.9, max_tokens=12
        )
        return answer.choices[0].text

    assert sampled(7) == sampled(7) == said(PROMPT, 12, 7, temperature=1.0, top_p=0.9)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_openai_several_prompts_and_choices(by_openai: openai.OpenAI) -> None:
    answer = by_openai.completions.create(
        model="tiny", prompt=[PROMPT, "A ship"], n=2, seed=3, temperature=1.0, max_tokens=6
    )
    wanted = [said(prompt, 6, seed, temperature=1.0) for prompt in (PROMPT, "A ship") for seed in (3, 4)]
    assert [each.text for each in answer.choices] == wanted and answer.usage
    assert answer.usage.completion_tokens == 24 and answer.usage.prompt_tokens < 10
    texts = ["", "", "", ""]
    for chunk in by_openai.completions.create(
        model="tiny", prompt=[PROMPT, "A ship"], n=2, seed=3, temperature=1.0, max_tokens=6, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == wanted


def test_openai_log_probabilities(by_openai: openai.OpenAI, expected: str) -> None:
    messages: list = [{"role": "user", "content": PROMPT}]
    answer = by_openai.chat.completions.create(messages=messages, logprobs=True, top_logprobs=3, **GREEDY)
    scores = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert scores and "".join(each.token for each in scores) == expected
    assert all(each.logprob <= each.top_logprobs[0].logprob <= 0 and len(each.top_logprobs) == 3 for each in scores)
    assert scores[0].logprob == scores[0].top_logprobs[0].logprob
    plain = by_openai.completions.create(prompt=PROMPT, logprobs=2, **GREEDY).choices[0].logprobs
    assert plain and plain.token_logprobs == [each.logprob for each in scores]
    streamed = list(by_openai.chat.completions.create(messages=messages, logprobs=True, stream=True, **GREEDY))
    parts = [each.choices[0].logprobs.content or [] for each in streamed if each.choices[0].logprobs]
    assert [token.logprob for part in parts for token in part] == plain.token_logprobs


def test_openai_is_told_what_is_wrong(by_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served: these are: "):
        by_openai.completions.create(model="gpt-4", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="temperature: Input should be"):
        by_openai.completions.create(model="tiny", prompt=PROMPT, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="tiny has no chat template, and so no tools"):
        tool: list = [{"type": "function", "function": {"name": "f"}}]
        by_openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], tools=tool)
    with pytest.raises(openai.BadRequestError, match=r"the prompt is .* tokens and the context 1024"):
        by_openai.completions.create(model="tiny", prompt=PROMPT * 2000)


# Ollama


def test_ollama_generate(by_ollama: ollama.Client, expected: str) -> None:
    options = {"temperature": 0, "num_predict": 12}
    answer = by_ollama.generate("tiny", PROMPT, options=options)
    assert (answer.response, answer.done_reason, answer.eval_count) == (expected, "length", 12)
    assert answer.prompt_eval_count == 3 and answer.eval_duration and answer.created_at
    pieces = list(by_ollama.generate("tiny:latest", PROMPT, options=options, stream=True))
    assert "".join(each.response for each in pieces) == expected and pieces[-1].done
    assert by_ollama.generate("tiny", PROMPT, raw=True, options=options).response == expected


def test_ollama_chat(by_ollama: ollama.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    answer = by_ollama.chat("dbrx", messages, options={"temperature": 0, "num_predict": 9})
    pieces = list(by_ollama.chat("dbrx", messages, options={"temperature": 0, "num_predict": 9}, stream=True))
    assert answer.message.role == "assistant" and answer.message.content
    assert "".join(each.message.content or "" for each in pieces) == answer.message.content
    other = by_ollama.chat("dbrx", messages[1:], options={"temperature": 0, "num_predict": 9})
    assert other.prompt_eval_count < answer.prompt_eval_count


def test_ollama_asks_about_models(by_ollama: ollama.Client) -> None:
    assert {each.model for each in by_ollama.list().models} == {"tiny", "dbrx"}
    shown = by_ollama.show("dbrx")
    assert shown.details and shown.details.family == "dbrx" and shown.details.quantization_level == "q8"
    assert shown.modelinfo and shown.modelinfo["dbrx.expert_used_count"] == 3 and "im_start" in (shown.template or "")
    by_ollama.generate("tiny", "", keep_alive="1h")  # loads it
    by_ollama.generate("dbrx", "", keep_alive=-1)
    loaded = {each.model: each for each in by_ollama.ps().models}
    assert loaded.keys() == {"tiny", "dbrx"} and loaded["tiny"].context_length == 1024
    assert all(each.size and each.size > 2**20 and each.size_vram == 0 for each in loaded.values())
    now = datetime.now(timezone.utc)
    left = {name: (each.expires_at - now).total_seconds() for name, each in loaded.items() if each.expires_at}
    assert left["tiny"] == pytest.approx(3600, abs=60) and left["dbrx"] > 10 * 365 * 86400
    by_ollama.generate("tiny", "", keep_alive=0)
    assert [each.model for each in by_ollama.ps().models] == ["dbrx"]
    by_ollama.generate("dbrx", "hello", keep_alive=0, options={"num_predict": 1})
    wait_for(lambda: not by_ollama.ps().models, 10)  # once its answer is over


def test_ollama_pulls_nothing(by_ollama: ollama.Client) -> None:
    assert by_ollama.pull("tiny").status == "success"
    with pytest.raises(ollama.ResponseError, match="fetches none: type moecli pull") as refused:
        by_ollama.pull("mixtral")
    assert refused.value.status_code == 403


# Anthropic


def test_anthropic_messages(by_anthropic: anthropic.Anthropic, expected: str) -> None:
    answer = by_anthropic.messages.create(messages=[{"role": "user", "content": PROMPT}], **GREEDY_CLAUDE)
    assert answer.content[0].text == expected and answer.stop_reason == "max_tokens"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 12)
    with by_anthropic.messages.stream(messages=[{"role": "user", "content": PROMPT}], **GREEDY_CLAUDE) as stream:
        assert "".join(stream.text_stream) == expected
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_anthropic_stops_and_counts(by_anthropic: anthropic.Anthropic, expected: str) -> None:
    word = expected.split()[2]
    answer = by_anthropic.messages.create(
        messages=[{"role": "user", "content": PROMPT}], stop_sequences=["none", word], **GREEDY_CLAUDE
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)
    counted = by_anthropic.messages.count_tokens(
        model="dbrx", system="Be brief.", messages=[{"role": "user", "content": "hello"}]
    )
    assert counted.input_tokens > 10
    with pytest.raises(anthropic.NotFoundError, match="'claude' is not served"):
        by_anthropic.messages.create(model="claude", max_tokens=1, messages=[{"role": "user", "content": "a"}])


# What is built upon them


def test_langchain_by_ollama(server: Server, by_ollama: ollama.Client) -> None:
    """The chain that people write for DBRX."""
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_ollama import ChatOllama, OllamaLLM

    model = ChatOllama(model="dbrx", base_url=server.url, temperature=0, num_predict=8)
    chain = ChatPromptTemplate.from_messages([("user", "Thirteen words of {n} letters")]) | model | StrOutputParser()
    answer = chain.invoke({"n": "nine"})
    assert answer and answer == "".join(chain.stream({"n": "nine"}))
    plain = OllamaLLM(model="dbrx", base_url=server.url, temperature=0, num_predict=8)
    assert plain.invoke("Thirteen words of nine letters") == answer


def test_langchain_by_openai(server: Server, expected: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAI

    given = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0, **GREEDY}
    model = ChatOpenAI(**given)
    assert model.invoke(PROMPT).content == expected
    assert "".join(str(each.content) for each in model.stream(PROMPT)) == expected
    assert OpenAI(**given).invoke(PROMPT) == expected


def test_llm_with_an_endpoint(server: Server, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    named = f"- model_id: here\n  model_name: tiny\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(named)
    import llm

    answer = llm.get_model("here").prompt(PROMPT, key="none", temperature=0, max_tokens=12, stream=False)
    assert answer.text() == expected
    assert "".join(llm.get_model("here").prompt(PROMPT, key="none", temperature=0, max_tokens=12)) == expected
