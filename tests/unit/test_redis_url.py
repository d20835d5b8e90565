"""The forms of REDIS_URL that docs/queue.md lists, and messages that show no password."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudejobs.api.redis_url import RedisUrl


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"kind": "server", "hosts": (("h", 6379),), "database": 0, "tls": False}),
        ("redis://ada:pw@h:1/3", {"hosts": (("h", 1),), "username": "ada", "password": "pw", "database": 3}),
        ("redis://:pw@h", {"username": None, "password": "pw"}),
        ("redis://[::1]:7/1", {"hosts": (("::1", 7),), "database": 1}),
        ("redis://[::1]", {"hosts": (("::1", 6379),)}),
        (
            "rediss://h?ssl_ca_certs=/a/ca.crt&ssl_certfile=/c&ssl_keyfile=/k",
            {"tls": True, "options": {"ssl_ca_certs": "/a/ca.crt", "ssl_certfile": "/c", "ssl_keyfile": "/k"}},
        ),
        (
            "redis+sentinel://u:p@a,b:5/primary/2?sentinel_username=s&sentinel_password=t%40",
            {
                "kind": "sentinel",
                "hosts": (("a", 26379), ("b", 5)),
                "master": "primary",
                "database": 2,
                "options": {"sentinel_username": "s", "sentinel_password": "t@"},
            },
        ),
        ("rediss+sentinel://a/primary", {"kind": "sentinel", "tls": True, "database": 0}),
        ("redis+cluster://u:p@a:1,b", {"kind": "cluster", "hosts": (("a", 1), ("b", 6379)), "password": "p"}),
        ("rediss+cluster://a", {"kind": "cluster", "tls": True}),
    ],
)
def test_forms(url: str, expected: dict[str, Any]) -> None:
    parsed = RedisUrl.parse(url)
    assert {name: getattr(parsed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://u:hunter2@h", "must start with one of redis://, rediss://"),
        ("u:hunter2@h", "must start with one of"),
        ("", "must start with one of"),
        ("redis://u:hunter2@a,b", "names several hosts"),
        ("redis://u:hunter2@h:port", "must give each host as HOST or HOST:PORT"),
        ("redis://u:hunter2@h:0", "must give each host"),
        ("redis://u:hunter2@h:65536", "must give each host"),
        ("redis://u:hunter2@", "must give each host"),
        ("redis+cluster://u:hunter2@a,,b", "must give each host"),
        ("redis+sentinel://u:hunter2@h", "must name Sentinel's master"),
        ("redis://u:hunter2@h/x", "must end with nothing but the number of the database"),
        ("redis://u:hunter2@h/1/2", "must end with nothing but"),
        ("redis+cluster://u:hunter2@h/0", "a Cluster has only one"),
        ("redis://u:hunter2@h?ssl_ca_cert=/x", "has unknown options ssl_ca_cert; known are"),
        ("redis://u:hunter2@[::1", "must be a URL, with user and password percent-encoded"),
        ("redis://u:hunter2\u2100@h", "must be a URL, with user and password percent-encoded"),
        ("redis://u:hunter2/3@h", "must give each host"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_and_not_the_password(url: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - what is raised is documented
        RedisUrl.parse(url)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)


@given(user=st.text(max_size=20), password=st.text(min_size=1, max_size=20), database=st.integers(0, 99))
def test_logins_are_percent_encoded(user: str, password: str, database: int) -> None:
    try:
        url = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@h:1/{database}"
    except UnicodeEncodeError:
        return
    parsed = RedisUrl.parse(url)
    assert (parsed.username, parsed.password, parsed.database) == (user or None, password, database)
    assert "password" not in repr(parsed)


@given(st.text(max_size=60) | st.text(max_size=60).map(lambda rest: f"redis://u:hunter2@{rest}"))
def test_any_text_is_read_or_refused_without_showing_it(url: str) -> None:
    told = ""
    try:
        RedisUrl.parse(url)
    except ValueError as error:
        told = str(error)
    assert "hunter2" not in told
