"""The documents: every public name is explained, the reference builds, and what the guides name exists."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import lgld_ops
from lgld_ops import acceleration, compat

DOCS = ROOT / "docs"

# What a docstring must hold, by kind of thing.
SHAPES, DTYPES, ERRORS = r"\[B, ", r"float(32|ing)", r"Raises:|\w+Error"
SOURCE = r"CVPR|ICITA"
TENSORS = (SHAPES, DTYPES, ERRORS, SOURCE)
NEEDED: dict[str, tuple[str, ...]] = {
    "involution2d": TENSORS,
    "Involution2d": TENSORS,
    "FourierFeatureMixer": TENSORS,
    "fourier_feature_mixer": TENSORS,
    "LGLDNet": TENSORS,
    "FusedLGLDNet": TENSORS,
    "fuse": (r"model:", r"float", ERRORS),
    "load": (r"save", ERRORS),
    "accelerate": (r"model", r"Returns:", ERRORS),
    "Report": (r"table",),
    "build_info": (r"Raises:|what",),
    "compat": (r"ValueError", r"d_li14", r"holocron"),
    "decompositions": (r"run_decompositions", DTYPES),
    "export_onnx": (r"args", r"Returns:", ERRORS),
    "reference": (SHAPES, r"dtype", SOURCE),
}
DROP_INS = [getattr(module, module.__all__[0]) for module in (getattr(compat, name) for name in compat.__all__)]


def test_every_public_name_is_known_here() -> None:
    assert NEEDED.keys() == set(lgld_ops.__all__)


@pytest.mark.parametrize("name", lgld_ops.__all__)
def test_docstrings_hold_what_they_need(name: str) -> None:
    text = inspect.getdoc(getattr(lgld_ops, name)) or ""
    assert len(text) > 40
    missing = [part for part in NEEDED[name] if not re.search(part, text)]
    assert not missing, f"{name} says nothing of {missing}"


@pytest.mark.parametrize("kind", DROP_INS, ids=lambda kind: kind.__module__)
def test_docstrings_of_drop_ins(kind: type) -> None:
    text = inspect.getdoc(kind) or ""
    assert all(re.search(part, text) for part in (*TENSORS, "State dict", "ValueError")), kind
    for name in inspect.signature(kind).parameters:
        assert re.search(rf"^ +{name}: ", text, re.M), f"{kind} says nothing of {name}"


def commands(path: Path, marker: str) -> list[str]:
    """The lines of the fenced block below ``<!-- marker -->``."""
    found = re.search(rf"<!-- {marker} -->\n+```\w*\n(.*?)```", path.read_text(), re.S)
    assert found, f"{path} has no block marked {marker}"
    return found[1].splitlines()


@pytest.fixture(scope="module")
def reference_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("pdoc")
    folder = tmp_path_factory.mktemp("reference")
    words = commands(DOCS / "README.md", "docs-command")[-1].split()
    assert words[0] == "pdoc"
    words[words.index("-o") + 1] = str(folder)
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.html")}


def test_every_public_name_is_in_the_reference(reference_pages: dict[str, str]) -> None:
    page = reference_pages["lgld_ops.html"]
    for name in lgld_ops.__all__:
        if inspect.ismodule(getattr(lgld_ops, name)):
            assert f"lgld_ops/{name}.html" in reference_pages, name
        else:
            assert f'id="{name}"' in page, name
    for kind in DROP_INS:
        source = kind.__module__.rsplit(".", 1)[-1]
        assert f'id="{kind.__name__}"' in reference_pages[f"lgld_ops/compat/{source}.html"]
    for name in acceleration.__all__:
        assert f'id="{name}"' in reference_pages["lgld_ops/acceleration.html"]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    paths = {p for p in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if p.split("/")[0] in {c.name for c in ROOT.iterdir()}}
    links = {link for link in re.findall(r"\]\(([^):]+)\)", text) if not link.startswith("#")}
    assert page.name != "write-your-own-op.md" or len(paths) > 25
    for path in paths - {"build/docs/index.html"}:
        assert (ROOT / path).exists(), path
    for link in links:
        assert (page.parent / link).exists(), link


def test_names_in_the_guide_to_ops_exist() -> None:
    """Words of code in the guide are in the file that the paragraph is about, or in another file that it names."""
    everything = {p: p.read_text() for p in ROOT.glob("*/**/*") if p.suffix in {".py", ".h", ".cpp", ".cmake", ".md", ".txt"}}
    for word in ("SCHEMAS", "LGLD_CHECK", "STABLE_TORCH_LIBRARY_IMPL", "TORCH_BOX", "CpuVariant", "parallel_for"):
        assert f"`{word}`" in (DOCS / "write-your-own-op.md").read_text()
        assert any(word in text for path, text in everything.items() if path.parent != DOCS), word


def migrations() -> list[tuple[str, str]]:
    text = (DOCS / "migration.md").read_text()
    return re.findall(r"^(from [^\n]*?) +# before\n(from [^\n]*?) +# after$", text, re.M)


def test_the_migration_guide_covers_all_and_its_imports_work() -> None:
    pairs = migrations()
    imported = []
    for before, after in pairs:
        scope: dict[str, Any] = {}
        exec(after, scope)
        name = after.split()[-1]
        assert name == before.split()[-1], f"{before!r} and {after!r} import different names"
        imported.append(scope[name])
    assert set(imported) == {lgld_ops.Involution2d, *DROP_INS}
