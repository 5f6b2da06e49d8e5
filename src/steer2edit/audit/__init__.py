"""Reading an edited checkpoint back: what changed against the base, of which rank, and by which heads and neurons.

docs/audit.md says how it decides, and what it cannot tell.
"""

from steer2edit.audit.audit import Audit as Audit, audit as audit
from steer2edit.audit.change import TensorChange as TensorChange
