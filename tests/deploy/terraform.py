"""Parses Terraform files, and looks whether every reference in them leads to something in the same module."""

import collections
import pathlib
import re
import sys

import hcl2


def names(module):
    """What a module has, as it is referred to."""
    found = set()
    for body in module:
        for kind, first in (("variable", "var"), ("module", "module")):
            for block in body.get(kind, []):
                found.update(f"{first}.{plain(name)}" for name in block if not name.startswith("__"))
        for block in body.get("locals", []):
            found.update(f"local.{plain(name)}" for name in block if not name.startswith("__"))
        for kind, prefix in (("resource", ""), ("data", "data.")):
            for block in body.get(kind, []):
                for of_type, by_name in block.items():
                    if isinstance(by_name, dict):
                        found.update(f"{prefix}{plain(of_type)}.{plain(name)}" for name in by_name)
    return found


def plain(name):
    return name.strip('"')


def references(text):
    """References in a file's expressions: `var.x`, `local.x`, `data.type.name`, `aws_type.name`."""
    code = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    yield from re.findall(r"(?<![\w.\"])((?:var|local)\.\w+)", code)
    yield from re.findall(r"(?<![\w.\"])(data\.aws_\w+\.\w+)", code)
    yield from re.findall(r"(?<![\w.\"])(aws_\w+\.\w+)", code)
    yield from re.findall(r"\$\{((?:data\.)?aws_\w+\.\w+)", code)


def main(paths):
    # Generated files are a module each.
    modules = collections.defaultdict(list)
    for path in map(pathlib.Path, paths):
        modules[path if "generated" in path.parts else path.parent].append(path)
    for module, files in modules.items():
        texts = [path.read_text() for path in files]
        has = names([hcl2.loads(text) for text in texts])
        assert has, f"{module}: nothing was found in it"
        lost = {name for text in texts for name in references(text) if name not in has}
        if lost:
            sys.exit(f"{module}: nothing is called {sorted(lost)}; there is {sorted(has)}")
        used = {name for text in texts for name in references(text)}
        idle = {name for name in has if name.startswith(("var.", "local.")) and name not in used}
        if idle:
            sys.exit(f"{module}: nobody uses {sorted(idle)}")


main(sys.argv[1:])
