"""Addresses of several servers."""

import pytest

from agentlace.config import BrokerURL


@pytest.mark.parametrize(
    ("text", "nodes", "master", "shown"),
    [
        (
            "redis+cluster://h1:7001,h2,[::1]:3",
            (("h1", 7001), ("h2", 6379), ("::1", 3)),
            "",
            "redis+cluster://h1:7001,h2:6379,[::1]:3",
        ),
        (
            "redis+sentinel://robot:s%40cret@h1:1,h2/my%20name/2?ns=lab",
            (("h1", 1), ("h2", 26379)),
            "my name",
            "redis+sentinel://robot:***@h1:1,h2:26379/my%20name/2?ns=lab",
        ),
        (
            "rediss+cluster://:s%40cret@h1?ssl_ca_certs=ca.pem",
            (("h1", 6379),),
            "",
            "rediss+cluster://:***@h1:6379",
        ),
    ],
)
def test_addresses(text, nodes, master, shown, monkeypatch):
    monkeypatch.delenv("AGENTLACE_NAMESPACE", raising=False)
    url = BrokerURL.parse(text)
    assert (url.nodes, url.master, str(url)) == (nodes, master, shown)
    assert (url.host, url.port) == nodes[0]
    assert url.has_replicas and not url.is_local
    assert (url.is_cluster, url.has_sentinels) == ("cluster" in text, "sentinel" in text)
    assert url.has_tls == text.startswith("rediss")
    assert "s@cret" not in repr(url)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redis+cluster://", "node 1 is no host and port"),
        ("redis+cluster://h1:1,,h2", "node 2 is no host and port"),
        ("redis+cluster://u:geheim@h1:1,h2:geheim", "node 2 is no host and port"),
        ("redis+cluster://h1/3", "database 3 of a cluster"),
        ("redis+sentinel://h1:1", "under which its sentinels know it"),
        ("redis+sentinel://h1/name/x", "bad port or database number"),
        ("redis+nobody://h1", "use one of redis://"),
    ],
)
def test_bad_addresses(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        BrokerURL.parse(text)
    assert "geheim" not in str(caught.value)


def test_the_sentinels_password_is_another_one(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTLACE_PASSWORD", "the broker's")
    monkeypatch.setenv("AGENTLACE_SENTINEL_PASSWORD", "the sentinels'")
    url = BrokerURL.parse("redis+sentinel://h1/name?sentinel_username=watch&ssl_ca_certs=x")
    assert (url.password, url.sentinel_password) == ("the broker's", "the sentinels'")
    assert (url.sentinel_username, url.options) == ("watch", (("ssl_ca_certs", "x"),))
    assert "sentinels'" not in repr(url) + str(url)
    assert BrokerURL.parse("redis://h1").sentinel_password is None
    (tmp_path / "password").write_text("from a file\n")
    monkeypatch.delenv("AGENTLACE_SENTINEL_PASSWORD")
    monkeypatch.setenv("AGENTLACE_SENTINEL_PASSWORD_FILE", str(tmp_path / "password"))
    assert BrokerURL.parse("redis+sentinel://h1/name").sentinel_password == "from a file"
