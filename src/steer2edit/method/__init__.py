"""The paper's equations as pure functions on tensors (arXiv 2602.09870); see docs/paper-to-code.md.

The paper is `rule`; what goes beyond it is `effect`, `gate` and `curvature`.
"""
