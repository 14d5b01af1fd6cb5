"""The checks of .ci/clients."""

import copy
import pathlib
import re
import sys

import tree_sitter_dart
import tree_sitter_javascript
import tree_sitter_swift
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tree_sitter import Language, Parser

PARSERS = {
    name: Parser(Language(grammar.language()))
    for name, grammar in [
        ("swift", tree_sitter_swift),
        ("javascript", tree_sitter_javascript),
        ("dart", tree_sitter_dart),
    ]
}
OPENAPI = "docs/clients-openapi.yaml"


def bad_lines(language, code):
    """The lines that the grammar does not know, and those where it misses something."""
    nodes = [PARSERS[language].parse(code.encode()).root_node]
    lines = []
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            lines.append(node.start_point[0])
        elif node.has_error:
            nodes.extend(node.children)
    return sorted(lines)


def problems_of_openapi(document):
    """The complaints about the document itself, and about its examples."""
    found = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
    components = document["components"]
    schema = {"$ref": "#/components/schemas/DeviceCheckProblem", "components": components}
    for name, response in components["responses"].items():
        for code, example in response["content"]["application/problem+json"]["examples"].items():
            errors = Draft202012Validator(schema).iter_errors(example["value"])
            found += [f"{name}, {code}: {error.message}" for error in errors]
            if example["value"]["code"] != code:
                found.append(f"{name}, {code}: another code in the example")
    return found


planted = {"swift": "func f( {", "javascript": "const x = ;", "dart": "void f( {"}
for language, code in planted.items():
    assert bad_lines(language, code), f"{language}: the planted error was not found"
openapi = yaml.safe_load(pathlib.Path(OPENAPI).read_text())
unauthorized = ("responses", "DeviceCheckUnauthorized")
example = ("content", "application/problem+json", "examples", "refused_token", "value")
for path, value in [((*unauthorized, "description"), None), ((*unauthorized, *example, "status"), "401")]:
    broken = copy.deepcopy(openapi)
    parent = broken["components"]
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    assert problems_of_openapi(broken), f"{path}: the planted error was not found"

failed = False
for file in [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").glob("*.md"))]:
    text = file.read_text()
    counts = dict.fromkeys(PARSERS, 0)
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, code = block.groups()
        if language not in PARSERS:
            continue
        counts[language] += 1
        first = text.count("\n", 0, block.start(2)) + 1
        for line in bad_lines(language, code):
            print(f"{file}:{first + line}: not {language}: {code.splitlines()[line]}")
            failed = True
    if any(counts.values()):
        print(f"{file}:", ", ".join(f"{count} {name}" for name, count in counts.items() if count))
for problem in problems_of_openapi(openapi):
    print(f"{OPENAPI}: {problem}")
    failed = True
print(f"{OPENAPI}: {len(openapi['components']['responses'])} responses")
sys.exit(failed)
