"""JSON Schema in the dialect a provider takes: references, nulls, unions, tuples, constants, keywords.

Neighbours: `schema_rules` (what each provider takes, as data) and the providers, which decide what a loss means. Rules:
the input is never changed; what cannot be said is reported as a path, never dropped silently; a number or a pattern
that had to go stays as words in the description; time and size are linear in the input and bounded.
https://json-schema.org/draft/2020-12/json-schema-core · https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from sidecar.errors import BadRequestError
from sidecar.translate.losses import is_asked, note
from sidecar.translate.schema_refs import (
    MAX_BRANCHES,
    MAX_DEPTH,
    SUBSCHEMA,
    SUBSCHEMA_LISTS,
    SUBSCHEMA_MAPS,
    References,
    SchemaError,
    escape,
    flatten,
    is_null,
    text_of,
    type_of,
)
from sidecar.translate.schema_rules import SchemaRules, words
from sidecar.translate.usage import NOT_JSON

MAX_KEPT = 16_384
"""Schemas up to so many bytes are remembered, the last 256: agents send the same tools with every turn."""
MAX_INLINED = 1_000_000
"""About how many characters a schema may have once its references are written out."""
SOFT_INLINED = 100_000
"""Recursive definitions are unrolled less deeply if the schema gets longer than this."""
UNROLL = 3
"""How often a recursive definition is written out within itself, at most."""

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """`schema` may share parts with the input and hold one part in several places: read it, don't change it.

    `lost` are paths (JSON pointers into the input) of what the provider will not enforce. Not losses: `oneOf` that
    became `anyOf`, `const` that became `enum`, a reference written out, annotations of no meaning to a model.
    """

    schema: Schema
    lost: tuple[str, ...] = field(default=())


def rewrite(schema: Any, rules: SchemaRules, *, tool: str = "", where: str = "schema") -> Rewritten:
    """`schema` as `rules` want it. Raises `BadRequestError` naming `tool` and `where` (the field of the request) if it
    is not a schema, refers to what is not there, or has no bounded form. The same schema again costs a look-up."""
    try:
        if not isinstance(schema, dict):
            raise SchemaError("the schema must be an object.")
        raw = _encode(schema)
        made = _rewrite(schema, rules) if len(raw) > MAX_KEPT else _rewrite_kept(raw, rules)
        if is_asked() and made.schema != schema:
            lost = f"; not enforced: {', '.join(made.lost[:20])}" if made.lost else ""
            note("schema", where, f"rewritten for {rules.vendor}{lost}")
        return made
    except SchemaError as error:
        what = str(error)
    except (*NOT_JSON, TypeError, OverflowError):
        what = "it is nested too deeply or is not valid JSON."
    name = f" of tool '{tool:.80}'" if tool else ""
    raise BadRequestError(
        f"The gateway refused the request: the schema{name} cannot be sent: {what}", code="invalid_schema", param=where
    )


_UNSAID = words(
    """$schema $id $comment $anchor $vocabulary $defs definitions id title deprecated readOnly writeOnly strict
    discriminator xml externalDocs"""
)
"""Left out without a report: they constrain nothing and tell the model nothing (or are said elsewhere)."""
_HINTS = words(
    """minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern format minItems
    maxItems uniqueItems minProperties maxProperties default examples example const enum"""
)
"""What is put into words for the model when the provider has no place for it."""
_NOTES = frozenset(("description", "title", "default", "examples", "example"))
_TYPES = frozenset(("string", "number", "integer", "boolean", "array", "object", "null"))
_BELONGS = {
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), ("string",)),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), ("number", "integer")
    ),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"), ("array",)),
    **dict.fromkeys(
        (
            *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
            *("minProperties", "maxProperties", "propertyOrdering"),
        ),
        ("object",),
    ),
}
_STRUCTURE = frozenset(("properties", "required", "items", "prefixItems", "additionalProperties"))
_NOT_PLAIN = re.compile(r"(?<!\\)[$^]|\(\?[=!]")
_encode = msgspec.json.encode


def _rewrite(schema: Schema, rules: SchemaRules) -> Rewritten:
    rewriter = _Rewriter(schema, rules)
    return Rewritten(rewriter.run(), tuple(rewriter.lost))


@lru_cache(maxsize=256)
def _rewrite_kept(raw: bytes, rules: SchemaRules) -> Rewritten:
    return _rewrite(msgspec.json.decode(raw), rules)


class _Rewriter:
    __slots__ = ("keeps_refs", "lost", "memo", "refs", "root", "rules", "size", "unroll")

    def __init__(self, root: Schema, rules: SchemaRules) -> None:
        self.root = root
        self.rules = rules
        self.refs = References(root)
        self.lost: dict[str, None] = {}
        self.memo: dict[tuple[str, int], tuple[Schema | None, int]] = {}
        self.size = 0
        self.keeps_refs = rules.keeps_refs and (rules.takes_cycles or not self.refs.cycle_of)
        self.unroll = UNROLL

    def run(self) -> Schema:
        while True:
            self.size = 0
            result = self.node(self.root, "", 0, self.unroll, "#")
            if self.size <= SOFT_INLINED or not self.refs.cycle_of or not self.unroll:
                if self.size > MAX_INLINED and self.memo:
                    raise SchemaError(f"with its references written out it is longer than {MAX_INLINED} characters.")
                break
            self.unroll -= 1
        if result is None:
            self.lost["/"] = None
            result = self.finish({"type": "object", "properties": {}}, "", {})
        if self.refs.names:
            result["$defs"] = self.definitions()
        allowed = self.rules.root_keywords
        if allowed is not None:
            for key in result.keys() - allowed:
                del result[key]
                self.lost[f"/{key}"] = None
        return result

    def reference(self, schema: Schema, path: str, depth: int, left: int, within: str) -> Schema | None:
        ref = schema["$ref"]
        target = self.refs.target(ref, f"{path}/$ref")
        siblings = {key: value for key, value in schema.items() if key != "$ref" and key not in _UNSAID}
        if self.keeps_refs:
            name = self.refs.name(ref)
            result: Schema = {"$ref": f"#/$defs/{name}"}
            self.size += 20 + len(name)
            if siblings:
                rest = self.node(siblings, path, depth + 1, left, within)
                if rest is None:
                    return None
                result = {**result, **rest} if self.rules.takes_ref_siblings else {"anyOf": [result], **rest}
            return result
        cycle = self.refs.cycle_of.get(ref)
        if cycle is not None and cycle == self.refs.cycle_of.get(within):
            left -= 1
            if left < 0:
                self.lost[f"{path}/$ref"] = None
                return None
        key = (ref, left)
        hit = self.memo.get(key)
        if hit is None:
            outer, self.size = self.size, 0
            place = ref[1:] if ref != "#" else ""
            hit = self.memo[key] = self.node(target, place, depth + 1, left, ref), self.size
            self.size = outer
        written, size = hit
        self.size += size
        if written is None or not siblings:
            return written
        rest = self.node(siblings, path, depth + 1, left, within)
        if rest is None:
            return None
        if self.rules.keywords is None:
            if rest.keys() <= _NOTES:
                return {**written, **rest}
            return {**rest, "allOf": [written, *rest.get("allOf", ())]}
        return self.finish(self.merged(written, rest, path), path, {})

    def definitions(self) -> Schema:
        result: Schema = {}
        while len(result) < len(self.refs.names):
            for ref, name in list(self.refs.names.items()):
                if name not in result:
                    place = ref[1:] if ref != "#" else ""
                    written = self.node(self.refs.targets[ref], place, 1, self.unroll, ref)
                    if written is None:
                        self.lost[place or "/"] = None
                    result[name] = {} if written is None else written
        return result

    # Nodes ----------------------------------------------------------------------------------------------------------

    def node(self, schema: Any, path: str, depth: int, left: int, within: str) -> Schema | None:
        """One schema, or `None` for one nothing can match (or whose recursion ends here)."""
        if schema is True:
            return {}
        if schema is False:
            return None
        if not isinstance(schema, dict):
            raise SchemaError(f"at {path or '/'} there is no schema (an object or a boolean).")
        if depth > MAX_DEPTH:
            raise SchemaError(f"it is nested more than {MAX_DEPTH} levels deep.")
        if "$ref" in schema:
            return self.reference(schema, path, depth, left, within)
        rules = self.rules
        keywords = rules.keywords
        out: Schema = {}
        hints: dict[str, Any] = {}
        self.size += 16 * len(schema)
        below = depth + 1
        for key, value in schema.items():
            if key == "description":
                if isinstance(value, str) and value:
                    out[key] = value
                    self.size += len(value)
            elif key == "type":
                out[key] = value
            elif key == "properties":
                out[key] = self.properties(value, path, below, left, within)
            elif key == "items" or key == "prefixItems" or key in SUBSCHEMA_LISTS or value is None:
                if value is None and (key == "const" or (key == "default" and (not keywords or key in keywords))):
                    out[key] = None
            elif key == "additionalItems" and isinstance(schema.get("items"), list):
                continue
            elif key in _UNSAID:
                if key == "title" and keywords is not None and "title" in keywords and isinstance(value, str):
                    out[key] = value
            elif keywords is not None and key not in keywords and key not in ("const", "enum"):
                if not (key == "additionalProperties" and (value is True or rules.closes_objects)):
                    self.lost[f"{path}/{escape(key)}"] = None
                    if key in _HINTS:
                        hints[key] = value
                elif value is not True and value is not False:
                    self.lost[f"{path}/{key}"] = None
            elif key in SUBSCHEMA:
                if isinstance(value, bool):
                    out[key] = value
                else:
                    sub = self.node(value, f"{path}/{key}", below, left, within)
                    out[key] = False if sub is None else sub
            elif key in SUBSCHEMA_MAPS:
                if isinstance(value, dict):
                    subs = {n: self.node(s, f"{path}/{key}/{escape(n)}", below, left, within) for n, s in value.items()}
                    out[key] = {name: False if sub is None else sub for name, sub in subs.items()}
            else:
                out[key] = value
                self.size += len(value) if isinstance(value, str) else len(text_of(value))
        if not self.arrays(schema, out, path, below, left, within):
            return None
        for key in SUBSCHEMA_LISTS:
            branches = schema.get(key)
            if branches is not None:
                merged = self.branches(key, branches, out, path, below, left, within)
                if merged is None:
                    return None
                out = merged
        return self.finish(out, path, hints)

    def properties(self, value: Any, path: str, depth: int, left: int, within: str) -> Schema:
        if not isinstance(value, dict):
            raise SchemaError(f"{path}/properties must be an object.")
        found: Schema = {}
        for name, sub in value.items():
            here = f"{path}/properties/{escape(name)}"
            self.size += len(name)
            written = self.node(sub, here, depth, left, within)
            if written is not None:
                found[name] = written
            else:
                self.lost[here] = None
        return found

    def arrays(self, schema: Schema, out: Schema, path: str, depth: int, left: int, within: str) -> bool:
        """Fills in `items` and `prefixItems`. False if the array can hold nothing that ends."""
        items, prefix = schema.get("items"), schema.get("prefixItems")
        if items is None and prefix is None:
            return True
        if isinstance(items, list):  # drafts before 2020-12
            items, prefix = schema.get("additionalItems"), items
        written = None
        if items is not None and not isinstance(items, bool):
            written = self.node(items, f"{path}/items", depth, left, within)
            if written is None:
                self.lost[f"{path}/items"] = None
                if prefix is None:
                    return False
        keywords = self.rules.keywords
        if isinstance(items, bool):
            if keywords is None:
                out["items"] = items
            elif not items and "maxItems" in keywords:
                out.setdefault("maxItems", len(prefix) if isinstance(prefix, list) else 0)
            elif not items:
                self.lost[f"{path}/items"] = None
        if written is not None:
            out["items"] = written
        if prefix is None:
            return True
        if not isinstance(prefix, list):
            raise SchemaError(f"{path}/prefixItems must be a list.")
        first = [self.node(sub, f"{path}/prefixItems/{i}", depth, left, within) for i, sub in enumerate(prefix)]
        if keywords is None or "prefixItems" in keywords:
            out["prefixItems"] = [False if sub is None else sub for sub in first]
            return True
        # The places are lost, the kinds are kept: each item is one of them.
        self.lost[f"{path}/prefixItems"] = None
        kinds: list[Schema] = []
        for sub in (*first, written):
            if sub is not None and (len(kinds) > 64 or sub not in kinds):
                kinds.append(sub)
        out.pop("items", None)
        if len(kinds) == 1:
            out["items"] = kinds[0]
        elif kinds:
            union = self.union(kinds, {}, f"{path}/prefixItems")
            out["items"] = self.finish(union, f"{path}/prefixItems", {})
        return True

    def branches(
        self, key: str, value: Any, out: Schema, path: str, depth: int, left: int, within: str
    ) -> Schema | None:
        """`out` with one of anyOf, oneOf and allOf said as the provider can."""
        here = f"{path}/{key}"
        if not isinstance(value, list):
            raise SchemaError(f"{here} must be a list.")
        keywords = self.rules.keywords
        written: list[Schema] = []
        has_null = False
        keeps_refs = self.keeps_refs
        if key == "allOf" and keywords is not None and key not in keywords:
            self.keeps_refs = False  # only what is written out can be merged
        for number, branch in enumerate(value):
            if key != "allOf" and self.rules.nulls != "type" and is_null(branch):
                has_null = True
                continue
            sub = self.node(branch, f"{here}/{number}", depth, left, within)
            if sub is None:
                if key == "allOf":
                    self.keeps_refs = keeps_refs
                    return None
            else:
                written.append(sub)
        self.keeps_refs = keeps_refs
        if key == "allOf":
            if keywords is None or key in keywords:
                return {**out, key: written}
            both: Schema = {}
            for sub in written:
                both = self.merged(both, sub, here)
            return self.merged(both, out, here)
        if has_null:
            out = self.null(out, here)
        if not written:
            return out if has_null or not value else None
        if len(written) == 1 and keywords is not None and "$ref" not in written[0]:
            return self.merged(written[0], out, here)
        if keywords is None or key in keywords:
            return {**out, key: written}
        return self.union(written, out, here)

    def null(self, out: Schema, path: str) -> Schema:
        if self.rules.nulls == "nullable":
            return {**out, "nullable": True}
        self.lost[path] = None
        return out

    def union(self, branches: list[Schema], out: Schema, path: str) -> Schema:
        """`out` narrowed to one of the (written) branches."""
        rules = self.rules
        if "anyOf" in out:
            self.lost[path] = None
            return out
        if rules.keywords is None or "anyOf" in rules.keywords:
            return {**out, "anyOf": branches}
        if all(branch.keys() <= {"enum", "type", "description"} and "enum" in branch for branch in branches):
            values = [value for branch in branches for value in branch["enum"]]
            types = {str(branch.get("type")) for branch in branches}
            if len(types) == 1:
                return {**out, **branches[0], "enum": values}
        self.lost[path] = None
        return self.merged(branches[0], out, path)

    def merged(self, under: Schema, over: Schema, path: str) -> Schema:
        """Both (written) schemas as one; `over` wins where they differ, and the loss is noted."""
        result = {**under, **over}
        for key in under.keys() & over.keys():
            one, other = under[key], over[key]
            if one == other or key in _NOTES or key == "nullable":
                continue
            if key == "properties":
                result[key] = {**one, **other}
                clash = [name for name in one.keys() & other.keys() if one[name] != other[name]]
                if clash:
                    self.lost[f"{path}/properties/{escape(min(clash))}"] = None
            elif key in ("required", "propertyOrdering"):
                result[key] = list(dict.fromkeys([*one, *other]))
            elif key == "enum":
                both = {text_of(value) for value in other}
                result[key] = [value for value in one if text_of(value) in both] or other
            else:
                self.lost[path or "/"] = None
        if "properties" in result and self.rules.orders_properties:
            result["propertyOrdering"] = list(result["properties"])
        return result

    # Single keywords ------------------------------------------------------------------------------------------------

    def finish(self, out: Schema, path: str, hints: dict[str, Any]) -> Schema:
        rules = self.rules
        keywords = rules.keywords
        if "const" in out and keywords is not None and "const" not in keywords:
            out.setdefault("enum", [out.pop("const")])
            out.pop("const", None)
        if "enum" in out:
            self.enum(out, path, hints)
        kind = out.get("type")
        if kind is None:
            if keywords is not None and ("properties" in out or "items" in out or "prefixItems" in out):
                kind = out["type"] = "object" if "properties" in out else "array"
        elif isinstance(kind, list):
            out = self.types(out, kind, path)
            kind = out.get("type")
        elif not isinstance(kind, str) or kind.lower() not in _TYPES:
            self.lost[f"{path}/type"] = None
            del out["type"]
        kind = kind.lower() if isinstance(kind, str) else ""
        if "required" in out:
            self.required(out, path)
        if kind == "object":
            if rules.closes_objects:
                if out.get("additionalProperties", False) is not False:
                    self.lost[f"{path}/additionalProperties"] = None
                out["additionalProperties"] = False
            if rules.needs_required and out.get("properties") and not out.get("required"):
                out["required"] = [next(iter(out["properties"]))]
                self.lost[f"{path}/required"] = None
            if rules.orders_properties and out.get("properties"):
                given = out.get("propertyOrdering")
                listed = [n for n in given if n in out["properties"]] if isinstance(given, list) else []
                out["propertyOrdering"] = list(dict.fromkeys([*listed, *out["properties"]]))
        elif kind == "array" and rules.needs_items and "items" not in out:
            out["items"] = {"type": "STRING" if rules.has_upper_types else "string"}
            self.lost[f"{path}/items"] = None
        if "format" in out and rules.formats is not None and str(out["format"]) not in rules.formats.get(kind, ()):
            self.lose(out, "format", path, hints)
        if "pattern" in out and not rules.takes_anchors:
            pattern = str(out["pattern"])
            plain = pattern.removeprefix("^")
            plain = plain[:-1] if plain.endswith("$") and not plain.endswith("\\$") else plain
            if _NOT_PLAIN.search(plain):
                self.lose(out, "pattern", path, hints)
            else:
                out["pattern"] = plain
        limit = rules.max_min_items
        if limit is not None and isinstance(out.get("minItems"), int) and out["minItems"] > limit:
            self.lose(out, "minItems", path, hints)
        if hints:
            said = ", ".join(f"{key}: {text_of(value)}" for key, value in hints.items())
            text = out.get("description")
            out["description"] = f"{text} ({said})"[: len(text) + 400] if text else f"({said})"[:400]
        if rules.has_upper_types and isinstance(out.get("type"), str):
            out["type"] = out["type"].upper()
        if "anyOf" in out and len(out) > 1 and not rules.takes_any_of_siblings:
            return self.alone(out, path)
        return out

    def alone(self, out: Schema, path: str) -> Schema:
        """A union that has to stand alone: what stood beside it goes into its branches."""
        branches = out.pop("anyOf")
        if not _STRUCTURE.isdisjoint(out):
            self.lost[f"{path}/anyOf"] = None  # the properties say more
            return out
        text = out.pop("description", None)
        shared = {key: value for key, value in out.items() if key not in _NOTES}
        written = []
        flat: list[Schema] = []
        flatten(branches, flat)
        if len(flat) > MAX_BRANCHES:
            self.lost[f"{path}/anyOf"] = None
            return out
        for branch in flat:
            branch = {**shared, **branch}
            if text:
                branch["description"] = f"{text} {branch['description']}" if "description" in branch else text
            written.append(branch)
        return {"anyOf": written}

    def lose(self, out: Schema, key: str, path: str, hints: dict[str, Any]) -> None:
        self.lost[f"{path}/{key}"] = None
        hints[key] = out.pop(key)

    def enum(self, out: Schema, path: str, hints: dict[str, Any]) -> None:
        rules = self.rules
        values = out["enum"]
        if not isinstance(values, list):
            raise SchemaError(f"{path}/enum must be a list.")
        if rules.enums == "any" and rules.nulls == "type":
            return
        kept: list[Any] = []
        for number, value in enumerate(values):
            if value is None and rules.nulls != "type":
                out.update(self.null({}, f"{path}/enum/{number}"))
            elif (isinstance(value, (dict, list)) and rules.enums != "any") or (
                value == "" and rules.enums == "string"
            ):
                self.lost[f"{path}/enum/{number}"] = None
            else:
                kept.append(value)
        types = list(dict.fromkeys(type_of(value) for value in kept))
        if rules.enums == "string":
            given = out.get("type")
            if types == ["boolean"] or (len(types) > 1 and given is None):
                self.lose(out, "enum", path, hints)
                if types == ["boolean"]:
                    out["type"] = "boolean"
                return
            kept = [value if isinstance(value, str) else text_of(value) for value in kept]
        if len(types) == 1 and "type" not in out:
            out["type"] = types[0]
        if kept:
            out["enum"] = kept
        else:
            del out["enum"]

    def types(self, out: Schema, kinds: list[Any], path: str) -> Schema:
        """A list of types as one type, nullable, or a union."""
        rules = self.rules
        known = [kind for kind in dict.fromkeys(map(str, kinds)) if kind in _TYPES]
        if len(known) != len(set(map(str, kinds))):
            self.lost[f"{path}/type"] = None
        if not known:
            return {key: value for key, value in out.items() if key != "type"}
        if rules.takes_type_lists and rules.nulls == "type":
            return {**out, "type": known if len(known) != 1 else known[0]}
        rest = [kind for kind in known if kind != "null"]
        out = {key: value for key, value in out.items() if key != "type"}
        if len(rest) != len(known) and rules.nulls != "type":
            out = self.null(out, f"{path}/type")
        elif len(rest) != len(known):
            rest = known
        if "anyOf" in out and len(rest) > 1:
            self.lost[f"{path}/type"] = None  # the union says more
            return out
        if len(rest) < 2:
            return {**out, "type": rest[0]} if rest else out
        common = {key: value for key, value in out.items() if key not in _BELONGS and key != "enum"}
        branches: list[Schema] = []
        for kind in rest:
            branch = {key: value for key, value in out.items() if kind in _BELONGS.get(key, ())}
            if "enum" in out:
                values = [value for value in out["enum"] if type_of(value) in (kind, "integer")]
                if not values:
                    continue
                branch["enum"] = values
            branches.append(self.finish({"type": kind, **branch}, path, {}))
        if len(branches) == 1:
            return {**common, **branches[0]}
        return self.union(branches, common, f"{path}/type") if branches else common

    def required(self, out: Schema, path: str) -> None:
        names = out["required"]
        if not isinstance(names, list):
            del out["required"]
            self.lost[f"{path}/required"] = None
            return
        properties = out.get("properties")
        if properties is None or self.rules.keywords is None:
            return
        kept = {name: None for name in names if isinstance(name, str) and name in properties}
        if len(kept) != len(names):
            for number, name in enumerate(names):
                if not isinstance(name, str) or name not in kept:
                    self.lost[f"{path}/required/{number}"] = None
            if kept:
                out["required"] = list(kept)
            else:
                del out["required"]
