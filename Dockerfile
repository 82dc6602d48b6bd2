# One image for the API and for the workers: the command says which.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/posthouse
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN /opt/posthouse/bin/python -m pip install --quiet --require-hashes -r requirements/runtime.txt
RUN python -m pip install --quiet --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY api_app api_app
COPY worker_app worker_app
RUN python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/posthouse/bin/python -m pip install --quiet --no-deps /wheels/*.whl \
    && /opt/posthouse/bin/python -m pip uninstall --quiet --yes pip

FROM python:3.13-slim
COPY --from=build /opt/posthouse /opt/posthouse
WORKDIR /app
COPY docs docs
# Nothing is written outside /tmp, so that the root may be read-only.
ENV PATH=/opt/posthouse/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    POSTHOUSE_HOST=0.0.0.0 \
    POSTHOUSE_DATA_DIR=/tmp/posthouse
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "api_app"]
