"""Files this package reads and writes: steering vectors, edits as PEFT adapters, edited checkpoints.

docs/formats.md specifies them. Everything is written completely or not at all, read back and checked.
"""

from steer2edit.artifacts.atomic import (
    atomic_directory as atomic_directory,
    atomic_file as atomic_file,
    require_free as require_free,
)
from steer2edit.artifacts.checkpoints.base import open_base as open_base
from steer2edit.artifacts.checkpoints.checkpoint import (
    apply_to_files as apply_to_files,
    verify_checkpoint as verify_checkpoint,
)
from steer2edit.artifacts.edits.adapter import (
    load_edit as load_edit,
    load_members as load_members,
    read_members as read_members,
    save_combined as save_combined,
    save_edit as save_edit,
)
from steer2edit.artifacts.edits.hub import push as push
from steer2edit.artifacts.exports.export import export_edit as export_edit
from steer2edit.artifacts.manifest import (
    CheckpointManifest as CheckpointManifest,
    EditManifest as EditManifest,
    package_versions as package_versions,
    read_manifest as read_manifest,
)
from steer2edit.artifacts.official import load_official_edit as load_official_edit
from steer2edit.artifacts.vector_files.block_files import save_block_vectors as save_block_vectors
from steer2edit.artifacts.vector_files.vectors import (
    VectorSource as VectorSource,
    load_vectors as load_vectors,
    read_vectors as read_vectors,
    save_vectors as save_vectors,
)
