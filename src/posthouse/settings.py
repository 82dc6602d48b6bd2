"""Every setting, read once per process by the composition roots."""

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The environment, or `.env`; names without the POSTHOUSE_ prefix are those that people know from elsewhere."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    redis_url: str = Field("redis://localhost:6379", validation_alias="REDIS_URL")
    openai_api_key: SecretStr | None = Field(None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(None, validation_alias="OPENAI_BASE_URL")
    openai_model: str = Field("gpt-4o", validation_alias="OPENAI_MODEL")
    anthropic_api_key: SecretStr | None = Field(None, validation_alias="ANTHROPIC_API_KEY")
    models_smart: str = Field("", validation_alias="POSTHOUSE_MODELS_SMART")
    models_fast: str = Field("", validation_alias="POSTHOUSE_MODELS_FAST")
    # A secret as a whole, as keys of endpoints are in it.
    endpoints: SecretStr | None = Field(None, validation_alias="POSTHOUSE_ENDPOINTS")
    prices: str = Field("", validation_alias="POSTHOUSE_PRICES")
    max_agent_iterations: int = Field(10, ge=1, le=100, validation_alias="MAX_AGENT_ITERATIONS")
    agent_timeout_seconds: float = Field(120.0, gt=0, validation_alias="AGENT_TIMEOUT_SECONDS")
    workflow_ttl_seconds: int = Field(3600, ge=1, validation_alias="WORKFLOW_TTL_SECONDS")

    host: str = Field("127.0.0.1", validation_alias="POSTHOUSE_HOST")
    hosts: str = Field("", validation_alias="POSTHOUSE_HOSTS")
    port: int = Field(8000, ge=1, le=65535, validation_alias="POSTHOUSE_PORT")
    workers: int = Field(2, ge=1, le=64, validation_alias="POSTHOUSE_WORKERS")
    worker_slots: int = Field(50, ge=1, le=1000, validation_alias="POSTHOUSE_WORKER_SLOTS")
    metrics_port: int = Field(0, ge=0, le=65535, validation_alias="POSTHOUSE_METRICS_PORT")
    data_dir: Path = Field(Path(".posthouse"), validation_alias="POSTHOUSE_DATA_DIR")
    libraries: str = Field("", validation_alias="POSTHOUSE_LIBRARIES")
    search: str = Field("corpus", validation_alias="POSTHOUSE_SEARCH")
    search_api_key: SecretStr | None = Field(None, validation_alias="POSTHOUSE_SEARCH_API_KEY")
    search_url: str | None = Field(None, validation_alias="POSTHOUSE_SEARCH_URL")
    corpus: Path = Field(Path("docs"), validation_alias="POSTHOUSE_CORPUS")
    model_wait_seconds: float = Field(
        900.0, ge=0, le=86_400, validation_alias="POSTHOUSE_MODEL_WAIT_SECONDS"
    )
    lease_seconds: float = Field(6.0, ge=0.5, le=300, validation_alias="POSTHOUSE_LEASE_SECONDS")
    drain_seconds: float = Field(20.0, ge=0, le=3600, validation_alias="POSTHOUSE_DRAIN_SECONDS")
    max_body_bytes: int = Field(1_048_576, ge=1024, validation_alias="POSTHOUSE_MAX_BODY_BYTES")
    max_output_bytes: int = Field(1_048_576, ge=1024, validation_alias="POSTHOUSE_MAX_OUTPUT_BYTES")
    max_queue: int = Field(10_000, ge=1, validation_alias="POSTHOUSE_MAX_QUEUE")
    max_queue_seconds: float = Field(3600.0, gt=0, validation_alias="POSTHOUSE_MAX_QUEUE_SECONDS")
    memory_percent: int = Field(90, ge=1, le=100, validation_alias="POSTHOUSE_MEMORY_PERCENT")
    unsafe_redis: bool = Field(False, validation_alias="POSTHOUSE_UNSAFE_REDIS")
    max_run_steps: int = Field(10_000, ge=1, validation_alias="POSTHOUSE_MAX_RUN_STEPS")
    max_run_events: int = Field(10_000, ge=10, validation_alias="POSTHOUSE_MAX_RUN_EVENTS")
    keep_alive_seconds: float = Field(
        15.0, gt=0, le=300, validation_alias="POSTHOUSE_KEEP_ALIVE_SECONDS"
    )
    log_level: str = Field(
        "info", pattern="(?i)^(debug|info|warning|error)$", validation_alias="POSTHOUSE_LOG_LEVEL"
    )


def problem_with(error: ValidationError) -> str:
    """What is wrong with the settings, in one line: `POSTHOUSE_PORT: <what>`, and so on for each."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
