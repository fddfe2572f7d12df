"""A batch: each answer is what its prompt gets alone, however many go together, and weights are read once for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import moecli
from moecli.engine.answer import Answer, Request
from moecli.engine.batch import Batch, plan_for
from moecli.engine.chat import ChatSession, Conversation, GenerationConfig
from moecli.engine.loaded import LoadedModel, LoadOptions, OpenedModel, open_for_run
from moecli.engine.sampling import Sampling
from moecli.library.resolve import Kind, ModelRef
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import place
from moecli.store.progress import silent
from tests.support.stores import hollow, packed

TINY = Path(moecli.__file__).parent / "tiny"
TEXT = "The sea was calm and the ship was far away, and the captain slept. She looked at him and said nothing. "
FACTS = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_attention_heads": 16,
    "num_key_value_heads": 4, "num_experts_per_tok": 2, "vocab_size": 2048, "max_position_embeddings": 512,
    "dtype": "bfloat16",
}  # fmt: skip
PROMPTS = ["The", TEXT, "def", TEXT * 3, "Il mare", *(f"{TEXT[n:]}" for n in range(7, 60, 9)), "a", "On dit que la mer"]
SAMPLED = GenerationConfig(Sampling(temperature=0.9), 3, max_tokens=12, stops=(" the",))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    folder = tmp_path_factory.mktemp("models") / "tiny-q8"
    packed(TINY, folder, "q8")
    return open_for_run(ModelRef("tiny-q8", "tiny-q8", Kind.STORE, folder), LoadOptions(threads=1))


def loaded_for(opened: OpenedModel, texts: int, share: float = 1.0, context: int = 160) -> LoadedModel:
    """With room for so many texts side by side, and for a share of the experts; the others are read from disk."""
    memory = estimate_memory(opened.spec, "q8", context, texts, block=min(2048, texts * context))
    least, full = place(memory, 0).least_ram, place(memory, 0).full_ram
    ram = full if share == 1 else least + int(share * memory.expert_count) * memory.slot_bytes
    return opened.load(place(memory, ram), silent)


def requests(opened: OpenedModel, prompts: list[str], config: GenerationConfig) -> list[tuple[int, Request]]:
    conversations = [Conversation(opened, config) for _ in prompts]
    each = [(talk, talk.prompt(text)) for talk, text in zip(conversations, prompts, strict=True)]
    return [
        (number, talk.request(ids, replace(config, seed=config.seed + number % 3)))
        for number, (talk, ids) in enumerate(each)
    ]


def alone(loaded: LoadedModel, text: str, config: GenerationConfig) -> Answer:
    answer = Answer()
    assert "".join(ChatSession(loaded, config).ask(text, answer)) == answer.text
    return answer


@pytest.fixture(scope="module")
def expected(opened: OpenedModel) -> list[Answer]:
    loaded = loaded_for(opened, 1, context=256)
    return [alone(loaded, text, replace(SAMPLED, seed=3 + n % 3)) for n, text in enumerate(PROMPTS)]


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("texts", [2, 5, 20])
def test_each_answer_is_as_alone(opened: OpenedModel, expected: list[Answer], texts: int, share: float) -> None:
    """Prompts of a token and of many, ends by a stop text and by length; in waves where there is little room."""
    told: list[tuple[int, int, int]] = []
    batch = Batch(loaded_for(opened, texts, share), lambda *each: told.append(each))
    found = dict(batch.answer(requests(opened, PROMPTS, SAMPLED)))
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, one in enumerate(expected):
        answer = found[number]
        assert isinstance(answer, Answer)
        got = answer.token_ids, answer.text, answer.finish_reason
        assert got == (one.token_ids, one.text, one.finish_reason), number
    assert {each.finish_reason for each in expected} == {"stop", "length"}
    assert told[-1][0] == len(PROMPTS) and told[-1][1] == told[-1][2] and told == sorted(told, key=lambda each: each[1])


def test_many_prompts_read_a_fraction_of_what_each_reads_alone(opened: OpenedModel) -> None:
    """64 prompts through a store whose experts are twice as large as the memory for them: bytes, not seconds."""
    config = GenerationConfig(Sampling(), 0, max_tokens=8)
    prompts = [f"{TEXT[number % 40 :]} {number}" for number in range(64)]
    single = loaded_for(opened, 1, 0.5)
    texts = [alone(single, text, config).text for text in prompts]
    together = loaded_for(opened, 64, 0.5)
    found = dict(Batch(together, lambda *_: None).answer([(n, r) for n, r in requests(opened, prompts, config)]))
    assert [found[number].text for number in range(64) if isinstance(found[number], Answer)] == texts
    one, all_ = (each.decoder.experts.statistics for each in (single, together))
    assert 0 < 4 * all_.bytes_read < one.bytes_read
    experts, prompts_read = together.plan.memory.expert_count, -(-64 * 45 // 2048)
    assert all_.hits + all_.misses <= experts * (8 - 1 + prompts_read + 1)  # each once a step, and once for its prompts


def test_the_plan_takes_as_many_as_pay(tmp_path: Path) -> None:
    """Of a store of 3.6 GB whose files are holes."""
    shape = {"hidden_size": 2048, "intermediate_size": 4096, "num_local_experts": 16, "num_hidden_layers": 8}
    store = hollow(tmp_path / "hollow", FACTS | shape)
    opened = open_for_run(ModelRef("hollow", "hollow", Kind.STORE, store), LoadOptions(threads=1))
    needs = [100] * 60 + [160]
    resident = plan_for(replace(opened, ram=2**40), needs)
    assert resident.fits and resident.memory.batch == 32 and resident.memory.context == 160
    assert plan_for(replace(opened, ram=2**40), [100]).memory.batch == 1
    half = place(estimate_memory(opened.spec, "q8", 160), 0).full_ram // 2
    streamed = plan_for(replace(opened, ram=half), needs)
    assert not streamed.fits and streamed.memory.batch == -(-sum(needs) // 160) and streamed.memory.block == 2048
    assert streamed.ram.total <= half
    tight = place(estimate_memory(opened.spec, "q8", 160), 0).least_ram
    assert plan_for(replace(opened, ram=tight), needs).memory.batch == 1
