"""The refusals of a Hugging Face hub, as errors with the repository, its licence, and the token that was sent."""

from collections.abc import Iterator
from contextlib import contextmanager

from manylora.config.environment import hub_token_variable
from manylora.errors import ModelNotFound

LOGIN = "`hf auth login`"


def token_place() -> str | None:
    """Return the place of the token that the hub's client sends; None: it sends none. The token itself stays there."""
    from huggingface_hub import get_token

    if (variable := hub_token_variable()) is not None:
        return variable
    return LOGIN if get_token() else None


@contextmanager
def translated(repository: str, licence: str | None) -> Iterator[None]:
    """Turn the errors of the hub's client into `ModelNotFound`, with the remedy.

    Args:  licence  short name of the repository's licence; None: unknown here
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFound(_gated(repository, licence)) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(_not_found(repository, is_known=licence is not None)) from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        if (refused := _token_refused(repository, error)) is not None:
            raise refused from error
        raise ModelNotFound(f"a file of {repository} could not be fetched: {error}") from error
    # Any other status, a connection that fails (the client's HTTPError is its HTTP library's), or a full disk.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # imported there, not declared
        if (refused := _token_refused(repository, error)) is not None:
            raise refused from error
        raise ModelNotFound(
            f"{repository} could not be fetched: {error}. Run the same command again to go on where it stopped"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r} is not a name on the hub: {error}") from error


def _gated(repository: str, licence: str | None) -> str:
    page = f"https://huggingface.co/{repository}"
    asks = f"{repository} asks for its licence{f' ({licence})' if licence else ''} to be accepted"
    if (place := token_place()) is None:
        return f"{asks}, and no token was sent: accept it at {page} and set HF_TOKEN to a token of that account"
    return (
        f"{asks}, and the account of the token in {place} has no access: accept it at {page} with that account, wait "
        "until the publisher grants the request, and let the token read gated repositories"
    )


def _not_found(repository: str, *, is_known: bool) -> str:
    place = token_place()
    token = "no token was sent" if place is None else f"the token in {place} may have expired"
    if is_known:
        return (
            f"the hub does not show {repository}, as to an account without access to it: {token}. See "
            f"https://huggingface.co/{repository}, and set HF_TOKEN to a token of an account with access"
        )
    return f"the hub knows no model {repository}, or it is private ({token}): check the name, or set HF_TOKEN"


def _token_refused(repository: str, error: BaseException) -> ModelNotFound | None:
    """Return the error for a token that the hub refuses; None: it refused something else, or no token was sent."""
    status, place = _status(error), token_place()
    if status not in (401, 403) or place is None:
        return None
    why = "it is mistyped, expired or revoked" if status == 401 else "it may not read this repository"
    return ModelNotFound(f"the hub refuses the token in {place} for {repository} (HTTP {status}): {why}; make another")


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error or of its cause: the client hides that of a file behind its own cache."""
    while error is not None:
        if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            return int(status)
        error = error.__cause__
    return None
