"""AWS's own description of its services as an oracle: botocore's models, validator and serializer; event streams."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from zlib import crc32

from botocore.model import OperationModel, Shape, StructureShape
from botocore.serialize import create_serializer
from botocore.session import Session
from botocore.validate import ParamValidator

from sidecar.translate import UpstreamRequest


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of an event stream. https://smithy.io/2.0/aws/amazon-eventstream.html"""
    block = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(block) + len(payload), len(block))
    head = prelude + struct.pack(">I", crc32(prelude)) + block + payload
    return head + struct.pack(">I", crc32(head))


def event(name: str, payload: Any) -> bytes:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False).encode()
    kind = "application/octet-stream" if isinstance(payload, bytes) else "application/json"
    return message({":event-type": name, ":content-type": kind, ":message-type": "event"}, raw)


def exception(name: str, **fields: Any) -> bytes:
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return message(headers, json.dumps(fields).encode())


@lru_cache
def operation(service: str, name: str) -> OperationModel:
    return Session().get_service_model(service).operation_model(name)


def assert_takes(service: str, name: str, request: UpstreamRequest, **in_path: str) -> dict[str, Any]:
    """The request is one botocore's model takes, and its serializer would send the same path and body. Gives the
    parameters."""
    model = operation(service, name)
    shape = model.input_shape
    assert isinstance(shape, StructureShape)
    params = {**json.loads(request.body), **in_path}
    assert_fits(shape, params)
    report = ParamValidator().validate(_with_bytes(shape, params), shape)
    assert not report.has_errors(), report.generate_report()
    serialized = create_serializer("rest-json").serialize_to_request(_with_bytes(shape, params), model)
    assert serialized["url_path"] == request.path
    assert json.loads(serialized["body"]) == json.loads(request.body)
    return params


def assert_invokes(
    service: str, name: str, request: UpstreamRequest, headers: Mapping[bytes, str], **in_path: str
) -> None:
    """The same for an operation whose body is a blob: path and headers are what botocore would send."""
    model = operation(service, name)
    shape = model.input_shape
    assert isinstance(shape, StructureShape)
    params: dict[str, Any] = {**in_path, "Body" if "Body" in shape.members else "body": request.body}
    for member, inner in shape.members.items():
        header = inner.serialization.get("name", "").lower().encode()
        if header in headers:
            params[member] = headers[header]
            assert_fits(inner, headers[header], where=member)
    assert len(params) == 2 + len(headers), "a header botocore does not know"
    report = ParamValidator().validate(params, shape)
    assert not report.has_errors(), report.generate_report()
    serialized = create_serializer("rest-json").serialize_to_request(params, model)
    assert serialized["url_path"] == request.path
    assert serialized["body"] == request.body


def assert_fits(shape: Shape, value: Any, *, where: str = "") -> None:
    """What botocore leaves to the service: unknown members, unions of one, enums, patterns and lengths."""
    kind = shape.type_name
    if getattr(shape, "is_document_type", False):
        return
    if kind == "structure":
        assert isinstance(value, dict), where
        known = shape.members  # type: ignore[attr-defined]
        assert value.keys() <= known.keys(), f"{where}: unknown {sorted(value.keys() - known.keys())}"
        assert {*shape.required_members} <= value.keys(), f"{where}: lacks {shape.required_members}"  # type: ignore[attr-defined]
        if getattr(shape, "is_tagged_union", False):
            assert len(value) == 1, f"{where}: a union has one member, not {sorted(value)}"
        for name, inner in value.items():
            assert_fits(known[name], inner, where=f"{where}.{name}")
    elif kind == "list":
        assert isinstance(value, list), where
        _in_range(shape, len(value), where)
        for at, inner in enumerate(value):
            assert_fits(shape.member, inner, where=f"{where}[{at}]")  # type: ignore[attr-defined]
    elif kind == "map":
        assert isinstance(value, dict), where
        _in_range(shape, len(value), where)
        for name, inner in value.items():
            assert_fits(shape.key, name, where=where)  # type: ignore[attr-defined]
            assert_fits(shape.value, inner, where=f"{where}.{name}")  # type: ignore[attr-defined]
    elif kind == "string":
        assert isinstance(value, str), f"{where}: {value!r}"
        _in_range(shape, len(value), where)
        enum = shape.metadata.get("enum")
        assert enum is None or value in enum, f"{where}: {value!r} is none of {enum}"
        pattern = shape.metadata.get("pattern")
        if pattern and "\\p{" not in pattern:
            assert re.fullmatch(pattern, value), f"{where}: {value!r} does not match {pattern}"
    elif kind == "blob":
        assert base64.b64decode(value, validate=True) or not shape.metadata.get("min"), f"{where}: empty"
    elif kind == "boolean":
        assert isinstance(value, bool), where
    elif kind in ("integer", "long"):
        assert type(value) is int, where
        _in_range(shape, value, where)
    elif kind in ("float", "double"):
        assert isinstance(value, (int, float)), where
        assert not isinstance(value, bool), where
        _in_range(shape, value, where)
    else:
        raise AssertionError(f"{where}: a {kind}")


def _in_range(shape: Shape, size: float, where: str) -> None:
    # The model's own notes contradict the service here: stop sequences of 2500 is how many there may be.
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max", float("inf"))
    assert low <= size <= high, f"{where}: {size} is not within {low} and {high}"


def _with_bytes(shape: Shape, value: Any) -> Any:
    if getattr(shape, "is_document_type", False):
        return value
    if shape.type_name == "structure":
        return {name: _with_bytes(shape.members[name], inner) for name, inner in value.items()}  # type: ignore[attr-defined]
    if shape.type_name == "list":
        return [_with_bytes(shape.member, inner) for inner in value]  # type: ignore[attr-defined]
    return base64.b64decode(value) if shape.type_name == "blob" else value


def segment(path: str) -> str:
    """What stands, quoted, between the second and third slash."""
    return unquote(path.split("/")[2])
