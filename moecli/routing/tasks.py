"""The tasks of `run --prompts builtin:tasks`, four that are asked of every new model; checked as far as that goes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from moecli.routing.prompt_lines import Asked

NAME = "builtin:tasks"
_LONGEST_SENTENCE = 60  # words
_PASSAGE = (
    "A mixture-of-experts model has many small networks, called experts, where a dense model has one large one. For "
    "every token a router picks a few of them, so that most of the weights rest while the token passes. Such a model "
    "knows as much as its size allows and costs as little as the few experts that it uses, which is why it can be "
    "kept on a disk and still answer on an ordinary machine."
)
_MARATHON = (
    "The city's marathon was run over 42.195 kilometres. Of 12,480 runners who started, 11,902 came to the finish. "
    "The winner, who wore number 7, needed 2 hours and 9 minutes."
)
_NUMBERS = {"kilometres": 42.195, "started": 12480, "finished": 11902, "winner": 7, "minutes": 129}


@dataclass(frozen=True, slots=True)
class Check:
    """Whether an answer is right, and in words what was found in it."""

    passed: bool
    found: str


def asked() -> list[Asked]:
    """The tasks, as lines of a file."""
    return [Asked(number, text, id=name) for number, (name, (text, _)) in enumerate(_TASKS.items(), 1)]


def check(name: str, answer: str) -> Check:
    """What is to be said of an answer to the task of that name."""
    return _TASKS[name][1](answer)


def _words(answer: str) -> Check:
    """Thirteen different words, each of nine letters."""
    words = [word for word in re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", answer) if len(word) > 1]
    right = {word.casefold() for word in words if len(word) == 9 and word.isalpha()}
    return Check(len(words) == len(right) == 13, f"{len(words)} words, {len(right)} different ones of nine letters")


def _sentence(answer: str) -> Check:
    """One sentence that names what it is about, and is shorter than the passage."""
    text = answer.strip()
    ends, words = len(re.findall(r"[.!?](?=\s|$)", text)), len(text.split())
    about = "expert" in text.casefold()
    found = f"{ends} sentences, {words} words, {'about' if about else 'nothing about'} experts"
    return Check(ends == 1 and text[-1:] in ".!?" and about and words <= _LONGEST_SENTENCE, found)


def _marathon(answer: str) -> Check:
    """A JSON object with the five numbers, in a fence or not."""
    match = re.search(r"\{[^{}]*\}", answer)
    try:
        told = json.loads(match[0]) if match else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return Check(False, "no JSON object")
    right = [key for key, value in _NUMBERS.items() if type(told.get(key)) in (int, float) and told[key] == value]
    return Check(len(right) == len(_NUMBERS) == len(told), f"{len(right)} of {len(_NUMBERS)} numbers")


def _apples(answer: str) -> Check:
    """The last number that is said."""
    numbers = re.findall(r"\b(\d+|five|three|two)\b", answer.casefold())
    last = numbers[-1] if numbers else None
    return Check(last in ("5", "five"), "no number" if last is None else f"{last} apples")


_TASKS: dict[str, tuple[str, Callable[[str], Check]]] = {
    "words": ("Write thirteen different words that have nine letters each. Write the words and nothing else.", _words),
    "summary": (f"Summarise this in one sentence.\n\n{_PASSAGE}", _sentence),
    "marathon": (
        f"{_MARATHON}\n\nGive the numbers of this report as one JSON object with the keys "
        f"{', '.join(_NUMBERS)}: kilometres of the race, runners who started, who finished, the winner's number, and "
        "the winner's time in minutes. Write the JSON and nothing else.",
        _marathon,
    ),
    "apples": (
        "I have five apples today. I ate two apples yesterday. How many apples do I have now? Answer with a number.",
        _apples,
    ),
}
