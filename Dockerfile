# The image of docs/kubernetes.md. It runs as any user, writes to /data and /tmp only, and needs no shell.
FROM python:3.11-slim AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN pip install --no-cache-dir 'uv>=0.9,<1'
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-default-groups --no-install-project
COPY README.md LICENSE ./
COPY sidecar sidecar
RUN uv sync --locked --no-default-groups --no-editable && install -d -o 65532 -g 65532 /data

FROM python:3.11-slim
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /app/.venv /app/.venv
COPY --from=build --chown=65532:65532 /data /data
USER 65532:65532
WORKDIR /data
EXPOSE 4000
STOPSIGNAL SIGTERM
CMD ["sidecar", "serve", "--config", "/etc/sidecar/sidecar.yaml"]
