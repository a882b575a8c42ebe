"""What is wrong between here and the broker, at the broker, and with the nodes that use it.

::

    checks.py      all checks in order, and how they are run
    findings.py    what a check says
    patient.py     what the checks look at
    reach.py       address, port
    admission.py   TLS, protocol, password
    rights.py      what the user may do
    servers.py     version, memory, buffers, disk, clock, distance
    system.py      peers, configs, versions
    streams.py     streams, consumers
    extras.py      optional parts
"""

from agentlace.operating.doctor.checks import CHECKS, Check, diagnose, examine
from agentlace.operating.doctor.findings import Finding, Status
from agentlace.operating.doctor.patient import Patient

__all__ = ["CHECKS", "Check", "Finding", "Patient", "Status", "diagnose", "examine"]
