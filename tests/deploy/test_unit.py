"""The systemd unit: every directive with its value against the manual, systemd's own check, and its settings."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from manylora.config.settings import load_config
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "manylora.service"
BOOLEAN, NAMES, SECONDS, COUNT = r"yes|no", r"[\w.-]+( [\w.-]+)*", r"\d+", r"\d+|infinity"
DIRECTIVES = {
    "Unit": {"Description": r".+", "Documentation": r"(https?|man):\S+", "After": NAMES, "Wants": NAMES},
    "Service": {
        "LoadCredential": r"[\w.-]+:/\S+",
        "ExecStart": r"/\S+( \S+)*",
        "EnvironmentFile": r"-?/\S+",
        "Environment": r"[A-Z_]+=\S+",
        "DynamicUser": BOOLEAN,
        "StateDirectory": r"[\w-]+",
        "StateDirectoryMode": r"0[0-7]{3}",
        "CacheDirectory": r"[\w-]+",
        "KillMode": r"control-group|mixed|process|none",
        "TimeoutStopSec": SECONDS,
        "Restart": r"no|always|on-success|on-failure|on-abnormal|on-abort|on-watchdog",
        "RestartSec": SECONDS,
        "LimitNOFILE": COUNT,
        "LimitMEMLOCK": COUNT,
        "NoNewPrivileges": BOOLEAN,
        "ProtectSystem": r"yes|no|full|strict",
        "ProtectHome": r"yes|no|read-only|tmpfs",
        "PrivateTmp": BOOLEAN,
        "ProtectKernelTunables": BOOLEAN,
        "ProtectKernelModules": BOOLEAN,
        "ProtectControlGroups": BOOLEAN,
        "RestrictSUIDSGID": BOOLEAN,
        "RestrictAddressFamilies": r"AF_\w+( AF_\w+)*",
        "LockPersonality": BOOLEAN,
        "CapabilityBoundingSet": r"(CAP_\w+( CAP_\w+)*)?",
        "SystemCallArchitectures": r"native",
    },
    "Install": {"WantedBy": NAMES},
}
"""Directives with the form of their values. Source: systemd.unit(5), systemd.service(5), systemd.exec(5)."""


def faults(text: str) -> list[str]:
    """The lines of a unit that are no directive of their section, or have a value of another form."""
    section, found = "", []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        name, _, value = line.partition("=")
        form = DIRECTIVES.get(section, {}).get(name)
        if form is None or not re.fullmatch(form, value):
            found.append(line)
    return found


def test_each_directive_of_the_unit_is_one_with_a_value_of_its_form() -> None:
    text = UNIT.read_text(encoding="utf-8")
    assert faults(text) == []
    wrong = text.replace("DynamicUser=yes", "DynamicUsers=yes").replace("KillMode=mixed", "KillMode=some")
    assert faults(wrong) == ["DynamicUsers=yes", "KillMode=some"]
    assert re.findall(r"^\[(\w+)\]$", text, re.MULTILINE) == list(DIRECTIVES)


def test_the_state_and_the_cache_of_the_unit_are_where_its_settings_have_them() -> None:
    text = UNIT.read_text(encoding="utf-8")
    own = dict(re.findall(r"^Environment=(MANYLORA_\w+)=(\S+)$", text, re.MULTILINE))
    config = load_config(environ=own)
    [state], [cache] = (re.findall(rf"^{kind}Directory=(.+)$", text, re.MULTILINE) for kind in ("State", "Cache"))
    assert Path(config.control.dir).is_relative_to(f"/var/lib/{state}")
    assert Path(config.metering.dir).is_relative_to(f"/var/lib/{state}")
    assert config.model.cache_dir == f"/var/cache/{cache}"
    [stop_s] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop_s) > config.server.drain_s


def test_the_unit_hands_its_settings_to_a_user_without_rights() -> None:
    """The user of `DynamicUser` reads no file of root; `%d` is the folder of the copies that systemd makes for it."""
    text = UNIT.read_text(encoding="utf-8")
    [command] = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    given = re.findall(r"^LoadCredential=([^:]+):", text, re.MULTILINE)
    paths = [word for word in command.split()[1:] if "/" in word]
    assert "DynamicUser=yes" in text
    assert paths == [f"%d/{name}" for name in given]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Machines without systemd, such as those of CI, have the check of each directive above."""
    analyze = shutil.which("systemd-analyze")
    text = UNIT.read_text(encoding="utf-8")
    there = text.replace("/opt/manylora/bin/manylora", str(Path(sys.executable).with_name("manylora")))
    assert there != text
    if analyze is None:
        return
    unit = tmp_path / UNIT.name
    unit.write_text(there)
    found = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (found.returncode, [line for line in found.stderr.splitlines() if UNIT.name in line]) == (0, [])
