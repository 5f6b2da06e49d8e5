"""Reading an edited checkpoint back: what changed against the base, of which rank, and by which heads and neurons.

docs/audit.md says how it decides, and what it cannot tell.
"""

from steer2edit.audit.applied import require_not_applied
from steer2edit.audit.audit import audit
from steer2edit.audit.change import TensorChange
from steer2edit.audit.classify import Classification
from steer2edit.audit.match import EditMatch
from steer2edit.audit.result import Audit
from steer2edit.audit.verification import Verification, verify_checkpoint

__all__ = [
    "Audit",
    "Classification",
    "EditMatch",
    "TensorChange",
    "Verification",
    "audit",
    "require_not_applied",
    "verify_checkpoint",
]
