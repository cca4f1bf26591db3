"""The shape of the code: layers, sizes and words."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "unet"
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def layers() -> list[str]:
    """The entries of unet/ in the package map of the docs, in the order of imports."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listing = re.search(r"^unet/\n((?:    .*\n)+)", page, re.MULTILINE)
    assert listing is not None
    return re.findall(r"^    (\w+)(?:/|\.py) ", listing[1], re.MULTILINE)


def imports(tree: ast.Module) -> Iterator[str]:
    """Names of imported modules and objects, such as unet.data.pairing.Pair, wherever they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_the_package_map_lists_every_package_and_module() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix in {".py", ""}}
    entries = {name for name in entries if not name.startswith("_")}
    assert sorted(layers()) == sorted(entries)
    assert len(entries) <= 13


@pytest.mark.parametrize("layer", layers())
def test_a_file_imports_only_from_its_own_layer_and_from_those_above(layer: str) -> None:
    allowed = layers()[: layers().index(layer) + 1]
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] in {layer, f"{layer}.py"}:
            for name in imports(TREES[path]):
                package, _, rest = name.partition(".")
                if package == "unet":
                    assert rest.split(".")[0] in allowed, f"{path}: imports {name}"


def test_no_module_has_more_than_350_lines_and_no_function_more_than_60() -> None:
    for path, tree in TREES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 350, f"{path}: {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert code_lines(node) <= 60, f"{path}: {node.name} has {code_lines(node)} lines"


def test_messages_of_the_library_name_no_option_of_the_command_line() -> None:
    # They name arguments, such as overwrite=True, which the command line shows as --overwrite.
    for path, tree in TREES.items():
        if path.parent.name == "cli":
            continue
        nodes = [*ast.walk(tree)]
        formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        pieces = {id(piece) for node in formatted for piece in ast.walk(node) if piece is not node}
        for node in nodes:
            is_text = isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", 0), str)
            if is_text and id(node) not in pieces:
                text = re.sub(r"(unet |scripts/).*", "", ast.unparse(node))  # whole commands may
                assert not re.search(r"\W(--[a-z]|-o\b)", text), (path, text)


def test_packages_say_what_they_contain_and_import_nothing() -> None:
    for path in PACKAGE.rglob("*/__init__.py"):
        assert ast.get_docstring(TREES[path]), path
        assert len(TREES[path].body) == 1, path


def test_importing_unet_does_not_import_torch() -> None:
    code = "import sys, unet; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_torchs_own_transposed_convolution_is_never_called() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert "transpose2d" not in node.attr.lower(), path
                assert "transpose3d" not in node.attr.lower(), path
        for name in imports(tree):
            assert not name.startswith("torch") or "ranspose" not in name, path


def test_every_module_has_a_test_file_or_is_used_by_a_module_that_has_one() -> None:
    paths = [path for path in MODULES if path.stem[0] != "_"]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}

    def is_tested(name: str) -> bool:
        package, _, module = name.rpartition(".")
        folder = ROOT.joinpath("tests", *package.split(".")[1:])
        if (folder / f"test_{module}.py").exists():
            return True
        imports = re.compile(rf"from {name} import|from {package} import (\([^)]*|.*)\b{module}\b")
        users = [other for other, path in modules.items() if imports.search(path.read_text())]
        return any(map(is_tested, users))

    for name in modules:
        assert is_tested(name), name


# Words of an earlier private language that have no other use here.
FORBIDDEN = re.compile(
    r"\b(by lot|(of|from) the lot|sees? (far|further)|what (it|a network|the network) sees|"
    r"such a one|misfits?|contradictions?|surveys?|hangs? together|of one's own|side by side|"
    r"besides|faults?|anew|of which|but for (the|those|these|this|what|it)|kinds)\b",
    re.IGNORECASE,
)
TEXTS = [
    *MODULES,
    *(ROOT / "scripts").glob("*.py"),
    *(path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name),
    *(ROOT / "configs").glob("*.yaml"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / ".github").glob("*.md"),
    ROOT / "README.md",
    ROOT / "data" / "README.md",
]


def test_the_words_are_those_of_the_field() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in FORBIDDEN.finditer(line.replace("_", " "))
    ]
    assert not found, "\n".join(found)
