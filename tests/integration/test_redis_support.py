"""That the Redis servers of the tests do what tests of the queue rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.support.redis import RedisServer, SentinelSet


def test_data_outlive_a_kill_and_go_when_asked_to(tmp_path: Path) -> None:
    with RedisServer(tmp_path, database=3) as server, server.client() as client:
        first = client.info("server")["run_id"]
        client.set("key", "value")
        server.restart()
        assert client.get("key") == "value"
        assert client.info("server")["run_id"] != first
        server.restart(keep_data=False)
        assert client.get("key") is None


def test_a_frozen_server_is_silent_and_goes_on_when_thawed(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, server.client(socket_timeout=0.2) as client:
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.thaw()
        with server.client() as patient:
            assert patient.ping()
        server.freeze()
        server.restart()
        assert client.ping()


def test_the_password_and_the_user_are_asked_for(tmp_path: Path) -> None:
    with RedisServer(tmp_path, user="app", password="s3cret/p@ss word") as server:
        with server.client() as client:
            assert client.acl_whoami() == "app"
        for wrong in ("", ":s3cret%2Fp%40ss%20word@", "app:wrong@"):
            with (
                redis.Redis.from_url(f"redis://{wrong}127.0.0.1:{server.port}") as stranger,
                pytest.raises(redis.AuthenticationError),
            ):
                stranger.ping()
        server.set_password("another")
        server.restart()
        with server.client() as client:
            assert client.acl_whoami() == "app"


def test_tls_is_spoken_under_a_certificate_of_the_own_authority_alone(tmp_path: Path) -> None:
    with RedisServer(tmp_path, tls=True, password="secret") as server:
        with server.client(ssl_check_hostname=True) as client:
            assert client.ping()
        untrusting = server.url().partition("?")[0]
        for url in (untrusting.replace("rediss:", "redis:"), untrusting):
            with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
                client.ping()


def test_the_cluster_has_all_slots_also_when_it_lost_its_data(tmp_path: Path) -> None:
    with RedisServer(tmp_path, cluster=True) as server:
        with redis.RedisCluster("127.0.0.1", server.port, decode_responses=True) as client:
            assert client.set("{bull}:key", "value")
        server.restart(keep_data=False)
        with redis.RedisCluster("127.0.0.1", server.port, decode_responses=True) as client:
            assert client.get("{bull}:key") is None
            assert client.set("another", "value")


def test_sentinel_fails_over_by_order_and_when_the_master_dies(tmp_path: Path) -> None:
    with SentinelSet(tmp_path, password="secret") as servers:
        first, second = servers.servers
        with first.client() as client:
            client.set("key", "value")
            assert client.wait(1, 10_000) == 1
        assert servers.master is first
        assert servers.failover() is second
        with second.client() as client:
            assert client.get("key") == "value"
            client.set("key", "newer")
            assert client.wait(1, 10_000) == 1
        assert servers.failover(kill=True) is first
        with first.client() as client:
            assert client.get("key") == "newer"
        second.start()  # as a replica, because Sentinel tells it to
        with first.client() as client:
            assert client.wait(1, 10_000) == 1
