"""The official clients of three APIs, each of the module's own `server`."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import ollama
import openai
import pytest

from tests.support.server import Server


@pytest.fixture
def by_openai(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def by_ollama(server: Server) -> ollama.Client:
    return ollama.Client(server.url)


@pytest.fixture
def by_anthropic(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client
