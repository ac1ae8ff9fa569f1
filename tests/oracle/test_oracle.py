"""The oracles are independent: they import neither torch nor the code they judge."""

import ast
from pathlib import Path

import pytest

ORACLES = sorted(
    path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")
)


def test_there_are_oracles():
    assert {"alm", "binary"} <= {path.stem for path in ORACLES}


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_an_oracle_imports_neither_torch_nor_crosstill(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert not imported & {"torch", "crosstill", "transformers"}
