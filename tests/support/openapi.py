"""Holds an answer against an OpenAPI document: status, headers, content type and body must be described there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema


class Described:
    """One OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def check(self, method: str, path: str, reply: httpx.Response) -> None:
        """Fail with what the document does not say of this answer to `method` of the route `path`."""
        answers = self._document["paths"][path][method.lower()]["responses"]
        described = answers.get(str(reply.status_code)) or answers.get("default")
        assert described is not None, f"{method} {path} answers {reply.status_code}, which is not described"
        for header, words in described.get("headers", {}).items():
            found = reply.headers.get(header)
            assert found is not None or not words["required"], f"{reply.status_code} of {path} lacks {header}"
            if found is not None and words["schema"]["type"] == "integer":
                assert found.isdigit(), f"{header} of {path} is {found!r}"
        kind = reply.headers.get("content-type", "").partition(";")[0]
        content = described.get("content", {})
        assert kind in content, f"{reply.status_code} of {path} is {kind!r}, which is not described"
        if kind == "application/json":
            self.check_json(reply.json(), content[kind]["schema"])
        if kind == "text/event-stream":
            _check_events(reply.text)

    def check_json(self, value: object, schema: Mapping[str, Any]) -> None:
        """Hold a value against a schema that may refer to the document's components."""
        root = {**schema, "components": self._document["components"]}
        jsonschema.Draft202012Validator(root).validate(value)

    def error(self, status: int) -> Mapping[str, Any]:
        """Give the schema of the body of an error of this status."""
        answers = self._document["paths"]["/v1/completions"]["post"]["responses"]
        found: Mapping[str, Any] = answers.get(str(status), answers["default"])["content"]["application/json"]["schema"]
        return found


def _check_events(text: str) -> None:
    events = text.split("\n\n")
    assert events.pop() == "", "the last event is cut off"
    for event in events:
        assert event.startswith("data: "), event
        if event != "data: [DONE]":
            json.loads(event.removeprefix("data: "))
