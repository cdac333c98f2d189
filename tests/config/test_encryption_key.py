"""A key too short to seal with is a fault of the configuration, not a stack trace at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.support import faults_of


@pytest.mark.parametrize(("length", "count"), [(15, 1), (16, 0)])
def test_an_encryption_key_has_at_least_16_characters(tmp_path: Path, length: int, count: int) -> None:
    key = "k" * length
    faults = faults_of(tmp_path, f"store: {{encryption_key: {key}}}\n")
    assert len(faults) == count
    for fault in faults:
        assert fault.startswith("sidecar.yaml:1:25: must have at least 16 characters")
        assert key not in fault
