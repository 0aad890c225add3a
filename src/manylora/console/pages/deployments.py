"""Deployments: the shared one of each base and the tenant's own, with the state of each replica."""

from fastapi import APIRouter
from starlette.responses import Response

from manylora.console.page import OwnPage
from manylora.console.visitors import ROOT

router = APIRouter(prefix=f"{ROOT}/deployments")


@router.get("")
async def deployments(page: OwnPage) -> Response:
    found = (await page.api.get("/v2/deployments"))["data"]
    return page.render(
        "deployments.html",
        own=[each for each in found if "replicas" in each],
        shared=[each for each in found if "replicas" not in each],
        hourly=(await page.api.get("/v1/prices"))["deployment_hourly_nanousd"],
    )
