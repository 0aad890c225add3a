"""`manylora doctor`: the checks of a machine and its surroundings before a start, each with what to do."""

import json as json_text
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.cli.operate.findings import Finding, State
from manylora.cli.options import BasesOption, ConfigOption, JsonTextOption, SetOption
from manylora.cli.remote.output import say

if TYPE_CHECKING:
    from manylora.config.settings import Config


def doctor(
    base: BasesOption = None,
    control_alone: Annotated[
        bool, typer.Option("--control", help="Check for `manylora control`, which runs without an engine.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json: JsonTextOption = False,
) -> None:
    """Check whether a server with these settings would start here, and say what to do where it would not.

    It takes the settings of `serve`. Nothing is changed, fetched or left behind. The exit code is 1 if a check failed;
    a warning does not change it.
    """
    from manylora.cli.settings import configuration

    given = configuration(
        config,
        set_ or (),
        {"model.base": base[0] if base else None, "model.more_bases": tuple(base[1:]) if base else None},
    )
    findings = [check(given) for check in checks(alone=control_alone)]
    is_well = all(finding.state is not State.FAILED for finding in findings)
    if json:
        fields = [{name: str(getattr(each, name)) for name in Finding.__slots__} for each in findings]
        typer.echo(json_text.dumps({"ok": is_well, "checks": fields}, indent=2))
    else:
        width = max(len(finding.check) for finding in findings)
        for each in findings:
            say(f"{each.state:<7}  {each.check:<{width}}  {each.found}")
            if each.remedy:
                say(f"{'':<7}  {'':<{width}}  → {each.remedy}")
    if not is_well:
        raise typer.Exit(1)


def checks(*, alone: bool) -> list[Callable[["Config"], Finding]]:
    """Return the checks of a server; with `alone`, those of a control plane without an engine."""
    from manylora.cli.operate.machine_checks import check_compiler, check_disk, check_instruction_set, check_memory
    from manylora.cli.operate.service_checks import check_clock, check_database, check_port, check_stores

    def port(config: "Config") -> Finding:
        return check_port(config, alone=alone)

    everywhere: list[Callable[[Config], Finding]] = [port, check_clock, check_disk, check_database]
    if alone:
        return everywhere
    return [check_compiler, lambda config: check_instruction_set(), check_memory, *everywhere, check_stores]
