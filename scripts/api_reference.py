"""How does docs/api.md come about? It is made of the OpenAPI document that the daemon serves.

    python -m scripts.api_reference            writes docs/api.md
    python -m scripts.api_reference --check    exit status 1 where that would change it

What it says is changed in modeld/httpapi/openapi.json, and this is run again; tests/test_api_reference.py compares the two.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from modeld import errors
from modeld.httpapi.description import document

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "api.md"
METHODS = ("get", "post", "delete")

INTRO = """\
# API reference

Every route with its parameters, body, answers and error codes. This page is made of the OpenAPI document that the daemon serves
at `/openapi.json`, by `python -m scripts.api_reference`; it is not written by hand. What the routes mean together is told in
[http.md](http.md) and [switching.md](switching.md); what to do about an error, in [troubleshooting.md](troubleshooting.md).
"""

Json = dict[str, Any]

GROUPS: tuple[tuple[str, Callable[[str, Json], bool]], ...] = (
    ("any", lambda _, __: True),
    ("all that need a key", lambda _, operation: operation.get("security") != []),
    ("POST", lambda method, _: method == "post"),
)


def reference() -> str:
    """The page."""
    described = document("")
    book = _Book(described)
    return "\n".join(_tidied(book.lines())) + "\n"


class _Book:
    def __init__(self, described: Json) -> None:
        self.described = described
        self.parts: Json = described["components"]
        self.operations = [
            (method, path, item[method], item["parameters"])
            for path, item in described["paths"].items()
            for method in METHODS
            if method in item
        ]
        # What many have in common is said once: who refuses, which operations, and the codes by status.
        self.groups: list[tuple[str, Callable[[str, Json], bool], dict[str, set[str]]]] = []
        for told, belongs in GROUPS:
            members = [(method, operation) for method, _, operation, _ in self.operations if belongs(method, operation)]
            found: dict[str, set[str]] = {}
            for status in {status for _, operation in members for status in operation["responses"]}:
                each = [
                    self.codes(one["responses"].get(status, {})) - self.common(method, one, status) for method, one in members
                ]
                if shared := set.intersection(*each):
                    found[status] = shared
            self.groups.append((told, belongs, found))

    def common(self, method: str, operation: Json, status: str) -> set[str]:
        return {code for _, belongs, found in self.groups if belongs(method, operation) for code in found.get(status, ())}

    # -- the page, from top to bottom

    def lines(self) -> Iterator[str]:
        yield INTRO
        yield from self.contents()
        yield from self.all_routes()
        for tag in self.described["tags"]:
            yield f"## {tag['name'].capitalize()}"
            yield f"{tag['description']}."
            for method, path, operation, shared in self.operations:
                if tag["name"] in operation["tags"]:
                    yield from self.operation(method, path, operation, shared)
        yield from self.error_codes()
        yield from self.header_fields()
        yield "## Shapes"
        yield "Of bodies, answers and events. A member that is not marked as required may be absent or null."
        for name, schema in self.parts["schemas"].items():
            yield from self.shape(name, schema)

    def contents(self) -> Iterator[str]:
        yield "| route | | scope |"
        yield "|---|---|---|"
        for method, path, operation, _ in self.operations:
            title = f"{method.upper()} {path}"
            yield f"| [`{title}`](#{_anchor(title)}) | {_cell(operation['summary'])} | {self.scope(operation)} |"
        yield ""

    def all_routes(self) -> Iterator[str]:
        yield "## All routes"
        for sentence_group in _paragraphs(self.described["info"]["description"]):
            yield sentence_group
            yield ""
        schemes = self.parts["securitySchemes"].values()
        yield "A key is sent as " + ", or ".join(_scheme(scheme) for scheme in schemes) + "."
        yield ""
        yield "| parameter | where | takes | meaning |"
        yield "|---|---|---|---|"
        yield self.parameter(self.parts["parameters"]["requestId"])
        yield ""
        yield "These refusals are common to many routes; what else one refuses stands with it."
        yield ""
        yield "| routes | status | codes |"
        yield "|---|---|---|"
        for told, _, found in self.groups:
            for status in sorted(found):
                yield f"| {told} | {status} | {_codes(found[status])} |"
        yield ""

    def operation(self, method: str, path: str, operation: Json, shared: list[Json]) -> Iterator[str]:
        title = f"{method.upper()} {path}"
        yield f"### {title}"
        yield f"{operation['summary']}. {operation.get('description', '')}".strip()
        yield ""
        parameters = [self.resolved(one) for one in [*shared, *operation.get("parameters", ())]]
        parameters = [one for one in parameters if one["name"] != "X-Request-Id"]
        if parameters:
            yield "| parameter | where | takes | meaning |"
            yield "|---|---|---|---|"
            yield from (self.parameter(one) for one in parameters)
            yield ""
        body = operation.get("requestBody")
        if body is not None:
            content = body["content"]["application/json"]
            yield f"Body{'' if body.get('required') else ' (may be empty)'}: {self.type(content['schema'])}"
            yield ""
        yield from self.example(method, path, body)
        yield "| status | answer | |"
        yield "|---|---|---|"
        for status, answer in operation["responses"].items():
            answer = self.resolved(answer)
            codes, common = self.codes(answer), self.common(method, operation, status)
            if codes and codes <= common:
                continue
            yield f"| {status} | {self.answer(answer, codes - common)} | {_cell(answer['description'])} |"
        yield ""

    def error_codes(self) -> Iterator[str]:
        yield "## Error codes"
        yield f"The body of an error is {self.type({'$ref': '#/components/schemas/Error'})}. Messages are examples."
        yield ""
        yield "| code | status | type | message |"
        yield "|---|---|---|---|"
        for code, example in self.parts["examples"].items():
            error = example["value"]["error"]
            statuses = {
                status
                for _, _, operation, _ in self.operations
                for status, answer in operation["responses"].items()
                if code in self.codes(answer)
            } or {str(_status(code))}
            yield f"| `{code}` | {', '.join(sorted(statuses))} | `{error['type']}` | {_cell(error['message'])} |"
        yield ""

    def header_fields(self) -> Iterator[str]:
        yield "## Header fields of answers"
        yield "| field | takes | meaning |"
        yield "|---|---|---|"
        for name, header in self.parts["headers"].items():
            yield f"| `{name}` | {self.type(header['schema'])} | {_cell(header['description'])} |"
        yield ""

    def shape(self, name: str, schema: Json) -> Iterator[str]:
        yield f"### {name}"
        if "description" in schema:
            yield f"{schema['description']}."
            yield ""
        if "properties" not in schema:
            variants = [one for one in schema.get("anyOf", ()) if "properties" in one]
            for number, variant in enumerate(variants):
                yield f"{'Either' if number == 0 else 'Or'}"
                yield ""
                yield "| member | takes | meaning |"
                yield "|---|---|---|"
                yield from self.members(variant)
                yield ""
            if "allOf" not in schema and not variants:
                yield f"{_upper(self.type({key: value for key, value in schema.items() if key != 'description'}))}."
                yield ""
        else:
            yield "| member | takes | meaning |"
            yield "|---|---|---|"
            yield from self.members(schema)
            yield ""
        if "allOf" in schema:
            others = ", ".join(self.type(one) for one in schema["allOf"])
            yield f"{'And all' if 'properties' in schema else 'All'} members of {others}."
            yield ""
        if "oneOf" in schema and "properties" in schema:
            yield from self.events(schema["oneOf"])

    def members(self, schema: Json, before: str = "") -> Iterator[str]:
        """One row each, those of objects within it included."""
        for name, member in schema["properties"].items():
            needed = "; required" if name in schema.get("required", ()) and not before else ""
            default = f"; default `{json.dumps(member['default'])}`" if member.get("default") is not None else ""
            yield f"| `{before}{name}` | {self.type(member)}{default}{needed} | {_cell(member.get('description', ''))} |"
            inner = member.get("items", member)
            if "properties" in inner:
                yield from self.members(inner, f"{before}{name}{'[]' if inner is not member else ''}.")

    def events(self, kinds: list[Json]) -> Iterator[str]:
        """The names of events and the shapes of their data."""
        if "event" not in kinds[0].get("properties", {}):
            return
        yield "| event | data |"
        yield "|---|---|"
        for kind in kinds:
            told = kind["properties"]
            yield f"| `{told['event']['const']}` | {self.type(told['data']['contentSchema'])} |"
        yield ""

    # -- parts of rows

    def resolved(self, part: Json) -> Json:
        while "$ref" in part:
            _, group, name = part["$ref"].rsplit("/", 2)
            part = self.parts[group][name]
        return part

    def scope(self, operation: Json) -> str:
        asked = operation.get("security", self.described["security"])
        return f"`{next(iter(asked[0].values()))[0]}`" if asked else "none"

    def codes(self, answer: Json) -> set[str]:
        return set(self.resolved(answer).get("content", {}).get("application/json", {}).get("examples", ()))

    def parameter(self, one: Json) -> str:
        needed = "; required" if one.get("required") else ""
        return f"| `{one['name']}` | {one['in']} | {self.type(one['schema'])}{needed} | {_cell(one.get('description', ''))} |"

    def answer(self, answer: Json, codes: set[str]) -> str:
        said = []
        for media, content in answer.get("content", {}).items():
            schema = content.get("schema", {})
            kinds = [one for one in schema.get("anyOf", [schema]) if not one.get("$ref", "").endswith("/Error")]
            if kinds and kinds != [{}]:
                named = " or ".join(self.type(one) for one in kinds)
                said.append(named if media == "application/json" else f"{named} as `{media}`")
            elif not codes:
                said.append(f"`{media}`")
        if codes:
            said.append(_codes(codes))
        return "; ".join(said)

    def example(self, method: str, path: str, body: Json | None) -> Iterator[str]:
        shown = body["content"]["application/json"].get("example") if body is not None else None
        url = "localhost:8080" + re.sub(r"\{op_id\}", "op-9f3f70a470c2776a", re.sub(r"\{model_id\}", "demo-calc", path))
        command = (
            ("curl -N" if path == "/events" else "curl -s") + (f" -X {method.upper()}" if method == "delete" else "") + f" {url}"
        )
        if method == "post":
            command += " -H 'Content-Type: application/json'"
            command += f" -d '{json.dumps(shown)}'" if shown is not None else " -d '{}'"
        yield "```console"
        yield f"$ {command}"
        yield "```"

    def type(self, schema: Json, depth: int = 0) -> str:
        """What a schema takes, in words; `depth`: how many of its own kind it stands in, whose table it has not."""
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            return f"[{name}](#{_anchor(name)})"
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return " or ".join(_literal(value) for value in schema["enum"])
        for several in ("anyOf", "oneOf"):
            if several in schema and "properties" not in schema:
                return " or ".join(dict.fromkeys(self.type(one, depth + 1) for one in schema[several]))
        if "allOf" in schema:
            return " and ".join(self.type(one) for one in schema["allOf"])
        kinds = schema.get("type", "anything")
        named = [self.kind(kind, schema, depth) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
        return " or ".join(named)

    def kind(self, kind: str, schema: Json, depth: int) -> str:
        match kind:
            case "array":
                low, high = schema.get("minItems"), schema.get("maxItems")
                number = {(True, True): f"{low} .. {high} ", (False, True): f"up to {high} ", (True, False): ""}
                if low is not None and low == high:
                    number[True, True] = f"{low} "
                if high == 0:
                    return "empty array"
                count = number.get((low is not None, high is not None), "")
                if not schema.get("items"):
                    return f"array of {count}".strip() if count else "array"
                return f"array of {count}{self.type(schema['items'], depth)}"
            case "integer" | "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum"))
                high = schema.get("maximum", schema.get("exclusiveMaximum"))
                above = "above " if "exclusiveMinimum" in schema else ""
                if low is None and high is None:
                    return kind
                if high is None:
                    return f"{kind} from {above}{low}"
                return f"{kind} {above}{low} .. {high}" if low is not None else f"{kind} up to {high}"
            case "string":
                low, high = schema.get("minLength"), schema.get("maxLength")
                if high is not None:
                    return f"string of {low or 0} .. {high} characters"
                if "contentSchema" in schema:
                    return f"JSON of {self.type(schema['contentSchema'])}"
                return "string that is not empty" if low else "string"
            case "object" if isinstance(schema.get("additionalProperties"), dict):
                return f"object of {self.type(schema['additionalProperties'])} each"
            case "object" if "properties" in schema and depth:
                return "object with " + ", ".join(f"`{name}`" for name in schema["properties"])
            case _:
                return kind


def _status(code: str) -> int:
    """Of an error that no route answers with: a path's own."""
    return next(kind.status for kind in (errors.MethodNotAllowed, errors.NotFound) if kind.code == code)


def _scheme(scheme: Json) -> str:
    return "`Authorization: Bearer KEY`" if scheme["type"] == "http" else f"`{scheme['name']}: KEY`"


def _literal(value: object) -> str:
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f'`"{value}"`'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _codes(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in sorted(codes))


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _paragraphs(text: str) -> Iterator[str]:
    """Sentences, three a paragraph: what is one text in the document."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", text)
    for first in range(0, len(sentences), 3):
        yield " ".join(sentences[first : first + 3])


def _tidied(lines: Iterable[str]) -> Iterator[str]:
    """A blank line after headings and before fences and tables, never two in a row."""
    previous = ""
    for line in "\n".join(lines).split("\n"):
        opens = line.startswith("#") or (line.startswith("|") and not previous.startswith("|"))
        if previous and (opens or previous.startswith("#")):
            yield ""
        if line or previous:
            yield line
        previous = line


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--check", action="store_true", help="change nothing; exit status 1 where the page is not current")
    check = flags.parse_args().check
    made = reference()
    if check and (not TARGET.exists() or TARGET.read_text() != made):
        print("docs/api.md is not what modeld/httpapi/openapi.json says: run python -m scripts.api_reference")
        return 1
    if not check:
        TARGET.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
