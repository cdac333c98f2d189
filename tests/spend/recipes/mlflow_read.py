"""Run by the interpreter that has MLflow: what its client reads back of an experiment, as JSON, once it has so many
spans or has not got them in a minute."""

import json
import sys
import time

import mlflow
from mlflow.tracking import MlflowClient


def main(url: str, experiment: str, spans: str) -> None:
    mlflow.set_tracking_uri(url)
    for _ in range(60):
        found = MlflowClient().search_traces([experiment], max_results=500)
        if sum(len(trace.data.spans) for trace in found) >= int(spans):
            break
        time.sleep(1)
    print(
        json.dumps(
            [
                {
                    "id": trace.info.trace_id,
                    "state": str(trace.info.state.value),
                    "tokens": trace.info.token_usage,
                    "cost": trace.info.cost,
                    "metadata": trace.info.trace_metadata,
                    "tags": trace.info.tags,
                    "spans": [
                        {
                            "id": span.span_id,
                            "name": span.name,
                            "type": span.span_type,
                            "status": str(span.status.status_code.value),
                            "why": span.status.description,
                            "started_ns": span.start_time_ns,
                            "ended_ns": span.end_time_ns,
                            "model": span.model_name,
                            "provider": span.get_attribute("mlflow.llm.provider"),
                            "cost": span.llm_cost,
                            "attributes": span.attributes,
                        }
                        for span in trace.data.spans
                    ],
                }
                for trace in found
            ]
        )
    )


main(*sys.argv[1:])
