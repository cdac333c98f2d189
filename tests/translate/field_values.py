"""Values of every field of OpenAI's chat request: for tests that send each field through each provider."""

from __future__ import annotations

from typing import Any

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
VALUES: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "mp3"}],
    "frequency_penalty": [0.5, -2],
    "function_call": ["none", {"name": "f"}],
    "functions": [[{"name": "f", "parameters": {}}]],
    "logit_bias": [{"50256": -100}],
    "logprobs": [True],
    "max_completion_tokens": [9],
    "max_tokens": [9],
    "messages": [
        [{"role": "developer", "content": "be brief"}, *USER],
        [*USER, {"role": "function", "name": "f", "content": "x"}],
    ],
    "metadata": [{"user_id": "u"}, {"team": "blue"}],
    "modalities": [["text", "audio"]],
    "model": [None],
    "moderation": [{"model": "omni-moderation-latest"}],
    "n": [2],
    "parallel_tool_calls": [False],
    "prediction": [{"type": "content", "content": "x"}],
    "presence_penalty": [0.5],
    "prompt_cache_key": ["k"],
    "prompt_cache_options": [{"mode": "explicit"}],
    "prompt_cache_retention": ["24h"],
    "reasoning_effort": ["low", "max"],
    "response_format": [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
    ],
    "safety_identifier": ["user-1"],
    "seed": [7],
    "service_tier": ["default", "flex", "priority"],
    "stop": ["END", ["END", "."]],
    "store": [True],
    "stream": [True],
    "stream_options": [{"include_usage": True}],
    "temperature": [0.3, 1.7],
    "tool_choice": ["required", "none", {"type": "function", "function": {"name": "f"}}],
    "tools": [[TOOL], [{"type": "custom", "custom": {"name": "c"}}]],
    "top_logprobs": [2],
    "top_p": [0.9],
    "user": ["user-1"],
    "verbosity": ["low"],
    "web_search_options": [{}, {"search_context_size": "high"}],
}  # fmt: skip
"""Values that ask for something; one that asks for what happens anyway may be left out."""
BESIDE: dict[str, dict[str, Any]] = {
    "function_call": {"functions": [{"name": "f", "parameters": {}}]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [TOOL]},
    "top_logprobs": {"logprobs": True},
}
"""What a field needs beside it to mean anything."""
