"""Compares Terraform files with the schema of the AWS provider: that every resource and data source, every
argument and block in them exists, that nothing which is required is missing, and that what is referred to
of another one exists.

    python provider.py WHEEL FILES.tf...

The provider itself comes from a registry of its own. Its schema is also in the bindings that CDK Terrain
generates from it, `cdktn-provider-aws` on PyPI: a class for each resource and block, whose arguments are
its own. WHEEL is that package, which is read and not installed.
"""

import ast
import functools
import pathlib
import re
import sys
import zipfile

import hcl2

PACKAGE = "cdktn_provider_aws"
# What Terraform itself knows of every resource.
META = {"count", "for_each", "depends_on", "lifecycle", "provider", "provisioner"}


def plain(name):
    return name.strip('"')


class Schema:
    def __init__(self, wheel):
        self.files = zipfile.ZipFile(wheel)
        self.modules = set(name.split("/")[1] for name in self.files.namelist() if name.startswith(PACKAGE))

    @functools.cache
    def classes(self, module):
        text = self.files.read(f"{PACKAGE}/{module}/__init__.py").decode()
        return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}

    def of(self, module):
        """The class of a resource's arguments, and that of the resource."""
        classes = self.classes(module)
        wanted = module.replace("_", "")
        (own,) = [name for name in classes if name.lower() == wanted]
        return f"{own}Config", own

    def arguments(self, module, name):
        """A class's arguments: whether each must be given, and the class of the blocks that it takes."""
        functions = [node for node in self.classes(module)[name].body if isinstance(node, ast.FunctionDef)]
        (made,) = [node for node in functions if node.name == "__init__"]
        for argument, default in zip(made.args.kwonlyargs, made.args.kw_defaults):
            texts = [node.value for node in ast.walk(argument.annotation) if isinstance(node, ast.Constant)]
            block = next((text for text in texts if text in self.classes(module)), None)
            yield argument.arg, (default is None, block)

    def attributes(self, module):
        (_, own) = self.of(module)
        return {node.name for node in self.classes(module)[own].body if isinstance(node, ast.FunctionDef)}


def wrong(schema, module, name, body, where):
    """What a body has and should not, and lacks and should have."""
    arguments = dict(schema.arguments(module, name))
    given = {plain(key): value for key, value in body.items() if not key.startswith("__")}
    for dynamic in given.pop("dynamic", []):
        for label, inner in dynamic.items():
            if not label.startswith("__"):
                given.setdefault(plain(label), []).extend(inner["content"])
    for key, value in given.items():
        if key in META:
            continue
        if key not in arguments:
            yield f"{where} has no {key}"
            continue
        block = arguments[key][1]
        bodies = value if isinstance(value, list) else [value]
        for inner in bodies:
            if isinstance(inner, dict) and inner.get("__is_block__"):
                if block is None:
                    yield f"{where}.{key} is no block"
                else:
                    yield from wrong(schema, module, block, inner, f"{where}.{key}")
    for key, (required, _) in arguments.items():
        if required and key not in given:
            yield f"{where} lacks {key}"


def bodies(document):
    for kind, prefix in (("resource", ""), ("data", "data_")):
        for block in document.get(kind, []):
            for of_type, named in block.items():
                if isinstance(named, dict):
                    module = prefix + re.sub("^aws_", "" if not prefix else "aws_", plain(of_type))
                    for name, body in named.items():
                        if isinstance(body, dict):
                            yield module, f"{plain(of_type)}.{plain(name)}", body


def main():
    wheel, *paths = sys.argv[1:]
    schema, faults, looked = Schema(wheel), [], 0
    for path in map(pathlib.Path, paths):
        text = path.read_text()
        for module, where, body in bodies(hcl2.loads(text)):
            looked += 1
            if module not in schema.modules:
                faults.append(f"{path}: the provider has no {where}")
                continue
            arguments, _ = schema.of(module)
            faults.extend(f"{path}: {fault}" for fault in wrong(schema, module, arguments, body, where))
        code = re.sub(r"^\s*#.*$", "", text, flags=re.M)
        reference = r"(?<![\w\"/])(data\.)?aws_(\w+)\.\w+(?:\[[^\]]*\])?\.(\w+)"
        for data, of_type, attribute in re.findall(reference, code):
            module = f"data_aws_{of_type}" if data else of_type
            if module not in schema.modules:
                faults.append(f"{path}: the provider has no {data}aws_{of_type}")
            elif attribute not in schema.attributes(module):
                faults.append(f"{path}: {data}aws_{of_type} has no {attribute}")
    if faults or not looked:
        sys.exit("\n".join(faults) or "there is no resource in these files")
    print(looked)


if __name__ == "__main__":
    main()
