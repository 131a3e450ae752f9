"""What the built documentation must hold: run by ``tox run -e docs`` after the build, without the package installed."""

import ast
import re
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "docs"


def modules_of_the_reference() -> list[str]:
    """Return the modules whose docstrings docs/reference.md shows."""
    return re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)


def exported_names(module: str) -> list[str]:
    """Return the names in the `__all__` of *module*, with the module's before them."""
    path = ROOT / "src" / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(target, ast.Name) and target.id == "__all__":
                return [f"{module}.{name}" for name in ast.literal_eval(statement.value)]
    return []


def names_in_the_site() -> set[str]:
    """Return the names that the site describes, by its inventory."""
    _, _, compressed = (SITE / "objects.inv").read_bytes().partition(b"zlib.\n")
    return {line.split(maxsplit=1)[0] for line in zlib.decompress(compressed).decode().splitlines()}


def loaded_from_elsewhere() -> set[str]:
    """Return what a reader's browser would load from other servers."""
    loads = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")
    return {url for page in SITE.glob("**/*.html") for url in loads.findall(page.read_text(encoding="utf-8"))}


def main() -> None:
    """Exit with an error if a public name isn't described, or a page loads anything from elsewhere."""
    public = {name for module in ("sqlaudit", *modules_of_the_reference()) for name in exported_names(module)}
    if missing := public - names_in_the_site():
        sys.exit(f"The reference doesn't describe {', '.join(sorted(missing))}; give docstrings, or add the module.")
    if elsewhere := loaded_from_elsewhere():
        sys.exit(f"The site loads from elsewhere: {', '.join(sorted(elsewhere))}")


if __name__ == "__main__":
    main()
