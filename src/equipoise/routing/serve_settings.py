"""What `equipoise route serve` can be told; each setting once, for the command line and for Python."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

OnFailure = Literal["error", "local", "upstream"]


def _none(typed: Any) -> Any:
    return None if typed == "none" else typed


class ServeSettings(BaseModel):
    """The settings of a server. Raises pydantic's ValidationError for an unknown name and a value outside its range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    router: Path = Field(description="The folder that route fit wrote.")
    model: str = Field(
        description="The local model, whose states the router reads: a name, folder, GGUF file or hub id."
    )
    upstream: str = Field(description="The address of the strong model's API, such as https://api.openai.com/v1.")
    budget: Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_none)] = Field(
        0.3,
        description="Most calls of the upstream a request, at every moment. none: the router's own threshold decides alone.",
    )
    burst: float = Field(64.0, ge=4, le=1e9, description="Most calls beyond the budget among any requests in a row.")
    on_failure: OnFailure = Field(
        "error",
        description="What a side that fails before its answer begins is replaced by: error tells the client, local answers "
        "what the upstream did not, upstream forwards what the local model could not, within the budget.",
    )
    host: str = Field("127.0.0.1", description="The address to listen on; 0.0.0.0 for every network of this machine.")
    port: int = Field(8000, ge=0, le=65535, description="The port to listen on; 0 for a free one.")
    name: str = Field("equipoise", min_length=1, description="The name of the model that clients are told.")
    upstream_model: str | None = Field(
        None, description="The name that the upstream knows its model by; without, the client's own goes on unchanged."
    )
    upstream_key_env: str = Field(
        "OPENAI_API_KEY",
        description="The environment variable that holds the upstream's key; none is sent without one.",
    )
    upstream_timeout: float = Field(
        120.0, gt=0, le=86400, description="Seconds to wait for each next part of the upstream's answer."
    )
    client_key_env: str | None = Field(
        None,
        description="The environment variable that holds the key that clients must send; without, none is asked for.",
    )
    account: Path = Field(
        Path("equipoise-out/route-serve/account.json"),
        description="Where the account of calls is kept over restarts; calls that another budget allowed count, too.",
    )
    max_tokens: int = Field(2048, ge=1, description="Most tokens of a local answer.")
    temperature: float = Field(0.0, ge=0, le=2, description="Of local answers to requests that name none; 0 is greedy.")
    at_once: int = Field(16, ge=1, description="Local answers that are written at once.")
    max_requests: int = Field(256, ge=1, description="Requests that are worked on at once; more are answered with 503.")
    max_body: int = Field(8 * 2**20, ge=1024, description="Most bytes of a request.")
    open_metrics: bool = Field(False, description="Tell /metrics and /decisions to other machines, too.")
    drain: float = Field(60.0, ge=0, le=3600, description="Seconds that answers on their way are given at the end.")
    device: str = Field("auto", description="Where the local model computes: auto, cpu, cuda or mps.")
    dtype: str = Field("auto", description="The precision of its weights: auto, float32, bfloat16 or float16.")
    chat_template: str = Field("auto", description="auto, none, or the path of a Jinja file.")
    revision: str | None = Field(None, description="The revision of a model from the hub.")
    trust_remote_code: bool = Field(False, description="Let code run that comes with the model.")
