"""House rules that no linter knows: families stay data, modules stay small and say what they are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import moecli
from moecli.model.families import families

PACKAGE = Path(moecli.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
GENERIC = [name for name in MODULES if name.split("/")[0] in ("engine", "experts", "kernels", "formats")]
_WORDS = {"step", "switch"}  # family names that are plain English too
_STEMS = ({re.match("[a-z]+", name)[0] for name in families()} | {"qwen", "glm", "kimi", "grok"}) - _WORDS
FAMILY_NAMES = re.compile(f"({'|'.join(sorted(_STEMS))})(?!3$)", re.IGNORECASE)  # llama3 is a way to stretch a rope


# Classes of data that change: they count, collect or are filled.
CHANGING = {
    "Access", "Answer", "Call", "Chat", "DeviceStatistics", "Library", "Lookup", "PendingRead", "Phase", "Session",
    "Statistics", "Timing", "Hop", "_Layer", "_Pass", "_Program", "Stage", "_Text",
}  # fmt: skip


@cache
def parse(name: str) -> ast.Module:
    return ast.parse((PACKAGE / name).read_text(encoding="utf-8"))


def words(tree: ast.Module) -> Iterator[str]:
    """Every name and text in the code itself: no comments, no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias | ast.arg | ast.FunctionDef | ast.ClassDef | ast.keyword):
            yield getattr(node, "name", None) or getattr(node, "arg", None) or ""


def test_there_is_something_to_look_at() -> None:
    assert "engine/attention.py" in GENERIC and len(GENERIC) > 10
    assert "mixtral" in families() and FAMILY_NAMES.search("DeepseekV2") and not FAMILY_NAMES.search("softmax")


@pytest.mark.parametrize("name", GENERIC)
def test_the_engine_knows_no_family(name: str) -> None:
    """New mathematics is one function and one enum value; a family is data."""
    found = sorted({word for word in words(parse(name)) if FAMILY_NAMES.search(word)})
    assert not found


@pytest.mark.parametrize("name", GENERIC)
def test_the_engine_never_decides_by_family(name: str) -> None:
    """It may name a spec's family in a message, and nothing else."""
    deciding = ast.Compare | ast.Match | ast.Subscript | ast.Dict
    found = [ast.unparse(node) for node in ast.walk(parse(name)) if isinstance(node, deciding)]
    assert not [code for code in found if ".family" in code]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_in_one_sentence_what_it_is(name: str) -> None:
    first = (ast.get_docstring(parse(name)) or "").split("\n\n")[0].splitlines()
    assert len(first) == 1 and first[0].endswith((".", ")", '"', "?")), f"moecli/{name} needs a one-line docstring"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("model/families/") and "/_" not in name])
def test_a_family_is_a_small_file_of_data(name: str) -> None:
    tree = parse(name)
    assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) < 150
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in imported if module.split(".")[0] in ("torch", "numpy", "safetensors")}
    assert "/facts/" in name or not {module for module in imported if ".facts" in module}, "what runs stands by itself"
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "ModelSpec" not in calls, "make_spec builds it, and refuses keys that nobody has read"


@pytest.mark.parametrize(
    "name",
    [n for n in MODULES if n.split("/")[0] in ("model", "checkpoint")],
)
def test_rooms_below_the_engine_load_no_torch_when_imported(name: str) -> None:
    tops = [node for node in parse(name).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in tops if "torch" in ast.unparse(node)]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(("cli/", "library/resolve.py"))])
def test_behind_the_front_door_nobody_takes_the_name_of_a_model(name: str) -> None:
    """What a MODEL names is found once; what lies below takes the ModelRef."""
    functions = [n for n in ast.walk(parse(name)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    arguments = [a for f in functions for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
    assert not [a.lineno for a in arguments if a.arg == "model" and a.annotation and ast.unparse(a.annotation) == "str"]


def test_data_is_frozen_and_has_slots() -> None:
    """What many hold changes under none of them, and a misspelt field is an error."""
    decorators = [
        (node.name, {each.arg for each in decorator.keywords if ast.unparse(each.value) == "True"})
        for name in MODULES
        for node in ast.walk(parse(name))
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "dataclass"
    ]
    assert {name for name, given in decorators if "frozen" not in given} == CHANGING
    assert {name for name, given in decorators if "slots" not in given} == {"StoreLayout"}, "it keeps what it computed"
    assert not [name for name in MODULES if re.search(r"^\s*@dataclass$", (PACKAGE / name).read_text(), re.MULTILINE)]


def test_the_house_is_rooms_and_few_loose_modules() -> None:
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "settings.py", "units.py", "errors.py"}


def test_every_room_has_one_row_of_the_import_contract() -> None:
    """No two share one, so that of any two rooms it is clear which may import the other."""
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    rows = re.findall(r'"moecli\.([^"]+)",', text[text.index("\nlayers = [") :].partition("]")[0])
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"settings", "units", "errors"}
    assert sorted(rows) == sorted(rooms) and len(rows) <= 19
