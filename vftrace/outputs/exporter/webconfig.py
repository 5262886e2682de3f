# SPDX-License-Identifier: MIT
"""Reads `--web.config.file`: TLS, client certificates and basic auth in exporter-toolkit's format.

Keys that this server cannot honour are refused, never ignored: a user who writes a cipher list into the
file must not believe that it is in force.
"""

import hashlib
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from vftrace.errors import UsageError, VftraceError
from vftrace.units import parse_duration

LOOK_SECONDS = 1.0
"""How often the files are checked for changes."""
_MAX_CACHED = 100
_BCRYPT_HASH = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}", re.ASCII)
_BCRYPT_LONGEST = 72
_DEAREST = 14

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
# Python's ssl verifies every certificate it asks for. RequestClientCert makes no difference to who is
# let in, so asking for none is the same.
_CLIENT_AUTH = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_TLS_KEYS = {
    *("cert_file", "key_file", "client_auth_type", "client_ca_file", "client_allowed_sans"),
    *("min_version", "max_version", "prefer_server_cipher_suites"),
}
_TLS_NOT_HERE = {
    *("cert", "key", "client_ca", "key_path_ref", "cert_ref", "client_ca_ref", "key_ref"),
    *("cipher_suites", "curve_preferences"),
}
_HEADERS = {
    *("Content-Security-Policy", "Strict-Transport-Security", "X-Content-Type-Options"),
    *("X-Frame-Options", "X-XSS-Protection"),
}

Complain = Callable[[str], VftraceError]


class Users:
    """The users of basic auth: name to bcrypt hash. Thread-safe."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {user: text.encode() for user, text in hashes.items()}
        # A wrong name must take as long as a wrong password. The cost stands behind `$2b$`; each step
        # doubles the time, and nobody should wait for minutes before there is a first answer.
        costs = [int(text[4:6]) for text in hashes.values()]
        self._nobody = _nobody(min(_DEAREST, max(costs))) if costs else b""
        self._salt = secrets.token_bytes(16)
        self._right: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def knows(self, user: str, password: str) -> bool:
        """Whether this password was accepted before, without bcrypt."""
        return self._mark(user, password) in self._right

    def accepts(self, user: str, password: str) -> bool:
        """Whether the password is the user's; slow on purpose, unless it was accepted before."""
        import bcrypt

        mark = self._mark(user, password)
        if mark in self._right:
            return True
        expected = self._hashes.get(user)
        secret = password.encode()
        fits = len(secret) <= _BCRYPT_LONGEST and b"\0" not in secret
        right = bcrypt.checkpw(secret if fits else b"", expected or self._nobody)
        if not (right and fits and expected is not None):
            return False
        if len(self._right) >= _MAX_CACHED:
            self._right.clear()
        self._right.add(mark)
        return True

    def remember(self, other: "Users") -> None:
        """Take over the passwords that another set of users accepted, if the hashes are the same."""
        self._salt, self._right = other._salt, other._right

    def _mark(self, user: str, password: str) -> bytes:
        # NUL cannot be in a user's name or a hash, so no two triples look alike. With the hash in it, a password that
        # was changed is unknown.
        triple = b"\0".join((user.encode(), self._hashes.get(user, b""), password.encode()))
        return hashlib.sha256(self._salt + triple).digest()


def _nobody(cost: int) -> bytes:
    import bcrypt

    return bcrypt.hashpw(secrets.token_hex().encode(), bcrypt.gensalt(cost))


class RateLimit:
    """A token bucket over all requests, as exporter-toolkit's: `burst` at once, then one each `interval_ns`."""

    def __init__(self, interval_ns: int, burst: int) -> None:
        """An interval of 0 limits nothing."""
        self._interval_ns = interval_ns
        self._burst = burst
        self._tokens = float(burst)
        self._counted_ns: int | None = None

    def allows(self, now_ns: int) -> bool:
        """Whether a request at this time (of a monotonic clock) is allowed; if so, it counts."""
        if self._interval_ns == 0:
            return True
        if self._counted_ns is not None:
            more = (now_ns - self._counted_ns) / self._interval_ns
            self._tokens = min(float(self._burst), self._tokens + more)
        self._counted_ns = now_ns
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class WebConfig(msgspec.Struct, frozen=True):
    """The settings of the file. `tls` None: plain HTTP. `allowed_sans` empty: every verified client."""

    tls: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] = frozenset()
    users: Users = msgspec.field(default_factory=lambda: Users({}))
    headers: tuple[tuple[str, str], ...] = ()
    rate_limit: RateLimit = msgspec.field(default_factory=lambda: RateLimit(0, 0))
    files: tuple[Path, ...] = ()
    """The files that it was read from: the file itself, certificates, keys."""


