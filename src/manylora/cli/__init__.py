"""The command `manylora`: one file for each verb. Heavy imports happen inside the verbs."""

import contextlib
import sys
from typing import NoReturn

import typer

from manylora import __version__
from manylora.cli.bases import bases
from manylora.cli.bench import bench
from manylora.cli.billing.budgets import budgets
from manylora.cli.billing.deployments import deployments
from manylora.cli.billing.export import export_usage
from manylora.cli.billing.invoices import invoices
from manylora.cli.billing.wallet import wallet
from manylora.cli.billing.webhooks import webhooks
from manylora.cli.catalogue.apply import apply, export
from manylora.cli.catalogue.migrate_from import migrate_from
from manylora.cli.catalogue.promotion import promote  # noqa: F401  # it adds verbs to `rollout`
from manylora.cli.catalogue.rollout import rollout
from manylora.cli.cluster import cluster
from manylora.cli.control import control
from manylora.cli.cost import cost
from manylora.cli.generate import generate
from manylora.cli.operate.doctor import doctor
from manylora.cli.plan import plan
from manylora.cli.pull import pull
from manylora.cli.remote.account import account
from manylora.cli.remote.adapters import adapters
from manylora.cli.remote.audit import audit
from manylora.cli.remote.keys import keys
from manylora.cli.remote.ledger import ledger
from manylora.cli.remote.limits import limits
from manylora.cli.remote.prices import prices
from manylora.cli.remote.repos import repos
from manylora.cli.remote.tenants import tenants
from manylora.cli.remote.usage import invoice, usage
from manylora.cli.serve import engine, serve
from manylora.config.renames import current_words
from manylora.errors import ManyloraError
from manylora.system.failures import described
from manylora.system.printable import printable_lines
from manylora.system.standard_streams import make_streams_lenient, open_missing_streams, output_lost

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve thousands of LoRA fine-tunes of one base model from one shared set of processors.",
)
SERVE, ACCOUNT, OPERATE = "Serve and measure", "Your account on a server", "Operate a server"

for _verb in (serve, engine, generate, bases, pull, plan, bench, cost, migrate_from):
    app.command(rich_help_panel=SERVE)(_verb)
app.add_typer(account, name="account", rich_help_panel=ACCOUNT)
app.add_typer(repos, name="repos", rich_help_panel=ACCOUNT)
app.add_typer(rollout, name="rollout", rich_help_panel=ACCOUNT)
app.add_typer(deployments, name="deployments", rich_help_panel=ACCOUNT)
app.command(rich_help_panel=ACCOUNT)(usage)
app.command(rich_help_panel=ACCOUNT)(invoice)
app.add_typer(wallet, name="wallet", rich_help_panel=ACCOUNT)
app.add_typer(budgets, name="budgets", rich_help_panel=ACCOUNT)
app.add_typer(webhooks, name="webhooks", rich_help_panel=ACCOUNT)
app.add_typer(invoices, name="invoices", rich_help_panel=ACCOUNT)
app.add_typer(ledger, name="ledger", rich_help_panel=ACCOUNT)
app.add_typer(prices, name="prices", rich_help_panel=ACCOUNT)
app.add_typer(keys, name="keys", rich_help_panel=ACCOUNT)
app.add_typer(limits, name="limits", rich_help_panel=ACCOUNT)
app.command(rich_help_panel=ACCOUNT)(audit)
app.command(rich_help_panel=OPERATE)(apply)
app.command(rich_help_panel=OPERATE)(export)
app.command(rich_help_panel=OPERATE)(export_usage)
app.add_typer(tenants, name="tenants", rich_help_panel=OPERATE)
app.add_typer(adapters, name="adapters", rich_help_panel=OPERATE)
app.add_typer(control, name="control", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(doctor)
app.add_typer(cluster, name="cluster", rich_help_panel=OPERATE)


@app.callback(invoke_without_command=True)
def about(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"manylora {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. A failure that the user can fix is printed as one line, not as a traceback."""
    open_missing_streams()
    make_streams_lenient()
    try:
        app(args=current_words(sys.argv[1:]))
    except SystemExit as ending:
        if (lost := output_lost()) is not None and not ending.code:
            _end(lost)
        raise
    except ManyloraError as error:
        _end(error.message)
    except Exception as error:
        line = output_lost(error) or described(error)
        if line is None:
            raise
        _end(line)


def _end(message: str) -> NoReturn:
    """Print the error, if it can be printed, and exit."""
    with contextlib.suppress(OSError):
        typer.echo(f"manylora: {printable_lines(message)}", err=True)
    sys.exit(1)
