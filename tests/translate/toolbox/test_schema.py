"""Schemas as each provider takes them; google-genai's own `Schema` judges Gemini's, jsonschema what is equivalent."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BadRequestError
from sidecar.translate.schema import rewrite
from sidecar.translate.schema_refs import MAX_DEPTH
from sidecar.translate.schema_rules import (
    BEDROCK,
    BEDROCK_NOVA,
    BEDROCK_STRICT,
    CLAUDE_STRICT,
    COHERE,
    COHERE_TOOL,
    GEMINI,
    GEMINI_JSON,
    OLLAMA,
    SchemaRules,
)

ALL = {
    "gemini": GEMINI,
    "gemini_json": GEMINI_JSON,
    "cohere": COHERE,
    "cohere_tool": COHERE_TOOL,
    "bedrock": BEDROCK,
    "bedrock_nova": BEDROCK_NOVA,
    "bedrock_strict": BEDROCK_STRICT,
    "claude_strict": CLAUDE_STRICT,
    "ollama": OLLAMA,
}
STRING = {"type": "string"}
NUMBER = {"type": "number"}


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def as_property(schema: Any, rules: SchemaRules) -> tuple[Any, list[str]]:
    """How a property of this schema is sent, and what of it was lost (paths within the property)."""
    result = rewrite({**obj(p=schema), "required": ["p"], "$defs": {"S": STRING}}, rules)
    assert result.schema["required"] == ["p"]
    return result.schema["properties"]["p"], [path.removeprefix("/properties/p") for path in result.lost]


CASES: dict[str, tuple[SchemaRules, Any, Any, list[str]]] = {
    "types in capitals": (GEMINI, {"type": "integer"}, {"type": "INTEGER"}, []),
    "a type list with null": (GEMINI, {"type": ["string", "null"]}, {"type": "STRING", "nullable": True}, []),
    "a type list (101)": (
        GEMINI,
        {"type": ["string", "number"], "minLength": 1, "minimum": 2, "description": "d"},
        {
            "anyOf": [
                {"type": "STRING", "minLength": 1, "description": "d"},
                {"type": "NUMBER", "minimum": 2, "description": "d"},
            ]
        },
        [],
    ),
    "a type list stays where it is taken": (
        GEMINI_JSON,
        {"type": ["string", "null"]},
        {"type": ["string", "null"]},
        [],
    ),
    "a type list where there are no unions": (COHERE, {"type": ["string", "number"]}, STRING, ["/type"]),
    "anyOf with null": (
        GEMINI,
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None, "title": "P"},
        {"type": "STRING", "maxLength": 3, "nullable": True, "default": None, "title": "P"},
        [],
    ),
    "a union stands alone": (
        GEMINI,
        {"description": "d", "oneOf": [STRING, obj(a=NUMBER), {"type": "null"}]},
        {
            "anyOf": [
                {"type": "STRING", "nullable": True, "description": "d"},
                {
                    "type": "OBJECT",
                    "properties": {"a": {"type": "NUMBER"}},
                    "propertyOrdering": ["a"],
                    "nullable": True,
                    "description": "d",
                },
            ]
        },
        [],
    ),
    "a union beside properties": (
        GEMINI,
        {**obj(a=STRING), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "propertyOrdering": ["a"]},
        ["/anyOf"],
    ),
    "no unions at all": (COHERE, {"anyOf": [STRING, NUMBER]}, STRING, ["/anyOf"]),
    "a union of constants": (
        COHERE,
        {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "string", "enum": ["b", "c"]}]},
        {"type": "string", "enum": ["a", "b", "c"]},
        [],
    ),
    "allOf of one": (GEMINI, {"allOf": [STRING], "description": "d"}, {"type": "STRING", "description": "d"}, []),
    "allOf of objects": (
        COHERE,
        {"allOf": [{**obj(a=STRING), "required": ["a"]}, {**obj(b=NUMBER), "required": ["b"]}]},
        {**obj(a=STRING, b=NUMBER), "required": ["a", "b"]},
        [],
    ),
    "const": (GEMINI, {"const": "x"}, {"type": "STRING", "enum": ["x"]}, []),
    "a constant number": (GEMINI, {"const": 3}, {"type": "INTEGER", "enum": ["3"]}, []),
    "a constant truth": (GEMINI, {"const": True}, {"type": "BOOLEAN", "description": "(enum: [true])"}, ["/enum"]),
    "empty enum strings (101)": (
        GEMINI,
        {"type": "string", "enum": ["", "a"]},
        {"type": "STRING", "enum": ["a"]},
        ["/enum/0"],
    ),
    "an enum of but an empty string": (GEMINI, {"type": "string", "enum": [""]}, {"type": "STRING"}, ["/enum/0"]),
    "null in an enum": (
        GEMINI,
        {"enum": ["a", None]},
        {"type": "STRING", "enum": ["a"], "nullable": True},
        [],
    ),
    "objects in an enum": (CLAUDE_STRICT, {"enum": ["a", {}]}, {"type": "string", "enum": ["a"]}, ["/enum/1"]),
    "a tuple (86)": (
        GEMINI,
        {"type": "array", "prefixItems": [STRING, NUMBER, STRING], "items": False},
        {"type": "ARRAY", "items": {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}]}, "maxItems": 3},
        ["/prefixItems"],
    ),
    "a tuple of one kind": (
        GEMINI,
        {"prefixItems": [NUMBER, NUMBER]},
        {"type": "ARRAY", "items": {"type": "NUMBER"}},
        ["/prefixItems"],
    ),
    "a tuple of old": (
        GEMINI_JSON,
        {"type": "array", "items": [STRING, NUMBER], "additionalItems": False},
        {"type": "array", "prefixItems": [STRING, NUMBER], "maxItems": 2},
        [],
    ),
    "a tuple stays where it is taken": (
        GEMINI_JSON,
        {"type": "array", "prefixItems": [STRING]},
        {"type": "array", "prefixItems": [STRING]},
        [],
    ),
    "an array without items (86)": (
        GEMINI,
        {"type": "array"},
        {"type": "ARRAY", "items": {"type": "STRING"}},
        ["/items"],
    ),
    "additionalProperties": (GEMINI, {"type": "object", "additionalProperties": True}, {"type": "OBJECT"}, []),
    "a closed object": (
        GEMINI,
        {"type": "object", "additionalProperties": False},
        {"type": "OBJECT"},
        ["/additionalProperties"],
    ),
    "a map": (
        GEMINI_JSON,
        {"type": "object", "additionalProperties": STRING},
        {"type": "object", "additionalProperties": STRING},
        [],
    ),
    "a map where objects are closed": (
        CLAUDE_STRICT,
        {"type": "object", "additionalProperties": STRING},
        {"type": "object", "additionalProperties": False},
        ["/additionalProperties"],
    ),
    "objects are closed": (
        CLAUDE_STRICT,
        obj(a=STRING),
        {**obj(a=STRING), "additionalProperties": False},
        [],
    ),
    "ranges become words": (
        CLAUDE_STRICT,
        {"type": "integer", "minimum": 1, "maximum": 9, "description": "Size"},
        {"type": "integer", "description": "Size (minimum: 1, maximum: 9)"},
        ["/minimum", "/maximum"],
    ),
    "minItems up to one": (
        CLAUDE_STRICT,
        {"type": "array", "items": STRING, "minItems": 2},
        {"type": "array", "items": STRING, "description": "(minItems: 2)"},
        ["/minItems"],
    ),
    "a format that is not known": (
        GEMINI,
        {"type": "string", "format": "email"},
        {"type": "STRING", "description": '(format: "email")'},
        ["/format"],
    ),
    "a format that is": (COHERE, {"type": "string", "format": "date"}, {"type": "string", "format": "date"}, []),
    "anchors": (COHERE, {"type": "string", "pattern": "^a+$"}, {"type": "string", "pattern": "a+"}, []),
    "look-ahead": (
        COHERE,
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "description": '(pattern: "(?=a)b")'},
        ["/pattern"],
    ),
    "something is required": (COHERE, obj(a=STRING), {**obj(a=STRING), "required": ["a"]}, ["/required"]),
    "required that is no property": (
        CLAUDE_STRICT,
        {**obj(a=STRING), "required": ["b"]},
        {**obj(a=STRING), "additionalProperties": False},
        ["/required/0"],
    ),
    "required as of old": (BEDROCK, {"type": "string", "required": True}, STRING, ["/required"]),
    "$schema and strict (101)": (
        BEDROCK,
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "strict": True, "type": "string"},
        STRING,
        [],
    ),
    "own keywords": (GEMINI, {"type": "string", "x-mine/": 1}, {"type": "STRING"}, ["/x-mine~1"]),
    "a type nobody knows": (GEMINI, {"type": "dict"}, {}, ["/type"]),
    "anything": (GEMINI, True, {}, []),
    "a reference": (GEMINI, {"$ref": "#/$defs/S", "description": "d"}, {"type": "STRING", "description": "d"}, []),
    "a reference that stays": (GEMINI_JSON, {"$ref": "#/$defs/S"}, {"$ref": "#/$defs/S"}, []),
    "a reference that stands alone": (
        GEMINI_JSON,
        {"$ref": "#/$defs/S", "description": "d"},
        {"anyOf": [{"$ref": "#/$defs/S"}], "description": "d"},
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_sent_and_what_is_lost(name: str) -> None:
    rules, schema, sent, lost = CASES[name]
    assert as_property(schema, rules) == (sent, lost)


def test_nova_takes_three_keywords_at_the_root() -> None:
    result = rewrite({**obj(a={"type": "string", "minLength": 1}), "description": "d"}, BEDROCK_NOVA)
    assert result.schema == obj(a={"type": "string", "minLength": 1})
    assert result.lost == ("/description",)


TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}},
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"name": STRING, "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
            "required": ["name"],
        }
    },
}


def depth_of(node: Any) -> int:
    return 1 + depth_of(node["properties"]["kids"]["items"]) if "kids" in node["properties"] else 1


@pytest.mark.parametrize("name", [name for name in ALL if name != "ollama"])
def test_a_recursive_definition_is_unrolled_and_ends_in_a_node_without_kids(name: str) -> None:
    result = rewrite(TREE, ALL[name])
    assert depth_of(result.schema["properties"]["root"]) == 4
    assert "/$defs/Node/properties/kids/items/$ref" in result.lost
    assert "$ref" not in json.dumps(result.schema)


def test_cycles_stay_where_they_are_taken_and_old_definitions_move() -> None:
    old = json.loads(json.dumps(TREE).replace("$defs", "definitions"))
    assert rewrite(TREE, OLLAMA).schema == TREE
    assert rewrite(old, OLLAMA).schema == TREE


def test_a_schema_that_refers_to_itself_as_a_whole() -> None:
    schema = obj(next={"$ref": "#"}, value=NUMBER)
    result = rewrite(schema, BEDROCK)
    assert result.schema["properties"]["next"]["properties"]["next"]["properties"]["value"] == NUMBER
    assert rewrite(schema, OLLAMA).schema["$defs"]["root"]["properties"]["next"] == {"$ref": "#/$defs/root"}


def test_references_into_properties_and_escaped_names() -> None:
    schema = {
        **obj(a=obj(b=STRING), c={"$ref": "#/properties/a/properties/b"}, d={"$ref": "#/$defs/x~1y%20z"}),
        "$defs": {"x/y z": NUMBER},
    }
    assert rewrite(schema, BEDROCK).schema == obj(a=obj(b=STRING), c=STRING, d=NUMBER)
    kept = rewrite(schema, OLLAMA).schema
    assert kept["properties"]["d"] == {"$ref": "#/$defs/x_y_z"}
    assert kept["$defs"] == {"b": STRING, "x_y_z": NUMBER}


def explosive(count: int, *, closes: bool) -> dict[str, Any]:
    """Every definition refers twice to the next; written out it doubles `count` times."""
    names = [f"D{i}" for i in range(count)]
    after = {name: names[(i + 1) % count] for i, name in enumerate(names)}
    defs: dict[str, Any] = {
        name: obj(a={"$ref": f"#/$defs/{after[name]}"}, b={"$ref": f"#/$defs/{after[name]}"}) for name in names
    }
    if not closes:
        defs[names[-1]] = STRING
    return {**obj(r={"$ref": "#/$defs/D0"}), "$defs": defs}


def test_references_that_explode_are_refused_and_the_tool_is_named() -> None:
    with pytest.raises(BadRequestError, match=r"tool 'boom'.*longer than") as caught:
        rewrite(explosive(30, closes=False), GEMINI, tool="boom", where="tools[3].function.parameters")
    assert caught.value.param == "tools[3].function.parameters"
    assert len(rewrite(explosive(60, closes=False), OLLAMA).schema["$defs"]) == 60


def doubling_unions(levels: int) -> dict[str, Any]:
    """Every definition is either of the next, twice, with a description that has to go into each branch."""
    names = [f"D{i}" for i in range(levels)]
    after = {name: {"$ref": f"#/$defs/{names[i + 1]}"} for i, name in enumerate(names[:-1])}
    defs: dict[str, Any] = {name: {"description": name, "anyOf": [ref, ref]} for name, ref in after.items()}
    return {**obj(r={"$ref": "#/$defs/D0"}), "$defs": {**defs, names[-1]: {"type": ["string", "number"]}}}


def test_unions_that_explode_are_left_out_or_refused() -> None:
    result = rewrite(doubling_unions(12), GEMINI)
    assert len(json.dumps(result.schema)) < 200_000
    assert "/$defs/D3/anyOf" in result.lost
    with pytest.raises(BadRequestError, match="longer than"):
        rewrite(doubling_unions(40), GEMINI)


def test_mutual_recursion_is_cut_before_it_explodes() -> None:  # edge case 64
    names = [f"D{i}" for i in range(12)]
    defs = {name: obj(**{other: {"$ref": f"#/$defs/{other}"} for other in names}) for name in names}
    result = rewrite({**obj(r={"$ref": "#/$defs/D0"}), "$defs": defs}, BEDROCK)
    assert len(json.dumps(result.schema)) < 300_000
    assert result.schema["properties"]["r"]["properties"]["D3"]["type"] == "object"


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ([], "must be an object"),
        (obj(a={"$ref": "#/$defs/none"}), "leads nowhere"),
        (obj(a={"$ref": "https://example.com/s.json"}), "not one within"),
        (obj(a={"$ref": 3}), "not one within"),
        ({**obj(a={"$ref": "#/$defs/x"}), "$defs": {"x": 3}}, "not a schema"),
        (obj(a="string"), "there is no schema"),
        ({"type": "object", "properties": []}, "must be an object"),
        (obj(a={"anyOf": {}}), "must be a list"),
        (obj(a={"enum": "a"}), "must be a list"),
        (obj(a={"prefixItems": {}}), "must be a list"),
    ],
)
def test_what_is_not_a_schema_is_refused_with_its_place(schema: Any, what: str) -> None:
    with pytest.raises(BadRequestError, match=what) as caught:
        rewrite(schema, GEMINI, tool="t", where="tools[0].function.parameters")
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("rules", ALL.values(), ids=list(ALL))
def test_depth_is_bounded(rules: SchemaRules) -> None:
    deep: Any = STRING
    for _ in range(MAX_DEPTH - 2):
        deep = {"type": "array", "items": deep}
    rewrite(obj(a=deep), rules)
    for more in (2, 5000):
        for _ in range(more):
            deep = {"type": "array", "items": deep}
        with pytest.raises(BadRequestError, match="nested"):
            rewrite(obj(a=deep), rules)


# Properties ---------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "type", "items", "x/y", "required", "$defs"]
TYPES = ["string", "number", "integer", "boolean", "array", "object", "null"]
REFS = ["#/$defs/A", "#/$defs/B", "#", "#/$defs/A/properties/a"]


class Dice(random.Random):
    """Schemas at random; hypothesis only gives the seed, which is a hundred times faster than drawing every keyword."""

    refs = REFS

    def scalar(self) -> Any:
        return self.choice([None, True, False, -3, 4, "", "a", "b"])

    def node(self, depth: int) -> Any:
        roll = self.random()
        if depth <= 0 or roll < 0.3:
            return self.choice([True, False, {"type": self.choice(TYPES)}, {"$ref": self.choice(self.refs)}])
        return self.keywords(depth)

    def keywords(self, depth: int) -> dict[str, Any]:
        def subs() -> list[Any]:
            return [self.node(depth - 1) for _ in range(self.randint(1, 3))]

        makers: dict[str, Callable[[], Any]] = {
            "type": lambda: self.choice([self.choice(TYPES), self.sample(TYPES, self.randint(1, 3))]),
            "description": lambda: self.choice("de"),
            "properties": lambda: {n: self.node(depth - 1) for n in self.sample(NAMES, self.randint(0, 3))},
            "required": lambda: self.sample(NAMES, 2),
            "items": lambda: self.node(depth - 1),
            "prefixItems": subs,
            "anyOf": subs,
            "oneOf": subs,
            "allOf": subs,
            "not": lambda: self.node(depth - 1),
            "additionalProperties": lambda: self.node(depth - 1),
            "patternProperties": lambda: {"^x": self.node(depth - 1)},
            "enum": lambda: [self.scalar() for _ in range(self.randint(1, 4))],
            "const": self.scalar,
            "minimum": lambda: self.randint(-2, 2),
            "minLength": lambda: self.randint(0, 2),
            "minItems": lambda: self.randint(0, 2),
            "pattern": lambda: self.choice(["^a", "b$", "(?=c)"]),
            "format": lambda: self.choice(["date", "email", "int32"]),
            "default": self.scalar,
            "$ref": lambda: self.choice(self.refs),
        }
        return {key: makers[key]() for key in self.sample(list(makers), self.randint(0, 5))}

    def schema(self) -> dict[str, Any]:
        first = {"properties": {"a": {"type": "string"}}, **self.keywords(2)}
        return {**self.keywords(3), "$defs": {"A": first, "B": self.node(2)}}

    def finite_schema(self) -> dict[str, Any]:
        """No definition leads back to itself (a bare loop means nothing, and validators die of it)."""
        self.refs = ["#/$defs/C"]
        a, b = self.node(2), self.node(2)
        self.refs = ["#/$defs/A", "#/$defs/B"]
        return {**self.keywords(3), "$defs": {"A": a, "B": b, "C": {"type": self.choice(TYPES)}}}


SCHEMAS = st.integers(0, 2**40).map(lambda seed: Dice(seed).schema())
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "b"])
JUNK = st.recursive(
    SCALARS | st.floats(allow_nan=False) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "anyOf", "enum", "$ref", "required", "format", "$defs", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


def nodes_of(schema: Any) -> list[dict[str, Any]]:
    """All schemas in a schema."""
    if not isinstance(schema, dict):
        return []
    found = [schema]
    for key, value in schema.items():
        if key in ("properties", "$defs", "patternProperties", "dependentSchemas"):
            found += [node for sub in value.values() for node in nodes_of(sub)]
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            found += [node for sub in value for node in nodes_of(sub)]
        elif key in ("items", "not", "additionalProperties", "contains", "if", "then", "else", "propertyNames"):
            found += nodes_of(value)
    return found


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS)
def test_only_what_the_provider_takes_is_sent(name: str, schema: dict[str, Any]) -> None:
    rules = ALL[name]
    before = copy.deepcopy(schema)
    try:
        result = rewrite(schema, rules)
    except BadRequestError as error:
        assert "leads nowhere" in error.message  # noqa: PT017 - the only excuse
        assert schema == before
        return
    assert schema == before, "the input is never changed"
    assert rewrite(before, rules) == result
    json.dumps(result.schema)
    for path in result.lost:
        assert path.startswith("/")
    for node in nodes_of(result.schema):
        if rules.keywords is not None:
            assert node.keys() <= rules.keywords | {"$ref", "$defs"}
        if not rules.takes_type_lists:
            assert not isinstance(node.get("type"), list)
        if rules.closes_objects and node.get("type") == "object":
            assert node["additionalProperties"] is False
        if "$ref" in node:
            assert rules.keeps_refs
            assert node["$ref"].removeprefix("#/$defs/") in result.schema["$defs"]
            assert rules.takes_ref_siblings or node.keys() - {"$defs"} == {"$ref"}
        if rules.enums == "string":
            assert all(isinstance(value, str) and value for value in node.get("enum", ()))
        if rules.has_upper_types and "type" in node:
            assert node["type"].isupper()
        if not rules.takes_any_of_siblings and "anyOf" in node and "properties" not in node:
            assert node.keys() == {"anyOf"}
        if "properties" in node and rules.keywords is not None:
            assert set(node.get("required", ())) <= node["properties"].keys()


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMAS)
def test_googles_own_type_takes_what_gemini_gets(schema: dict[str, Any]) -> None:
    types = pytest.importorskip("google.genai.types")
    try:
        result = rewrite({**schema, "type": "object"}, GEMINI)
    except BadRequestError:
        return
    types.Schema.model_validate(result.schema)  # unknown keys are forbidden there


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**40), instances=st.lists(JUNK, min_size=1, max_size=5))
def test_without_a_loss_the_same_values_are_valid(seed: int, instances: list[Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Dice(seed).finite_schema()
    for rules in (OLLAMA, BEDROCK):
        result = rewrite(schema, rules)
        if result.lost:
            continue
        before = jsonschema.Draft202012Validator(schema)
        after = jsonschema.Draft202012Validator(result.schema)
        for instance in instances:
            assert after.is_valid(instance) == before.is_valid(instance)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=100, deadline=None)
@given(schema=JUNK)
def test_junk_is_refused_or_sent_and_nothing_else(name: str, schema: Any) -> None:
    try:
        json.dumps(rewrite(schema, ALL[name]).schema)
    except BadRequestError as error:
        assert error.param == "schema"  # noqa: PT017


def test_a_known_schema_is_not_rewritten_again_and_never_mixed_up() -> None:
    first = rewrite(obj(a=STRING, b=NUMBER), GEMINI)
    assert rewrite(obj(a=STRING, b=NUMBER), GEMINI) is first
    assert rewrite(obj(b=NUMBER, a=STRING), GEMINI).schema["propertyOrdering"] == ["b", "a"]
    assert rewrite(obj(a=STRING, b=NUMBER), COHERE).schema["properties"] == {"a": STRING, "b": NUMBER}
