"""Run by the interpreter that has Lunary: its SDK tells the server at a URL of one call and of one that failed."""

import json
import sys
import time

import lunary


def main(url: str, told: str) -> None:
    call = json.loads(told)
    lunary.config(app_id="a-key", api_url=url)
    lunary.track_event("llm", "start", run_id=call["id"], name=call["model"], user_id=call["user"], tags=call["tags"])
    lunary.track_event("llm", "end", run_id=call["id"], token_usage=call["usage"])
    lunary.track_event("llm", "start", run_id=call["failed_id"], name=call["model"])
    lunary.track_event("llm", "error", run_id=call["failed_id"], error={"message": call["why"]})
    time.sleep(3)  # its thread sends every half second and has no flush


main(*sys.argv[1:])