def read_web_config(path: Path) -> WebConfig:
    """Read the file. Raises VftraceError, one line, for any error in it."""
    import yaml

    def complain(what: str) -> VftraceError:
        return VftraceError(f"{path}: {what}")

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise complain(str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise complain("not a text file") from error
    except yaml.YAMLError as error:
        raise complain(f"not YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        # Too deep for the parser; a time stamp that is no date.
        raise complain(f"not YAML that can be read: {error}") from error
    sections = _section("the file", {} if content is None else content, complain)
    _only(
        "the file",
        sections,
        {"tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"},
        complain,
    )
    tls_section = sections.get("tls_server_config")
    server = _section("http_server_config", sections.get("http_server_config") or {}, complain)
    limit = _section("rate_limit", sections.get("rate_limit") or {}, complain)
    users = _section("basic_auth_users", sections.get("basic_auth_users") or {}, complain)
    tls, sans = None, frozenset[str]()
    if tls_section is not None:
        section = _section("tls_server_config", tls_section, complain)
        tls, sans = _tls(section, path.parent, complain)
    keys = ("cert_file", "key_file", "client_ca_file")
    named = [(tls_section or {}).get(key) for key in keys]
    files = (path, *(path.parent / name for name in named if name))
    return WebConfig(
        tls,
        sans,
        _users(users, complain),
        _headers(server, complain),
        _rate_limit(limit, complain),
        files,
    )


class WebConfigFile:
    """A web configuration that follows its files: certificates are renewed without a restart.

    `current` may be called for each connection: it checks the files once a second and reads them again if one has
    changed. While they are invalid it keeps the earlier configuration, with one line to `say`.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Raises VftraceError if the file is invalid at the start."""
        self._path = path
        self._say = say
        self._config = read_web_config(path)
        self._seen = _signature(self._config.files)
        self._next_look = time.monotonic() + LOOK_SECONDS

    def current(self) -> WebConfig:
        """Return the present configuration of the files."""
        now = time.monotonic()
        if now < self._next_look:
            return self._config
        self._next_look = now + LOOK_SECONDS
        seen = _signature(self._config.files)
        if seen == self._seen:
            return self._config
        self._seen = seen
        try:
            config = read_web_config(self._path)
        except VftraceError as error:
            self._say(f"{error}; the configuration read before stays in force")
            return self._config
        config.users.remember(self._config.users)
        self._config, self._seen = config, _signature(config.files)
        return config


def _signature(files: tuple[Path, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    """Return the inode, size and time of change of each file."""
    return tuple(_file_signature(file) for file in files)


def _file_signature(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _tls(
    section: dict[str, Any], directory: Path, complain: Complain
) -> tuple[ssl.SSLContext, frozenset[str]]:
    for key in sorted(_TLS_NOT_HERE & section.keys()):
        raise complain(f"tls_server_config: {key} is not supported here")
    _only("tls_server_config", section, _TLS_KEYS, complain)
    policy = _text(section, "client_auth_type", complain)
    ca_file = _text(section, "client_ca_file", complain)
    if policy not in _CLIENT_AUTH:
        raise complain(
            f"tls_server_config: client_auth_type {policy!r} is not supported here "
            f"(there are: {', '.join(sorted(filter(None, _CLIENT_AUTH)))})"
        )
    if ca_file and not policy:
        raise complain("tls_server_config: client_ca_file without client_auth_type")
    if _CLIENT_AUTH[policy] != ssl.CERT_NONE and not ca_file:
        raise complain(f"tls_server_config: client_auth_type {policy} without client_ca_file")
    sans = section.get("client_allowed_sans") or []
    if not isinstance(sans, list) or not all(isinstance(san, str) for san in sans):
        raise complain("tls_server_config: client_allowed_sans is not a list of names")
    if sans and _CLIENT_AUTH[policy] != ssl.CERT_REQUIRED:
        raise complain(
            "tls_server_config: client_allowed_sans needs client_auth_type "
            "RequireAndVerifyClientCert"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _version(section, "min_version", "TLS12", complain)
    context.maximum_version = _version(section, "max_version", "TLS13", complain)
    if context.minimum_version > context.maximum_version:
        raise complain("tls_server_config: min_version is above max_version")
    context.verify_mode = _CLIENT_AUTH[policy]
    _load(context, section, directory, complain)
    return context, frozenset(sans)


def _load(
    context: ssl.SSLContext, section: dict[str, Any], directory: Path, complain: Complain
) -> None:
    names = {
        key: _text(section, key, complain) for key in ("cert_file", "key_file", "client_ca_file")
    }
    for key in ("cert_file", "key_file"):
        if not names[key]:
            raise complain(f"tls_server_config: {key} is missing")
    paths = {key: directory / name for key, name in names.items() if name}
    for key, path in paths.items():
        try:
            path.read_bytes()
        except OSError as error:
            raise complain(f"tls_server_config: {key}: {path}: {error.strerror}") from error
    try:
        # OpenSSL would prompt for a password on the terminal; the format has no place for one.
        context.load_cert_chain(paths["cert_file"], paths["key_file"], password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise complain(
            f"tls_server_config: {paths['cert_file']} and {paths['key_file']} are not a certificate "
            f"and its key: {error}"
        ) from error
    if "client_ca_file" in paths:
        try:
            context.load_verify_locations(cafile=paths["client_ca_file"])
        except (ssl.SSLError, OSError) as error:
            raise complain(
                f"tls_server_config: {paths['client_ca_file']} holds no certificate: {error}"
            ) from error


def _version(
    section: dict[str, Any], key: str, otherwise: str, complain: Complain
) -> ssl.TLSVersion:
    name = _text(section, key, complain) or otherwise
    if name not in _VERSIONS:
        raise complain(f"tls_server_config: {key} {name!r} is not one of {', '.join(_VERSIONS)}")
    return _VERSIONS[name]


def _users(section: dict[str, Any], complain: Complain) -> Users:
    for user, text in section.items():
        if not isinstance(text, str) or not _BCRYPT_HASH.fullmatch(text):
            raise complain(
                f"basic_auth_users: the value of {user!r} is not a bcrypt hash "
                "(htpasswd -nBC 10 USER makes one)"
            )
    return Users(section)


def _headers(section: dict[str, Any], complain: Complain) -> tuple[tuple[str, str], ...]:
    # http2 only allows it; this server speaks HTTP/1 and every client can.
    _only("http_server_config", section, {"http2", "headers"}, complain)
    headers = _section("headers", section.get("headers") or {}, complain)
    _only("http_server_config: headers", headers, _HEADERS, complain)
    for name, value in headers.items():
        if not isinstance(value, str) or not (value.isprintable() and value.isascii()):
            raise complain(f"http_server_config: headers: {name} is not a line of ASCII text")
    return tuple(headers.items())


def _rate_limit(section: dict[str, Any], complain: Complain) -> RateLimit:
    _only("rate_limit", section, {"interval", "burst"}, complain)
    interval, burst = section.get("interval", 0), section.get("burst", 0)
    if type(burst) is not int or burst < 0:
        raise complain(f"rate_limit: burst {burst!r} is not a number of requests")
    try:
        # Go's durations have a unit, but for 0.
        if interval != 0 and not (isinstance(interval, str) and interval[-1:].isalpha()):
            raise UsageError(f"not a duration: {interval!r}")
        interval_ns = parse_duration(str(interval))
    except UsageError:
        raise complain(
            f"rate_limit: interval {interval!r} is not a duration (such as 1s)"
        ) from None
    if interval_ns and not burst:
        raise complain("rate_limit: an interval without a burst would refuse every request")
    return RateLimit(interval_ns, burst)


def _section(name: str, content: object, complain: Complain) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise complain(f"{name} is not a set of keys and values")
    return content


def _only(name: str, section: dict[str, Any], known: set[str], complain: Complain) -> None:
    for key in section:
        if key not in known:
            raise complain(f"{name}: {key!r} is not known (there are: {', '.join(sorted(known))})")


def _text(section: dict[str, Any], key: str, complain: Complain) -> str:
    value = section.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise complain(f"tls_server_config: {key} is not text")
    return value
