"""JSON of deployments, in the shapes that Predibase's SDK and its older releases send and read."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from manylora.control.calendar import text_of
from manylora.control.deployments.deployments import MONTH_HOURS, Deployment
from manylora.control.deployments.figures import DeploymentBill
from manylora.control.deployments.status import DeploymentState
from manylora.control.http.schemas import RequestBody, iso
from manylora.money import dollars

Json = dict[str, Any]  # JSON values of several types
MAX_DESCRIPTION = 4_096
COMPARED_DAYS = 30
"""Period of the usage by the token that is shown beside the price of a dedicated deployment."""

Kind = Literal["shared", "private", "serverless", "dedicated"]


class _DeploymentRequest(RequestBody):
    """Request about a deployment. Its `config` keeps unknown keys."""

    model_config = ConfigDict(strict=False)


class NewDeployment(_DeploymentRequest):
    name: str
    config: dict[str, Any]
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)


class ChangedDeployment(_DeploymentRequest):
    config: dict[str, Any] | None = None
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)


def deployment_json(deployment: Deployment, window: int) -> Json:
    """Return a deployment as the SDK reads it, with `statusDetail` and `hourlyPrice` of ours.

    window  context length of the base model in tokens; 0 where it is unknown
    """
    body: Json = {
        "name": deployment.name,
        "uuid": deployment.uuid,
        "description": deployment.description,
        "type": deployment.kind.value,
        "status": deployment.state.value,
        "model": {"name": deployment.base, "maxInputLength": max(0, window - 1)},
        "accelerator": {"id": deployment.accelerator},
        "currentReplicas": deployment.current_replicas,
        "config": {
            **deployment.config,
            "minReplicas": deployment.min_replicas,
            "maxReplicas": deployment.max_replicas,
            "cooldownTime": deployment.cooldown_s,
        },
        "usesGuaranteedCapacity": False,
        "hourlyPrice": price_text(deployment.hourly_nanousd),
    }
    if deployment.tenant is not None:
        body["replicas"] = [
            {"slot": each.slot, "state": each.state.value, "since": iso(each.since_ms)} for each in deployment.replicas
        ]
    if detail := deployment.status_detail:
        body["statusDetail"] = detail
    if quantization := deployment.config.get("quantization"):
        body["quantization"] = str(quantization)
    return body


def start_json(figures: DeploymentBill) -> Json:
    """Return the seconds that the last good start took, which a request to a sleeping deployment waits."""
    return {} if figures.start_ms is None else {"lastStartSeconds": figures.start_ms / 1000}


def billed_json(figures: DeploymentBill) -> Json:
    """Return the seconds that this month has billed, and their cost."""
    return {"month": text_of(figures.month), "seconds": figures.seconds, "cost": price_text(figures.cost_nanousd)}


def comparison_json(deployment: Deployment, metered_nanousd: int) -> Json:
    """Return the monthly price of a dedicated deployment beside the cost of its tenant's usage by the token."""
    return {
        "monthlyPrice": price_text(deployment.monthly_nanousd),
        "hours": MONTH_HOURS,
        "replicas": deployment.always_on,
        "meteredCost": price_text(metered_nanousd),
        "meteredDays": COMPARED_DAYS,
    }


def older_json(deployment: Deployment, tenant_number: int) -> Json:
    """Return a deployment as older releases of the SDK read it."""
    return {
        "id": deployment.number,
        "tenantID": tenant_number,
        "uuid": deployment.uuid,
        "name": deployment.name,
        "description": deployment.description,
        "modelName": deployment.base,
        "adapterName": None,
        "numShards": 1,
        "quantize": str(deployment.config.get("quantization") or ""),
        "deploymentStatus": deployment.state.value,
        "promptTemplate": "",
        "minReplicas": deployment.min_replicas,
        "maxReplicas": deployment.max_replicas,
        "created": iso(deployment.created_ms),
        "updated": iso(deployment.updated_ms),
        "createdByUserID": None,
        "scaleDownPeriod": deployment.cooldown_s,
        "isShared": deployment.tenant is None,
        **({"errorText": deployment.detail} if deployment.state is DeploymentState.ERRORED else {}),
        "dynamicAdapterLoadingEnabled": True,
    }


def price_text(nanousd: int) -> str:
    """Return an amount in dollars, exact and without trailing zeros: `1.21`."""
    return dollars(nanousd, symbol="", grouping="", least_decimals=0)
