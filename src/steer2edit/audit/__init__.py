"""Reading an edited checkpoint back: what changed against the base, of which rank, and by which heads and neurons.

docs/audit.md says how it decides, and what it cannot tell.
"""

from steer2edit.audit.applied import require_not_applied
from steer2edit.audit.audit import Audit, audit
from steer2edit.audit.change import TensorChange
from steer2edit.audit.classify import Classification
from steer2edit.audit.match import EditMatch
from steer2edit.audit.summary import as_json, components, site_directions, site_magnitudes, site_rows, write_directions
from steer2edit.audit.verification import Verification, verify_checkpoint

__all__ = [
    "Audit",
    "Classification",
    "EditMatch",
    "TensorChange",
    "Verification",
    "as_json",
    "audit",
    "components",
    "require_not_applied",
    "site_directions",
    "site_magnitudes",
    "site_rows",
    "verify_checkpoint",
    "write_directions",
]
