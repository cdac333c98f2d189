"""Run by the interpreter that has Langfuse: its SDK tells the server at a URL of one generation, given as JSON."""

import json
import sys
from datetime import datetime

from langfuse import Langfuse, propagate_attributes


def main(url: str, told: str) -> None:
    call = json.loads(told)
    client = Langfuse(public_key="pk", secret_key="sk", base_url=url)
    who = {"user_id": call["user"], "tags": call["tags"], "metadata": call["trace_metadata"]}
    generation = {"as_type": "generation", "name": call["name"], "model": call["model"]}
    with propagate_attributes(**who), client.start_as_current_observation(**generation) as span:
        span.update(
            usage_details=call["usage"],
            cost_details=call["cost"],
            completion_start_time=datetime.fromisoformat(call["first_byte_at"]),
            metadata=call["metadata"],
        )
    client.flush()


main(*sys.argv[1:])
