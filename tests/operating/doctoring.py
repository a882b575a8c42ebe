"""Helpers of the doctor's tests."""

import contextlib

from agentlace.config import BrokerURL
from agentlace.operating.doctor import diagnose
from agentlace.transport.connection import Broker


class Diagnosis:
    """What the doctor says at an address."""

    def __init__(self, url, **kwargs):
        self.findings = diagnose(BrokerURL.parse(str(url)), **kwargs)

    def at(self, check):
        """Return a check's findings."""
        return [finding for finding in self.findings if finding.check == check]

    def one(self, check):
        """Return the check's only finding."""
        (finding,) = self.at(check)
        return finding

    def bad(self):
        """Return the checks that have found something wrong, in order."""
        wrong = [f.check for f in self.findings if f.status in ("warn", "fail")]
        return list(dict.fromkeys(wrong))

    def names(self, check, status, *words):
        """Check that one finding of a check has a status and these words, and says what to do."""
        for finding in self.at(check):
            text = f"{finding.found} -> {finding.remedy}"
            if finding.status == status and all(word in text for word in words):
                assert status not in ("warn", "fail") or finding.remedy, text
                return finding
        raise AssertionError(f"no {status} of {check} with {words}: {self.at(check)}")


@contextlib.contextmanager
def channel_to(url):
    with contextlib.closing(Broker(BrokerURL.parse(str(url))).channel()) as channel:
        yield channel


@contextlib.contextmanager
def setting(url, name, value):
    """Change a setting of a server for a while."""
    with channel_to(url) as channel:
        before = channel.call("CONFIG", "GET", name)[1]
        channel.call("CONFIG", "SET", name, value)
        try:
            yield
        finally:
            channel.call("CONFIG", "SET", name, bytes(before))
