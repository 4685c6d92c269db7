"""Give git the password of a remote where nobody else can read it: every user may read a command line.

Git itself puts the URL of a remote on the command line of its transport (git-remote-https). So the URL goes without
user and password, and git asks for them: a credential helper that is named on the command line prints what stands in
its environment (gitcredentials(7)).
"""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

_USER, _PASSWORD = "OPERATIONS_CENTER_GIT_USER", "OPERATIONS_CENTER_GIT_PASSWORD"

_HELPER = f"""!f() {{ test "$1" = get && printf 'username=%s\\npassword=%s\\n' "${_USER}" "${_PASSWORD}"; }}; f"""

# An empty helper takes those of the user's configuration away.
_OPTIONS = ("-c", "credential.helper=", "-c", f"credential.helper={_HELPER}")


@dataclass(frozen=True, slots=True)
class Address:
    """A remote as git is given it, with the options and the environment that it takes."""

    remote: str
    options: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def address_of(remote: str) -> Address:
    """Take user and password out of an http(s) URL; every other remote is left as it is."""
    try:
        parts = urlsplit(remote)
    except ValueError:
        return Address(remote)
    user, found, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not found:
        return Address(remote)
    name, _, password = map(unquote, user.partition(":"))
    if not (name + password).isprintable():
        return Address(remote)
    return Address(urlunsplit(parts._replace(netloc=host)), _OPTIONS, {_USER: name, _PASSWORD: password})
