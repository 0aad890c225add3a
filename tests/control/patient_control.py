"""`manylora control` whose connections have ten minutes to end after its first signal."""

import runpy

from manylora.control.process import run
from tests.forks import COMMAND

MODULE = "tests.control.patient_control"

if __name__ == "__main__":
    run.CLOSE_WAIT_S = 600
    runpy.run_module(COMMAND, run_name="__main__")
