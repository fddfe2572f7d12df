"""Chat templates: the text transformers renders, and limits that no template gets around."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moecli.errors import TextError
from moecli.text.chat import ChatTemplate, Message, fold_system
from tests.support.oracle import transformers
from tests.support.toy_tokenizers import byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.slow

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SYSTEM = Message("system", "Be brief.")
CHAT = [
    Message("user", "What is <b>2+2</b> & 'more'?"),
    Message("assistant", "4"),
    Message("user", "Ünïcödé 🎉\n\n  indented"),
]

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
MIXTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token}}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='', count=0) %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% set ns.system = message.content %}{% endif %}
{%- endfor %}{{ bos_token }}{{ ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{% continue %}{% endif %}
{%- set ns.count = ns.count + 1 %}
{%- if message['role'] == 'user' %}{{ '<｜User｜>' ~ message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{%- set content = message['content'] %}{% if '</think>' in content %}
{%- set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + eos_token }}{% endif %}
{%- endfor -%}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
LLAMA = """{%- if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
        + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {%- generation %}{{ content }}{% endgeneration %}
    {%- if loop.length > 99 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
{{- messages | tojson }}{{ undefined_name }}{{ pad_token }}{{ dict(a=1).items() | list }}
{{- messages[0].get('x') }}{{ documents is none }}"""
STYLES = {"chatml": CHATML, "mixtral": MIXTRAL, "deepseek": DEEPSEEK, "llama": LLAMA}


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    return transformers().PreTrainedTokenizerFast(tokenizer_object=byte_level(), **VARIABLES)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("prompt", [True, False])
def test_render_agrees_with_transformers(
    oracle: PreTrainedTokenizerFast, style: str, system: bool, prompt: bool
) -> None:
    messages = fold_system([SYSTEM, *CHAT]) if style == "mixtral" and system else [SYSTEM, *CHAT] if system else CHAT
    expected = oracle.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        chat_template=STYLES[style],
        tokenize=False,
        add_generation_prompt=prompt,
    )
    assert ChatTemplate(STYLES[style], VARIABLES).render(messages, prompt) == expected
    assert CHAT[2].content.strip() in expected


def test_the_date_is_todays() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render(CHAT) in {
        time.strftime("%Y"),
        str(int(time.strftime("%Y")) - 1),
    }


def test_a_refused_system_message_is_folded_into_the_first_user_turn() -> None:
    text = ChatTemplate(MIXTRAL, VARIABLES).render([SYSTEM, *CHAT])
    assert text.startswith("<s> [INST] Be brief.\n\nWhat is <b>2+2</b>")


def test_a_taken_system_message_is_not_folded() -> None:
    assert "<|im_start|>system\nBe brief.<|im_end|>" in ChatTemplate(CHATML, VARIABLES).render([SYSTEM, *CHAT])


@pytest.mark.parametrize("messages", [CHAT[1:], [SYSTEM, *CHAT[1:]], [SYSTEM, CHAT[0], CHAT[0]]])
def test_a_refusal_keeps_the_templates_own_words(messages: list[Message]) -> None:
    with pytest.raises(TextError, match="refuses this conversation: Conversation roles must alternate"):
        ChatTemplate(MIXTRAL, VARIABLES).render(messages)


def test_only_a_refusal_is_folded() -> None:
    with pytest.raises(TextError, match="division by zero"):
        ChatTemplate("{% if messages[0].role == 'system' %}{{ 1/0 }}{% endif %}", {}).render([SYSTEM, *CHAT])


def test_fold_system() -> None:
    user, answer = Message("user", "hi"), Message("assistant", "ho")
    assert fold_system([SYSTEM, user, answer, user]) == [Message("user", "Be brief.\n\nhi"), answer, user]
    assert fold_system([SYSTEM, SYSTEM, user]) == [Message("user", "Be brief.\n\nBe brief.\n\nhi")]
    assert fold_system([Message("system", ""), user]) == [user]
    assert fold_system([SYSTEM, answer]) == [Message("user", "Be brief."), answer]
    assert fold_system([user, answer]) == [user, answer]


def test_an_empty_chat_is_explained() -> None:
    with pytest.raises(TextError, match="at least one message"):
        ChatTemplate(CHATML, {}).render([])


N = "{% set n = messages|length %}"
HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "long string": "{{ 'a' * 10**10 }}",
    "long string at run time": N + "{{ ('a' * (n * 10**10)) | length }}",
    "long list": N + "{{ ([n] * 10**10) | length }}",
    "long number": N + "{{ (n * 10) ** (10 ** 10) }}",
    "long number, quietly": N + "{% set x = (n * 7) ** (10 ** 9) %}",
    "long padding": N + "{{ 'a' | center(n * 10**10) }}",
    "constant padding": "{{ 'a' | center(10**10) }}",
    "long justification": "{{ 'a'.ljust(10**10) }}",
    "percent width": N + "{{ '%10000000000d' % n }}",
    "format width": "{{ '{:10000000000}'.format(1) }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x~n.x %}{% endfor %}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 999999) | length }}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loop recursion": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "deep blocks": "{% if 1 %}" * 50_000 + "{% endif %}" * 50_000,
    "deep minus": "{{ " + "-" * 500_000 + "1 }}",
    "deep list": "{{ " + "[" * 300_000,
    "huge range": "{{ range(10**9) | list }}",
    "sort": "{{ (range(99999) | list * 99) | sort | length }}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
    "much output": "{% for a in range(1100) %}{{ 'x' * 1000 }}{% endfor %}",
    "dunder class": "{{ ''.__class__ }}",
    "dunder of undefined": "{{ x.__class__ }}",
    "dunder globals": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "dunder by item": "{{ ''['__class__'] }}",
    "dunder by filter": "{{ ('' | attr('__class__')).mro() }}",
    "dunder in format": "{{ '{0.__class__}'.format(1) }}",
    "dunder in format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "dunder in namespace": "{% set ns = namespace(__class__=1) %}",
    "dunder set in namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "changing the messages": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "not closed": "{% for a in messages %}",
    "unknown tag": "{% python %}",
    "too long": " " * (2**20 + 1),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_is_an_error_soon(case: str) -> None:
    started = time.monotonic()
    with pytest.raises(TextError, match="chat template") as caught:
        ChatTemplate(HOSTILE[case], VARIABLES).render(CHAT)
    assert time.monotonic() - started < 20, "each takes about 0.2 s on an idle machine"
    assert len(caught.value.message) < 500
    assert caught.value.message.isprintable()
    assert caught.value.hint is not None


def test_time_is_bounded_inside_one_call() -> None:
    """Nothing written in Python sees this one end: the kernel stops the worker."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(TextError, match="takes more than 100 ms"):
        ChatTemplate(HOSTILE["long number, quietly"], {}).render(CHAT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2, "start, imports and 100 ms"


@pytest.mark.skipif(sys.platform != "linux", reason="the address space has no limit elsewhere")
def test_memory_is_bounded() -> None:
    """An amount that most machines would hand out."""
    with pytest.raises(TextError, match="too much memory"):
        ChatTemplate(N + "{{ ('a' * (n * 250 * 2**20)) | length }}", {}).render(CHAT)


def test_output_is_bounded_in_bytes() -> None:
    assert len(ChatTemplate("{{ 'x' * 2**20 }}", {}).render(CHAT)) == 2**20
    for template in ("{{ 'x' * (2**20 + 1) }}", "{{ 'é' * (2**19 + 1) }}"):
        with pytest.raises(TextError, match="more than 1 MiB"):
            ChatTemplate(template, {}).render(CHAT)


def test_an_error_text_cannot_steer_the_terminal() -> None:
    with pytest.raises(TextError, match="system role") as caught:
        ChatTemplate("{{ raise_exception('no\x1b[31m\r\n system role' + 'x' * 9999) }}", {}).render(CHAT)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 500


def test_the_template_works_again_after_it_was_stopped() -> None:
    template = ChatTemplate(
        "{% if messages[0].content == 'loop' %}" + HOSTILE["nested loops"] + "{% endif %}{{ messages[0].content }}",
        {},
    )
    assert template.render([Message("user", "one")]) == "one"
    with pytest.raises(TextError, match="takes more than 100 ms"):
        template.render([Message("user", "loop")])
    assert template.render([Message("user", "two")]) == "two"


def test_rendering_does_not_pay_for_start_and_compilation() -> None:
    """100 ms are for rendering: a template that takes longer to compile than that is fine."""
    long = "".join(f"{{% if messages[0].content == 'n{number}' %}}{number}{{% endif %}}" for number in range(400))
    assert ChatTemplate(long, {}).render([Message("user", "n399")]) == "399"


def test_one_template_serves_many_threads() -> None:
    template = ChatTemplate("{{ messages[0].content * 2000 }}", {})
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda number: template.render([Message("user", f"<{number}>")]), range(64)))
    assert texts == [f"<{number}>" * 2000 for number in range(64)]


def test_any_text_survives_the_way_to_the_worker() -> None:
    text = '\x00\x1f\u2028\x85 🎉 \ud800 \\n " é' * 3
    assert ChatTemplate("{{ messages[0].content }}", {}).render([Message("user", text)]) == text


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_worker_is_left_behind() -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())

    before = children()
    template = ChatTemplate("{{ messages[0].content }}", {})
    template.render(CHAT)
    started = children() - before
    assert len(started) == 1, "one worker, and it stays for the next turn"
    (worker,) = started
    os.kill(int(worker), signal.SIGINT)
    template.render(CHAT)
    assert children() - before == started, "Ctrl-C ends an answer, not the conversation"
    os.kill(int(worker), signal.SIGKILL)
    time.sleep(0.2)
    assert template.render(CHAT) == CHAT[0].content, "a worker that someone killed is replaced"
    started = children() - before
    assert worker not in started
    del template
    gc.collect()
    assert not children() - before
    assert not [number for number in started if Path(f"/proc/{number}").exists()]
