"""What the documentation shows runs, and what is public is documented."""

import ast
import contextlib
import doctest
import importlib
import json
import pkgutil
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import crosstill
import tiny_models
import tiny_tokenizers
from crosstill import errors, functional, hub, objectives, transfer
from crosstill.objectives import methods
from crosstill.transfer.initial import base as initial_base

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#[^)]*)?\)")
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)

CHATS = [
    {"messages": [{"role": "user", "content": "Where is the cat?"},
                  {"role": "assistant", "content": "On the mat."}]},
    {"messages": [{"role": "user", "content": "Grüße?"},
                  {"role": "assistant", "content": "Grüße aus 東京."}]},
] * 8  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Code on a page, and the line it begins at."""

    line: int
    text: str


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return [
        Block(text[: found.start(2)].count("\n") + 1, found[2])
        for found in FENCE.finditer(text)
        if found[1] == language
    ]


def with_python(pages):
    return [page for page in pages if blocks(page, "python")]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders that the pages speak of: two tiny chat models that share no tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    chat = {"specials": tiny_tokenizers.CHAT_SPECIALS, "chat_template": tiny_tokenizers.CHATML}
    made = {
        "student": tiny_tokenizers.byte_level_bpe(**chat),
        "teacher": tiny_tokenizers.metaspace_bpe_with_byte_fallback(**chat),
    }
    for seed, (role, tokenizer) in enumerate(made.items()):
        tiny_models.llama(len(tokenizer), seed=seed).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return folder


@pytest.fixture
def reader(models, tmp_path, monkeypatch):
    """Stands where the reader of a page stands: offline, beside models and data."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a page asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "models").symlink_to(models)
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in CHATS)
    (tmp_path / "data" / "train.jsonl").write_text(rows)
    return tmp_path


@pytest.fixture
def registry():
    """Puts the registered methods and initialisers back."""
    registries = objectives._REGISTRY, initial_base._REGISTRY
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


@pytest.mark.parametrize("page", with_python(PAGES), ids=name)
def test_python_blocks_run(page, reader, registry):
    namespace = {"__name__": "page"}
    for block in blocks(page, "python"):
        # keeps the line numbers of the page in a traceback
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        with contextlib.redirect_stdout(None):
            exec(code, namespace)  # noqa: S102


def test_the_example_of_the_readme_is_short():
    first = blocks(ROOT / "README.md", "python")[0]
    lines = [line for line in first.text.splitlines() if line.strip()]
    assert len(lines) <= 10


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=name)
def test_recipes_on_pages_are_recipes(page):
    from crosstill.training.recipe import parse_recipe
    from crosstill.transfer import parse_transfer

    whole = {"student": "s", "teacher": "t", "train": "d", "output_dir": "o"}
    moved = {"model": "m", "to": "t", "train": "d"}
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block.text)
        if {"model", "stages"} & set(values):
            recipe = parse_transfer({**moved, **values}, {"use_cpu": True})
        else:
            recipe = parse_recipe({**whole, **values}, {"use_cpu": True})
        known = {method.name: method for method in methods()}
        for objective, options in recipe.training.objectives.items():
            assert set(options) <= {
                "weight",
                "teacher",
                *(o.name for o in known[objective].options),
            }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target and not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in text


def documented():
    """The objects that the API pages show."""
    found = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            found[path] = resolve(path)
    return found


def resolve(path):
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, attribute = path.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def own_functions(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [n for n in names if not n.startswith("_")]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (crosstill, [n for n in crosstill.__all__ if n != "functional"]),
        (functional, functional.__all__),
        # PairBatch and Signal are types of arguments, told by the pages of what takes them
        (transfer, transfer.__all__),
        (objectives, [n for n in objectives.__all__ if n not in ("PairBatch", "Signal")]),
        (hub, own_functions(hub)),
    ],
    ids=["crosstill", "functional", "transfer", "objectives", "hub"],
)
def test_public_names_are_documented(module, names):
    shown = list(documented().values())
    for public in names:
        value = getattr(module, public)
        # `crosstill.align` is a package that can be called as the function of the same name
        value = (
            importlib.import_module("crosstill.align.chunks").align if public == "align" else value
        )
        assert any(value is one for one in shown), f"{module.__name__}.{public} has no API page"


def test_errors_are_documented():
    assert errors in documented().values()


def test_methods_have_their_pages():
    for method in methods():
        own = "classical" if method.one_vocabulary else method.name
        page = ROOT / "docs" / "methods" / f"{own}.md"
        text = page.read_text(encoding="utf-8")
        for option in method.options:
            assert f"`{option.name}`" in text, f"{name(page)} does not say what {option.name} is"


def modules():
    found = pkgutil.walk_packages(crosstill.__path__, "crosstill.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("module", modules())
def test_doctests(module):
    result = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0


def test_the_doctests_are_found():
    finder = doctest.DocTestFinder()
    count = sum(
        len(test.examples) for m in modules() for test in finder.find(importlib.import_module(m))
    )
    assert count > 50
